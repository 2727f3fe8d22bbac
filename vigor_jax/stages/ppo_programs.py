"""The device programs of PPO, for a plan: sampler, judges, learner and reference share the devices."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.models.lora import add_lora, lora_paths
from vigor_jax.models.vlm import abstract_model, param_paths
from vigor_jax.parallel.sharding import check_batch_divides
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.stages.ppo_learner import hand_over
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
from vigor_jax.stages.sample import sampling_programs, share_of_steps
from vigor_jax.training.flops import forward_flops
from vigor_jax.training.heads import head_paths, with_abstract_head
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


def programs(stage: str, config: PpoConfig, target: Target, judges: Iterable[Program] = ()) -> Iterator[Program]:
    """The weights' way to the sampler, prefill, decoding, judging, the pass that scores responses, and the update.

    The reference's pass over responses takes no more than the policy's, which is the one here.

    Args:
      stage: the stage's name.
      config: settings.
      target: what they are compiled for.
      judges: programs of the streams that judge. Their weights stay on the devices, as all others do.

    Raises:
      InputError: a batch does not fit the mesh.
    """
    model, mesh, dtype = target.model, target.training_mesh, target.dtype
    check_batch_divides(config.minibatch, mesh, config.accumulate, name="ppo.minibatch")
    whole = abstract_model(model, dtype=dtype)
    if config.lora:
        add_lora(whole, config.lora, dtype=dtype)
    trained = trained_in(param_paths(nnx.state(whole)).keys(), config)
    head: frozenset[str] = frozenset()
    if config.baseline == "value":
        head = head_paths("value_head")
        with_abstract_head(whole, "value_head")
    graphdef, params, frozen = partition_params(on_mesh(whole, mesh), trained | head)
    masters: Any = {path: jax.ShapeDtypeStruct(w.shape, jnp.float32, sharding=w.sharding) for path, w in params.items()}
    optimizer = make_optimizer(config, NUM_UPDATES)
    state = abstract_state(masters, optimizer, mesh)
    new = lora_paths(trained) if target.adapter is None else frozenset()  # which the reference does not have
    sampler = for_inference(model, dtype, target.inference_mesh, config.lora)

    judges = list(judges)
    learning, sampling = bytes_held((state, frozen)), bytes_held(nnx.state(sampler))
    reference = bytes_held({path: weight for path, weight in params.items() if path not in new | head})
    resident = learning + reference + sampling + sum(judge.held for judge in judges)

    given = {path: weight for path, weight in masters.items() if path not in head}
    yield _hand_over(stage, config, given, nnx.state(sampler), mesh, resident)
    yield from sampling_programs(stage, config.sampling, sampler, target, held_by_others=resident - sampling)
    for judge in judges:
        yield dataclasses.replace(judge, held_by_others=judge.held_by_others + resident - judge.held)

    answers = config.sampling.num_candidates * min(config.sampling.max_new_tokens, target.sizes.response)
    num_places = _round_up(answers, config.bucket)
    length = _round_up(target.sizes.prompt + answers - config.sampling.num_candidates, config.bucket)

    def of_tokens(rows: int) -> TreeRows:
        return tree_rows(model, mesh, rows, length, num_places)

    def score(params: Weights, frozen: Weights, rows: TreeRows) -> Any:
        rounded = {path: weight.astype(dtype) for path, weight in params.items()}
        return score_responses(merge_params(graphdef, rounded | frozen), rows)

    def lower_score() -> Any:
        with jax.set_mesh(mesh):
            return jax.jit(score, out_shardings=NamedSharding(mesh, P())).lower(masters, frozen, of_tokens(at_once))

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

    at_once, passed = config.minibatch // config.accumulate, bytes_held((masters, frozen))
    flops = forward_flops(model, rows=at_once, tokens=at_once * length, images=at_once)
    yield Program(stage, "score", lower_score, flops, passed, at_once, length, held_by_others=resident - passed)
    flops = update_flops(config, model, examples=config.minibatch, tokens=config.minibatch * length)
    others = resident - learning
    yield Program(stage, "update", lower_update, flops, learning, config.minibatch, length, held_by_others=others)


def _hand_over(
    stage: str, config: PpoConfig, params: Weights, sampler: nnx.State, mesh: Mesh, resident: int
) -> Program:
    """The trained weights on their way: the sampler's old ones are there until it has the new ones, which are there
    twice if they are split in another way."""
    to_sampler = hand_over(sampler, params, mesh)
    moved = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to_sampler.shardings[path])
        for path, x in to_sampler.converted.items()
        if not x.sharding.is_equivalent_to(to_sampler.shardings[path], len(x.shape))
    }

    def lower() -> Any:
        with jax.set_mesh(mesh):
            return to_sampler.convert.lower(params)

    held = bytes_held(params)
    others = resident - held + bytes_held(moved)
    return Program(stage, "hand-over", lower, 0.0, held, config.batch_size, 0, held_by_others=others)


def _round_up(length: int, bucket: int) -> int:
    return -(-length // bucket) * bucket


def cost(config: PpoConfig, work: Work, programs: Sequence[Cost]) -> tuple[int, float]:
    """Iterations, and seconds of all programs, for all images that `limit` leaves.

    The last response of an iteration is reckoned to be as long as it can be, and all wait for it; so are the rows of
    updates. Images that fill no iteration are left out, as in a run.
    """
    by_name = {each.name: each for each in programs}
    prefill, decode = by_name.pop("prefill"), by_name.pop("decode")
    turns = max(1.0, config.batch_size * config.sampling.num_candidates / decode.rows)
    seconds = math.ceil(config.batch_size / prefill.rows) * prefill.seconds
    seconds += (1 + (turns - 1) * share_of_steps(config.sampling, work)) * decode.seconds
    times = {"score": 2, "update": config.ppo_epochs}
    for name, each in by_name.items():
        seconds += times.get(name, 1) * math.ceil(config.batch_size / each.rows) * each.seconds
    images = min(work.images, config.limit or work.images)
    iterations = images * config.epochs // config.batch_size
    return iterations, iterations * seconds
