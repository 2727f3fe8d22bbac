"""Attention over a tree of continuations that stand in one row: every path sees what its own sequence would see.

The mask is made on the device from a few numbers a token; see `data.batches.tree_sequences` for what the numbers mean.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.data.batches.tree_sequences import NONE, PADDING, Tree
from vigor_jax.models.attention import masked_attention
from vigor_jax.models.layers import Attend, PerLayer
from vigor_jax.models.vlm import Vlm
from vigor_jax.parallel.sharding import constrain_batch


def visible(queries: Tree, keys: Tree) -> Bool[Array, "B T S"]:
    """Which keys each query sees: the prefix, its response up to its suffix, and its suffix up to itself."""
    asks = Tree(*(x[:, :, None] for x in queries))
    has = Tree(*(x[:, None, :] for x in keys))
    same_candidate = has.candidates == asks.candidates
    on_path = (has.sentences == NONE) & (has.positions < asks.limits) & (same_candidate | (has.candidates == NONE))
    own_suffix = (has.sentences != NONE) & (has.sentences == asks.sentences) & (has.positions <= asks.positions)
    return on_path | (own_suffix & same_candidate)


def tree_attention(tree: Tree) -> Attend:
    """`attend` for `Llama` over tree sequences; keeps nothing. The mask is made once, not in every layer.

    All that a token sees stands before it in the row: a continuation behind what it continues.
    """
    mask = visible(tree, tree)

    def attend(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, None]:
        return masked_attention(q, k, v, mask, causal=True), None

    return attend


def hidden_states_at(model: Vlm, rows: TreeRows, *, remat: str = "none") -> Float[Array, "B P D"]:
    """Hidden states after the tokens at `rows.places`, all suffixes in one pass."""
    hidden = model(
        rows.token_ids,
        rows.pixels,
        instructions=rows.instructions,
        positions=rows.tree.positions,
        attend=tree_attention(rows.tree),
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
    """Runs the rows in one pass, then extends all their suffixes together, one token at a time, until all have ended.

    A suffix's new tokens join it in the row: the k-th ones of all suffixes stand side by side behind the row's end, and
    the same mask that keeps suffixes apart hides those that are not written yet, for they stand at later positions.

    Args:
      model: its layers stacked or separate.
      rows: places of weight 0 are not answered.
      scored: ids of tokens.
      is_answer: which tokens may be taken.
      num_tokens: of the longest answer, EOS included.
      eos_id: ends an answer.
    """
    llama, length = model.language_model, rows.token_ids.shape[1]
    num_places, is_real = rows.places.shape[1], rows.weights > 0
    mask = visible(rows.tree, rows.tree)
    widths = ((0, 0), (0, num_places * (num_tokens - 1)), (0, 0), (0, 0))

    def attend_and_keep(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, Any]:
        return masked_attention(q, k, v, mask, causal=True), (jnp.pad(k, widths), jnp.pad(v, widths))

    instructions = None if rows.instructions is None else rows.instructions[:, 0]
    x = constrain_batch(model.embed(rows.token_ids, model.encode_images(rows.pixels[:, 0], instructions)))
    hidden, caches = llama(x, rows.tree.positions, attend_and_keep)
    logits = llama.logits(jnp.take_along_axis(hidden, rows.places[..., None], axis=1))

    def likeliest(logits: Float[Array, "B P V"]) -> Int[Array, "B P"]:
        return jnp.argmax(jnp.where(is_answer, logits, -jnp.inf), -1).astype(jnp.int32)

    end = Tree(*(jnp.take_along_axis(x, rows.places, axis=1) for x in rows.tree))
    end = end._replace(candidates=jnp.where(is_real, end.candidates, PADDING))
    blocks = [rows.tree, *(end._replace(positions=end.positions + 1 + i) for i in range(num_tokens - 1))]
    everything = Tree(*(jnp.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True)))

    def unfinished(now: _Extension) -> Array:
        return (now.step < num_tokens) & ~now.done.all()

    def add_token(now: _Extension) -> _Extension:
        latest = jax.lax.dynamic_index_in_dim(now.token_ids, now.step - 1, axis=2, keepdims=False)
        block = end._replace(positions=end.positions + now.step)
        mask, start = visible(block, everything), length + num_places * (now.step - 1)

        def attend(q: Array, k: Array, v: Array, cache: tuple[Array, Array]) -> tuple[Array, Any]:
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=1)
                for old, new in zip(cache, (k, v), strict=True)
            )
            return masked_attention(q, keys, values, mask), (keys, values)

        hidden, caches = llama(llama.embed(latest), block.positions, attend, now.caches)
        token_ids = likeliest(llama.logits(hidden))
        return _Extension(
            now.step + 1,
            jax.lax.dynamic_update_index_in_dim(now.token_ids, token_ids, now.step, axis=2),
            now.done | (token_ids == eos_id),
            caches,
        )

    first = likeliest(logits)
    token_ids = jnp.zeros((*first.shape, num_tokens), jnp.int32).at[..., 0].set(first)
    extended = _Extension(jnp.int32(1), token_ids, ~is_real | (first == eos_id), caches)
    extended = jax.lax.while_loop(unfinished, add_token, extended)
    return Answers(logits[..., scored], extended.token_ids)


class _Extension(NamedTuple):
    """Answers of `step` tokens so far; the latest of them are in no cache yet."""

    step: Int[Array, ""]
    token_ids: Int[Array, "B P A"]
    done: Bool[Array, "B P"]
    caches: tuple[PerLayer, PerLayer]  # [B, S, K, H] a layer
