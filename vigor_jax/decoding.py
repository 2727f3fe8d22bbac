"""Decoding on the device: one prefill an image, then one loop that extends all of its candidates together.

The keys and values of an image's prompt are stored once and shared by its candidates; each candidate only adds those of
its own tokens. All candidates of a batch are at the same step, so a step writes one slice of each cache, in place.
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

from vigor_jax.errors import InputError
from vigor_jax.models.attention import attention
from vigor_jax.models.layers import PerLayer
from vigor_jax.models.llama import Llama
from vigor_jax.models.llava import Llava
from vigor_jax.sharding import BATCH, platform, split_batch

LEAST_ROOM = 64
BITS_OF_ONE = 0x3F800000  # float32 1.0


# Settings that change how fast candidates come and not what they say.
NOT_IN_RESULTS = ("batch_size", "prompt_bucket")


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
    batch_size: int = 8
    prompt_bucket: int = 64
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
    """Prompts as they go to the device.

    Attributes:
      token_ids: padded on the right with anything.
      lengths: without padding.
      seeds: where each row's random numbers start.
      is_real: false for rows that only fill the batch up.
      pixels: one image a row, as `data.images.preprocess` gives it; None if no row has one.
    """

    token_ids: Int[Array, "I S"]
    lengths: Int[Array, "I"]
    seeds: UInt32[Array, "I 2"]
    is_real: Bool[Array, "I"]
    pixels: UInt8[Array, "I E E 3"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """What the candidates of an image share.

    Keys are [I, K, H, S], in the order that a product with queries reads, values [I, K, S, H].
    """

    keys: PerLayer
    values: PerLayer
    lengths: Int[Array, "I"]
    seeds: UInt32[Array, "I 2"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidates:
    """The candidates so far; T is room, of which `step` tokens are taken.

    Keys and values are [I, K, C, T, H]; those of a token are written a step later.
    """

    token_ids: Int[Array, "I C T"]
    logprobs: Float[Array, "I C T"]
    done: Bool[Array, "I C"]
    step: Int[Array, ""]
    keys: PerLayer
    values: PerLayer


def stages(max_new_tokens: int) -> list[int]:
    """Lengths that the candidates' room doubles through: early steps do not pay for the longest text."""
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


def candidate_keys(seeds: UInt32[Array, "I 2"], num_candidates: int, position: Int[Array, ""]) -> Array:
    """Random keys [I, C] of the tokens at one position. Threefry always, whatever the process's default is."""

    def key(seed: Array, candidate: Array) -> Array:
        base = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(base, candidate), position)

    return jax.vmap(jax.vmap(key, (None, 0)), (0, None))(seeds, jnp.arange(num_candidates))


def _argmax(scores: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """First index of the maximum, by two plain reductions: XLA's own argmax is several times slower on CPU."""
    places = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    places = jnp.where(scores == scores.max(-1, keepdims=True), places, scores.shape[-1] - 1)
    return places.min(-1)


class Decoder:
    """The compiled halves of sampling: `prefill` reads prompts, `extend` adds tokens.

    Args:
      model: its layers stacked or separate, see `layers.stacks_inference`.
      config: how to sample.
      is_answer: which rows of the vocabulary may be sampled.
      eos_id: ends a candidate.

    Attributes:
      compilations: how often each function was compiled, by name.
    """

    def __init__(self, model: Llava, config: SamplingConfig, is_answer: Bool[np.ndarray, "V"], eos_id: int) -> None:
        self._graphdef, self._weights = nnx.split(model)
        self._sampling, self._is_answer, self._eos_id = config, is_answer, eos_id
        self.compilations: collections.Counter[str] = collections.Counter()
        self._prefill_jit = jax.jit(self._prefill)
        self._grow_jit = jax.jit(self._grow, static_argnames="length")
        self._extend_jit = jax.jit(self._extend, donate_argnames="candidates")

    def prefill(self, batch: Batch) -> tuple[Prefix, Candidates]:
        """Runs the prompts and samples each candidate's first token."""
        return self._prefill_jit(self._weights, batch)

    def grow(self, candidates: Candidates, length: int) -> Candidates:
        """The same candidates with room for `length` tokens at least."""
        if candidates.token_ids.shape[-1] >= length:
            return candidates
        return self._grow_jit(candidates, length=length)

    def extend(self, prefix: Prefix, candidates: Candidates, until: int) -> Candidates:
        """Adds tokens until each candidate has `until` of them or all are done; reuses the memory of `candidates`."""
        with jax.transfer_guard_host_to_device("allow"):  # one number for many tokens
            return self._extend_jit(self._weights, prefix, candidates, np.int32(until))

    def lower_prefill(self, batch: Batch) -> jax.stages.Lowered:
        """`prefill`, not run: of shapes with shardings, under `jax.set_mesh`."""
        return self._prefill_jit.lower(self._weights, batch)

    def lower_extend(self, batch: Batch, length: int) -> jax.stages.Lowered:
        """`extend` where candidates have room for `length` tokens, not run: of shapes, under `jax.set_mesh`."""
        assert isinstance(batch.lengths.sharding, NamedSharding)
        mesh = batch.lengths.sharding.mesh

        def on_mesh(x: Array, spec: P | None = None) -> jax.ShapeDtypeStruct:
            spec = spec or (BATCH if x.ndim else P())
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

        def place(tree: Prefix | Candidates, num_axes: int) -> Any:
            caches = jax.tree.map(
                lambda x: on_mesh(x, cache_spec(x.shape, num_axes, mesh)), {"keys": tree.keys, "values": tree.values}
            )
            return dataclasses.replace(jax.tree.map(on_mesh, tree), **caches)

        prefix, first = jax.eval_shape(self._prefill, self._weights, batch)
        candidates = jax.eval_shape(functools.partial(self._grow, length=length), first)
        prefix, candidates = place(prefix, 4), place(candidates, 5)
        until = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, P()))
        return self._extend_jit.lower(self._weights, prefix, candidates, until)

    def _prefill(self, weights: nnx.State, batch: Batch) -> tuple[Prefix, Candidates]:
        self.compilations["prefill"] += 1
        model = nnx.merge(self._graphdef, weights)
        features = None if batch.pixels is None else model.encode_images(batch.pixels)
        x = split_batch(model.embed(batch.token_ids, features))

        def attend(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, Any]:
            kept = _split_heads(k.transpose(0, 2, 3, 1), 4), _split_heads(v.swapaxes(1, 2), 4)
            return attention(q, k, v, causal=True), kept

        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        hidden, (keys, values) = model.language_model(x, positions, attend)
        last = jnp.take_along_axis(hidden, batch.lengths[:, None, None] - 1, axis=1)
        prefix = Prefix(keys, values, batch.lengths, batch.seeds)

        logits = model.language_model.logits(last)
        token_ids, logprobs = self._sample(logits, batch.seeds, jnp.int32(0))
        done = ~batch.is_real[:, None] | (token_ids == self._eos_id)
        nothing = jax.tree.map(lambda x: _nothing(x, self._sampling.num_candidates), values)
        return prefix, Candidates(token_ids[..., None], logprobs[..., None], done, jnp.int32(1), nothing, nothing)

    def _grow(self, candidates: Candidates, length: int) -> Candidates:
        self.compilations["grow"] += 1

        def pad(x: Array, axis: int = -1) -> Array:
            return jnp.pad(x, [(0, length - x.shape[axis] if i == axis % x.ndim else 0) for i in range(x.ndim)])

        return dataclasses.replace(
            candidates,
            token_ids=pad(candidates.token_ids),
            logprobs=pad(candidates.logprobs),
            keys=jax.tree.map(lambda x: _split_heads(pad(x, -2), 5), candidates.keys),
            values=jax.tree.map(lambda x: _split_heads(pad(x, -2), 5), candidates.values),
        )

    def _extend(self, weights: nnx.State, prefix: Prefix, candidates: Candidates, until: Int[Array, ""]) -> Candidates:
        self.compilations["extend"] += 1
        llama = nnx.merge(self._graphdef, weights).language_model

        def unfinished(now: Candidates) -> Array:
            return (now.step < until) & ~now.done.all()

        def add_token(now: Candidates) -> Candidates:
            logits, keys, values = next_logits(llama, prefix, now)
            token_ids, logprobs = self._sample(logits, prefix.seeds, now.step)
            token_ids, logprobs = jnp.where(now.done, 0, token_ids), jnp.where(now.done, 0.0, logprobs)
            return Candidates(
                jax.lax.dynamic_update_index_in_dim(now.token_ids, token_ids, now.step, axis=2),
                jax.lax.dynamic_update_index_in_dim(now.logprobs, logprobs, now.step, axis=2),
                now.done | (token_ids == self._eos_id),
                now.step + 1,
                keys,
                values,
            )

        return jax.lax.while_loop(unfinished, add_token, candidates)

    def _sample(
        self, logits: Float[Array, "I #C V"], seeds: UInt32[Array, "I 2"], position: Int[Array, ""]
    ) -> tuple[Int[Array, "I C"], Float[Array, "I C"]]:
        """One token a candidate, and its log-probability under the model itself (no temperature, nothing left out)."""
        config = self._sampling
        shape = (logits.shape[0], config.num_candidates, logits.shape[-1])
        scores = jnp.where(self._is_answer, logits, -jnp.inf)
        if config.temperature > 0:
            scores = truncate(scores / config.temperature, config.top_k, config.top_p)
            keys = candidate_keys(seeds, config.num_candidates, position)
            # Gumbel-max: the maximum of scores with this noise is a draw from their softmax.
            scores = scores + jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, shape[-1:])))(keys)
        token_ids = jnp.broadcast_to(_argmax(scores), shape[:2])
        chosen = jnp.take_along_axis(jnp.broadcast_to(logits, shape), token_ids[..., None], -1)[..., 0]
        return token_ids, chosen - jax.nn.logsumexp(logits, -1)


def _nothing(values: Float[Array, "*L I K S H"], num_candidates: int) -> Float[Array, "*L I K C 1 H"]:
    *before, _, head_dim = values.shape
    return _split_heads(jnp.zeros((*before, num_candidates, 1, head_dim), values.dtype), 5)


def _split_heads(cache: Array, num_axes: int) -> Array:
    """Keeps a cache split like the batch and the heads are: the first of its last `num_axes` axes are I and K."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return cache
    return jax.lax.with_sharding_constraint(cache, cache_spec(cache.shape, num_axes, mesh))


def cache_spec(shape: tuple[int, ...], num_axes: int, mesh: AbstractMesh | Mesh) -> P:
    """The split of keys or values, of one layer or of all."""
    layers = len(shape) - num_axes
    heads = "tensor" if shape[layers + 1] % mesh.shape["tensor"] == 0 else None
    return P(*(None,) * layers, *BATCH, heads)


def next_logits(
    llama: Llama, prefix: Prefix, candidates: Candidates
) -> tuple[Float[Array, "I C V"], PerLayer, PerLayer]:
    """Scores of each candidate's next token, and the caches with the latest one in its place."""
    place = candidates.step - 1  # of the latest token, which no cache has yet
    latest = jax.lax.dynamic_index_in_dim(candidates.token_ids, place, axis=2, keepdims=False)
    positions = jnp.broadcast_to(prefix.lengths[:, None] + place, latest.shape)

    def attend(
        q: Float[Array, "I C N H"], k: Float[Array, "I C K H"], v: Float[Array, "I C K H"], cache: tuple[Array, ...]
    ) -> tuple[Float[Array, "I C N H"], tuple[Array, Array]]:
        shared_keys, shared_values, keys, values = cache
        return _attention(q, k, v, shared_keys, shared_values, prefix.lengths, keys, values, place), (k, v)

    caches = (prefix.keys, prefix.values, candidates.keys, candidates.values)
    # The candidates of an image stand where the decoder expects a sequence: to its layers they are only rows.
    hidden, latest_kept = llama(llama.embed(latest), positions, attend, caches)
    # Written when all layers have read, so that it happens in place.
    hidden, latest_kept = jax.lax.optimization_barrier((hidden, latest_kept))

    def write(cache: Float[Array, "*L I K C T H"], new: Float[Array, "*L I C K H"]) -> Array:
        return jax.lax.dynamic_update_index_in_dim(cache, new.swapaxes(-3, -2), place, axis=cache.ndim - 2)

    keys, values = jax.tree.map(write, (candidates.keys, candidates.values), latest_kept)
    return llama.logits(hidden), keys, values


def _attention(
    q: Float[Array, "I C N H"],
    k: Float[Array, "I C K H"],
    v: Float[Array, "I C K H"],
    shared_keys: Float[Array, "I K H S"],
    shared_values: Float[Array, "I K S H"],
    shared_lengths: Int[Array, "I"],
    keys: Float[Array, "I K C T H"],
    values: Float[Array, "I K C T H"],
    length: Int[Array, ""],
) -> Float[Array, "I C N H"]:
    """One query a candidate: one softmax, in float32, over its image's prompt, its first `length` tokens, and itself.

    The products take their axes in the order of the caches, and own keys stand first in theirs: otherwise XLA would
    transpose the caches, for every token on a CPU.
    """
    num_kv_heads, head_dim = shared_keys.shape[1:3]
    grouped = q.reshape(*q.shape[:2], num_kv_heads, -1, head_dim)
    shared = _product("ickgh,ikhs->ikcgs", grouped, shared_keys)
    own = _product("ikcth,ickgh->ikctg", keys, grouped).swapaxes(3, 4)
    itself = _product("ickgh,ickh->ikcg", grouped, k)[..., None] * head_dim**-0.5
    in_prompt = jnp.arange(shared.shape[-1]) < shared_lengths[:, None, None, None, None]
    shared = jnp.where(in_prompt, shared * head_dim**-0.5, -jnp.inf)
    own = jnp.where(jnp.arange(own.shape[-1]) < length, own * head_dim**-0.5, -jnp.inf)

    largest = functools.reduce(jnp.maximum, (x.max(-1, keepdims=True) for x in (shared, own, itself)))
    shared, own, itself = (jnp.exp(x - largest) for x in (shared, own, itself))
    total = sum(x.sum(-1, keepdims=True) for x in (shared, own, itself))
    shared, own, itself = ((x / total).astype(values.dtype) for x in (shared, own, itself))
    attended = _product("ikcgs,iksh->ikcgh", shared, shared_values)
    attended += _product("ikcgt,ikcth->ikcgh", own, values)
    attended += _product("ikcgt,ickh->ikcgh", itself, v)
    return attended.astype(q.dtype).swapaxes(1, 2).reshape(q.shape)


def _product(axes: str, left: Array, right: Array) -> Array:
    """`einsum` that adds up in float32. XLA's CPU backend does not run all such products of 16-bit numbers."""
    if platform() == "cpu":
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)
