"""Log-probabilities of given responses, token by token: one pass over prompt and response, and nothing is sampled."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.inference.tree_attention import hidden_states_at
from vigor_jax.models.vlm import Vlm
from vigor_jax.parallel.sharding import constrain_batch

# Response tokens of a row whose scores over the vocabulary may exist at a time.
CHUNK = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ResponseBatch:
    """Prompts with their responses: B rows of T tokens, of which at most R are the response's.

    Attributes:
      token_ids: the prompt, then the response, then padding of any kind.
      prompt_lengths: tokens of each prompt, 1 or more: its response begins there.
      response_mask: which of the R places hold a token of the response: the first ones of each row. All results have
        this shape.
      pixels: one image a row, as `data.images.preprocessing.preprocess` gives it; None if no row has one.
      instructions: what is asked about each image, as `models.vlm.Vlm.encode_images` takes it.
    """

    token_ids: Int[Array, "B T"]
    prompt_lengths: Int[Array, "B"]
    response_mask: Bool[Array, "B R"]
    pixels: UInt8[Array, "B 1 E E 3"] | None
    instructions: Int[Array, "B 1 Q"] | None = None


class TreeLogps(NamedTuple):
    """What the model says of the responses of each row, at its places; 0 where a row has no more.

    Attributes:
      logps: log p(token | image, prompt, tokens of its response before it), as `per_token_logps`.
      entropies: of the distributions that the tokens are drawn from; no gradient.
      hidden: states before the tokens, for a value head.
    """

    logps: Float[Array, "B P"]
    entropies: Float[Array, "B P"]
    hidden: Float[Array, "B P D"]


def per_token_logps(model: Vlm, batch: ResponseBatch, *, remat: str = "none") -> Float[Array, "B R"]:
    """log p(token | image, prompt, tokens before it) of every response token; 0 where `response_mask` is False.

    Under the model itself: neither tempered nor truncated, over the whole vocabulary, in float32. Can be differentiated
    with respect to the model; the scores over the vocabulary exist for `CHUNK` tokens of each row at a time, in the
    backward pass too.

    Args:
      model: its layers stacked or separate.
      batch: rows.
      remat: rematerialization policy of the decoder layers, see `layers.REMAT_POLICIES`.
    """
    hidden = model(batch.token_ids, batch.pixels, instructions=batch.instructions, remat=remat)
    length = batch.response_mask.shape[1]
    places = jnp.minimum(batch.prompt_lengths[:, None] + jnp.arange(length), batch.token_ids.shape[1] - 1)
    targets = jnp.take_along_axis(batch.token_ids, places, axis=1)
    before = constrain_batch(jnp.take_along_axis(hidden, places[..., None] - 1, axis=1))

    logps, _ = target_logps(model, before, targets)
    return jnp.where(batch.response_mask, logps, 0)


def tree_logps(model: Vlm, rows: TreeRows, *, remat: str = "none") -> TreeLogps:
    """The same of responses that share their prompt in one row, see `data.batches.response_rows`.

    Args:
      model: its layers stacked or separate.
      rows: their places are those before the tokens of responses, `targets` the tokens.
      remat: as `per_token_logps`.
    """
    hidden = hidden_states_at(model, rows, remat=remat)
    is_token = rows.weights > 0
    logps, entropies = target_logps(model, hidden, jnp.maximum(rows.targets, 0))
    return TreeLogps(jnp.where(is_token, logps, 0), jnp.where(is_token, entropies, 0), hidden)


def target_logps(
    model: Vlm, hidden: Float[Array, "B P D"], targets: Int[Array, "B P"]
) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    """log p of a token after each hidden state, and the entropy of the distribution that it is of; in float32.

    The entropy costs nothing where it is not used, and has no gradient.
    """
    num_rows, length, width = hidden.shape
    num_chunks = -(-length // CHUNK)
    padding = -length % num_chunks  # chunks of equal size
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(num_rows, num_chunks, -1, width)
    targets = jnp.pad(targets, ((0, 0), (0, padding))).reshape(num_rows, num_chunks, -1)
    found = _of_chunks(hidden.swapaxes(0, 1), model.language_model.head(), targets.swapaxes(0, 1))
    logps, entropies = (x.swapaxes(0, 1).reshape(num_rows, -1)[:, :length] for x in found)
    return logps, entropies


def likeliest(model: Vlm, hidden: Float[Array, "B P D"]) -> Int[Array, "B P"]:
    """The token that the model finds most likely after each hidden state; no gradient."""
    length = hidden.shape[1]
    num_chunks = -(-length // CHUNK)
    hidden = jnp.pad(jax.lax.stop_gradient(hidden), ((0, 0), (0, -length % num_chunks), (0, 0)))
    chunks = hidden.reshape(hidden.shape[0], num_chunks, -1, hidden.shape[-1]).swapaxes(0, 1)
    head = jax.lax.stop_gradient(model.language_model.head())

    def of_chunk(chunk: Float[Array, "B N D"]) -> Int[Array, "B N"]:
        return jnp.argmax(jnp.matmul(chunk, head, preferred_element_type=jnp.float32), -1)

    return jax.lax.map(of_chunk, chunks).swapaxes(0, 1).reshape(hidden.shape[0], -1)[:, :length].astype(jnp.int32)


Found: TypeAlias = tuple[Float[Array, "*L B N"], Float[Array, "*L B N"]]


def _of_chunk(hidden: Float[Array, "B N D"], head: Float[Array, "D V"], targets: Int[Array, "B N"]) -> Found:
    logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
    # A choice by comparison, in place of a gather, leaves a split vocabulary split.
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]
    total = jax.nn.logsumexp(logits, -1)
    entropy = total - jnp.sum(jnp.exp(logits - total[..., None]) * logits, -1)
    return jnp.where(is_target, logits, 0).sum(-1) - total, jax.lax.stop_gradient(entropy)


def _one_by_one(hidden: Float[Array, "L B N D"], head: Float[Array, "D V"], targets: Int[Array, "L B N"]) -> Found:
    """The gradient computes the scores over the vocabulary again, chunk by chunk."""
    one = jax.checkpoint(_of_chunk)
    return jax.lax.map(lambda chunk: one(chunk[0], head, chunk[1]), (hidden, targets))


@jax.custom_vjp
def _of_chunks(hidden: Float[Array, "L B N D"], head: Float[Array, "D V"], targets: Int[Array, "L B N"]) -> Found:
    """The same; where the output matrix is frozen, as below an adapter, without computing them again.

    A log-probability then depends on one hidden state alone, and its gradient is taken while the scores are there: two
    products with the matrix in place of three.
    """
    return _one_by_one(hidden, head, targets)


def _of_chunks_forward(hidden: Any, head: Any, targets: Any) -> tuple[Found, tuple[Array, ...]]:
    if head.perturbed:
        given = hidden.value, head.value, targets.value
        return _one_by_one(*given), given

    def of_chunk(chunk: tuple[Array, Array]) -> tuple[Found, Array]:
        logps, pull, entropies = jax.vjp(lambda x: _of_chunk(x, head.value, chunk[1]), chunk[0], has_aux=True)
        return (logps, entropies), pull(jnp.ones_like(logps))[0]

    found, slopes = jax.lax.map(of_chunk, (hidden.value, targets.value))
    return found, (slopes,)


def _of_chunks_backward(saved: tuple[Array, ...], gradients: tuple[Any, Any]) -> tuple[Array, Array | None, None]:
    d_logps = gradients[0]  # entropies have none
    if isinstance(d_logps, jax.custom_derivatives.SymbolicZero):
        d_logps = jnp.zeros(d_logps.shape, d_logps.dtype)
    if len(saved) == 1:
        return (d_logps[..., None] * saved[0]).astype(saved[0].dtype), None, None
    hidden, head, targets = saved
    _, pull = jax.vjp(lambda hidden, head: _one_by_one(hidden, head, targets)[0], hidden, head)
    return *pull(d_logps), None


_of_chunks.defvjp(_of_chunks_forward, _of_chunks_backward, symbolic_zeros=True)


def collate_responses(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pixels: UInt8[np.ndarray, "B E E 3"] | None,
    instructions: Int[np.ndarray, "B Q"] | None = None,
    *,
    num_rows: int,
    bucket: int,
) -> ResponseBatch:
    """A batch on the host.

    Args:
      prompts: token ids of each row.
      responses: token ids of each row.
      pixels: one image for each of `num_rows`; None if no row has one.
      instructions: what is asked about each image, for a family that reads it.
      num_rows: rows of the batch; those without prompt only fill it up.
      bucket: T and R are multiples of it, so that few shapes are ever compiled.
    """
    longest = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    longest_response = max(map(len, responses))
    token_ids = np.zeros((num_rows, -(-longest // bucket) * bucket), np.int32)
    prompt_lengths = np.ones(num_rows, np.int32)
    response_mask = np.zeros((num_rows, -(-longest_response // bucket) * bucket), bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        token_ids[row, : len(prompt)] = prompt
        token_ids[row, len(prompt) : len(prompt) + len(response)] = response
        prompt_lengths[row] = len(prompt)
        response_mask[row, : len(response)] = True
    per_image: Any = (None if rows is None else rows[:, None] for rows in (pixels, instructions))
    arrays: Any = (token_ids, prompt_lengths, response_mask, *per_image)
    return ResponseBatch(*arrays)
