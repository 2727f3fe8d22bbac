"""Decoding on the device: rows of images, each with its candidates, of which those that are done make room for others.

`inference.kv_cache` holds what a step reads and leaves behind; here prompts come in, tokens are drawn, and all of it is
compiled.
"""

import collections
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from vigor_jax import fingerprint
from vigor_jax.errors import InputError
from vigor_jax.inference.kv_cache import Prefix, Ring, Texts, keep_split, next_logits, put_rows, specs_of, split_heads
from vigor_jax.models.attention import attention
from vigor_jax.models.llava import Llava
from vigor_jax.parallel.sharding import constrain_batch

LEAST_ROOM = 64
BITS_OF_ONE = 0x3F800000  # float32 1.0


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How candidates are drawn. The first three shape the distribution, in this order.

    Attributes:
      temperature: divides the scores; 0 takes the most likely token.
      top_k: only the k most likely tokens (ties kept); 0 is off.
      top_p: only the fewest most likely tokens that together have this probability (Holtzman et al. 2020); 1 is off.
      max_new_tokens: a candidate that has not ended by then is cut; the model's positions may end it earlier.
      num_candidates: responses an image.
      seed: one number for all random choices. What a candidate draws depends on it, on its image's id and prompt, on
        the candidate's index and on the position in the text, and on nothing else.
      batch_size: images a batch, over all devices; the mesh may ask for a few more.
      prompt_bucket: prompts are padded to a multiple of it, so that few lengths are ever compiled.
      repetition_stop: n > 0 ends a candidate whose last 2·n tokens repeat with a period of at most n; 0 is off.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 512
    num_candidates: int = 5
    seed: int = 0
    batch_size: int = fingerprint.neutral(8)
    prompt_bucket: int = fingerprint.neutral(64)
    repetition_stop: int = 0

    def __post_init__(self) -> None:
        least = {"max_new_tokens": 1, "num_candidates": 1, "batch_size": 1, "prompt_bucket": 1}
        for name in ("temperature", "top_k", "seed", "repetition_stop", *least):
            value = getattr(self, name)
            if not least.get(name, 0) <= value < math.inf:
                raise InputError(f"sampling.{name} must be at least {least.get(name, 0)}, got {value}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"sampling.top_p must be above 0 and at most 1, which is off, got {self.top_p}")


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
    """

    token_ids: Int[Array, "R S"]
    lengths: Int[Array, "R"]
    seeds: UInt32[Array, "R 2"]
    rows: Int[Array, "R"]
    pixels: UInt8[Array, "R E E 3"] | None


def stages(max_new_tokens: int) -> list[int]:
    """Lengths that the rings double through: short texts do not pay for the longest that there may be."""
    lengths = [max_new_tokens]
    while lengths[0] >= 2 * LEAST_ROOM:
        lengths.insert(0, -(-lengths[0] // 2))
    return lengths


def truncate(scores: Float[Array, "*B V"], top_k: int, top_p: float) -> Float[Array, "*B V"]:
    """-inf for all but the `top_k` most likely tokens, and of these all but the fewest that have probability `top_p`.

    A token stays while those more likely than it have less than `top_p` together. The least probability that stays is
    found by bisection over the bit patterns of float32, which are in the order of the numbers: thirty passes that only
    add, where sorting a vocabulary would cost many times more than the decoder itself.
    """
    if 0 < top_k < scores.shape[-1]:
        kth = jax.lax.top_k(scores, top_k)[0][..., -1:]
        scores = jnp.where(scores < kth, -jnp.inf, scores)
    if top_p < 1:
        probs = jax.nn.softmax(scores)
        bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

        def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds  # too much lies above `low`, and little enough above `high`
            middle = (low + high) // 2
            enough = jnp.where(bits > middle, probs, 0).sum(-1, keepdims=True) < top_p
            return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

        one = jnp.full_like(bits[..., :1], BITS_OF_ONE)
        _, least = jax.lax.fori_loop(0, 30, halve, (jnp.full_like(one, -1), one))
        scores = jnp.where(bits < least, -jnp.inf, scores)
    return scores


def candidate_keys(seeds: UInt32[Array, "I 2"], num_candidates: int, positions: Int[Array, "I"]) -> Array:
    """Random keys [I, C] of a token of each row. Threefry always, whatever the process's default is."""

    def key(seed: Array, candidate: Array, position: Array) -> Array:
        base = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(base, candidate), position)

    return jax.vmap(jax.vmap(key, (None, 0, None)), (0, None, 0))(seeds, jnp.arange(num_candidates), positions)


def _argmax(scores: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """First index of the maximum, by two plain reductions: XLA's own argmax is several times slower on CPU."""
    places = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    places = jnp.where(scores == scores.max(-1, keepdims=True), places, scores.shape[-1] - 1)
    return places.min(-1)


class Decoder:
    """The compiled parts of sampling: `refill` reads prompts into rows, `extend` adds tokens to all rows.

    Args:
      model: its layers stacked or separate, see `layers.stacks_inference`.
      config: how to sample; `batch_size` is the number of rows.
      is_answer: which rows of the vocabulary may be sampled.
      eos_id: ends a candidate.

    Attributes:
      compilations: how often each function was compiled, by name.
    """

    def __init__(self, model: Llava, config: SamplingConfig, is_answer: Bool[np.ndarray, "V"], eos_id: int) -> None:
        self._graphdef, self._weights = nnx.split(model)
        self._sampling, self._is_answer, self._eos_id = config, is_answer, eos_id
        self.compilations: collections.Counter[str] = collections.Counter()
        positions = model.config.text.max_position_embeddings
        self.rooms = stages(min(config.max_new_tokens, positions - 1))
        self._begin_jit = jax.jit(self._begin)
        self._refill_jit = jax.jit(self._refill, donate_argnames=("prefix", "texts"))
        self._widen_jit = jax.jit(self._widen, static_argnames="length")
        self._grow_jit = jax.jit(self._grow, static_argnames="length")
        self._extend_jit = jax.jit(self._extend, donate_argnames=("texts", "ring"))

    def begin(self, batch: Batch) -> tuple[Prefix, Texts, Ring]:
        """Rows without prompts, with room for prompts of this length and a ring of the first of `rooms`."""
        return self._begin_jit(self._weights, batch)

    def refill(self, prefix: Prefix, texts: Texts, batch: Batch) -> tuple[Prefix, Texts]:
        """Runs prompts and samples each candidate's first token; reuses the memory of `prefix` and `texts`.

        The prompts must fit into the room of `prefix`.
        """
        return self._refill_jit(self._weights, prefix, texts, batch)

    def widen(self, prefix: Prefix, length: int) -> Prefix:
        """The same prompts, with room for `length` tokens at least."""
        return prefix if prefix.room >= length else self._widen_jit(prefix, length=length)

    def grow(self, ring: Ring, length: int) -> Ring:
        """The same keys and values in a ring of `length` at least."""
        return ring if ring.room >= length else self._grow_jit(ring, length=length)

    def extend(self, prefix: Prefix, texts: Texts, ring: Ring, count: int) -> tuple[Texts, Ring]:
        """Adds `count` tokens to every candidate, or fewer if all are done by then; reuses the memory of both.

        A row that has more tokens than the ring is long is spoilt.
        """
        with jax.transfer_guard_host_to_device("allow"):  # one number for many tokens
            return self._extend_jit(self._weights, prefix, texts, ring, np.int32(count))

    def lower_refill(self, batch: Batch) -> jax.stages.Lowered:
        """`refill`, not run: of shapes with shardings, under `jax.set_mesh`."""
        prefix, texts, _ = self.shapes(batch, self.rooms[0])
        return self._refill_jit.lower(self._weights, prefix, texts, batch)

    def lower_extend(self, batch: Batch, room: int) -> jax.stages.Lowered:
        """`extend` with a ring of `room`, not run: of shapes with shardings, under `jax.set_mesh`."""
        mesh = _mesh_of(batch)
        count = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, P()))
        return self._extend_jit.lower(self._weights, *self.shapes(batch, room), count)

    def lower_grow(self, batch: Batch, room: int, length: int) -> jax.stages.Lowered:
        """`grow` from a ring of `room` to one of `length`, not run: of shapes, under `jax.set_mesh`."""
        *_, ring = self.shapes(batch, room)
        return self._grow_jit.lower(ring, length=length)

    def shapes(self, batch: Batch, room: int) -> tuple[Prefix, Texts, Ring]:
        """Shapes and shardings of what `begin` and `grow` make, of those of a batch."""
        mesh = _mesh_of(batch)
        prefix, texts, ring = jax.eval_shape(self._begin, self._weights, batch)
        ring = jax.eval_shape(functools.partial(self._grow, length=room), ring) if room > ring.room else ring

        def placed(tree: Any) -> Any:
            specs = specs_of(tree, mesh)
            return jax.tree.map(
                lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), tree, specs
            )

        return placed(prefix), placed(texts), placed(ring)

    def _begin(self, weights: nnx.State, batch: Batch) -> tuple[Prefix, Texts, Ring]:
        self.compilations["begin"] += 1
        config = self._sampling
        num_rows, shape = config.batch_size, (config.batch_size, config.num_candidates)
        read, _ = jax.eval_shape(self._read, weights, batch)

        def empty(x: jax.ShapeDtypeStruct) -> Array:
            """Of keys or values, which have a row a prompt."""
            return jnp.zeros((*x.shape[:-4], num_rows, *x.shape[-3:]), x.dtype)

        def candidates(x: jax.ShapeDtypeStruct, room: int) -> Array:
            """Keys or values of the candidates; `x` is the values of prompts."""
            *layers, _, heads, _, head_dim = x.shape
            return jnp.zeros((*layers, num_rows, heads, config.num_candidates, room, head_dim), x.dtype)

        integers = jnp.zeros(num_rows, jnp.int32)
        seeds = jnp.zeros((num_rows, 2), jnp.uint32)
        prefix = Prefix(jax.tree.map(empty, read.keys), jax.tree.map(empty, read.values), integers, seeds)
        tokens = jnp.zeros((*shape, self.rooms[-1]))
        texts = Texts(tokens.astype(jnp.int32), tokens, jnp.ones(shape, bool), integers)
        own = jax.tree.map(lambda x: candidates(x, self.rooms[0]), read.values)
        latest = jax.tree.map(lambda x: candidates(x, 1), read.values)
        return keep_split(prefix), keep_split(texts), keep_split(Ring(own, own, latest, latest, jnp.int32(0)))

    def _refill(self, weights: nnx.State, prefix: Prefix, texts: Texts, batch: Batch) -> tuple[Prefix, Texts]:
        self.compilations["refill"] += 1
        read, logits = self._read(weights, batch)
        read = read.widened(prefix.room)
        token_ids, logprobs = self._sample(logits, batch.seeds, jnp.zeros_like(batch.lengths))
        room = [(0, 0), (0, 0), (0, texts.token_ids.shape[-1] - 1)]
        begun = Texts(
            jnp.pad(token_ids[..., None], room),
            jnp.pad(logprobs[..., None], room),
            token_ids == self._eos_id,
            jnp.ones_like(batch.lengths),
        )
        return put_rows((prefix, texts), (read, begun), batch.rows)

    def _read(self, weights: nnx.State, batch: Batch) -> tuple[Prefix, Float[Array, "R 1 V"]]:
        """Runs prompts: their keys and values, and the scores of what comes after them."""
        model = nnx.merge(self._graphdef, weights)
        features = None if batch.pixels is None else model.encode_images(batch.pixels)
        x = constrain_batch(model.embed(batch.token_ids, features))

        def attend(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, Any]:
            kept = split_heads(k.transpose(0, 2, 3, 1), 4), split_heads(v.swapaxes(1, 2), 4)
            return attention(q, k, v, causal=True), kept

        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        hidden, (keys, values) = model.language_model(x, positions, attend)
        last = jnp.take_along_axis(hidden, batch.lengths[:, None, None] - 1, axis=1)
        return Prefix(keys, values, batch.lengths, batch.seeds), model.language_model.logits(last)

    def _widen(self, prefix: Prefix, length: int) -> Prefix:
        self.compilations["widen"] += 1
        return keep_split(prefix.widened(length))

    def _grow(self, ring: Ring, length: int) -> Ring:
        self.compilations["grow"] += 1
        return keep_split(ring.grown(length))

    def _extend(
        self, weights: nnx.State, prefix: Prefix, texts: Texts, ring: Ring, count: Int[Array, ""]
    ) -> tuple[Texts, Ring]:
        self.compilations["extend"] += 1
        llama = nnx.merge(self._graphdef, weights).language_model
        places = jnp.arange(texts.token_ids.shape[-1])

        def unfinished(now: tuple[Array, Texts, Ring]) -> Array:
            step, texts, _ = now
            return (step < count) & ~texts.done.all()

        def add_token(now: tuple[Array, Texts, Ring]) -> tuple[Array, Texts, Ring]:
            step, texts, ring = now
            logits, ring = next_logits(llama, prefix, texts, ring)
            token_ids, logprobs = self._sample(logits, prefix.seeds, texts.num_tokens)
            here = (places == texts.num_tokens[:, None, None]) & ~texts.done[..., None]
            texts = Texts(
                jnp.where(here, token_ids[..., None], texts.token_ids),
                jnp.where(here, logprobs[..., None], texts.logprobs),
                texts.done | (token_ids == self._eos_id),
                texts.num_tokens + 1,
            )
            return step + 1, texts, ring

        _, texts, ring = jax.lax.while_loop(unfinished, add_token, (jnp.zeros_like(count), texts, ring))
        return texts, ring

    def _sample(
        self, logits: Float[Array, "I #C V"], seeds: UInt32[Array, "I 2"], positions: Int[Array, "I"]
    ) -> tuple[Int[Array, "I C"], Float[Array, "I C"]]:
        """One token a candidate, and its log-probability under the model itself (no temperature, nothing left out)."""
        config = self._sampling
        shape = (logits.shape[0], config.num_candidates, logits.shape[-1])
        scores = jnp.where(self._is_answer, logits, -jnp.inf)
        if config.temperature > 0:
            scores = truncate(scores / config.temperature, config.top_k, config.top_p)
            keys = candidate_keys(seeds, config.num_candidates, positions)
            # Gumbel-max: the maximum of scores with this noise is a draw from their softmax.
            scores = scores + jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, shape[-1:])))(keys)
        token_ids = jnp.broadcast_to(_argmax(scores), shape[:2])
        chosen = jnp.take_along_axis(jnp.broadcast_to(logits, shape), token_ids[..., None], -1)[..., 0]
        return token_ids, chosen - jax.nn.logsumexp(logits, -1)


def _mesh_of(batch: Batch) -> Mesh | AbstractMesh:
    assert isinstance(batch.lengths.sharding, NamedSharding)
    return batch.lengths.sharding.mesh
