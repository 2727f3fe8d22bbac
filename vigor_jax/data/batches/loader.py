"""Conversations to batches: the same ones at every step, however many processes share them.

The examples of step s are a pure function of (seed, s), so the position in the data is the step number, and
to resume is to start there. Every process tokenizes the whole global batch, which is cheap, and so knows the
padded length, and how the examples are packed, without asking the others; it loads the images of its own rows only.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Int32, UInt8

from vigor_jax.data.batches.examples import Example
from vigor_jax.data.batches.packing import pack, pack_tokens
from vigor_jax.data.batches.trainable import Encoder
from vigor_jax.data.images.preprocessing import Preprocessing, load_image, preprocess
from vigor_jax.data.text.conversation import IGNORE_INDEX, EncodedExample, Template
from vigor_jax.data.text.instructions import NO_TOKEN
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError
from vigor_jax.records import ImageFile

# Decoding images frees Python's lock, so threads suffice; each makes one batch and the buffer holds as many.
NUM_THREADS = 4


class Rows(NamedTuple):
    """What the train step reads, on the host or, globally, on the devices.

    Attributes:
        token_ids: padded on the right with the tokenizer's padding id.
        labels: the token at its own position where it is supervised, else `IGNORE_INDEX`.
        pixels: gray levels 0-255; black for an example without an image. I is 1, or 0 where no example of the
            whole data set has an image. Of packed rows, their images in order, then black ones.
        segment_ids: of packed rows, see `data.batches.packing.PackedTokens`; None where every row is one example.
        positions: the same.
        instructions: the first question about each image, for a model that reads it while it looks; else None.
    """

    token_ids: Int32[Any, "B T"]
    labels: Int32[Any, "B T"]
    pixels: UInt8[Any, "B I S S 3"]
    segment_ids: Int32[Any, "B T"] | None = None
    positions: Int32[Any, "B T"] | None = None
    instructions: Int32[Any, "B I Q"] | None = None


class Batch(NamedTuple):
    """One step's examples.

    Attributes:
        rows: this process's rows; `Rows`, or whatever else the step's loss reads.
        ids: ids of the examples of all rows, of every process.
        num_tokens: tokens of all rows without padding.
    """

    rows: Any
    ids: tuple[str, ...]
    num_tokens: int


@dataclass(frozen=True)
class Loader:
    """Shuffles, batches and encodes a data set.

    Each epoch has its own order, and batches run across the end of an epoch; what is left at the end of the
    last one is dropped (`num_dropped`).

    Attributes:
        examples: the data set; None is a place that is empty, where nothing is learned.
        data_file: where it comes from, for error messages.
        tokenizer: the policy's tokenizer.
        template: conversation format.
        preprocessing: the vision tower's settings.
        image_token_id: stands for one image feature.
        num_image_tokens: features of an image.
        batch_size: examples a step, of all processes together.
        epochs: passes over the data.
        seed: of the order.
        max_length: longest example in tokens; longer ones lose text at their end.
        max_positions: of the model, which no advice in an error exceeds; None if unknown.
        bucket: padded lengths are multiples of this, so the train step compiles for a few shapes only.
        pack: examples that share a row, on the average; divides `batch_size`.
        rows: which of the global batch's `batch_size` / `pack` rows this process holds, ascending; all by default.
    """

    examples: Sequence[Example | None]
    data_file: Path
    tokenizer: Tokenizer
    template: Template
    preprocessing: Preprocessing
    image_token_id: int
    num_image_tokens: int
    batch_size: int
    epochs: int = 1
    seed: int = 0
    max_length: int = 2048
    max_positions: int | None = None
    bucket: int = 128
    pack: int = 1
    rows: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.num_steps == 0:
            raise InputError(
                f"{self.data_file}: {len(self.examples)} examples x {self.epochs} epochs are fewer than one "
                f"batch of {self.batch_size}; lower the batch size or raise the epochs"
            )

    @property
    def num_steps(self) -> int:
        """Full batches in all epochs together."""
        return len(self.examples) * self.epochs // self.batch_size

    @property
    def num_dropped(self) -> int:
        """Examples of the last epoch that fill no batch."""
        return len(self.examples) * self.epochs % self.batch_size

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The batches of steps `start`, `start` + 1, ... to the last, made ahead of time in threads.

        Raises:
            InputError: while iterating: an example cannot be encoded or its image cannot be read.
        """
        return shuffled_batches(
            len(self.examples),
            self._make,
            batch_size=self.batch_size,
            epochs=self.epochs,
            seed=self.seed,
            start=start,
        )

    def _make(self, indices: Sequence[int]) -> Batch:
        examples = [self.examples[index] for index in indices]
        encoded = [self._encode(example) for example in examples]
        rows = self._padded(examples, encoded) if self.pack == 1 else self._packed(examples, encoded)
        present = [(example.id, row) for example, row in zip(examples, encoded, strict=True) if example is not None]
        num_tokens = sum(len(row.token_ids) for _, row in present)
        return Batch(rows, tuple(name for name, _ in present), num_tokens)

    def _padded(self, examples: Sequence[Example | None], encoded: Sequence[EncodedExample]) -> Rows:
        """One example a row."""
        mine = range(self.batch_size) if self.rows is None else self.rows
        longest = max(len(row.token_ids) for row in encoded)
        shape = (len(mine), -(-longest // self.bucket) * self.bucket)
        token_ids = np.full(shape, self.tokenizer.pad_id, np.int32)
        labels = np.full(shape, IGNORE_INDEX, np.int32)
        size = self.preprocessing.size
        pixels = np.zeros((len(mine), self._num_images, size, size, 3), np.uint8)
        for local, row in enumerate(mine):
            token_ids[local, : len(encoded[row].token_ids)] = encoded[row].token_ids
            labels[local, : len(encoded[row].labels)] = encoded[row].labels
            example = examples[row]
            if example is not None and example.image is not None:
                pixels[local, 0] = self._load(example.image, example.id)
        asked = self._instructions(examples)
        if asked is not None:
            asked = asked[list(mine), None].repeat(self._num_images, axis=1)
        return Rows(token_ids, labels, pixels, instructions=asked)

    def _packed(self, examples: Sequence[Example | None], encoded: Sequence[EncodedExample]) -> Rows:
        """Several examples a row."""
        packing = pack(
            [len(example.token_ids) for example in encoded],
            [example is not None and example.image is not None for example in examples],
            num_rows=self.batch_size // self.pack,
            bucket=self.bucket,
        )
        mine = packing.rows if self.rows is None else [packing.rows[row] for row in self.rows]
        tokens = pack_tokens(encoded, mine, packing.length, self.tokenizer.pad_id)
        size = self.preprocessing.size
        pixels = np.zeros((len(mine), self._num_images * packing.places, size, size, 3), np.uint8)
        asked = self._instructions(examples)
        instructions = None if asked is None else np.full((*pixels.shape[:2], asked.shape[1]), NO_TOKEN, np.int32)
        for local, row in enumerate(mine):
            held = [(number, example) for number in row if (example := examples[number]) is not None]
            images = [(number, example.image, example.id) for number, example in held if example.image is not None]
            for place, (number, image, name) in enumerate(images):
                pixels[local, place] = self._load(image, name)
                if instructions is not None and asked is not None:
                    instructions[local, place] = asked[number]
        return Rows(tokens.token_ids, tokens.labels, pixels, tokens.segment_ids, tokens.positions, instructions)

    def _instructions(self, examples: Sequence[Example | None]) -> Int32[np.ndarray, "N Q"] | None:
        """What is asked about each example's image, of all processes, so that they agree on Q."""
        return self.tokenizer.instruction_ids(
            ["" if example is None or example.image is None else example.turns[0].text for example in examples]
        )

    @cached_property
    def _num_images(self) -> int:
        return int(any(example is not None and example.image is not None for example in self.examples))

    @cached_property
    def encoder(self) -> Encoder:
        """Makes tokens of an example."""
        return Encoder(
            self.tokenizer,
            self.template,
            self.image_token_id,
            self.num_image_tokens,
            self.max_length,
            self.max_positions,
        )

    def _encode(self, example: Example | None) -> EncodedExample:
        if example is None:  # a token that is neither seen by any other nor learned
            return EncodedExample(np.full(1, self.tokenizer.pad_id, np.int32), np.full(1, IGNORE_INDEX, np.int32))
        try:
            return self.encoder(example)
        except InputError as error:
            raise InputError(f"{self.data_file}: example {example.id!r}: {error}") from error

    def _load(self, image: ImageFile, name: str) -> UInt8[np.ndarray, "S S 3"]:
        try:
            return preprocess(load_image(image), self.preprocessing)
        except InputError as error:
            raise InputError(f"{self.data_file}: example {name!r}: {error}") from error


def shuffled_batches(
    num_examples: int,
    make: Callable[[Sequence[int]], Batch],
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    start: int,
) -> Iterator[Batch]:
    """`make(indices)` of steps `start`, `start` + 1, ... ahead of time in threads; each epoch has its own order."""
    order = _order(num_examples, seed).repeat(epochs)
    return _ahead(order.batch(batch_size, drop_remainder=True).map(make)[start:])


def batch_indices(num_examples: int, seed: int, positions: Iterable[int]) -> list[int]:
    """The numbers of the examples at some positions of the order in which `shuffled_batches` takes them."""
    order = _order(num_examples, seed).repeat()
    return [int(order[position]) for position in positions]


def _order(num_examples: int, seed: int) -> grain.MapDataset:
    return grain.MapDataset.range(num_examples).shuffle(seed)


def ordered_batches(num_examples: int, make: Callable[[Sequence[int]], Batch], *, batch_size: int) -> Iterator[Batch]:
    """`make(indices)` of every example once, in order, the same ahead of time; the last batch may be smaller."""
    return _ahead(grain.MapDataset.range(num_examples).batch(batch_size).map(make))


def _ahead(batches: grain.MapDataset) -> Iterator[Batch]:
    return iter(batches.to_iter_dataset(grain.ReadOptions(NUM_THREADS, prefetch_buffer_size=NUM_THREADS)))
