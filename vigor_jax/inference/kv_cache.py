"""What decoding holds on the device: prompts, pages with the tokens of candidates, and what the last call added.

The keys and values of an image's prompt are stored once, in a row. Each of its candidates has a slot, and adds a page
of `PAGE` tokens a call of the decoder. Pages may be anywhere. So a candidate takes the pages of its own text only, and
gives them back when it ends (PagedAttention, Kwon et al. 2023). To be read, pages are not gathered:
`inference.paged_attention` brings the queries to the pages.

Rows, slots and pages belong to one part of the mesh, and are counted within it.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt32

from vigor_jax.models.layers import PerLayer
from vigor_jax.parallel.sharding import BATCH

PAGE = 16  # tokens, and steps of a call
BLOCK = 8  # pages whose queries and keys are multiplied together: with 16 tokens each, a matrix of 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """What the candidates of an image share, and the first token of each.

    Keys are [I, K, H, S], in the order that a product with queries reads, values [I, K, S, H].
    """

    keys: PerLayer
    values: PerLayer
    lengths: Int[Array, "I"]
    seeds: UInt32[Array, "I 2"]
    token_ids: Int[Array, "I C"]
    logprobs: Float[Array, "I C"]

    @property
    def capacity(self) -> int:
        """Tokens that a prompt may have."""
        return int(jax.tree.leaves(self.keys)[0].shape[-1])

    def pad_to(self, length: int) -> "Prefix":
        """The same prompts, with a capacity of `length` tokens."""
        keys = jax.tree.map(lambda x: _pad(x, -1, length), self.keys)
        return dataclasses.replace(self, keys=keys, values=jax.tree.map(lambda x: _pad(x, -2, length), self.values))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pages:
    """Some of the pages: keys and values [G, K, T, H], of T = `BLOCK` · `PAGE` tokens in each of G blocks."""

    keys: PerLayer
    values: PerLayer

    @property
    def num_blocks(self) -> int:
        """G."""
        return int(jax.tree.leaves(self.keys)[0].shape[-4])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Latest:
    """What the last call added for each of B slots, in at most N steps: keys and values [N, B, K, H]."""

    keys: PerLayer
    values: PerLayer
    token_ids: Int[Array, "B N"]
    logprobs: Float[Array, "B N"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Which candidate is in which slot, and where its tokens are: what the host decides before a call.

    Attributes:
      rows: of each candidate's prompt.
      candidates: its index among those of its image.
      num_tokens: of its text so far; 1 is the first, from the prompt.
      done: the slot is empty.
      pages: where what the last call added goes; one too many for nowhere.
      of_rows: the slot of each candidate of a row; any other for one that has none.
      owners: the slot whose tokens a page holds; one too many for nobody's.
    """

    rows: Int[Array, "B"]
    candidates: Int[Array, "B"]
    num_tokens: Int[Array, "B"]
    done: Bool[Array, "B"]
    pages: Int[Array, "B"]
    of_rows: Int[Array, "I C"]
    owners: Int[Array, "G BLOCK"]


def num_pages(num_tokens: int) -> int:
    """Pages of a text when its last tokens are added: those of the call that adds them are in none."""
    return max(0, -(-(num_tokens - 1) // PAGE) - 1)


def page_counts(max_new_tokens: int) -> list[int]:
    """Pages a slot, on the average, that can be read: 4, 5, 6, 8, 10, 12, ... and at most what all slots can fill.

    A program is compiled for each. Texts of different ages do not pay for the longest that is allowed.
    """
    most = num_pages(max_new_tokens)
    steps = (count * 2**i for i in itertools.count() for count in (4, 5, 6))
    return [*itertools.takewhile(lambda count: count < most, steps), most] if most else []


def block_counts(max_new_tokens: int, num_slots: int) -> list[int]:
    """Blocks of each `Pages` of a part of the mesh with that many slots; the first few hold `page_counts` of them."""
    totals = [0, *(-(-count * num_slots // BLOCK) for count in page_counts(max_new_tokens))]
    return [after - before for before, after in itertools.pairwise(totals) if after > before]


def insert_rows(old: Prefix, new: Prefix, rows: Int[Array, "R"]) -> Prefix:
    """Writes the rows of `new` over those of `old`, each part of the mesh its rows; see `Batch.rows` of the decoder."""

    def write(old: Prefix, new: Prefix, rows: Array) -> Prefix:
        def one(spec: P, old: Array, new: Array) -> Array:
            layers = (slice(None),) * list(spec).index(BATCH[0])
            return old.at[(*layers, rows)].set(new, mode="drop")

        return jax.tree.map(one, specs, old, new, is_leaf=lambda leaf: isinstance(leaf, P))

    specs = specs_of(old, jax.sharding.get_abstract_mesh())
    return on_each_part(write, (specs, specs, BATCH), specs)(old, new, rows)


def write_pages(pages: Sequence[Pages], latest: Latest, places: Int[Array, "B"]) -> tuple[Pages, ...]:
    """Writes what the last call added into the page of each slot, see `Slots.pages`."""

    def write(pages: Sequence[Pages], new: tuple[PerLayer, PerLayer], places: Array) -> tuple[Pages, ...]:
        written, start = [], 0
        for some in pages:
            end = start + some.num_blocks * BLOCK
            here = jnp.where((start <= places) & (places < end), places - start, end - start)

            def one(old: Float[Array, "*L G K T H"], new: Float[Array, "*L N B K H"], here: Array = here) -> Array:
                blocks = old.reshape(*old.shape[:-2], BLOCK, -1, old.shape[-1])
                layers = (slice(None),) * (old.ndim - 4)
                new = jnp.moveaxis(new, -3, 0).swapaxes(-3, -2)  # [B, *L, K, N, H]
                blocks = blocks.at[(*layers, here // BLOCK, slice(None), here % BLOCK)].set(new, mode="drop")
                return blocks.reshape(old.shape)

            written.append(Pages(*jax.tree.map(one, (some.keys, some.values), new)))
            start = end
        return tuple(written)

    mesh = jax.sharding.get_abstract_mesh()
    specs, of_latest = specs_of(tuple(pages), mesh), specs_of(latest, mesh)
    arguments = tuple(pages), (latest.keys, latest.values), places
    return on_each_part(write, (specs, (of_latest.keys, of_latest.values), BATCH), specs)(*arguments)


def on_each_part(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """The function of what each part of the mesh holds, where rows, slots and pages are counted within it."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def specs_of(tree: Any, mesh: AbstractMesh | Mesh) -> Any:
    """How a part of the state is split: by rows, slots or blocks, and keys and values by heads too."""
    axes = {Prefix: -4, Pages: -4, Latest: -3}

    def one(part: Prefix | Pages | Latest | Slots) -> Any:
        specs = jax.tree.map(lambda _: BATCH, part)
        if isinstance(part, Slots):
            return specs
        split = [
            jax.tree.map(lambda x: cache_spec(x.shape, axes[type(part)], mesh), x) for x in (part.keys, part.values)
        ]
        return dataclasses.replace(specs, keys=split[0], values=split[1])

    return jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, Prefix | Pages | Latest | Slots))


def constrain_state(part: Any) -> Any:
    """Inside jit under a mesh: keeps a part of the state split as `specs_of` says."""
    mesh = jax.sharding.get_abstract_mesh()
    return part if mesh.empty else jax.lax.with_sharding_constraint(part, specs_of(part, mesh))


def constrain_cache(cache: Array, axis: int) -> Array:
    """Keeps keys or values split like the batch and the heads are: these are `axis` and the one after it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return cache
    return jax.lax.with_sharding_constraint(cache, cache_spec(cache.shape, axis, mesh))


def cache_spec(shape: tuple[int, ...], axis: int, mesh: AbstractMesh | Mesh) -> P:
    """The split of keys or values, of one layer or of all: `axis` is that of rows, slots or blocks, from the end."""
    before = len(shape) + axis
    heads = "tensor" if not mesh.empty and shape[before + 1] % mesh.shape["tensor"] == 0 else None
    return P(*(None,) * before, *BATCH, heads)


def _pad(x: Array, axis: int, length: int) -> Array:
    return jnp.pad(x, [(0, length - x.shape[axis] if i == axis % x.ndim else 0) for i in range(x.ndim)])
