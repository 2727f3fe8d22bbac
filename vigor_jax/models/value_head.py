"""The value head of PPO: from the state before a token, the rewards that are still to come."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class ValueHead(nnx.Module):
    """One number for each hidden state, in float32. It begins with 0 everywhere: no advantage is due to chance."""

    def __init__(self, width: int, *, dtype: Any) -> None:
        self.kernel = nnx.Param(jnp.zeros((width,), dtype), axes=(None,))
        self.bias = nnx.Param(jnp.zeros((), dtype), axes=())

    def __call__(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B"]:
        value = jnp.einsum("...d,d->...", hidden, self.kernel[...], preferred_element_type=jnp.float32)
        return value + self.bias[...].astype(jnp.float32)
