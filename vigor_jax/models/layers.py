"""The building blocks both towers share. Weights are `[in, out]`; everything computes in the dtype of its weights."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vigor_jax.parallel.sharding import constrain_batch, platform

# (queries, keys, values) → (attended values, whatever the caller wants kept of this layer, a KV cache for one).
Attend: TypeAlias = Callable[..., tuple[Array, Any]]
# An array of each layer, or one of all with a leading axis: as the layers are.
PerLayer: TypeAlias = list[Array] | Array

REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def param(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: Any, *, ones: bool = False
) -> nnx.Param:
    """A parameter and the names of its logical axes (`vigor_jax.parallel.sharding.RULES` splits by them)."""
    if ones:
        return nnx.Param(jnp.ones(shape, dtype), axes=axes)
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype), axes=axes)


class Linear(nnx.Module):
    """y = x · kernel + bias; of a kernel in 8 bits, `models.int8` says what its columns are multiplied by.

    With an adapter (`models.lora`), lora_scale · (x · lora_a) · lora_b is added before the sum is rounded.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        axes: tuple[str | None, str | None],
        *,
        bias: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        self.kernel = param(rngs, shape, axes, dtype)
        self.scale: nnx.Param | None = nnx.data(None)
        self.lora_a: nnx.Param | None = nnx.data(None)
        self.lora_b: nnx.Param | None = nnx.data(None)
        self.lora_scale = 0.0
        self.bias = param(rngs, shape[1:], axes[1:], dtype) if bias else None

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        if self.scale is None and self.lora_a is None:
            y = _matmul(x, self.kernel[...]) if platform() == "cpu" else x @ self.kernel
        else:
            y = _wide_matmul(x, self.kernel.astype(x.dtype))
            y = y if self.scale is None else y * self.scale
            if self.lora_a is not None and self.lora_b is not None:
                # Rounded apart, a small update would be lost whole: the other summand is a 16-bit number already.
                y = y + self.lora_scale * _wide_matmul(x @ self.lora_a[...], self.lora_b[...])
            y = y.astype(x.dtype)
        return y if self.bias is None else y + self.bias


# XLA's CPU backend copies one factor of a kernel's gradient with its axes swapped, and computes it again as it does so;
# by JAX's own rule that is the gradient from above. With the narrower one fine-tuning takes a tenth less time.
@jax.custom_vjp
def _matmul(x: Float[Array, "*B I"], kernel: Float[Array, "I O"]) -> Float[Array, "*B O"]:
    return x @ kernel


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _matmul_backward(saved: tuple[Array, Array], d_y: Float[Array, "*B O"]) -> tuple[Array, Array]:
    x, kernel = saved
    rows, d_rows = (each.reshape(-1, each.shape[-1]) for each in (x, d_y))
    over_rows = (((0,), (0,)), ((), ()))
    if rows.shape[1] <= d_rows.shape[1]:
        d_kernel = jax.lax.dot_general(rows, d_rows, over_rows)
    else:
        d_kernel = jax.lax.dot_general(d_rows, rows, over_rows).T
    return d_y @ kernel.T, d_kernel


_matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def _wide_matmul(x: Float[Array, "*B I"], kernel: Float[Array, "I O"]) -> Float[Array, "*B O"]:
    """The float32 sums that `x @ kernel` rounds. Its gradient is the same: by JAX's own rule both of its products would
    be of float32 matrices."""
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _wide_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _wide_matmul(x, kernel), (x, kernel)


def _wide_backward(saved: tuple[Array, Array], d_y: Float[Array, "*B O"]) -> tuple[Array, Array]:
    return _matmul_backward(saved, d_y.astype(saved[0].dtype))


_wide_matmul.defvjp(_wide_forward, _wide_backward)


class LayerNorm(nnx.Module):
    """Mean and variance in float32, as PyTorch does on half-precision input."""

    def __init__(self, width: int, eps: float, *, dtype: Any, rngs: nnx.Rngs) -> None:
        self.scale = param(rngs, (width,), (None,), dtype, ones=True)
        self.bias = param(rngs, (width,), (None,), dtype)
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * self.scale.astype(jnp.float32) + self.bias.astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Normalised in float32, rounded, then scaled: the order LLaMA was trained with."""

    def __init__(self, width: int, eps: float, *, dtype: Any, rngs: nnx.Rngs) -> None:
        self.scale = param(rngs, (width,), (None,), dtype, ones=True)
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.scale


def stacks_inference() -> bool:
    """Whether sampling and scoring, too, are best done with stacked layers.

    On TPUs they are: their compiler takes long for every layer that it sees, and reads the weights of one where they
    lie. The others are quick, and copy them out first.
    """
    return platform() == "tpu"


def make_layers(make: Callable[[nnx.Rngs], nnx.Module], num_layers: int, *, scan: bool, rngs: nnx.Rngs) -> nnx.Module:
    """`num_layers` equal layers: one module whose weights carry a leading layer axis, or a list of modules.

    Stacked weights compile once however deep the model is. Separate ones spare decoding, which reads every weight for
    every token, the copy of each layer out of the stack where the compiler makes one; see `stacks_inference`.
    """
    if scan:
        keys = jax.random.split(rngs.params(), num_layers)
        return nnx.vmap(lambda key: make(nnx.Rngs(key)), in_axes=0, out_axes=0)(keys)
    return nnx.List([make(rngs) for _ in range(num_layers)])


def apply_layers(
    layers: nnx.Module,
    call: Callable[[Any, Array, Any], tuple[Array, Any]],
    x: Array,
    per_layer: Any = None,
    *,
    num_layers: int,
    remat: str = "none",
) -> tuple[Array, Any]:
    """Runs `x, kept = call(layer, x, per_layer[i])` through the first `num_layers` layers.

    Args:
      layers: what `make_layers` made.
      call: applies one layer.
      x: the activations that flow through.
      per_layer: a pytree whose leaves are arrays with a leading layer axis (stacked layers) or lists with one item a
        layer (separate ones), or None.
      num_layers: how many of the layers to run.
      remat: name of a rematerialisation policy, a key of `REMAT_POLICIES`.

    Returns:
      The activations after the last layer, and what the layers kept, a pytree like `per_layer`.
    """
    if isinstance(layers, nnx.List):
        kept = []
        for i, layer in enumerate(layers[:num_layers]):
            item = jax.tree.map(lambda each, i=i: each[i], per_layer, is_leaf=_is_list)
            x, keep = call(layer, constrain_batch(x), item)
            kept.append(keep)
        return x, jax.tree.map(lambda *each: list(each), *kept)

    graphdef, weights = nnx.split(layers)
    weights = jax.tree.map(lambda w: w[:num_layers], weights)

    def body(x: Array, item: tuple[nnx.State, Any]) -> tuple[Array, Any]:
        # Said at every layer, or the compiler may split activations like the weights and sum over devices instead.
        return call(nnx.merge(graphdef, item[0]), constrain_batch(x), item[1])

    policy = REMAT_POLICIES[remat]
    if policy is not None:
        body = functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)(body)
    return jax.lax.scan(body, x, (weights, per_layer), length=num_layers)


def _is_list(leaf: Any) -> bool:
    return isinstance(leaf, list)
