"""What XLA's CPU backend does slowly, or not at all, done otherwise.

Callers do not ask for the platform: `matmul`, `dot_product_attention` and `einsum_float32` are the plain operations on
GPUs and TPUs.
All figures are CPU seconds with jax 0.10.2 on one core, medians of 9 to 13 by probes that no script prints: time of the
plain form by time of this one, for the demo's model and for one of 640 units a layer:

| function | what | demo | 640 units |
| --- | --- | --- | --- |
| `matmul` | gradient of the loss | 1.22 | 1.04 |
| `dot_product_attention`, `attention_by_heads` | forward | 1.31 | 1.44 |
| | gradient of the loss | 1.26 | 1.19 |
| `argmax` | sampling | 1.27 | 1.16 |
| `einsum_float32` | sampling in bfloat16, where the plain form runs at all | 0.94 | 0.90 |

In three more places the order of things is what this backend needs, and costs nothing elsewhere: the products of
`inference.paged_attention`, and the two programs a tensor in `hf.load` and in `hf.weights.merged`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vigor_jax.parallel.sharding import on_each_shard, platform

QUERY_BLOCK = 128
SCORES_AT_ONCE = 2**18  # numbers: a megabyte


def matmul(x: Float[Array, "*B I"], kernel: Float[Array, "I O"]) -> Float[Array, "*B O"]:
    """x · kernel.

    XLA's CPU backend copies one factor of the kernel's gradient with its axes swapped, and computes it again as it does
    so. By JAX's own rule that is the gradient from above; here it is the narrower factor.
    """
    return _matmul(x, kernel) if platform() == "cpu" else x @ kernel


@jax.custom_vjp
def _matmul(x: Array, kernel: Array) -> Array:
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


def dot_product_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    *,
    causal: bool = False,
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention under a mask; softmax in float32, grouped queries allowed (N = g·K).

    What a query that sees nothing gets means nothing. With `causal`, the mask hides what is behind a query in any case.
    """
    if platform() == "cpu":
        return attention_by_heads(q, k, v, mask, causal=causal)
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="xla")


def attention_by_heads(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"] | None,
    *,
    causal: bool,
) -> Float[Array, "B T N H"]:
    """The plain formula for a few heads of a sequence at a time; the gradient computes their scores again.

    So the scores stay in the processor's cache. Those of all heads would go to memory and back for every step of the
    softmax, and wait there for the gradient.

    Args:
      q: queries.
      k: keys.
      v: values.
      mask: what each query sees; None for all.
      causal: a query sees, of that, only what is not behind it.
    """

    def head(q: Float[Array, "T H"], k: Float[Array, "S H"], v: Float[Array, "S H"], mask: Any) -> Float[Array, "T H"]:
        dtype, length = q.dtype, len(q)
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        q *= q.shape[-1] ** -0.5
        parts = []
        for start in range(0, length, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, length)
            keys = end if causal else len(k)
            sees = None if mask is None else mask[start:end, :keys]
            if causal:
                is_before = jnp.arange(start, end)[:, None] >= jnp.arange(keys)
                sees = is_before if sees is None else sees & is_before
            scores = q[start:end] @ k[:keys].T
            scores = scores if sees is None else jnp.where(sees, scores, jnp.finfo(scores.dtype).min)
            parts.append(jax.nn.softmax(scores) @ v[:keys])
        return jnp.concatenate(parts).astype(dtype)

    def sequence(q: Array, k: Array, v: Array, *mask: Array) -> Array:
        length, num_heads, _ = q.shape
        heads = [jnp.repeat(x, num_heads // x.shape[1], axis=1).swapaxes(0, 1) for x in (q, k, v)]
        one = jax.checkpoint(lambda q, k, v: head(q, k, v, *(mask or [None])))
        at_once = max(1, SCORES_AT_ONCE // (min(QUERY_BLOCK, length) * len(k)))
        return jax.lax.map(lambda each: one(*each), heads, batch_size=at_once).swapaxes(0, 1)

    def local(*arguments: Array) -> Array:
        # Once more around them all, or the heads of each sequence would be kept next to q, k and v themselves.
        return jax.lax.map(jax.checkpoint(lambda each: sequence(*each)), arguments)

    return on_each_shard(local, q, k, v, mask)


def argmax(scores: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """First index of the maximum: by two plain reductions, because XLA's CPU backend has a slow one for pairs.

    The same on every platform; all of them reduce a split vocabulary part by part.
    """
    places = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    places = jnp.where(scores == scores.max(-1, keepdims=True), places, scores.shape[-1] - 1)
    return places.min(-1)


def einsum_float32(axes: str, left: Array, right: Array) -> Array:
    """`einsum` that adds up in float32.

    XLA's CPU backend does not run all such products of 16-bit numbers: some end in "Unsupported element type for
    DotThunk". So there they are products of float32, which costs the time above. Numbers in float32 stay as they are.
    """
    if platform() == "cpu":
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)
