"""Attention of candidates in slots: to their image's prompt, to their tokens in pages, and to those of this call."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from vigor_jax.inference.kv_cache import BLOCK, Latest, Pages, Prefix, Slots, cache_spec, on_each_part, specs_of
from vigor_jax.models.cpu import einsum_float32
from vigor_jax.parallel.sharding import BATCH, platform


class Visible(NamedTuple):
    """What the queries of a step see, and whose they are: the same in all layers.

    Attributes:
      in_prompt: tokens of each row.
      in_page: of the tokens of some pages, those of each, for queries of all of them; nothing in nobody's page.
      in_call: tokens of this call.
      of_rows: the slot of each candidate of a row.
      of_slots: the candidate of each slot, counted over all rows.
      of_pages: the slot of each page, any for nobody's.
      is_owner: whether a page is that of a slot.
    """

    in_prompt: Bool[Array, "I S"]
    in_page: Bool[Array, "G c m t"]
    in_call: Bool[Array, "N"]
    of_rows: Int[Array, "I C"]
    of_slots: Int[Array, "B"]
    of_pages: Int[Array, "G BLOCK"]
    is_owner: Bool[Array, "B G BLOCK"]


# How each is split over a mesh.
VISIBLE_SPECS: Any = Visible(*(P() if name == "in_call" else BATCH for name in Visible._fields))  # type: ignore[arg-type]


def what_is_visible(prefix: Prefix, latest: Latest, slots: Slots, step: Int[Array, ""]) -> Visible:
    """What is known of a step before its first layer.

    Args:
      prefix: prompts.
      latest: tokens of this call, of which there are `step` before this one.
      slots: what is where.
      step: of this call.
    """

    def of_part(lengths: Int[Array, "I"], slots: Slots, step: Int[Array, ""]) -> Visible:
        num_slots, num_steps = len(slots.rows), latest.token_ids.shape[1]
        of_page = jnp.arange(_together() * num_steps) // num_steps == jnp.arange(_together())[:, None]  # [m, t]
        is_owned = _split(slots.owners < num_slots, 1, _together())  # [G, c, m]
        return Visible(
            jnp.arange(prefix.capacity) < lengths[:, None],
            of_page & is_owned[..., None],
            jnp.arange(num_steps) < step,
            slots.of_rows,
            slots.rows * slots.of_rows.shape[1] + slots.candidates,
            jnp.minimum(slots.owners, num_slots - 1),
            slots.owners == jnp.arange(num_slots)[:, None, None],
        )

    specs = BATCH, specs_of(slots, jax.sharding.get_abstract_mesh()), P()
    return on_each_part(of_part, specs, VISIBLE_SPECS)(prefix.lengths, slots, step)


def paged_attention(
    q: Float[Array, "B N H"],
    k: Float[Array, "B K H"],
    v: Float[Array, "B K H"],
    prefix: Prefix,
    pages: Sequence[Pages],
    latest: Latest,
    slots: Slots,
    visible: Visible,
) -> Float[Array, "B N H"]:
    """One query a slot: one softmax, in float32, over its image's prompt, its own tokens so far, and itself.

    Each part of the mesh attends to what it holds.

    Args:
      q: queries of this step.
      k: keys of this step.
      v: values of this step.
      prefix: of one layer, as are the next two.
      pages: what is read of them.
      latest: tokens of this call.
      slots: what is where.
      visible: of this step.
    """
    mesh = jax.sharding.get_abstract_mesh()
    caches = prefix, tuple(pages), latest
    heads = cache_spec(k.shape, -3, mesh)
    specs = heads, heads, heads, *specs_of((*caches, slots), mesh), VISIBLE_SPECS
    return on_each_part(_attention, specs, heads)(q, k, v, *caches, slots, visible)


def _attention(
    q: Float[Array, "B N H"],
    k: Float[Array, "B K H"],
    v: Float[Array, "B K H"],
    prefix: Any,
    pages: Sequence[Any],
    latest: Any,
    slots: Slots,
    visible: Visible,
) -> Float[Array, "B N H"]:
    """The same of one part of the mesh.

    Keys and values are read where they are: the queries of an image's candidates are put together for its prompt, and
    those of the slots that own the pages of a block for that block. There, all are multiplied with all, and what is not
    a query's own page is masked: a matrix unit multiplies eight vectors in the time of one. A CPU does not, and
    multiplies each page with its query. What belongs to a slot is then added up: on a CPU page by page, elsewhere as a
    product with a matrix that says whose each page is.
    """
    is_cpu, together = platform() == "cpu", _together()
    num_slots, num_kv_heads, head_dim = k.shape
    num_steps = latest.token_ids.shape[1]
    q = q.reshape(num_slots, num_kv_heads, -1, head_dim)  # [B, K, g, H]

    def by_row(x: Float[Array, "B K g *H"]) -> Float[Array, "I K C g *H"]:
        return _take(x, visible.of_rows).swapaxes(1, 2)

    def by_page(x: Float[Array, "B K g *H"]) -> Float[Array, "G K c m g *H"]:
        """For c · m = BLOCK pages, of which m are multiplied together."""
        return _split(_take(x, visible.of_pages).swapaxes(1, 2), 2, together)

    def in_pages(x: Float[Array, "G K T H"]) -> Float[Array, "G K c t H"]:
        return _split(x, 2, together * num_steps)

    def from_rows(x: Float[Array, "I K C g *H"]) -> Float[Array, "B K g *H"]:
        by_candidate = x.swapaxes(1, 2)
        return _take(by_candidate.reshape(-1, *by_candidate.shape[2:]), visible.of_slots)

    def of_pages(x: Float[Array, "G K c m g *H"]) -> Float[Array, "G*BLOCK K g *H"]:
        by_place = x.reshape(len(x), num_kv_heads, BLOCK, *x.shape[4:]).swapaxes(1, 2)
        return by_place.reshape(-1, *by_place.shape[2:])

    def summed(x: Float[Array, "G K c m g *H"]) -> Float[Array, "B K g *H"]:
        """Over the pages of each slot."""
        if is_cpu:
            return jax.ops.segment_sum(of_pages(x), slots.owners.reshape(-1), num_slots + 1)[:-1]
        owners = _split(visible.is_owner, 2, together).astype(x.dtype)
        return jnp.einsum("sgcm,gkcmq...->skq...", owners, x, precision="highest")

    def largest_of(x: Float[Array, "G K c m g"]) -> Float[Array, "B K g"]:
        if is_cpu:
            return jax.ops.segment_max(of_pages(x), slots.owners.reshape(-1), num_slots + 1)[:-1]
        by_place = x.reshape(len(x), num_kv_heads, BLOCK, -1).swapaxes(1, 2)  # [G, BLOCK, K, g]
        return jnp.where(visible.is_owner[..., None, None], by_place, -jnp.inf).max((1, 2))

    ends = [sum(some.num_blocks for some in pages[: i + 1]) for i in range(len(pages))]

    def each_pages(x: Float[Array, "G *X"]) -> list[Array]:
        """What belongs to the blocks of each of `pages`."""
        return jnp.split(x, ends[:-1]) if pages else []

    # Scores
    shared = einsum_float32("ikcgh,ikhs->ikcgs", by_row(q), prefix.keys)
    shared = jnp.where(visible.in_prompt[:, None, None, None], shared * head_dim**-0.5, -jnp.inf)
    recent = einsum_float32("bkgh,nbkh->bkgn", q, latest.keys)
    recent = jnp.where(visible.in_call, recent * head_dim**-0.5, -jnp.inf)
    itself = einsum_float32("bkgh,bkh->bkg", q, k) * head_dim**-0.5
    largest = [from_rows(shared.max(-1)), recent.max(-1), itself]
    if pages:
        queries = each_pages(by_page(q))
        own = jnp.concatenate(
            [
                jnp.moveaxis(einsum_float32("gkcth,gkcmqh->gkctmq", in_pages(x.keys), q), 3, -1)
                for q, x in zip(queries, pages, strict=True)
            ]
        )
        own = jnp.where(visible.in_page[:, None, :, :, None], own * head_dim**-0.5, -jnp.inf)
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


def _together() -> int:
    """Pages whose queries and keys are multiplied together."""
    return 1 if platform() == "cpu" else BLOCK


def _take(x: Float[Array, "B *X"], index: Array) -> Array:
    """`x[index]`, of indices that are in `x`; none is looked at again in every layer."""
    return x.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _split(x: Array, axis: int, size: int) -> Array:
    """An axis as two, the last of this size."""
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
