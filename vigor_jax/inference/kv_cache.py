"""What decoding holds on the device: what the candidates of an image share, what each adds, and one step for all.

The keys and values of an image's prompt are stored once; each candidate only adds those of its own tokens. Rows begin
at different times, but all write at the same place of their caches, which are rings: so a step writes one slice of each
cache, in place, and how far back a row may look is said by the number of its tokens.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt32

from vigor_jax.models.cpu import einsum_float32
from vigor_jax.models.layers import PerLayer
from vigor_jax.models.llama import Llama
from vigor_jax.parallel.sharding import BATCH


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
class DecodeState:
    """The candidates so far: N is the capacity in tokens, of which a row has taken `num_tokens`."""

    token_ids: Int[Array, "I C N"]
    logprobs: Float[Array, "I C N"]
    done: Bool[Array, "I C"]
    num_tokens: Int[Array, "I"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of the candidates' tokens, [I, K, C, T, H]: ring buffers over the steps.

    Attributes:
      keys: of T steps.
      values: the same.
      latest_keys: of the step after them, [I, K, C, 1, H]. The next step writes them before any layer reads: so XLA
        sees that it need not keep the caches as they were.
      latest_values: the same.
      write_index: where the latest go, from 0 to T - 1.
    """

    keys: PerLayer
    values: PerLayer
    latest_keys: PerLayer
    latest_values: PerLayer
    write_index: Int[Array, ""]

    @property
    def capacity(self) -> int:
        """T."""
        return int(jax.tree.leaves(self.keys)[0].shape[-2])

    def pad_to(self, length: int) -> "KVCache":
        """The same steps in a cache of `length` steps, the oldest first."""

        def longer(cache: Array) -> Array:
            return _pad(jnp.roll(cache, -self.write_index, -2), -2, length)

        keys, values = jax.tree.map(longer, (self.keys, self.values))
        return dataclasses.replace(
            self, keys=keys, values=values, write_index=jnp.full_like(self.write_index, self.capacity)
        )


def insert_rows(old: Any, new: Any, rows: Int[Array, "R"]) -> Any:
    """Writes the rows of `new` over those of `old`, each part of the mesh its rows; see `Batch.rows` of the decoder."""

    def write(old: Any, new: Any, rows: Array) -> Any:
        def one(spec: P, old: Array, new: Array) -> Array:
            layers = (slice(None),) * list(spec).index(BATCH[0])
            return old.at[(*layers, rows)].set(new, mode="drop")

        return jax.tree.map(one, specs, old, new, is_leaf=lambda leaf: isinstance(leaf, P))

    mesh = jax.sharding.get_abstract_mesh()
    specs = specs_of(old, mesh)
    if mesh.empty:
        return write(old, new, rows)
    return jax.shard_map(write, in_specs=(specs, specs, BATCH), out_specs=specs, check_vma=False)(old, new, rows)


def specs_of(tree: Any, mesh: AbstractMesh | Mesh) -> Any:
    """How a part of the state is split: by rows, caches by heads too."""
    axes = {Prefix: 4, KVCache: 5}

    def one(part: Prefix | DecodeState | KVCache) -> Any:
        specs = jax.tree.map(lambda x: BATCH if x.ndim else P(), part)
        if isinstance(part, DecodeState):
            return specs
        caches = {
            field.name: jax.tree.map(lambda x: cache_spec(x.shape, axes[type(part)], mesh), getattr(part, field.name))
            for field in dataclasses.fields(part)
            if field.name.endswith(("keys", "values"))
        }
        return dataclasses.replace(specs, **caches)

    return jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, Prefix | DecodeState | KVCache))


def constrain_state(part: Any) -> Any:
    """Inside jit under a mesh: keeps a part of the state split as `specs_of` says."""
    mesh = jax.sharding.get_abstract_mesh()
    return part if mesh.empty else jax.lax.with_sharding_constraint(part, specs_of(part, mesh))


def _pad(x: Array, axis: int, length: int) -> Array:
    return jnp.pad(x, [(0, length - x.shape[axis] if i == axis % x.ndim else 0) for i in range(x.ndim)])


def constrain_cache(cache: Array, num_axes: int) -> Array:
    """Keeps a cache split like the batch and the heads are: the first of its last `num_axes` axes are I and K."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return cache
    return jax.lax.with_sharding_constraint(cache, cache_spec(cache.shape, num_axes, mesh))


def cache_spec(shape: tuple[int, ...], num_axes: int, mesh: AbstractMesh | Mesh) -> P:
    """The split of keys or values, of one layer or of all."""
    layers = len(shape) - num_axes
    heads = "tensor" if not mesh.empty and shape[layers + 1] % mesh.shape["tensor"] == 0 else None
    return P(*(None,) * layers, *BATCH, heads)


def next_logits(
    llama: Llama, prefix: Prefix, state: DecodeState, cache: KVCache
) -> tuple[Float[Array, "I C V"], KVCache]:
    """Scores of each candidate's next token, and the cache, of which this token is now the latest."""

    def write(old: Float[Array, "*L I K C T H"], latest: Float[Array, "*L I K C 1 H"]) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, latest, cache.write_index, axis=-2)

    keys, values = jax.tree.map(write, (cache.keys, cache.values), (cache.latest_keys, cache.latest_values))
    write_index = (cache.write_index + 1) % cache.capacity

    before = state.num_tokens - 1  # tokens that the cache holds; this one it does not hold yet
    latest = jnp.take_along_axis(state.token_ids, jnp.maximum(before, 0)[:, None, None], axis=2, mode="clip")[..., 0]
    positions = jnp.broadcast_to((prefix.lengths + before)[:, None], latest.shape)
    steps_ago = (write_index - 1 - jnp.arange(cache.capacity)) % cache.capacity
    is_own = steps_ago < before[:, None]

    def attend(
        q: Float[Array, "I C N H"], k: Float[Array, "I C K H"], v: Float[Array, "I C K H"], cache: tuple[Array, ...]
    ) -> tuple[Float[Array, "I C N H"], tuple[Array, Array]]:
        shared_keys, shared_values, keys, values = cache
        return _attention(q, k, v, shared_keys, shared_values, prefix.lengths, keys, values, is_own), (k, v)

    caches = (prefix.keys, prefix.values, keys, values)
    # The candidates of an image stand where the decoder expects a sequence: to its layers they are only rows.
    hidden, kept = llama(llama.embed(latest), positions, attend, caches)

    def as_latest(x: Float[Array, "*L I C K H"]) -> Float[Array, "*L I K C 1 H"]:
        return constrain_cache(x.swapaxes(-3, -2)[..., None, :], 5)

    latest_keys, latest_values = jax.tree.map(as_latest, kept)
    return llama.logits(hidden), KVCache(keys, values, latest_keys, latest_values, write_index)


def _attention(
    q: Float[Array, "I C N H"],
    k: Float[Array, "I C K H"],
    v: Float[Array, "I C K H"],
    shared_keys: Float[Array, "I K H S"],
    shared_values: Float[Array, "I K S H"],
    shared_lengths: Int[Array, "I"],
    keys: Float[Array, "I K C T H"],
    values: Float[Array, "I K C T H"],
    is_own: Bool[Array, "I T"],
) -> Float[Array, "I C N H"]:
    """One query a candidate: one softmax, in float32, over its image's prompt, its own tokens so far, and itself.

    The products take their axes in the order of the caches, and own keys stand first in theirs: otherwise XLA's CPU
    backend transposes the caches for every token, which then takes 1.2 to 1.5 times as long.
    """
    num_kv_heads, head_dim = shared_keys.shape[1:3]
    grouped = q.reshape(*q.shape[:2], num_kv_heads, -1, head_dim)
    shared = einsum_float32("ickgh,ikhs->ikcgs", grouped, shared_keys)
    own = einsum_float32("ikcth,ickgh->ikctg", keys, grouped).swapaxes(3, 4)
    itself = einsum_float32("ickgh,ickh->ikcg", grouped, k)[..., None] * head_dim**-0.5
    in_prompt = jnp.arange(shared.shape[-1]) < shared_lengths[:, None, None, None, None]
    shared = jnp.where(in_prompt, shared * head_dim**-0.5, -jnp.inf)
    own = jnp.where(is_own[:, None, None, None], own * head_dim**-0.5, -jnp.inf)

    largest = functools.reduce(jnp.maximum, (x.max(-1, keepdims=True) for x in (shared, own, itself)))
    shared, own, itself = (jnp.exp(x - largest) for x in (shared, own, itself))
    total = sum(x.sum(-1, keepdims=True) for x in (shared, own, itself))
    shared, own, itself = ((x / total).astype(values.dtype) for x in (shared, own, itself))
    attended = einsum_float32("ikcgs,iksh->ikcgh", shared, shared_values)
    attended += einsum_float32("ikcgt,ikcth->ikcgh", own, values)
    attended += einsum_float32("ikcgt,ickh->ikcgh", itself, v)
    return attended.astype(q.dtype).swapaxes(1, 2).reshape(q.shape)
