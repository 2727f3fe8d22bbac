"""Attention over a tree of continuations that stand in one row: every path sees what its own sequence would see.

Rows are in pre-order: a token stands behind the one that it continues, and all that continues it, however far, follows
without a gap. So positions say everything: what continues a token is what follows it for as long as positions are
larger. See `data.batches.tree_sequences` for what stands in the rows.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.inference.kv_cache import constrain_cache
from vigor_jax.models.attention import attention
from vigor_jax.models.cpu import einsum_float32
from vigor_jax.models.layers import Attend, PerLayer
from vigor_jax.models.llama import Llama
from vigor_jax.models.vlm import Vlm
from vigor_jax.parallel.sharding import batch_shards, constrain_batch, from_parts, in_parts, platform

# Tokens of the rows on a device whose keys and values are kept at a time, by platform: half a megabyte a token of a 7B,
# or a part of it where `tensor` splits heads. More would spare reading the weights again for the next rows' answers.
TOKENS_AT_ONCE = {"cpu": 8192, "gpu": 8192, "tpu": 4096}


def visible_until(positions: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Of each token, the index behind the last one that continues it; all from itself up to there see it."""
    index = jnp.arange(positions.shape[1])
    ends = (index > index[:, None]) & (positions[:, None, :] <= positions[:, :, None])
    return jnp.where(ends, index, len(index)).min(-1)


def visible(positions: Int[Array, "B T"], places: Int[Array, "B P"]) -> Bool[Array, "B P T"]:
    """Which tokens those at some places see: all that they continue, and themselves."""
    sees = places[:, :, None] < visible_until(positions)[:, None]
    return sees & (jnp.arange(positions.shape[1]) <= places[:, :, None])


def tree_attention(positions: Int[Array, "B T"]) -> Attend:
    """`attend` for `Llama` over tree sequences; keeps nothing."""
    until = visible_until(positions)

    def attend(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, None]:
        return attention(q, k, v, causal=True, visible_until=until), None

    return attend


def hidden_states_at(model: Vlm, rows: TreeRows, *, remat: str = "none") -> Float[Array, "B P D"]:
    """Hidden states after the tokens at `rows.places`, all suffixes in one pass."""
    hidden = model(
        rows.token_ids,
        rows.pixels,
        instructions=rows.instructions,
        positions=rows.positions,
        attend=tree_attention(rows.positions),
        remat=remat,
    )
    return constrain_batch(jnp.take_along_axis(hidden, rows.places[..., None], axis=1))


class Answers(NamedTuple):
    """What the model says at each place of each row.

    Attributes:
        scores: of the given tokens at the place itself, in float32.
        token_ids: the most likely continuation; what follows its EOS means nothing.
    """

    scores: Float[Array, "B P S"]
    token_ids: Int[Array, "B P A"]


def answer_places(
    model: Vlm,
    rows: TreeRows,
    scored: Int[Array, "S"],
    is_answer: Bool[Array, "V"],
    *,
    num_tokens: int,
    eos_id: int,
) -> Answers:
    """Runs rows in one pass, then extends all their suffixes together, one token at a time, until all have ended.

    Each device takes rows of `TOKENS_AT_ONCE` tokens at a time; further ones follow when these have their answers.

    Args:
      model: its layers stacked or separate.
      rows: places of weight 0 are not answered.
      scored: ids of tokens.
      is_answer: which tokens may be taken.
      num_tokens: of the longest answer, EOS included.
      eos_id: ends an answer.
    """

    def answer(rows: TreeRows) -> Answers:
        return _answer_together(model, rows, scored, is_answer, num_tokens, eos_id)

    num_rows, length = rows.token_ids.shape
    on_device = num_rows // batch_shards()
    most = max(1, TOKENS_AT_ONCE[platform()] // length)
    parts = next(parts for parts in range(1, on_device + 1) if on_device % parts == 0 and on_device // parts <= most)
    if parts == 1:
        return answer(rows)
    answers: Answers = jax.tree.map(from_parts, jax.lax.map(answer, jax.tree.map(lambda x: in_parts(x, parts), rows)))
    return answers


def _answer_together(
    model: Vlm, rows: TreeRows, scored: Int[Array, "S"], is_answer: Bool[Array, "V"], num_tokens: int, eos_id: int
) -> Answers:
    llama = model.language_model
    until = visible_until(rows.positions)

    def attend_and_keep(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, Any]:
        kept = constrain_cache(k.transpose(0, 2, 3, 1), -4), constrain_cache(v.swapaxes(1, 2), -4)
        return attention(q, k, v, causal=True, visible_until=until), kept

    instructions = None if rows.instructions is None else rows.instructions[:, 0]
    x = constrain_batch(model.embed(rows.token_ids, model.encode_images(rows.pixels[:, 0], instructions)))
    hidden, row_cache = llama(x, rows.positions, attend_and_keep)
    logits = llama.logits(jnp.take_along_axis(hidden, rows.places[..., None], axis=1))

    def likeliest(logits: Float[Array, "B P V"]) -> Int[Array, "B P"]:
        return jnp.argmax(jnp.where(is_answer, logits, -jnp.inf), -1).astype(jnp.int32)

    ends = jnp.take_along_axis(rows.positions, rows.places, axis=1)
    sees = visible(rows.positions, rows.places)

    def unfinished(now: _Extension) -> Array:
        return (now.step < num_tokens) & ~now.done.all()

    def add_token(now: _Extension) -> _Extension:
        latest = jax.lax.dynamic_index_in_dim(now.token_ids, now.step - 1, axis=2, keepdims=False)
        hidden, cache = _extend(llama, latest, ends + now.step, sees, now.step - 1, row_cache, now.cache)
        token_ids = likeliest(llama.logits(hidden))
        return _Extension(
            now.step + 1,
            jax.lax.dynamic_update_index_in_dim(now.token_ids, token_ids, now.step, axis=2),
            now.done | (token_ids == eos_id),
            cache,
        )

    first = likeliest(logits)
    token_ids = jnp.zeros((*first.shape, num_tokens), jnp.int32).at[..., 0].set(first)
    own = jax.tree.map(lambda x: _own_cache(x, first.shape[1], max(num_tokens - 1, 1)), row_cache[1])
    extended = _Extension(jnp.int32(1), token_ids, (rows.weights <= 0) | (first == eos_id), (own, own))
    extended = jax.lax.while_loop(unfinished, add_token, extended)
    return Answers(logits[..., scored], extended.token_ids)


Cache: TypeAlias = tuple[PerLayer, PerLayer]  # keys and values


class _Extension(NamedTuple):
    """Answers of `step` tokens so far; the latest of them are in no cache yet."""

    step: Int[Array, ""]
    token_ids: Int[Array, "B P A"]
    done: Bool[Array, "B P"]
    cache: Cache  # of answers, [B, K, P, A - 1, H] a layer


def _own_cache(
    row_values: Float[Array, "*L B K T H"], num_places: int, num_tokens: int
) -> Float[Array, "*L B K P A H"]:
    """An empty one, for this many tokens of each place."""
    *leading, _, width = row_values.shape
    return constrain_cache(jnp.zeros((*leading, num_places, num_tokens, width), row_values.dtype), -5)


def _extend(
    llama: Llama,
    token_ids: Int[Array, "B P"],
    positions: Int[Array, "B P"],
    sees: Bool[Array, "B P T"],
    index: Int[Array, ""],
    row_cache: Cache,
    own_cache: Cache,
) -> tuple[Float[Array, "B P D"], Cache]:
    """Hidden states after the tokens of this index of all answers, and the answers' cache with them."""

    def attend(q: Array, k: Array, v: Array, cache: tuple[Array, ...]) -> tuple[Array, Any]:
        row_keys, row_values, *own = cache
        keys, values = (
            jax.lax.dynamic_update_index_in_dim(old, new.swapaxes(1, 2), index, axis=3)
            for old, new in zip(own, (k, v), strict=True)
        )
        is_written = jnp.arange(keys.shape[3]) <= index
        return _attend_to_both(q, row_keys, row_values, keys, values, sees, is_written), (keys, values)

    return llama(llama.embed(token_ids), positions, attend, (*row_cache, *own_cache))


def _attend_to_both(
    q: Float[Array, "B P N H"],
    row_keys: Float[Array, "B K H T"],
    row_values: Float[Array, "B K T H"],
    own_keys: Float[Array, "B K P A H"],
    own_values: Float[Array, "B K P A H"],
    sees: Bool[Array, "B P T"],
    is_written: Bool[Array, "A"],
) -> Float[Array, "B P N H"]:
    """One query a place: one softmax, in float32, over what it sees of its row and its own answer so far.

    The row's keys and values are only read, so that no step of a loop copies them. Axes are in the order of the caches,
    as in `inference.kv_cache`.
    """
    num_kv_heads, head_dim, length = row_keys.shape[1:]
    grouped = q.reshape(*q.shape[:2], num_kv_heads, -1, head_dim)
    in_row = einsum_float32("bpkgh,bkht->bkpgt", grouped, row_keys)
    in_own = einsum_float32("bkpah,bpkgh->bkpag", own_keys, grouped).swapaxes(3, 4)
    in_row = jnp.where(sees[:, None, :, None], in_row, -jnp.inf)
    in_own = jnp.where(is_written, in_own, -jnp.inf)
    scores = jnp.concatenate([in_row, in_own], axis=-1) * head_dim**-0.5
    weights = jax.nn.softmax(scores).astype(row_values.dtype)
    attended = einsum_float32("bkpgt,bkth->bkpgh", weights[..., :length], row_values)
    attended += einsum_float32("bkpga,bkpah->bkpgh", weights[..., length:], own_values)
    return attended.astype(q.dtype).swapaxes(1, 2).reshape(q.shape)
