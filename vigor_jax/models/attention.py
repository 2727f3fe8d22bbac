"""Attention through one function, which takes the fastest kernel of the platform.

Packed rows hold several sequences, told apart by segment ids, and no token may see another sequence. Splash takes the
ids as they are, and so does Pallas's flash attention on GPUs.

Rows that are trees hold continuations of one beginning, in pre-order: what continues a token stands behind it without a
gap, so that one number a key says who sees it. No kernel takes these numbers. Splash takes the mask that follows from
them, and leaves out the blocks where nothing is seen. cuDNN takes it as numbers added to the scores: T x T of a row, in
16 bits, where the scores themselves would be T x T of a head in 32.

On a CPU all of it goes to `models.cpu`.
"""

import functools
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vigor_jax.models import cpu
from vigor_jax.parallel.sharding import on_each_shard, platform

Implementation: TypeAlias = Literal["auto", "xla", "cudnn", "splash", "pallas", "by_heads"]

PALLAS_BLOCK = 128  # of both kernels
SPLASH_BLOCKS = (512, 384, 256, PALLAS_BLOCK)  # the first that divides the length
SHORTEST_PADDED = 256  # padding makes at most half as many tokens more
QUERY_BLOCK = 256  # of the plain formula on packed rows and trees

Sees: TypeAlias = Callable[[int, int], Bool[Array, "B Q S"]]  # of some queries, of keys before the end


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    causal: bool,
    segment_ids: Int[Array, "B T"] | None = None,
    visible_until: Int[Array, "B T"] | None = None,
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
      visible_until: of rows that are trees, which are causal: of each key, the query behind the last one that sees it.
        Each sees itself. See `inference.tree_attention`.
      implementation: "cudnn" is NVIDIA's flash attention (16-bit types, not for packed rows), "splash" the Pallas
        kernel for TPU, "pallas" the one for GPU (packed rows only), "by_heads" the plain formula for a few heads at a
        time, for CPUs, "xla" the plain formula; "auto" takes the first that serves these shapes on the mesh's platform.
    """
    if segment_ids is not None:
        assert causal, "packed rows are causal"
        return _packed(q, k, v, segment_ids, implementation)
    if visible_until is not None:
        assert causal, "trees are causal"
        return _tree(q, k, v, visible_until, implementation)
    if implementation == "auto":
        implementation = _fastest(q, k, causal)
    if implementation == "splash":
        return _splash(q, k, v)
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
    if platform() == "cpu":
        return "by_heads"
    # cuDNN's gradient takes no odd number of keys, which an image of another sequence's queries has.
    if _fits_cudnn(q) and q.shape[1] == k.shape[1]:
        return "cudnn"
    return "splash" if causal and _fits_splash(q) else "xla"


def _fits_cudnn(q: Float[Array, "B T N H"]) -> bool:
    head_dim = q.shape[-1]
    return platform() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128


def _fits_splash(q: Float[Array, "B T N H"]) -> bool:
    """Lengths that are no multiple of its block are padded, unless that made them much longer."""
    length, head_dim = q.shape[1], q.shape[-1]
    long_enough = length % PALLAS_BLOCK == 0 or length >= SHORTEST_PADDED
    return platform() == "tpu" and long_enough and head_dim % 128 == 0


def _packed(q: Array, k: Array, v: Array, segment_ids: Array, implementation: Implementation) -> Array:
    if implementation == "auto":
        implementation = _fastest_packed(q)
    if implementation == "splash":
        return _splash(q, k, v, segment_ids=segment_ids)
    if implementation == "pallas":
        return _flash(q, k, v, segment_ids)

    def sees(start: int, end: int) -> Bool[Array, "B Q S"]:
        return segment_ids[:, start:end, None] == segment_ids[:, None, :end]

    if implementation == "by_heads":
        return cpu.attention_by_heads(q, k, v, sees(0, q.shape[1]), causal=True)
    assert implementation == "xla", "cuDNN takes no segment ids"
    return _by_query_blocks(q, k, v, sees)


def _fastest_packed(q: Float[Array, "B T N H"]) -> Literal["xla", "splash", "pallas", "by_heads"]:
    _, length, _, head_dim = q.shape
    if platform() == "cpu":
        return "by_heads"
    is_half = q.dtype in (jnp.bfloat16, jnp.float16)
    if platform() == "gpu" and is_half and length % PALLAS_BLOCK == 0 and head_dim in (64, 128):
        return "pallas"
    return "splash" if _fits_splash(q) else "xla"


def _tree(q: Array, k: Array, v: Array, visible_until: Array, implementation: Implementation) -> Array:
    if implementation == "auto":
        implementation = _fastest_tree(q)
    if implementation == "splash":
        return _splash(q, k, v, visible_until=visible_until)
    sees, length = functools.partial(_sees, visible_until), q.shape[1]
    if implementation == "by_heads":
        return cpu.attention_by_heads(q, k, v, sees(0, length), causal=True)
    if implementation == "cudnn":
        mask = sees(0, length)[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")
    assert implementation == "xla", "Pallas's flash attention takes no trees"
    return _by_query_blocks(q, k, v, sees)


def _fastest_tree(q: Float[Array, "B T N H"]) -> Literal["xla", "cudnn", "splash", "by_heads"]:
    if platform() == "cpu":
        return "by_heads"
    if _fits_cudnn(q) and q.shape[1] % 2 == 0:  # its gradient under a mask takes no odd number
        return "cudnn"
    return "splash" if _fits_splash(q) else "xla"


def _sees(visible_until: Int[Array, "*B T"], start: int, end: int) -> Bool[Array, "*B Q S"]:
    """Of what is not behind a query, which keys it sees."""
    return jnp.arange(start, end)[:, None] < visible_until[..., None, :end]


def _by_query_blocks(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], sees: Sees
) -> Float[Array, "B T N H"]:
    """The plain formula, without the keys behind a block of queries, whose scores the gradient computes again."""
    length = q.shape[1]
    parts = []
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        is_before = jnp.arange(start, end)[:, None] >= jnp.arange(end)
        mask = (is_before & sees(start, end))[:, None]
        block = jax.checkpoint(functools.partial(jax.nn.dot_product_attention, implementation="xla"))
        parts.append(block(q[:, start:end], k[:, :end], v[:, :end], mask=mask))
    return jnp.concatenate(parts, axis=1)


def _splash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    visible_until: Int[Array, "B T"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Causal splash attention, over packed rows or trees if their numbers are given.

    Rows are padded on the right to whole blocks, where no token looks.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # TPU only, slow to import

    def local(q: Array, k: Array, v: Array, *per_row: Array) -> Array:
        _, length, num_heads, head_dim = q.shape
        padding = -length % PALLAS_BLOCK
        padded = length + padding
        block = next(b for b in SPLASH_BLOCKS if padded % b == 0)
        sizes = splash.BlockSizes(
            block_q=block, block_kv=block, block_kv_compute=block,
            block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
        )  # fmt: skip
        kernel = functools.partial(
            splash.make_splash_mha, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=interpret
        )
        groups = num_heads // k.shape[2]
        heads_first = tuple(
            jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))
            for x in (q * head_dim**-0.5, jnp.repeat(k, groups, 2), jnp.repeat(v, groups, 2))
        )
        if visible_until is None:
            attend = kernel(splash.MultiHeadMask([splash.CausalMask((padded, padded))] * num_heads))
            ids = (jnp.pad(each, ((0, 0), (0, padding))) for each in per_row)
            attended = jax.vmap(attend)(*heads_first, *(splash.SegmentIds(each, each) for each in ids))
        else:
            is_before = jnp.tri(padded, dtype=bool)

            def of_row(row: tuple[Array, ...]) -> Array:
                *own, until = row
                until = jnp.append(until, jnp.arange(length, padded) + 1)  # padding sees itself, for a finite softmax
                attend = kernel((is_before & _sees(until, 0, padded))[None])  # the same mask for all heads
                # JAX makes an array of this, which it then cannot read inside jit.
                attend.fwd_mask_info = attend.fwd_mask_info._replace(is_dynamic_mask=True)
                return attend(*own)

            attended = jax.lax.map(of_row, (*heads_first, *per_row))
        return attended[:, :, :length].swapaxes(1, 2)

    return on_each_shard(local, q, k, v, visible_until if segment_ids is None else segment_ids)


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
