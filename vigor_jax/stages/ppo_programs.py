"""The device programs of PPO, for a plan: sampling and training share the devices, each with its weights."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.models.lora import add_lora, lora_paths
from vigor_jax.models.value_head import ValueHead
from vigor_jax.models.vlm import abstract_model, param_paths
from vigor_jax.parallel.sharding import check_batch_divides
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.stages.ppo_update import PpoRows, ppo_loss, score_responses
from vigor_jax.stages.programs import (
    NUM_UPDATES,
    Cost,
    Program,
    Target,
    Work,
    array,
    bytes_held,
    for_inference,
    on_mesh,
    tree_rows,
    update_flops,
)
from vigor_jax.stages.sample import sampling_cost, sampling_programs
from vigor_jax.training.flops import forward_flops
from vigor_jax.training.train_step import (
    Weights,
    abstract_state,
    learning_rate,
    make_optimizer,
    make_train_step,
    merge_params,
    partition_params,
    trained_in,
)


def programs(stage: str, config: PpoConfig, target: Target) -> Iterator[Program]:
    """Prefill, decoding, the pass that scores responses (the reference's is the same), and the update.

    Args:
      stage: the stage's name.
      config: settings.
      target: what they are compiled for.

    Raises:
      InputError: a batch does not fit the mesh.
    """
    model, mesh, dtype = target.model, target.training_mesh, target.dtype
    check_batch_divides(config.minibatch, mesh, config.accumulate)
    whole = abstract_model(model, dtype=dtype)
    if config.lora:
        add_lora(whole, config.lora, dtype=dtype)
    trained = trained_in(param_paths(nnx.state(whole)).keys(), config)
    head: frozenset[str] = frozenset()
    if config.baseline == "value":
        head = frozenset({"value_head.kernel", "value_head.bias"})
        whole.value_head = nnx.eval_shape(lambda: ValueHead(model.text.hidden_size, dtype=jnp.float32))
    graphdef, params, frozen = partition_params(on_mesh(whole, mesh), trained | head)
    masters: Any = {path: jax.ShapeDtypeStruct(w.shape, jnp.float32, sharding=w.sharding) for path, w in params.items()}
    optimizer = make_optimizer(config, NUM_UPDATES)
    state = abstract_state(masters, optimizer, mesh)
    new = lora_paths(trained)  # the reference has no adapter
    reference = bytes_held({path: weight for path, weight in params.items() if path not in new | head})
    held = bytes_held((state, frozen))

    sampler = for_inference(model, dtype, target.inference_mesh, config.lora)
    yield from sampling_programs(stage, config.sampling, sampler, target, held_by_others=held + reference)

    sampling_weights = bytes_held(nnx.state(sampler))
    answers = config.sampling.num_candidates * min(config.sampling.max_new_tokens, target.sizes.response)
    num_places = -(-answers // config.bucket) * config.bucket
    length = -(-(target.sizes.prompt + answers) // config.bucket) * config.bucket

    def of_tokens(rows: int) -> TreeRows:
        return tree_rows(model, mesh, rows, length, num_places)

    def score(params: Weights, frozen: Weights, rows: TreeRows) -> Any:
        rounded = {path: weight.astype(dtype) for path, weight in params.items()}
        return score_responses(merge_params(graphdef, rounded | frozen), rows)

    def lower_score() -> Any:
        with jax.set_mesh(mesh):
            return jax.jit(score).lower(masters, frozen, of_tokens(at_once))

    def lower_update() -> Any:
        numbers = array(mesh, (config.minibatch, num_places), jnp.float32)
        each = array(mesh, (config.minibatch,), jnp.float32)
        rows = PpoRows(
            of_tokens(config.minibatch), numbers, numbers, numbers, numbers, numbers,
            kl_factor=each, is_old=array(mesh, (config.minibatch,), jnp.bool_),
        )  # fmt: skip
        step: Any = make_train_step(
            graphdef, state, optimizer, learning_rate(config, NUM_UPDATES), config, dtype, ppo_loss
        )
        with jax.set_mesh(mesh):
            return step.lower(state, frozen, rows)

    at_once = config.minibatch // config.accumulate
    passed = bytes_held((masters, frozen))
    others = sampling_weights + reference
    flops = forward_flops(model, rows=at_once, tokens=at_once * length, images=at_once)
    yield Program(stage, "score", lower_score, flops, passed, at_once, length, held_by_others=others + held - passed)
    flops = update_flops(config, model, examples=config.minibatch, tokens=config.minibatch * length)
    yield Program(stage, "update", lower_update, flops, held, config.minibatch, length, held_by_others=others)


def cost(config: PpoConfig, work: Work, programs: Sequence[Cost]) -> tuple[int, float]:
    """Iterations, and seconds of all programs, for all images."""
    images = work.images * config.epochs
    _, seconds = sampling_cost(config.sampling, images, work, programs)
    by_name = {each.name: each for each in programs}
    seconds += 2 * math.ceil(images / by_name["score"].rows) * by_name["score"].seconds
    seconds += config.ppo_epochs * math.ceil(images / by_name["update"].rows) * by_name["update"].seconds
    return math.ceil(images / config.batch_size), seconds
