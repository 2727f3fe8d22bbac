"""Heads that a checkpoint has not: one number for each hidden state, trained with the rest of the model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32

from vigor_jax.models.value_head import ValueHead
from vigor_jax.models.vlm import Vlm
from vigor_jax.training.train_step import Weights, merge_params, partition_params
from vigor_jax.training.trainable import Trainable


@dataclasses.dataclass(frozen=True)
class Head:
    """A `ValueHead` as it begins.

    Attributes:
      name: of the model's attribute that it becomes.
      kernel: what the state is multiplied by.
      bias: what is added.
    """

    name: str
    kernel: Float32[np.ndarray, " D"]
    bias: float = 0.0

    @classmethod
    def zeros(cls, name: str, width: int) -> "Head":
        """One that says 0 of everything: nothing it says is due to chance."""
        return cls(name, np.zeros(width, np.float32))

    @classmethod
    def random(cls, name: str, width: int, seed: int) -> "Head":
        """Uniform in ±1 / sqrt(width), as PyTorch's linear layers begin; no bias."""
        bound = width**-0.5
        return cls(name, np.random.default_rng(seed).uniform(-bound, bound, width).astype(np.float32))

    @property
    def paths(self) -> frozenset[str]:
        """Of its parameters in the model."""
        return head_paths(self.name)


def head_paths(name: str) -> frozenset[str]:
    """The parameters of a head by that name."""
    return frozenset({f"{name}.kernel", f"{name}.bias"})


def with_abstract_head(model: Vlm, name: str) -> Vlm:
    """A model of shapes with a head, in float32; it is changed."""
    setattr(model, name, nnx.eval_shape(lambda: ValueHead(model.config.text.hidden_size, dtype=jnp.float32)))
    return model


def with_head(loaded: Trainable, head: Head, mesh: Mesh) -> Trainable:
    """A checkpoint opened for training, with a head that is trained, too; the reference is without it.

    Args:
      loaded: the checkpoint. Its weights are taken over.
      head: how the head begins.
      mesh: of the weights; each device holds all of the head.
    """
    model = merge_params(loaded.graphdef, loaded.params | loaded.frozen)
    setattr(model, head.name, ValueHead(len(head.kernel), dtype=jnp.float32))
    graphdef, _, _ = partition_params(model, head.paths)
    whole = NamedSharding(mesh, P())

    def place(value: Any) -> jax.Array:
        return jax.jit(lambda: jnp.asarray(value, jnp.float32), out_shardings=whole)()

    own: Weights = {f"{head.name}.kernel": place(head.kernel), f"{head.name}.bias": place(head.bias)}
    return dataclasses.replace(loaded, graphdef=graphdef, params=loaded.params | own)
