"""Tree sequences as batches: padded to few shapes, with the images of the process's own rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from vigor_jax.data.batches.loader import Batch, ordered_batches, shuffled_batches
from vigor_jax.data.batches.tree_sequences import Row, TreeEncoder, TreeSequence
from vigor_jax.data.images.preprocessing import Preprocessing, load_image, preprocess
from vigor_jax.data.text.conversation import IGNORE_INDEX

PLACES_BUCKET = 32


class TreeRows(NamedTuple):
    """Rows as they go to the devices.

    Attributes:
        token_ids: padded on the right with the tokenizer's padding id.
        positions: see `Row`; padded with 0, so that padding sees nothing but itself.
        places: see `Row`; padded with 0.
        targets: padded with `IGNORE_INDEX`.
        weights: padded with 0.
        pixels: gray levels 0-255; I is 1.
        instructions: the question, for a model that reads it while it looks at the image; else None.
    """

    token_ids: Int32[Any, "B T"]
    positions: Int32[Any, "B T"]
    places: Int32[Any, "B P"]
    targets: Int32[Any, "B P"]
    weights: Float32[Any, "B P"]
    pixels: UInt8[Any, "B I S S 3"]
    instructions: Int32[Any, "B I Q"] | None = None


def collate(
    rows: Sequence[Row | None],
    length: int,
    num_places: int,
    pad_id: int,
    pixels: UInt8[np.ndarray, "B I S S 3"],
    instructions: Int32[np.ndarray, "B I Q"] | None = None,
) -> TreeRows:
    """Pads rows of any lengths up to `length` tokens and `num_places` places; None is a row of padding."""

    def pad(get: Callable[[Row], np.ndarray], size: int, fill: int, dtype: Any = np.int32) -> np.ndarray:
        padded = np.full((len(rows), size), fill, dtype)
        for index, row in enumerate(rows):
            if row is not None:
                padded[index, : len(get(row))] = get(row)
        return padded

    return TreeRows(
        pad(lambda row: row.token_ids, length, pad_id),
        pad(lambda row: row.positions, length, 0),
        pad(lambda row: row.places, num_places, 0),
        pad(lambda row: row.targets, num_places, IGNORE_INDEX),
        pad(lambda row: row.weights, num_places, 0, np.float32),
        pixels,
        instructions,
    )


def padded_sizes(rows: Sequence[Row], bucket: int) -> tuple[int, int]:
    """Length and number of places that hold all the rows: multiples, so that few shapes are ever compiled."""
    length, places = max(len(row.token_ids) for row in rows), max(len(row.places) for row in rows)
    return -(-length // bucket) * bucket, -(-places // PLACES_BUCKET) * PLACES_BUCKET


@dataclass(frozen=True)
class TreeLoader:
    """Sequences to batches, in the order and with the guarantees of `data.batches.loader.Loader`.

    Attributes:
        sequences: the data set; None is a place that is empty, where nothing is learned.
        encoder: writes them.
        pad_id: the tokenizer's padding id.
        preprocessing: the vision tower's settings.
        batch_size: sequences a step, of all processes together.
        epochs: passes over the data.
        seed: of the order.
        bucket: padded lengths are multiples of this.
        rows: which rows of the global batch this process holds, ascending; all by default.
    """

    sequences: Sequence[TreeSequence | None]
    encoder: TreeEncoder
    pad_id: int
    preprocessing: Preprocessing
    batch_size: int
    epochs: int = 1
    seed: int = 0
    bucket: int = 128
    rows: Sequence[int] | None = None

    @property
    def num_steps(self) -> int:
        """Full batches in all epochs together."""
        return len(self.sequences) * self.epochs // self.batch_size

    @property
    def num_dropped(self) -> int:
        """Sequences of the last epoch that fill no batch."""
        return len(self.sequences) * self.epochs % self.batch_size

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """As `Loader.batches`."""
        return shuffled_batches(
            len(self.sequences), self.make, batch_size=self.batch_size, epochs=self.epochs, seed=self.seed, start=start
        )

    def in_order(self) -> Iterator[Batch]:
        """Every sequence once; rows of padding fill the last batch up."""
        return ordered_batches(len(self.sequences), self.make, batch_size=self.batch_size)

    def make(self, indices: Sequence[int]) -> Batch:
        """The batch of some sequences; if they are fewer than `batch_size`, rows of padding follow.

        Raises:
            InputError: an image cannot be read.
        """
        sequences = [self.sequences[index] for index in indices]
        encoded = [None if sequence is None else self.encoder.row(sequence) for sequence in sequences]
        written = [row for row in encoded if row is not None]
        mine = range(self.batch_size) if self.rows is None else self.rows
        size = self.preprocessing.size
        pixels = np.zeros((len(mine), 1, size, size, 3), np.uint8)
        for local, row in enumerate(mine):
            sequence = sequences[row] if row < len(sequences) else None
            if sequence is not None:
                pixels[local, 0] = preprocess(load_image(sequence.path), self.preprocessing)
        held = [encoded[row] if row < len(sequences) else None for row in mine]
        rows = collate(
            held, *padded_sizes(written, self.bucket), self.pad_id, pixels, self.encoder.instructions(len(mine))
        )
        num_tokens = sum(len(row.token_ids) for row in written)
        return Batch(rows, tuple(sequence.image for sequence in sequences if sequence is not None), num_tokens)
