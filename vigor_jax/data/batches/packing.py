"""Which examples of a batch share a row, so that less of it is padding.

A batch has a fixed number of rows, and their length follows from what it holds; the usual alternative, rows of a fixed
length filled until the next example does not fit, needs examples much shorter than a row. Ours have hundreds of image
tokens each (750 in all, with 576 of them: two fit into 2048, and a quarter of the row is left), a pod asks for rows in
multiples of its 8 or 16 batch shards, and a batch is 32. Spread over 16 rows two by two, long with short, the rows come
out nearly equal, 3 to 5 percent of them padding. Rows and image places being constant, the length alone tells batches
apart, in few steps of the bucket: no more shapes are compiled than without packing.

Which examples a step has is not decided here, only how they stand, so an update means what it meant.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from vigor_jax.data.text.conversation import IGNORE_INDEX, EncodedExample

# An empty image place costs the tower a black image; rows shorter by an eighth are worth that.
WORTH_MORE_PLACES = 7 / 8


class Packing(NamedTuple):
    """A batch's examples in rows.

    Attributes:
        rows: for each row the numbers of its examples, in the order in which they stand.
        length: of every row in tokens, a multiple of the bucket.
        places: images that a row has room for.
    """

    rows: tuple[tuple[int, ...], ...]
    length: int
    places: int


class PackedTokens(NamedTuple):
    """Rows of several examples each, one behind the other.

    Attributes:
        token_ids: padded on the right.
        labels: the token at its own position where it is supervised, else `IGNORE_INDEX`; never the first one of an
            example, for it does not follow from the example before it.
        segment_ids: 1, 2, ... in a row's first, second, ... example, and 0 in the padding.
        positions: from 0 in every example, and in the padding.
    """

    token_ids: Int32[np.ndarray, "B T"]
    labels: Int32[np.ndarray, "B T"]
    segment_ids: Int32[np.ndarray, "B T"]
    positions: Int32[np.ndarray, "B T"]


def pack(lengths: Sequence[int], has_image: Sequence[bool], *, num_rows: int, bucket: int) -> Packing:
    """Spreads examples over rows so that the longest row is short; a pure function, the same in every process.

    The examples, from the longest to the shortest, each go to the row that is the shortest so far and has an image
    place left. So no row is longer than total / num_rows + the longest example, as long as places are no hindrance. A
    row has examples / num_rows image places, which wastes none if all have images; only where that makes the rows
    much longer (one long example, and equally many short ones next to it) it has twice as many.

    Args:
        lengths: of the examples, each at least 1; at least `num_rows` of them.
        has_image: which of them have one.
        num_rows: divides their number.
        bucket: what row lengths are multiples of.
    """
    assert len(lengths) % num_rows == 0, f"{len(lengths)} examples for {num_rows} rows"
    places = len(lengths) // num_rows
    even, free = (_spread(lengths, has_image, num_rows, count, bucket) for count in (places, 2 * places))
    return free if free.length < WORTH_MORE_PLACES * even.length else even


def _spread(lengths: Sequence[int], has_image: Sequence[bool], num_rows: int, places: int, bucket: int) -> Packing:
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    filled, images = [0] * num_rows, [0] * num_rows
    # Those with images first where lengths are equal: the others fit anywhere.
    for example in sorted(range(len(lengths)), key=lambda i: (-lengths[i], not has_image[i], i)):
        room = [row for row in range(num_rows) if images[row] < places or not has_image[example]]
        row = min(room, key=lambda row: (filled[row], row))
        rows[row].append(example)
        filled[row] += lengths[example]
        images[row] += has_image[example]
    return Packing(tuple(tuple(sorted(row)) for row in rows), -(-max(filled) // bucket) * bucket, places)


def pack_tokens(
    encoded: Sequence[EncodedExample], rows: Sequence[Sequence[int]], length: int, pad_id: int
) -> PackedTokens:
    """Writes some of a packing's rows out.

    Args:
        encoded: all examples of the batch.
        rows: numbers of the examples in each row that is wanted.
        length: of a row.
        pad_id: the tokenizer's padding id.
    """
    shape = (len(rows), length)
    packed = PackedTokens(
        np.full(shape, pad_id, np.int32),
        np.full(shape, IGNORE_INDEX, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
    )
    for row, examples in enumerate(rows):
        start = 0
        for segment, example in enumerate(examples, start=1):
            end = start + len(encoded[example].token_ids)
            packed.token_ids[row, start:end] = encoded[example].token_ids
            packed.labels[row, start + 1 : end] = encoded[example].labels[1:]
            packed.segment_ids[row, start:end] = segment
            packed.positions[row, start:end] = np.arange(end - start)
            start = end
        packed.positions[row, start:] = np.arange(length - start)
    return packed
