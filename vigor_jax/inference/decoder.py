"""Decoding on the device: rows of images, each with its candidates; a row whose candidates are done takes a new image.

`inference.kv_cache` holds what a step reads and writes, `inference.sampling_methods` chooses a token; here prompts come
in, tokens are added, and all of it is compiled.
"""

import collections
import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from vigor_jax.inference.kv_cache import (
    DecodeState,
    KVCache,
    Prefix,
    constrain_cache,
    constrain_state,
    insert_rows,
    next_logits,
    specs_of,
)
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.inference.sampling_methods import sample_tokens
from vigor_jax.models.attention import attention
from vigor_jax.models.vlm import Vlm
from vigor_jax.parallel.sharding import constrain_batch

SHORTEST_CACHE = 64


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


def cache_lengths(max_new_tokens: int) -> list[int]:
    """Lengths that the caches double through: short responses do not pay for the longest that is allowed."""
    lengths = [max_new_tokens]
    while lengths[0] >= 2 * SHORTEST_CACHE:
        lengths.insert(0, -(-lengths[0] // 2))
    return lengths


class Decoder:
    """The compiled parts of sampling: `prefill` reads prompts into rows, `generate` adds tokens to all rows.

    Args:
      model: its layers stacked or separate, see `layers.stacks_inference`.
      config: how to sample; `batch_size` is the number of rows.
      is_answer: which rows of the vocabulary may be sampled.
      eos_id: ends a candidate.

    Attributes:
      weights: of the model, an argument of all that is compiled: others of the same shapes and splits compile nothing.
      compilations: how often each function was compiled, by name.
    """

    def __init__(self, model: Vlm, config: SamplingConfig, is_answer: Bool[np.ndarray, "V"], eos_id: int) -> None:
        self._graphdef, weights = nnx.split(model)
        self._sampling, self._is_answer, self._eos_id = config, is_answer, eos_id
        self.compilations: collections.Counter[str] = collections.Counter()
        positions = model.config.text.max_position_embeddings
        self.cache_lengths = cache_lengths(min(config.max_new_tokens, positions - 1))
        # What is compiled is of a copy without weights: of this one, it would hold them in a cycle.
        pure = copy.copy(self)
        self.weights = weights
        self._init_jit = jax.jit(pure._init_decode_state)
        self._prefill_jit = jax.jit(pure._prefill, donate_argnames=("prefix", "state"))
        self._pad_prefix_jit = jax.jit(pure._pad_prefix, static_argnames="length")
        self._pad_cache_jit = jax.jit(pure._pad_cache, static_argnames="length")
        self._generate_jit = jax.jit(pure._generate, donate_argnames=("state", "cache"))

    def init_decode_state(self, batch: Batch) -> tuple[Prefix, DecodeState, KVCache]:
        """Rows without prompts, for prompts as long as these, and a cache of the first of `cache_lengths`."""
        return self._init_jit(self.weights, batch)

    def prefill(self, prefix: Prefix, state: DecodeState, batch: Batch) -> tuple[Prefix, DecodeState]:
        """Runs prompts, samples each candidate's first token and inserts both into `Batch.rows`.

        Reuses the memory of `prefix` and `state`. A prompt must not be longer than the capacity of `prefix`.
        """
        return self._prefill_jit(self.weights, prefix, state, batch)

    def pad_prefix(self, prefix: Prefix, length: int) -> Prefix:
        """The same prompts, with a capacity of at least `length` tokens."""
        return prefix if prefix.capacity >= length else self._pad_prefix_jit(prefix, length=length)

    def pad_cache(self, cache: KVCache, length: int) -> KVCache:
        """The same keys and values in a cache of at least `length` steps."""
        return cache if cache.capacity >= length else self._pad_cache_jit(cache, length=length)

    def generate(self, prefix: Prefix, state: DecodeState, cache: KVCache, count: int) -> tuple[DecodeState, KVCache]:
        """Adds `count` tokens to every candidate, or fewer if all are done by then; reuses the memory of both.

        Undefined if a row has more tokens than the cache has steps.
        """
        with jax.transfer_guard_host_to_device("allow"):  # one number for many tokens
            return self._generate_jit(self.weights, prefix, state, cache, np.int32(count))

    def lower_prefill(self, batch: Batch) -> jax.stages.Lowered:
        """`prefill`, not run: of shapes with shardings, under `jax.set_mesh`."""
        prefix, state, _ = self.shapes(batch, self.cache_lengths[0])
        return self._prefill_jit.lower(self.weights, prefix, state, batch)

    def lower_generate(self, batch: Batch, capacity: int) -> jax.stages.Lowered:
        """`generate` with a cache of `capacity`, not run: of shapes with shardings, under `jax.set_mesh`."""
        mesh = _mesh_of(batch)
        count = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, P()))
        return self._generate_jit.lower(self.weights, *self.shapes(batch, capacity), count)

    def lower_pad_cache(self, batch: Batch, capacity: int, length: int) -> jax.stages.Lowered:
        """`pad_cache` from a cache of `capacity` to one of `length`, not run: of shapes, under `jax.set_mesh`."""
        *_, cache = self.shapes(batch, capacity)
        return self._pad_cache_jit.lower(cache, length=length)

    def shapes(self, batch: Batch, capacity: int) -> tuple[Prefix, DecodeState, KVCache]:
        """Shapes and shardings of what `init_decode_state` and `pad_cache` make, of those of a batch."""
        mesh = _mesh_of(batch)
        prefix, state, cache = jax.eval_shape(self._init_decode_state, self.weights, batch)
        if capacity > cache.capacity:
            cache = jax.eval_shape(functools.partial(self._pad_cache, length=capacity), cache)

        def placed(tree: Any) -> Any:
            specs = specs_of(tree, mesh)
            return jax.tree.map(
                lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), tree, specs
            )

        return placed(prefix), placed(state), placed(cache)

    def _init_decode_state(self, weights: nnx.State, batch: Batch) -> tuple[Prefix, DecodeState, KVCache]:
        self.compilations["init_decode_state"] += 1
        config = self._sampling
        num_rows, shape = config.batch_size, (config.batch_size, config.num_candidates)
        read, _ = jax.eval_shape(self._run_prompts, weights, batch)

        def empty(x: jax.ShapeDtypeStruct) -> Array:
            """Of keys or values, which have a row a prompt."""
            return jnp.zeros((*x.shape[:-4], num_rows, *x.shape[-3:]), x.dtype)

        def candidates(x: jax.ShapeDtypeStruct, length: int) -> Array:
            """Keys or values of the candidates; `x` is the values of prompts."""
            *layers, _, heads, _, head_dim = x.shape
            return jnp.zeros((*layers, num_rows, heads, config.num_candidates, length, head_dim), x.dtype)

        integers = jnp.zeros(num_rows, jnp.int32)
        seeds = jnp.zeros((num_rows, 2), jnp.uint32)
        prefix = Prefix(jax.tree.map(empty, read.keys), jax.tree.map(empty, read.values), integers, seeds)
        tokens = jnp.zeros((*shape, self.cache_lengths[-1]))
        state = DecodeState(tokens.astype(jnp.int32), tokens, jnp.ones(shape, bool), integers)
        own = jax.tree.map(lambda x: candidates(x, self.cache_lengths[0]), read.values)
        latest = jax.tree.map(lambda x: candidates(x, 1), read.values)
        return (
            constrain_state(prefix),
            constrain_state(state),
            constrain_state(KVCache(own, own, latest, latest, jnp.int32(0))),
        )

    def _prefill(
        self, weights: nnx.State, prefix: Prefix, state: DecodeState, batch: Batch
    ) -> tuple[Prefix, DecodeState]:
        self.compilations["prefill"] += 1
        read, logits = self._run_prompts(weights, batch)
        read = read.pad_to(prefix.capacity)
        token_ids, logprobs = self._sample(logits, batch.seeds, jnp.zeros_like(batch.lengths))
        padding = [(0, 0), (0, 0), (0, state.token_ids.shape[-1] - 1)]
        first = DecodeState(
            jnp.pad(token_ids[..., None], padding),
            jnp.pad(logprobs[..., None], padding),
            token_ids == self._eos_id,
            jnp.ones_like(batch.lengths),
        )
        return insert_rows((prefix, state), (read, first), batch.rows)

    def _run_prompts(self, weights: nnx.State, batch: Batch) -> tuple[Prefix, Float[Array, "R 1 V"]]:
        """Runs prompts: their keys and values, and the scores of what comes after them."""
        model = nnx.merge(self._graphdef, weights)
        features = None if batch.pixels is None else model.encode_images(batch.pixels, batch.instructions)
        x = constrain_batch(model.embed(batch.token_ids, features))

        def attend(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, Any]:
            kept = constrain_cache(k.transpose(0, 2, 3, 1), 4), constrain_cache(v.swapaxes(1, 2), 4)
            return attention(q, k, v, causal=True), kept

        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        hidden, (keys, values) = model.language_model(x, positions, attend)
        last = jnp.take_along_axis(hidden, batch.lengths[:, None, None] - 1, axis=1)
        return Prefix(keys, values, batch.lengths, batch.seeds), model.language_model.logits(last)

    def _sample(
        self, logits: Float[Array, "I #C V"], seeds: UInt32[Array, "I 2"], positions: Int[Array, "I"]
    ) -> tuple[Int[Array, "I C"], Float[Array, "I C"]]:
        return sample_tokens(logits, self._is_answer, seeds, positions, self._sampling)

    def _pad_prefix(self, prefix: Prefix, length: int) -> Prefix:
        self.compilations["pad_prefix"] += 1
        return constrain_state(prefix.pad_to(length))

    def _pad_cache(self, cache: KVCache, length: int) -> KVCache:
        self.compilations["pad_cache"] += 1
        return constrain_state(cache.pad_to(length))

    def _generate(
        self, weights: nnx.State, prefix: Prefix, state: DecodeState, cache: KVCache, count: Int[Array, ""]
    ) -> tuple[DecodeState, KVCache]:
        self.compilations["generate"] += 1
        llama = nnx.merge(self._graphdef, weights).language_model
        places = jnp.arange(state.token_ids.shape[-1])

        def unfinished(now: tuple[Array, DecodeState, KVCache]) -> Array:
            step, state, _ = now
            return (step < count) & ~state.done.all()

        def add_token(now: tuple[Array, DecodeState, KVCache]) -> tuple[Array, DecodeState, KVCache]:
            step, state, cache = now
            logits, cache = next_logits(llama, prefix, state, cache)
            token_ids, logprobs = self._sample(logits, prefix.seeds, state.num_tokens)
            here = (places == state.num_tokens[:, None, None]) & ~state.done[..., None]
            state = DecodeState(
                jnp.where(here, token_ids[..., None], state.token_ids),
                jnp.where(here, logprobs[..., None], state.logprobs),
                state.done | (token_ids == self._eos_id),
                state.num_tokens + 1,
            )
            return step + 1, state, cache

        _, state, cache = jax.lax.while_loop(unfinished, add_token, (jnp.zeros_like(count), state, cache))
        return state, cache


def _mesh_of(batch: Batch) -> Mesh | AbstractMesh:
    assert isinstance(batch.lengths.sharding, NamedSharding)
    return batch.lengths.sharding.mesh
