"""The device programs of a config's stages, lowered from shapes alone: no weights, no device that is really there."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax.config import Stage, TrainConfig
from vigor_jax.data.batches.loader import Rows
from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.data.batches.tree_sequences import Tree
from vigor_jax.hf.config import from_hf
from vigor_jax.inference.decoder import Batch, Decoder
from vigor_jax.inference.sampler import refill_size
from vigor_jax.inference.tree_attention import answer_places
from vigor_jax.json_fields import read_json
from vigor_jax.models.int8 import quantize_decoder
from vigor_jax.models.layers import stacks_inference
from vigor_jax.models.llava import LlavaConfig, abstract_llava, param_paths
from vigor_jax.parallel.sharding import BATCH, check_batch_divides, make_mesh, param_shardings, round_up_batch
from vigor_jax.stages.train_reward import answer_loss
from vigor_jax.training.train_step import (
    SftConfig,
    abstract_state,
    conversation_loss,
    learning_rate,
    make_optimizer,
    make_train_step,
    partition_params,
    trained_paths,
)

Lowers: TypeAlias = tuple[Callable[[], Any], int]  # what makes a program, and the bytes that it finds on each device
NUM_UPDATES = 1000  # of the schedule, which changes nothing about a program's size


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled function, as it would run on each device.

    Attributes:
      stage: that runs it.
      name: within the stage, such as "prefill".
      lower: makes it, not yet compiled.
      held: bytes of weights and optimiser on each device.
      rows: in its batch, over all devices.
      tokens: in a row, or that it adds to each of `rows`.
      pack: sequences that share a row.
      beside: bytes on each device that others hold while it runs.
    """

    stage: Stage
    name: str
    lower: Callable[[], Any]
    held: int
    rows: int
    tokens: int
    pack: int = 1
    beside: int = 0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How long the texts are that a plan reckons with; in tokens.

    Attributes:
      prompt: system, question and image.
      response: a sampled one, at most.
      branch_row: a row of the reward model.
      sentences: that a row asks about.
      example: of fine-tuning.
    """

    prompt: int
    response: int
    branch_row: int
    sentences: int
    example: int


def model_config(path: str | Path) -> LlavaConfig | None:
    """Sizes of the model in a llava-hf directory; None if there is none."""
    file = Path(path) / "config.json"
    return from_hf(read_json(file), file.parent) if file.is_file() else None


def programs(config: TrainConfig, model: LlavaConfig, devices: list[Any], sizes: Sizes) -> Iterator[Program]:
    """The programs of the config's stages, in their order.

    Args:
      config: of the run.
      model: sizes.
      devices: to compile for.
      sizes: of texts.

    Raises:
      InputError: a mesh does not fit the devices, or a batch the mesh.
    """
    inference, training = make_mesh(config.inference_mesh, devices), make_mesh(config.mesh, devices)
    dtype = jnp.dtype(config.model.dtype)
    shapes: Rows | TreeRows
    for stage in config.run.stages:
        if stage == "train_reward":
            rows, length = config.train_reward.batch_size, min(config.train_reward.max_length, sizes.branch_row)
            check_batch_divides(rows, training, config.train_reward.accumulate)
            shapes = _branch_rows(model, training, rows, length, sizes.sentences)
            lower, held = _train(config.train_reward, model, training, dtype, shapes, answer_loss)
            yield Program(stage, "update", lower, held, rows, length)
        elif stage == "sample":
            yield from _sample(config, model, inference, dtype, sizes)
        elif stage == "score" and "reward_model" in config.score.streams:
            rows = round_up_batch(config.reward_model.batch_size, inference)
            length = min(config.reward_model.max_length, sizes.branch_row)
            judged = _branch_rows(model, inference, rows, length, sizes.sentences)
            lower, held = _score(config, model, inference, dtype, judged)
            yield Program(stage, "reward model", lower, held, rows, length)
        elif stage == "sft":
            pack = config.sft.pack
            check_batch_divides(config.sft.batch_size, training, config.sft.accumulate, pack)
            rows, length = config.sft.batch_size // pack, min(config.sft.max_length, sizes.example) * pack
            shapes = _rows(model, training, rows, length, pack)
            lower, held = _train(config.sft, model, training, dtype, shapes, conversation_loss)
            yield Program(stage, "update", lower, held, rows, length, pack)


def _sample(config: TrainConfig, model: LlavaConfig, mesh: Mesh, dtype: Any, sizes: Sizes) -> Iterator[Program]:
    sampling, text = config.sample.sampling, model.text
    sampling = dataclasses.replace(sampling, batch_size=round_up_batch(sampling.batch_size, mesh))
    rows, room = refill_size(sampling.batch_size, mesh), min(sampling.max_new_tokens, sizes.response)
    length = -(-sizes.prompt // sampling.prompt_bucket) * sampling.prompt_bucket
    abstract = _for_inference(model, dtype, mesh)
    if config.sample.int8:
        abstract = quantize_decoder(abstract)
    decoder = Decoder(abstract, sampling, np.ones(text.vocab_size, bool), eos_id=2)
    edge = model.vision.image_size
    batch = Batch(
        token_ids=_array(mesh, (rows, length), jnp.int32),
        lengths=_array(mesh, (rows,), jnp.int32),
        seeds=_array(mesh, (rows, 2), jnp.uint32),
        rows=_array(mesh, (rows,), jnp.int32),
        pixels=_array(mesh, (rows, edge, edge, 3), jnp.uint8),
    )

    def lower_refill() -> Any:
        with jax.set_mesh(mesh):
            return decoder.lower_refill(batch)

    def lower_extend() -> Any:
        with jax.set_mesh(mesh):
            return decoder.lower_extend(batch, room)

    def lower_grow() -> Any:
        with jax.set_mesh(mesh):
            return decoder.lower_grow(batch, decoder.rooms[-2], room)

    held = _bytes_held(nnx.state(abstract))
    with jax.set_mesh(mesh):
        prefix, texts, ring = decoder.shapes(batch, room)
    candidates = sampling.batch_size * sampling.num_candidates
    yield Program("sample", "prefill", lower_refill, held, rows, length, beside=_bytes_held(ring))
    images_only = _bytes_held(nnx.state((abstract.vision_tower, abstract.multi_modal_projector)))
    yield Program("sample", "decode", lower_extend, held, candidates, room, beside=images_only)
    if len(decoder.rooms) > 1:  # the last time that the rings grow, both are there
        beside = held + _bytes_held((prefix, texts))
        yield Program("sample", "growth", lower_grow, 0, candidates, 0, beside=beside)


def _score(config: TrainConfig, model: LlavaConfig, mesh: Mesh, dtype: Any, rows: TreeRows) -> Lowers:
    graphdef, weights = nnx.split(_for_inference(model, dtype, mesh))
    num_tokens = config.reward_model.answer_tokens

    def answer(weights: nnx.State, rows: TreeRows, scored: jax.Array, is_answer: jax.Array) -> Any:
        llava = nnx.merge(graphdef, weights)
        return answer_places(llava, rows, scored, is_answer, num_tokens=num_tokens, eos_id=2)

    def lower() -> Any:
        whole = NamedSharding(mesh, P())
        scored = jax.ShapeDtypeStruct((2,), jnp.int32, sharding=whole)
        is_answer = jax.ShapeDtypeStruct((model.text.vocab_size,), jnp.bool_, sharding=whole)
        with jax.set_mesh(mesh):
            return jax.jit(answer, out_shardings=whole).lower(weights, rows, scored, is_answer)

    return lower, _bytes_held(weights)


def _train(config: SftConfig, model: LlavaConfig, mesh: Mesh, dtype: Any, rows: Any, loss: Any) -> Lowers:
    trained = trained_paths(param_paths(nnx.state(abstract_llava(model))).keys(), config.freeze)
    graphdef, params, frozen = partition_params(_on_mesh(abstract_llava(model, dtype=dtype), mesh), trained)
    masters: Any = {path: jax.ShapeDtypeStruct(w.shape, jnp.float32, sharding=w.sharding) for path, w in params.items()}
    optimizer = make_optimizer(config, NUM_UPDATES)
    state = abstract_state(masters, optimizer, mesh)

    def lower() -> Any:
        schedule = learning_rate(config, NUM_UPDATES)
        step: Any = make_train_step(graphdef, state, optimizer, schedule, config, dtype, loss)
        with jax.set_mesh(mesh):
            return step.lower(state, frozen, rows)

    return lower, _bytes_held((state, frozen))


def _bytes_held(abstract: Any) -> int:
    """Of arrays on each device."""
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(abstract))
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards)


def _for_inference(model: LlavaConfig, dtype: Any, mesh: Mesh) -> Any:
    with jax.set_mesh(mesh):
        scan = stacks_inference()
    return _on_mesh(abstract_llava(model, dtype=dtype, scan=scan), mesh)


def _on_mesh(model: Any, mesh: Mesh) -> Any:
    """An abstract model whose weights lie where real ones would."""
    graphdef, state = nnx.split(model)

    def place(variable: nnx.Variable, sharding: nnx.Variable) -> nnx.Variable:
        value = variable.get_value()
        return variable.replace(jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding.get_value()))

    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(place, state, param_shardings(state, mesh), is_leaf=is_variable))


def _array(mesh: Mesh, shape: tuple[int, ...], dtype: Any, spec: P = BATCH) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def _rows(model: LlavaConfig, mesh: Mesh, rows: int, length: int, pack: int) -> Rows:
    edge = model.vision.image_size
    ids = _array(mesh, (rows, length), jnp.int32)
    pixels = _array(mesh, (rows, pack, edge, edge, 3), jnp.uint8)
    return Rows(ids, ids, pixels, ids, ids) if pack > 1 else Rows(ids, ids, pixels)


def _branch_rows(model: LlavaConfig, mesh: Mesh, rows: int, length: int, places: int) -> TreeRows:
    edge = model.vision.image_size
    ids, at = (_array(mesh, (rows, size), jnp.int32) for size in (length, places))
    weights = _array(mesh, (rows, places), jnp.float32)
    return TreeRows(ids, Tree(ids, ids, ids, ids), at, at, weights, _array(mesh, (rows, 1, edge, edge, 3), jnp.uint8))
