"""Next-token cross-entropy that never holds all the logits at once."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from vigor_jax.data.text.conversation import IGNORE_INDEX
from vigor_jax.parallel.sharding import BATCH, partition_spec


def chunked_cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    labels: Int[Array, "B T"],
    *,
    chunk: int,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Sum of -log p(labels[t+1] | hidden[t]) over the supervised tokens, and their number.

    For 4 sequences of 2048 tokens and LLaMA's vocabulary the float32 logits alone are 1 GiB, and their
    gradient as much again. Here each chunk of positions makes its logits forward, and again backward.

    Args:
      hidden: normalized hidden states; their dtype is that of the matrix product.
      head: output matrix. Its gradient is summed over the chunks in its own dtype.
      labels: the token at each position, `IGNORE_INDEX` where it is not supervised; the shift happens here.
      chunk: positions of a row whose logits may exist at a time.

    Returns:
      The sum in float32 and the number of supervised tokens (the first position is never one).
    """
    batch, length, width = hidden.shape
    num_chunks = -(-length // chunk)
    padding = -length % num_chunks  # chunks of equal size: 640 positions by 512 are twice 320
    targets = jnp.pad(labels[:, 1:], ((0, 0), (0, 1 + padding)), constant_values=IGNORE_INDEX)
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))

    heads = _head_of_each_shard(head)
    shards = heads.shape[0]
    hidden = jnp.moveaxis(hidden.reshape(shards, batch // shards, num_chunks, -1, width), 2, 0)
    targets = jnp.moveaxis(targets.reshape(shards, batch // shards, num_chunks, -1), 2, 0)

    def add_chunk(nll: Float[Array, "S"], chunk: tuple[Array, Array]) -> tuple[Float[Array, "S"], None]:
        return nll + _chunk_nll(chunk[0], heads, chunk[1]), None

    add_chunk = jax.checkpoint(add_chunk, prevent_cse=False)
    nll, _ = jax.lax.scan(add_chunk, jnp.zeros(shards, jnp.float32), (hidden, targets))
    return nll.sum(), jnp.sum(targets != IGNORE_INDEX, dtype=jnp.int32)


def supervised_first(
    hidden: Float[Array, "B T D"], labels: Int[Array, "B T"]
) -> tuple[Float[Array, "B T D"], Int[Array, "B T"]]:
    """Rearranges each row so that `chunked_cross_entropy` finds what is supervised at its beginning.

    In rows of several conversations it stands everywhere, so few chunks would be without it and be spared.
    """
    targets = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE_INDEX)
    order = jnp.argsort(targets == IGNORE_INDEX, axis=1, stable=True)
    hidden = jnp.take_along_axis(hidden, order[..., None], axis=1)
    targets = jnp.take_along_axis(targets, order, axis=1)
    # The last position of a row never has a target, so nothing falls off in shifting back.
    return hidden, jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=IGNORE_INDEX)


# Images and questions teach nothing and stand together at the beginning, so most chunks need no logits at all. The
# choice is made again for the backward pass: differentiated by JAX, it would carry the logits from one to the other.
@jax.custom_vjp
def _chunk_nll(
    hidden: Float[Array, "S B C D"], heads: Float[Array, "S D V"], targets: Int[Array, "S B C"]
) -> Float[Array, "S"]:
    """Each shard's sum over its part of a chunk; no work where nothing is supervised."""
    nothing = jnp.zeros(heads.shape[0], jnp.float32)
    return jax.lax.cond(jnp.any(targets != IGNORE_INDEX), _nll, lambda *_: nothing, hidden, heads, targets)


def _nll(hidden: Array, heads: Array, targets: Array) -> Array:
    logits = jnp.einsum("sbtd,sdv->sbtv", hidden, heads, preferred_element_type=jnp.float32)
    # A product with one-hot rows in place of a gather fuses, and leaves a split vocabulary split.
    target_logits = jnp.sum(logits * jax.nn.one_hot(targets, logits.shape[-1]), -1)
    per_token = jax.nn.logsumexp(logits, -1) - target_logits
    return jnp.sum(per_token, axis=(1, 2), where=targets != IGNORE_INDEX)


def _forward(hidden: Array, heads: Array, targets: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _chunk_nll(hidden, heads, targets), (hidden, heads, targets)


def _backward(inputs: tuple[Array, Array, Array], cotangent: Array) -> tuple[Array, Array, None]:
    hidden, heads, targets = inputs

    def gradients(hidden: Array, heads: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda hidden, heads: _nll(hidden, heads, targets), hidden, heads)[1](cotangent)

    def zeros(hidden: Array, heads: Array) -> tuple[Array, Array]:
        return jnp.zeros_like(hidden), jnp.zeros_like(heads)

    return *jax.lax.cond(jnp.any(targets != IGNORE_INDEX), gradients, zeros, hidden, heads), None


_chunk_nll.defvjp(_forward, _backward)


def _head_of_each_shard(head: Float[Array, "D V"]) -> Float[Array, "S D V"]:
    """One head per batch shard: gathered once, and its gradients summed once, instead of in every chunk."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return head[None]
    spec = partition_spec(head.shape, (None, "vocab"), mesh)
    heads = jnp.broadcast_to(head, (mesh.shape["data"] * mesh.shape["fsdp"], *head.shape))
    return jax.lax.with_sharding_constraint(heads, PartitionSpec(*BATCH, *spec))
