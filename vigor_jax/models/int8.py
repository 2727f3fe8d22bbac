"""Weights in 8 bits for decoding, which is bound by reading them: half the memory, half the time a token.

Symmetric and rounded to the nearest, with a scale for each column, as the vector-wise weights of LLM.int8() (Dettmers
et al. 2022); activations stay as they are. Embeddings, norms, the output head and the image tower do, too.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int8

from vigor_jax.models.layers import Linear
from vigor_jax.models.vlm import Vlm

LARGEST = 127


def quantize(kernel: Float[Array, "*L I O"]) -> tuple[Int8[Array, "*L I O"], Float[Array, "*L O"]]:
    """A matrix and the float32 scales of its columns, whose product is the kernel to half a scale; zeros stay zero."""
    weights = kernel.astype(jnp.float32)
    scale = jnp.abs(weights).max(-2) / LARGEST
    rounded = jnp.round(weights / jnp.where(scale > 0, scale, 1)[..., None, :])
    return rounded.astype(jnp.int8), scale


def quantize_decoder(model: Vlm) -> Vlm:
    """Puts the linear layers of the language model into 8 bits, one after the other, and frees what they were.

    Args:
      model: with weights, or with shapes that have shardings; is changed.
    """
    # One by one, so that there never is more than one matrix in both forms.
    for _, module in nnx.iter_graph(model.language_model.layers):
        if isinstance(module, Linear):
            weights = module.kernel.get_value()
            axes = module.kernel.get_metadata()["axes"]
            kernel, scale = _abstract(weights) if isinstance(weights, jax.ShapeDtypeStruct) else _quantize(weights)
            module.kernel = nnx.Param(kernel, axes=axes)
            module.scale = nnx.Param(scale, axes=axes[1:])
    return model


@functools.partial(jax.jit, donate_argnums=0)
def _quantize(kernel: Array) -> tuple[Array, Array]:
    return quantize(kernel)


def _abstract(kernel: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of both, split as the kernel is."""
    assert isinstance(kernel.sharding, NamedSharding)
    *layers, _, columns = kernel.sharding.spec
    of_scale = NamedSharding(kernel.sharding.mesh, P(*layers, columns))
    whole, scale = jax.eval_shape(quantize, kernel)
    return (
        jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=kernel.sharding),
        jax.ShapeDtypeStruct(scale.shape, scale.dtype, sharding=of_scale),
    )
