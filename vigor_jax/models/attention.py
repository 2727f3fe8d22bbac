"""Attention through one function, which takes the fastest kernel of the platform.

Packed rows hold several sequences, told apart by segment ids, and no token may see another sequence. Splash takes the
ids as they are. cuDNN, as JAX 0.10 offers it, would take them only as numbers added to all T x T scores, and computes
the gradient of these numbers too: T x T numbers in memory both ways, which a fused kernel avoids. So packed
rows on GPUs go to Pallas's flash attention.

On a CPU all of it goes to `models.cpu`.
"""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vigor_jax.models import cpu
from vigor_jax.parallel.sharding import on_each_shard, platform

Implementation: TypeAlias = Literal["auto", "xla", "cudnn", "splash", "pallas", "by_heads"]

PALLAS_BLOCK = 128  # of both kernels
QUERY_BLOCK = 256  # of the plain formula on packed rows


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    causal: bool,
    segment_ids: Int[Array, "B T"] | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention of a sequence with itself, or with another (S != T) where it is not causal; softmax
    in float32, grouped queries allowed (N = g·K).

    There is no padding mask: sequences are padded on the right, so under a causal mask no token sees the padding, and
    image patches are never padded.

    Args:
      q: queries.
      k: keys.
      v: values.
      causal: each token sees itself and what is before it; otherwise everything.
      segment_ids: of packed rows, which are causal; a token sees those of its own segment only. Padding is a segment.
      implementation: "cudnn" is NVIDIA's flash attention (16-bit types, not for packed rows), "splash" the Pallas
        kernel for TPU, "pallas" the one for GPU (packed rows only), "by_heads" the plain formula for a few heads at a
        time, for CPUs, "xla" the plain formula; "auto" takes the first that serves these shapes on the mesh's platform.
    """
    if segment_ids is not None:
        assert causal, "packed rows are causal"
        return _packed(q, k, v, segment_ids, implementation)
    if implementation == "auto":
        implementation = _fastest(q, k, causal)
    if implementation == "splash":
        return _splash(q, k, v, None)
    if implementation == "by_heads":
        return cpu.attention_by_heads(q, k, v, None, causal=causal)
    assert implementation != "pallas", "for packed rows only"
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=implementation)


def masked_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    *,
    causal: bool = False,
) -> Float[Array, "B T N H"]:
    """The same under any mask, which no fused kernel takes; what a query that sees nothing gets means nothing.

    `causal` says that the mask hides from every query what is behind it in the row, which spares half on a CPU.
    """
    return cpu.dot_product_attention(q, k, v, mask, causal=causal)


def _fastest(
    q: Float[Array, "B T N H"], k: Float[Array, "B S K H"], causal: bool
) -> Literal["xla", "cudnn", "splash", "by_heads"]:
    head_dim = q.shape[-1]
    if platform() == "cpu":
        return "by_heads"
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128
    # cuDNN's gradient takes no odd number of keys, which an image of another sequence's queries has.
    if platform() == "gpu" and fits and q.shape[1] == k.shape[1]:
        return "cudnn"
    return "splash" if causal and _fits_splash(q) else "xla"


def _fits_splash(q: Float[Array, "B T N H"]) -> bool:
    """The vision tower's few hundred patches are no work for a blocked kernel, and never a multiple of its block."""
    return platform() == "tpu" and q.shape[1] % PALLAS_BLOCK == 0 and q.shape[-1] % 128 == 0


def _packed(q: Array, k: Array, v: Array, segment_ids: Array, implementation: Implementation) -> Array:
    if implementation == "auto":
        implementation = _fastest_packed(q)
    if implementation == "splash":
        return _splash(q, k, v, segment_ids)
    if implementation == "pallas":
        return _flash(q, k, v, segment_ids)
    if implementation == "by_heads":
        return cpu.attention_by_heads(q, k, v, segment_ids[:, :, None] == segment_ids[:, None], causal=True)
    assert implementation == "xla", "cuDNN takes no segment ids"
    return _by_query_blocks(q, k, v, segment_ids)


def _fastest_packed(q: Float[Array, "B T N H"]) -> Literal["xla", "splash", "pallas", "by_heads"]:
    _, length, _, head_dim = q.shape
    if platform() == "cpu":
        return "by_heads"
    is_half = q.dtype in (jnp.bfloat16, jnp.float16)
    if platform() == "gpu" and is_half and length % PALLAS_BLOCK == 0 and head_dim in (64, 128):
        return "pallas"
    return "splash" if _fits_splash(q) else "xla"


def _by_query_blocks(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], segment_ids: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    """The plain formula, without the keys behind a block of queries: packed rows are long, and half is spared."""
    length = q.shape[1]
    parts = []
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        is_before = jnp.arange(start, end)[:, None] >= jnp.arange(end)
        mask = is_before & (segment_ids[:, start:end, None] == segment_ids[:, None, :end])
        parts.append(
            jax.nn.dot_product_attention(
                q[:, start:end], k[:, :end], v[:, :end], mask=mask[:, None], implementation="xla"
            )
        )
    return jnp.concatenate(parts, axis=1)


def _splash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None,
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Causal splash attention."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # TPU only, slow to import

    def local(q: Array, k: Array, v: Array, *segments: Array) -> Array:
        _, length, num_heads, head_dim = q.shape
        mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * num_heads)
        block = next(b for b in (512, 256, PALLAS_BLOCK) if length % b == 0)
        sizes = splash.BlockSizes(
            block_q=block, block_kv=block, block_kv_compute=block,
            block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
        )  # fmt: skip
        kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=interpret)
        groups = num_heads // k.shape[2]
        heads_first = (
            x.swapaxes(1, 2) for x in (q * head_dim**-0.5, jnp.repeat(k, groups, 2), jnp.repeat(v, groups, 2))
        )
        ids = (splash.SegmentIds(each, each) for each in segments)
        return jax.vmap(kernel)(*heads_first, *ids).swapaxes(1, 2)

    return on_each_shard(local, q, k, v, segment_ids)


def _flash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Causal flash attention on GPUs, in Triton."""
    from jax.experimental.pallas.ops.gpu.attention import mha  # GPU only, slow to import

    def local(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
        groups = q.shape[2] // k.shape[2]
        k, v = jnp.repeat(k, groups, 2), jnp.repeat(v, groups, 2)
        return mha(q, k, v, segment_ids, sm_scale=q.shape[-1] ** -0.5, causal=True, interpret=interpret)

    return on_each_shard(local, q, k, v, segment_ids)
