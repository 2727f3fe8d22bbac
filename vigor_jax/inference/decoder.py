"""Decoding on the device: prompts come into rows, their candidates into slots, which add tokens call by call.

`inference.kv_cache` says what is held, `inference.paged_attention` reads it, `inference.sampling_methods` chooses a
token; here all of it is compiled. `inference.schedule` decides what goes where.
"""

import collections
import copy
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from vigor_jax.inference.kv_cache import (
    BLOCK,
    PAGE,
    Latest,
    Pages,
    Prefix,
    Slots,
    block_counts,
    constrain_cache,
    constrain_state,
    insert_rows,
    num_pages,
    on_each_part,
    specs_of,
    write_pages,
)
from vigor_jax.inference.paged_attention import paged_attention, what_is_visible
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.inference.sampling_methods import sample_tokens
from vigor_jax.models.attention import attention
from vigor_jax.models.llama import Llama
from vigor_jax.models.vlm import Vlm
from vigor_jax.parallel.sharding import BATCH, constrain_batch

# Rows of prompts for each that the slots are for: a prompt stays until the last of its candidates has ended, and the
# next ones wait where a slot is never without work.
ROWS_HELD = 1.5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Prompts as they go to the device, and the rows that they go to.

    Attributes:
      token_ids: padded on the right with anything.
      lengths: without padding.
      seeds: where each prompt's random numbers start.
      rows: where each goes, counted within the rows of its part of the mesh; one too many for what only fills up.
      pixels: one image a prompt, as `data.images.preprocessing.preprocess` gives it; None if none has one.
      instructions: what is asked about each image, as `models.vlm.Vlm.encode_images` takes it.
    """

    token_ids: Int[Array, "R S"]
    lengths: Int[Array, "R"]
    seeds: UInt32[Array, "R 2"]
    rows: Int[Array, "R"]
    pixels: UInt8[Array, "R E E 3"] | None
    instructions: Int[Array, "R Q"] | None = None


class Decoder:
    """The compiled parts of sampling: `prefill` reads prompts into rows, `generate` adds tokens to all slots.

    Args:
      model: its layers stacked or separate, see `layers.stacks_inference`.
      config: how to sample; there are `batch_size` · `num_candidates` slots.
      is_answer: which rows of the vocabulary may be sampled.
      eos_id: ends a candidate.
      num_parts: of the mesh, that share the rows and slots.

    Attributes:
      weights: of the model, an argument of all that is compiled: others of the same shapes and splits compile nothing.
      num_rows: of prompts, in each part of the mesh.
      num_slots: in each part of the mesh.
      steps: that a call can make.
      block_counts: blocks of each `Pages` of a part of the mesh.
      compilations: how often each function was compiled, by name.
    """

    def __init__(
        self, model: Vlm, config: SamplingConfig, is_answer: Bool[np.ndarray, "V"], eos_id: int, num_parts: int = 1
    ) -> None:
        self._graphdef, weights = nnx.split(model)
        self._sampling, self._is_answer, self._eos_id, self._num_parts = config, is_answer, eos_id, num_parts
        self.compilations: collections.Counter[str] = collections.Counter()
        images = config.batch_size // num_parts
        self.num_rows, self.num_slots = int(np.ceil(ROWS_HELD * images)), images * config.num_candidates
        longest = min(config.max_new_tokens, model.config.text.max_position_embeddings - 1)
        self.steps = min(PAGE, max(1, longest - 1))
        self.block_counts = block_counts(longest, self.num_slots)
        # What is compiled is of a copy without weights: of this one, it would hold them in a cycle.
        pure = copy.copy(self)
        self.weights = weights
        self._init_jit = jax.jit(pure._init_state)
        self._prefill_jit = jax.jit(pure._prefill, donate_argnames=("prefix",))
        self._pad_prefix_jit = jax.jit(pure._pad_prefix, static_argnames="length")
        self._init_pages_jit = jax.jit(pure._init_pages, static_argnames="index")
        self._generate_jit = jax.jit(pure._generate, donate_argnames=("pages", "latest"))

    def init_state(self, batch: Batch) -> tuple[Prefix, Latest]:
        """Rows without prompts, for prompts as long as these, and slots without tokens."""
        return self._init_jit(self.weights, batch)

    def init_pages(self, latest: Latest, index: int) -> Pages:
        """Empty pages, as many as `block_counts[index]` says."""
        return self._init_pages_jit(latest, index=index)

    def prefill(self, prefix: Prefix, batch: Batch) -> Prefix:
        """Runs prompts, samples each candidate's first token and inserts both into `Batch.rows`.

        Reuses the memory of `prefix`. A prompt must not be longer than its capacity.
        """
        return self._prefill_jit(self.weights, prefix, batch)

    def pad_prefix(self, prefix: Prefix, length: int) -> Prefix:
        """The same prompts, with a capacity of at least `length` tokens."""
        return prefix if prefix.capacity >= length else self._pad_prefix_jit(prefix, length=length)

    def generate(
        self, prefix: Prefix, pages: Sequence[Pages], latest: Latest, slots: Slots, count: int
    ) -> tuple[tuple[Pages, ...], Latest]:
        """Adds `count` tokens to every candidate, or fewer if all are done by then.

        First writes what the last call added into pages. Reuses the memory of `pages` and `latest`.

        Args:
          prefix: prompts.
          pages: the first few, among them all that a slot owns or is to get.
          latest: what the last call returned.
          slots: what is where.
          count: at most `steps`.
        """
        with jax.transfer_guard_host_to_device("allow"):  # one number for many tokens
            return self._generate_jit(self.weights, prefix, tuple(pages), latest, slots, np.int32(count))

    def pages_to_read(self, num_pages: int) -> int:
        """How many `Pages` are read, so that a part of the mesh has at least that many pages; one, if there are any."""
        totals = itertools.accumulate(self.block_counts)
        return next((count for count, total in enumerate(totals, 1) if total * BLOCK >= num_pages), 0)

    def lower_prefill(self, batch: Batch) -> jax.stages.Lowered:
        """`prefill`, not run: of shapes with shardings, under `jax.set_mesh`."""
        prefix, *_ = self.shapes(batch, 1)
        return self._prefill_jit.lower(self.weights, prefix, batch)

    def lower_generate(self, batch: Batch, capacity: int) -> jax.stages.Lowered:
        """`generate`, not run: of shapes with shardings, under `jax.set_mesh`.

        Args:
          batch: of prompts.
          capacity: tokens of a candidate, on the average over all slots, that there are pages for.
        """
        mesh = _mesh_of(batch)
        count = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, P()))
        prefix, pages, latest, slots = self.shapes(batch, capacity)
        return self._generate_jit.lower(self.weights, prefix, pages, latest, slots, count)

    def shapes(self, batch: Batch, capacity: int) -> tuple[Prefix, tuple[Pages, ...], Latest, Slots]:
        """Shapes and shardings of what `generate` takes, for prompts like those of a batch; see `lower_generate`."""
        mesh = _mesh_of(batch)
        prefix, latest = jax.eval_shape(self._init_state, self.weights, batch)
        count = self.pages_to_read(num_pages(capacity) * self.num_slots)
        pages = [jax.eval_shape(functools.partial(self._init_pages, index=i), latest) for i in range(count)]
        num_blocks = sum(some.num_blocks for some in pages)
        slots = jax.eval_shape(lambda: self._empty_slots(num_blocks))

        def placed(tree: Any) -> Any:
            specs = specs_of(tree, mesh)
            return jax.tree.map(
                lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), tree, specs
            )

        return placed(prefix), placed(tuple(pages)), placed(latest), placed(slots)

    def _empty_slots(self, num_blocks: int) -> Slots:
        num_slots, num_rows = self._num_parts * self.num_slots, self._num_parts * self.num_rows
        integers, done = jnp.zeros(num_slots, jnp.int32), jnp.ones(num_slots, bool)
        of_rows = jnp.zeros((num_rows, self._sampling.num_candidates), jnp.int32)
        owners = jnp.zeros((num_blocks, BLOCK), jnp.int32)
        return Slots(integers, integers, integers, done, integers, of_rows, owners)

    def _init_state(self, weights: nnx.State, batch: Batch) -> tuple[Prefix, Latest]:
        self.compilations["init_state"] += 1
        num_slots = self._num_parts * self.num_slots
        read = jax.eval_shape(self._read_prompts, weights, batch)

        def rows(path: Any, x: jax.ShapeDtypeStruct) -> Array:
            """Like what was read of the prompts, with all the rows; an axis of layers may come first."""
            axis = x.ndim - 4 if path[0].name in ("keys", "values") else 0
            return jnp.zeros((*x.shape[:axis], self._num_parts * self.num_rows, *x.shape[axis + 1 :]), x.dtype)

        def added(x: jax.ShapeDtypeStruct) -> Array:
            """Keys or values of the slots; `x` is the values of prompts."""
            *layers, _, heads, _, head_dim = x.shape
            return jnp.zeros((*layers, self.steps, num_slots, heads, head_dim), x.dtype)

        tokens = jnp.zeros((num_slots, self.steps))
        keys_or_values = jax.tree.map(added, read.values)
        return (
            constrain_state(jax.tree_util.tree_map_with_path(rows, read)),
            constrain_state(Latest(keys_or_values, keys_or_values, tokens.astype(jnp.int32), tokens)),
        )

    def _init_pages(self, latest: Latest, index: int) -> Pages:
        self.compilations["init_pages"] += 1
        num_blocks = self._num_parts * self.block_counts[index]

        def empty(x: Float[Array, "*L N B K H"]) -> Float[Array, "*L G K T H"]:
            *layers, steps, _, heads, head_dim = x.shape
            return jnp.zeros((*layers, num_blocks, heads, BLOCK * steps, head_dim), x.dtype)

        return constrain_state(Pages(*jax.tree.map(empty, (latest.keys, latest.values))))

    def _prefill(self, weights: nnx.State, prefix: Prefix, batch: Batch) -> Prefix:
        self.compilations["prefill"] += 1
        return insert_rows(prefix, self._read_prompts(weights, batch).pad_to(prefix.capacity), batch.rows)

    def _read_prompts(self, weights: nnx.State, batch: Batch) -> Prefix:
        """Runs prompts, and samples what comes after them."""
        model = nnx.merge(self._graphdef, weights)
        features = None if batch.pixels is None else model.encode_images(batch.pixels, batch.instructions)
        x = constrain_batch(model.embed(batch.token_ids, features))

        def attend(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, Any]:
            kept = constrain_cache(k.transpose(0, 2, 3, 1), -4), constrain_cache(v.swapaxes(1, 2), -4)
            return attention(q, k, v, causal=True), kept

        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        hidden, (keys, values) = model.language_model(x, positions, attend)
        last = jnp.take_along_axis(hidden, batch.lengths[:, None, None] - 1, axis=1)
        candidates = jnp.broadcast_to(
            jnp.arange(self._sampling.num_candidates), (len(batch.lengths), self._sampling.num_candidates)
        )
        first = self._sample(model.language_model.logits(last), batch.seeds, candidates, jnp.zeros_like(batch.lengths))
        return Prefix(keys, values, batch.lengths, batch.seeds, *first)

    def _sample(
        self,
        logits: Float[Array, "I #C V"],
        seeds: UInt32[Array, "I 2"],
        candidates: Int[Array, "I C"],
        positions: Int[Array, "I"],
    ) -> tuple[Int[Array, "I C"], Float[Array, "I C"]]:
        return sample_tokens(logits, self._is_answer, seeds, candidates, positions, self._sampling)

    def _pad_prefix(self, prefix: Prefix, length: int) -> Prefix:
        self.compilations["pad_prefix"] += 1
        return constrain_state(prefix.pad_to(length))

    def _generate(
        self,
        weights: nnx.State,
        prefix: Prefix,
        pages: tuple[Pages, ...],
        latest: Latest,
        slots: Slots,
        count: Int[Array, ""],
    ) -> tuple[tuple[Pages, ...], Latest]:
        self.compilations["generate"] += 1
        llama = nnx.merge(self._graphdef, weights).language_model
        pages = write_pages(pages, latest, slots.pages)
        lengths, seeds, first = of_slots(prefix, slots)
        token_ids = jnp.where(slots.num_tokens == 1, first, latest.token_ids[:, -1])

        def unfinished(now: tuple[Array, Array, Array, Latest]) -> Array:
            step, _, done, _ = now
            return (step < count) & ~done.all()

        def add_token(now: tuple[Array, Array, Array, Latest]) -> tuple[Array, Array, Array, Latest]:
            step, token_ids, done, latest = now
            num_tokens = slots.num_tokens + step
            logits, keys, values = next_logits(
                llama, token_ids, lengths + num_tokens - 1, prefix, pages, latest, slots, step
            )
            found = self._sample(logits, seeds, slots.candidates[:, None], num_tokens)
            token_ids = found[0][:, 0]
            at = jnp.arange(self.steps) == step
            latest = Latest(
                jax.tree.map(lambda old, new: _write_step(old, new, step), latest.keys, keys),
                jax.tree.map(lambda old, new: _write_step(old, new, step), latest.values, values),
                *(jnp.where(at, new, old) for new, old in zip(found, (latest.token_ids, latest.logprobs), strict=True)),
            )
            return step + 1, token_ids, done | (token_ids == self._eos_id), latest

        done = slots.done | (token_ids == self._eos_id)
        *_, latest = jax.lax.while_loop(unfinished, add_token, (jnp.zeros_like(count), token_ids, done, latest))
        return pages, latest


def next_logits(
    llama: Llama,
    token_ids: Int[Array, "B"],
    positions: Int[Array, "B"],
    prefix: Prefix,
    pages: Sequence[Pages],
    latest: Latest,
    slots: Slots,
    step: Int[Array, ""],
) -> tuple[Float[Array, "B 1 V"], Any, Any]:
    """Scores of what comes after the last token of each slot, and the keys and values of this token, [*L, B, K, H]."""

    def attend(q: Array, k: Array, v: Array, caches: Any) -> tuple[Array, tuple[Array, Array]]:
        of_prompt, of_pages, of_call = (Pages(*keys_and_values) for keys_and_values in caches)
        queries, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
        attended = paged_attention(
            queries, constrain_cache(k, -3), constrain_cache(v, -3),
            dataclasses.replace(prefix, keys=of_prompt.keys, values=of_prompt.values),
            [Pages(*both) for both in zip(of_pages.keys, of_pages.values, strict=True)],
            dataclasses.replace(latest, keys=of_call.keys, values=of_call.values),
            slots, visible,
        )  # fmt: skip
        return attended.reshape(q.shape), (k, v)

    # Or XLA makes parts of it again in every layer.
    visible = jax.lax.optimization_barrier(what_is_visible(prefix, latest, slots, step))
    of_pages = tuple(each.keys for each in pages), tuple(each.values for each in pages)
    caches = (prefix.keys, prefix.values), of_pages, (latest.keys, latest.values)
    # Some slots stand where the decoder expects a sequence: to its layers they are only rows.
    tokens, at = (x.reshape(-1, slots.of_rows.shape[1]) for x in (token_ids, positions))
    hidden, (keys, values) = llama(llama.embed(tokens), at, attend, caches)
    return llama.logits(hidden).reshape(len(token_ids), 1, -1), keys, values


def of_slots(prefix: Prefix, slots: Slots) -> tuple[Int[Array, "B"], UInt32[Array, "B 2"], Int[Array, "B"]]:
    """Of the prompt of each slot its length and seed, and the first token of its candidate."""

    def gather(per_row: Any, slots: Slots) -> Any:
        lengths, seeds, token_ids = per_row
        return lengths[slots.rows], seeds[slots.rows], token_ids[slots.rows, slots.candidates]

    specs = specs_of(slots, jax.sharding.get_abstract_mesh())
    return on_each_part(gather, (BATCH, specs), BATCH)((prefix.lengths, prefix.seeds, prefix.token_ids), slots)


def _write_step(old: Float[Array, "*L N B K H"], new: Float[Array, "*L B K H"], step: Int[Array, ""]) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(old, new[..., None, :, :, :], step, axis=old.ndim - 4)


def _mesh_of(batch: Batch) -> Mesh | AbstractMesh:
    assert isinstance(batch.lengths.sharding, NamedSharding)
    return batch.lengths.sharding.mesh
