"""The device programs of stages, lowered from shapes alone: no weights, no device that is really there."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.models.layers import stacks_inference
from vigor_jax.models.lora import add_lora, lora_paths
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import PARTS, VlmConfig, abstract_model, param_paths
from vigor_jax.models.vlm import Sizes as ModelSizes
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import BATCH, make_mesh, param_shardings
from vigor_jax.training.config import TrainingConfig
from vigor_jax.training.flops import train_flops
from vigor_jax.training.heads import head_paths, with_abstract_head
from vigor_jax.training.train_step import (
    Loss,
    abstract_state,
    learning_rate,
    make_optimizer,
    make_train_step,
    partition_params,
    trained_in,
)

NUM_UPDATES = 1000  # of the schedule, which changes nothing about a program's size


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled function, as it would run on each device.

    Attributes:
      stage: that runs it.
      name: within the stage, such as "prefill".
      lower: makes it, not yet compiled.
      flops: of one call, over all devices; recomputation not among them.
      held: bytes of weights and optimizer on each device.
      rows: in its batch, over all devices.
      tokens: in a row, or that it adds to each of `rows`.
      steps: how often it reads its arguments in one call; decoding does for every token.
      held_by_others: bytes on each device that other programs hold while it runs.
    """

    stage: str
    name: str
    lower: Callable[[], Any]
    flops: float
    held: int
    rows: int
    tokens: int
    steps: int = 1
    held_by_others: int = 0


class Cost(Protocol):
    """What one call of a program takes."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def seconds(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class Work:
    """How much there is to do.

    Attributes:
      images: unlabeled, to be sampled and judged.
      descriptions: annotated, for the reward model.
      answer: tokens of a response, on average. 120 is the mean of captions of LLaVA-13B.
    """

    images: int = 25_574
    descriptions: int = 16_000
    answer: int = 120


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


@dataclasses.dataclass(frozen=True)
class Target:
    """What programs are compiled for.

    Attributes:
      model: sizes.
      dtype: type to compute in.
      devices: all of them.
      training: how they are arranged for training.
      inference: the same for sampling and scoring.
      sizes: of texts.
      adapter: of the model that the run begins with, if it has one.
      judge_adapter: the same of the reward model that judges.
      preference_adapter: the same of the reward model of preferences that the run trains.
    """

    model: VlmConfig
    dtype: Any
    devices: list[Any]
    training: MeshConfig
    inference: MeshConfig
    sizes: Sizes
    adapter: LoraConfig | None = None
    judge_adapter: LoraConfig | None = None
    preference_adapter: LoraConfig | None = None

    @functools.cached_property
    def training_mesh(self) -> Mesh:
        return make_mesh(self.training, self.devices)

    @functools.cached_property
    def inference_mesh(self) -> Mesh:
        return make_mesh(self.inference, self.devices)


class Lowers(NamedTuple):
    """What makes a program, and the bytes of weights and optimizer that it finds on each device."""

    lower: Callable[[], Any]
    held: int


def update(config: TrainingConfig, target: Target, rows: Any, loss: Loss, head: str = "") -> Lowers:
    """One update of training on rows of these shapes; of a model with a head by that name, if one is given."""
    model, mesh = target.model, target.training_mesh
    whole = abstract_model(model, dtype=target.dtype)
    if config.lora:
        add_lora(whole, config.lora, dtype=target.dtype)
    trained = trained_in(param_paths(nnx.state(whole)).keys(), config)
    if head:
        with_abstract_head(whole, head)
        trained |= head_paths(head)
    abstract = on_mesh(whole, mesh)
    graphdef, params, frozen = partition_params(abstract, trained)
    masters: Any = {path: jax.ShapeDtypeStruct(w.shape, jnp.float32, sharding=w.sharding) for path, w in params.items()}
    optimizer = make_optimizer(config, NUM_UPDATES)
    state = abstract_state(masters, optimizer, mesh)

    def lower() -> Any:
        schedule = learning_rate(config, NUM_UPDATES)
        step: Any = make_train_step(graphdef, state, optimizer, schedule, config, target.dtype, loss)
        with jax.set_mesh(mesh):
            return step.lower(state, frozen, rows)

    return Lowers(lower, bytes_held((state, frozen)))


def update_flops(config: TrainingConfig, model: VlmConfig, *, examples: int, tokens: int) -> float:
    """Of one update on examples with an image each."""
    trained, adapted = {str(part) for part in PARTS if part not in config.freeze}, set[str]()
    if config.lora:
        whole = add_lora(abstract_model(model), config.lora)
        paths = trained_in(param_paths(nnx.state(whole)).keys(), config)
        trained, adapted = ({path.split(".")[0] for path in some} for some in (paths, lora_paths(paths)))
    return train_flops(model, trained, rows=examples, tokens=tokens, images=examples, adapted=adapted)


def for_inference(model: ModelSizes, dtype: Any, mesh: Mesh, lora: LoraConfig | None = None) -> Any:
    """A model's shapes, as sampling and scoring hold it; with an adapter, if one is given."""
    with jax.set_mesh(mesh):
        scan = stacks_inference()
    whole = abstract_model(model, dtype=dtype, scan=scan)
    return on_mesh(add_lora(whole, lora, dtype=dtype) if lora else whole, mesh)


def on_mesh(model: Any, mesh: Mesh) -> Any:
    """An abstract model whose weights lie where real ones would."""
    graphdef, state = nnx.split(model)

    def place(variable: nnx.Variable, sharding: nnx.Variable) -> nnx.Variable:
        value = variable.get_value()
        return variable.replace(jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding.get_value()))

    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(place, state, param_shardings(state, mesh), is_leaf=is_variable))


def array(mesh: Mesh, shape: tuple[int, ...], dtype: Any, spec: P = BATCH) -> Any:
    """An array's shape, split over a mesh."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def tree_rows(model: VlmConfig, mesh: Mesh, rows: int, length: int, places: int) -> TreeRows:
    """A batch of tree sequences."""
    edge = model.vision.image_size
    ids, at = (array(mesh, (rows, size), jnp.int32) for size in (length, places))
    weights = array(mesh, (rows, places), jnp.float32)
    return TreeRows(ids, ids, at, at, weights, array(mesh, (rows, 1, edge, edge, 3), jnp.uint8))


def bytes_held(abstract: Any) -> int:
    """Of arrays on each device."""
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(abstract))
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards)
