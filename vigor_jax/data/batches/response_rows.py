"""Responses to one image and prompt as one row: image and prompt once, and each response a branch behind them.

The rows are those of `data.batches.tree_sequences`, without suffixes: under the mask of `inference.tree_attention` each
response reads like a separate conversation.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from vigor_jax.data.batches.tree_sequences import Row
from vigor_jax.data.text.conversation import IGNORE_INDEX


def response_row(prompt_ids: Sequence[int], responses: Sequence[Sequence[int]]) -> Row:
    """A row whose places are those before each token of each response, in the order of the responses.

    A response's last token is not in the row itself, for nothing is said after it.

    Args:
        prompt_ids: with the image's tokens; at least one.
        responses: token ids of each, with what ended it; at least one token each.
    """
    start = len(prompt_ids)
    lengths = np.array([len(response) for response in responses])
    assert start, "a response continues a prompt"
    assert lengths.size, "a row is of responses"
    assert lengths.min(), "nothing can be said of a response of no tokens"
    targets = np.concatenate([np.asarray(response, np.int32) for response in responses])
    steps = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)  # within its response
    is_last = steps == np.repeat(lengths, lengths) - 1
    in_row = ~is_last
    # The place of a token is that of the one before it: the prompt's last for a first one.
    before = start - 1 + np.cumsum(in_row) - in_row
    places = np.where(steps == 0, start - 1, before)

    positions = np.concatenate([np.arange(start), start + steps[in_row]]).astype(np.int32)
    token_ids = np.concatenate([np.asarray(prompt_ids, np.int32), targets[in_row]])
    return Row(token_ids, positions, places.astype(np.int32), targets, np.ones(len(targets), np.float32))


def last_token_row(prompt_ids: Sequence[int], responses: Sequence[Sequence[int]]) -> Row:
    """A row with all tokens of the responses, and one place for each response: that of its last token.

    Args:
        prompt_ids: as `response_row`.
        responses: the same.
    """
    row = response_row(prompt_ids, [[*response, 0] for response in responses])  # of which the added tokens are left out
    ends = np.cumsum([len(response) + 1 for response in responses]) - 1
    nothing = np.full(len(ends), IGNORE_INDEX, np.int32)
    return Row(row.token_ids, row.positions, row.places[ends], nothing, np.ones(len(ends), np.float32))


def split_responses(
    places: Float32[np.ndarray, "P"], lengths: Sequence[int], width: int
) -> Float32[np.ndarray, "C width"]:
    """What was found at the places of a row, response by response; 0 behind each."""
    split = np.zeros((len(lengths), width), np.float32)
    split[np.arange(width) < np.asarray(lengths)[:, None]] = places[: sum(lengths)]
    return split


def join_responses(
    split: Float32[np.ndarray, "C R"], lengths: Sequence[int], num_places: int
) -> Float32[np.ndarray, "P"]:
    """The inverse of `split_responses`, padded with 0 to `num_places`."""
    joined = np.zeros(num_places, np.float32)
    joined[: sum(lengths)] = split[np.arange(split.shape[1]) < np.asarray(lengths)[:, None]]
    return joined
