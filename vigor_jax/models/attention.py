"""Attention through one function, which takes the fastest kernel of the platform."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vigor_jax.sharding import BATCH

Implementation: TypeAlias = Literal["auto", "xla", "cudnn", "splash"]

SPLASH_BLOCK = 128


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    causal: bool,
    implementation: Implementation = "auto",
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention of a sequence with itself; softmax in float32, grouped queries allowed (N = g·K).

    There is no padding mask: sequences are padded on the right, so under a causal mask no token sees the padding, and
    image patches are never padded.

    Args:
      q: queries.
      k: keys.
      v: values.
      causal: each token sees itself and what is before it; otherwise everything.
      implementation: "cudnn" is NVIDIA's flash attention (16-bit types), "splash" the Pallas kernel for TPU, "xla" the
        plain formula; "auto" takes the first that serves these shapes on the default backend.
    """
    if implementation == "auto":
        implementation = _fastest(q, causal)
    if implementation == "splash":
        return _splash(q, k, v)
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=implementation)


def _fastest(q: Float[Array, "B T N H"], causal: bool) -> Literal["xla", "cudnn", "splash"]:
    _, length, _, head_dim = q.shape
    backend = jax.default_backend()
    if backend == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128:
        return "cudnn"
    # The vision tower's few hundred patches are no work for a blocked kernel, and never a multiple of its block.
    if backend == "tpu" and causal and length % SPLASH_BLOCK == 0 and head_dim % 128 == 0:
        return "splash"
    return "xla"


def _splash(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
) -> Float[Array, "B T N H"]:
    """Causal splash attention; Pallas kernels are not partitioned by the compiler, so each shard calls its own."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # TPU only, slow to import

    def local(q: Array, k: Array, v: Array) -> Array:
        _, length, num_heads, head_dim = q.shape
        mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * num_heads)
        block = next(b for b in (512, 256, SPLASH_BLOCK) if length % b == 0)
        sizes = splash.BlockSizes(
            block_q=block, block_kv=block, block_kv_compute=block,
            block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
        )  # fmt: skip
        kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)
        groups = num_heads // k.shape[2]
        heads_first = (
            x.swapaxes(1, 2) for x in (q * head_dim**-0.5, jnp.repeat(k, groups, 2), jnp.repeat(v, groups, 2))
        )
        return jax.vmap(kernel)(*heads_first).swapaxes(1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q, k, v)
    heads = P(*BATCH, None, "tensor")
    return jax.shard_map(local, in_specs=(heads, heads, heads), out_specs=heads, check_vma=False)(q, k, v)
