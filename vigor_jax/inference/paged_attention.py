"""Attention of candidates in slots: to their image's prompt, to their tokens in pages, and to those of this call."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from vigor_jax.inference.kv_cache import BLOCK, Latest, Pages, Prefix, Slots, cache_spec, on_each_part, specs_of
from vigor_jax.models.cpu import einsum_float32
from vigor_jax.parallel.sharding import platform


def paged_attention(
    q: Float[Array, "B N H"],
    k: Float[Array, "B K H"],
    v: Float[Array, "B K H"],
    prefix: Prefix,
    pages: Sequence[Pages],
    latest: Latest,
    slots: Slots,
    step: Int[Array, ""],
) -> Float[Array, "B N H"]:
    """One query a slot: one softmax, in float32, over its image's prompt, its own tokens so far, and itself.

    Each part of the mesh attends to what it holds.

    Args:
      q: queries of this step.
      k: keys of this step.
      v: values of this step.
      prefix: of one layer, as are the next two.
      pages: what is read of them.
      latest: tokens of this call, of which there are `step` before this one.
      slots: what is where.
      step: of this call.
    """
    mesh = jax.sharding.get_abstract_mesh()
    caches = prefix, tuple(pages), latest
    heads = cache_spec(k.shape, -3, mesh)
    specs = heads, heads, heads, *specs_of((*caches, slots), mesh), P()
    return on_each_part(_attention, specs, heads)(q, k, v, *caches, slots, step)


def _attention(
    q: Float[Array, "B N H"],
    k: Float[Array, "B K H"],
    v: Float[Array, "B K H"],
    prefix: Any,
    pages: Sequence[Any],
    latest: Any,
    slots: Slots,
    step: Int[Array, ""],
) -> Float[Array, "B N H"]:
    """The same of one part of the mesh.

    Keys and values are read where they are: the queries of an image's candidates are put together for its prompt, and
    those of the slots that own the pages of a block for that block. There, all are multiplied with all, and what is not
    a query's own page is masked: a matrix unit multiplies eight vectors in the time of one. A CPU does not, and
    multiplies each page with its query. What belongs to a slot is then added up: on a CPU page by page, elsewhere as a
    product with a matrix that says whose each page is.
    """
    is_cpu = platform() == "cpu"
    together = 1 if is_cpu else BLOCK
    num_slots, num_kv_heads, head_dim = k.shape
    num_steps = latest.token_ids.shape[1]
    q = q.reshape(num_slots, num_kv_heads, -1, head_dim)  # [B, K, g, H]

    def by_row(x: Float[Array, "B K g *H"]) -> Float[Array, "I K C g *H"]:
        return x[slots.of_rows].swapaxes(1, 2)

    def by_page(x: Float[Array, "B K g *H"]) -> Float[Array, "G K c m g *H"]:
        """For c · m = BLOCK pages, of which m are multiplied together."""
        return _split(x.at[slots.owners].get(mode="clip").swapaxes(1, 2), 2, together)

    def in_pages(x: Float[Array, "G K T H"]) -> Float[Array, "G K c t H"]:
        return _split(x, 2, together * num_steps)

    def from_rows(x: Float[Array, "I K C g *H"]) -> Float[Array, "B K g *H"]:
        return x[slots.rows, :, slots.candidates]

    def of_pages(x: Float[Array, "G K c m g *H"]) -> Float[Array, "G*BLOCK K g *H"]:
        by_place = x.reshape(len(x), num_kv_heads, BLOCK, *x.shape[4:]).swapaxes(1, 2)
        return by_place.reshape(-1, *by_place.shape[2:])

    is_owner = slots.owners == jnp.arange(num_slots)[:, None, None]  # [B, G, BLOCK]

    def summed(x: Float[Array, "G K c m g *H"]) -> Float[Array, "B K g *H"]:
        """Over the pages of each slot."""
        if is_cpu:
            return jax.ops.segment_sum(of_pages(x), slots.owners.reshape(-1), num_slots + 1)[:-1]
        owners = _split(is_owner, 2, together).astype(x.dtype)
        return jnp.einsum("sgcm,gkcmq...->skq...", owners, x, precision="highest")

    def largest_of(x: Float[Array, "G K c m g"]) -> Float[Array, "B K g"]:
        if is_cpu:
            return jax.ops.segment_max(of_pages(x), slots.owners.reshape(-1), num_slots + 1)[:-1]
        by_place = x.reshape(len(x), num_kv_heads, BLOCK, -1).swapaxes(1, 2)  # [G, BLOCK, K, g]
        return jnp.where(is_owner[..., None, None], by_place, -jnp.inf).max((1, 2))

    ends = [sum(some.num_blocks for some in pages[: i + 1]) for i in range(len(pages))]

    def each_pages(x: Float[Array, "G *X"]) -> list[Array]:
        """What belongs to the blocks of each of `pages`."""
        return jnp.split(x, ends[:-1]) if pages else []

    # Scores
    shared = einsum_float32("ikcgh,ikhs->ikcgs", by_row(q), prefix.keys)
    in_prompt = jnp.arange(shared.shape[-1]) < prefix.lengths[:, None, None, None, None]
    shared = jnp.where(in_prompt, shared * head_dim**-0.5, -jnp.inf)
    recent = einsum_float32("bkgh,nbkh->bkgn", q, latest.keys)
    recent = jnp.where(jnp.arange(num_steps) < step, recent * head_dim**-0.5, -jnp.inf)
    itself = einsum_float32("bkgh,bkh->bkg", q, k) * head_dim**-0.5
    largest = [from_rows(shared.max(-1)), recent.max(-1), itself]
    if pages:
        queries = each_pages(by_page(q))
        own = jnp.concatenate(
            [einsum_float32("gkcmqh,gkcth->gkcmqt", q, in_pages(x.keys)) for q, x in zip(queries, pages, strict=True)]
        )
        of_page = jnp.arange(own.shape[-1]) // num_steps == jnp.arange(together)[:, None]  # [m, t]
        is_owned = _split(slots.owners < num_slots, 1, together)  # [G, c, m]
        is_own = (of_page & is_owned[..., None])[:, None, :, :, None]
        own = jnp.where(is_own, own * head_dim**-0.5, -jnp.inf)
        largest.append(largest_of(own.max(-1)))

    # Softmax, divided by its sum at the end
    most = functools.reduce(jnp.maximum, largest)  # [B, K, g]
    shared = jnp.exp(shared - by_row(most)[..., None])
    recent, itself = jnp.exp(recent - most[..., None]), jnp.exp(itself - most)
    total = from_rows(shared.sum(-1)) + recent.sum(-1) + itself
    attended = from_rows(einsum_float32("ikcgs,iksh->ikcgh", shared.astype(v.dtype), prefix.values))
    attended += einsum_float32("bkgn,nbkh->bkgh", recent.astype(v.dtype), latest.values)
    attended += itself[..., None] * v[:, :, None]
    if pages:
        own = jnp.exp(own - by_page(most)[..., None])
        weights = each_pages(own.astype(v.dtype))
        in_page = jnp.concatenate(
            [einsum_float32("gkcmqt,gkcth->gkcmqh", w, in_pages(x.values)) for w, x in zip(weights, pages, strict=True)]
        )
        total += summed(own.sum(-1))
        attended += summed(in_page)
    return (attended / total[..., None]).astype(v.dtype).reshape(num_slots, -1, head_dim)


def _split(x: Array, axis: int, size: int) -> Array:
    """An axis as two, the last of this size."""
    return x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
