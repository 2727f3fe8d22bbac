"""Candidates next to the verdicts on them, read as columns: a row group at a time, cut where an image begins.

Arithmetic on millions of signals is done on these columns in numpy, without an object for each of them.
"""

import itertools
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vigor_jax.data.records import store
from vigor_jax.data.records.schemas import schema_of
from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.errors import InputError
from vigor_jax.records import Candidate, Dropped, Span, Verdict


class Block(NamedTuple):
    """Candidates of whole images (of one prompt each), with their signals.

    Attributes:
      rows: one a candidate: its columns, and `signals of STREAM` for each stream.
      starts: int [G + 1], the first row of each image, and the end.
    """

    rows: pa.RecordBatch
    starts: np.ndarray

    def signals(self, stream: str) -> pa.ListArray:
        """A stream's signals, a list for each candidate."""
        return self.rows.column(f"signals of {stream}")

    def name(self, row: int) -> str:
        """A candidate as messages call it."""
        return f"image {self.rows.column('image')[row]}, candidate {self.rows.column('candidate')[row]}"


def read_blocks(
    candidates: str,
    verdicts: dict[str, str],
    index: int,
    count: int,
    *,
    columns: Sequence[str],
    fields: Sequence[str],
) -> Iterator[Block]:
    """One part's candidates with their signals, in order; holds one row group of each folder at a time.

    Args:
      candidates: folder.
      verdicts: folder of each stream.
      index: of the part.
      count: of all parts.
      columns: of the candidates, in addition to image, prompt and candidate.
      fields: of the signals.

    Raises:
      InputError: a part is missing or damaged, the verdicts are not on these candidates, or the candidates of an
        image do not stand together.
    """
    _check_made_of(candidates, verdicts.values(), index, count)
    nested = [f"signals.list.element.{field}" for field in fields]
    parts = [
        store.read_batches(
            candidates,
            index,
            count,
            columns=["image", "prompt", "candidate", *columns],
            schema=schema_of(Candidate),
        ),
        *(
            store.read_batches(folder, index, count, columns=["image", "candidate", *nested], schema=schema_of(Verdict))
            for folder in verdicts.values()
        ),
    ]
    names = [f"signals of {stream}" for stream in verdicts]
    rest: pa.RecordBatch | None = None  # rows of an image that may continue in the next row group
    first = 0
    for rows, *found in itertools.zip_longest(*parts):
        for folder, verdict in zip(verdicts.values(), found, strict=True):
            _check_aligned(rows, verdict, first, (candidates, folder), store.part_name(index, count))
        first += rows.num_rows
        rows = pa.record_batch(
            [*rows.columns, *(verdict.column("signals") for verdict in found)], names=[*rows.schema.names, *names]
        )
        rows = pa.concat_batches([rest, rows]) if rest is not None else rows
        starts = _starts(rows)
        rest = rows.slice(starts[-1])
        if starts[-1]:
            yield _checked(Block(rows.slice(0, starts[-1]), starts), candidates)
    if rest is not None:
        yield _checked(Block(rest, np.array([0, rest.num_rows])), candidates)


def signal_sums(
    block: Block, streams: Sequence[str], kind: str, without: Mapping[int, Sequence[Span]] = types.MappingProxyType({})
) -> np.ndarray:
    """Each stream's sum of "negative" or "positive" signals of each candidate, float64 [R, K].

    Args:
      block: of candidates.
      streams: by name.
      kind: of the signals.
      without: row → spans of its text: signals that point nowhere else are left out; needs the signals' spans.

    Raises:
      InputError: a signal is no finite number of 0 or more; names the image, the candidate and the stream.
    """
    sums = np.zeros((block.rows.num_rows, len(streams)))
    for column, stream in enumerate(streams):
        signals, offsets = unpack(block.signals(stream))
        values = signals.field(kind).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if wrong.size:
            row = int(np.searchsorted(offsets, wrong[0], side="right")) - 1
            raise InputError(
                f"{block.name(row)}, stream {stream}: expected {kind} signals that are finite and 0 or more, got "
                f"{values[wrong[0]]}; fix the stream and score again"
            )
        if without:
            mentions = Mentions(block.signals(stream))
            counted = np.ones(len(values), bool)
            for row, spans in without.items():
                counted[offsets[row] : offsets[row + 1]] = ~mentions.only_in(row, spans)
            values = np.where(counted, values, 0.0)
        sums[:, column] = segment_sums(values, offsets)
    return sums


class Mentions:
    """How many signals of a stream point into a candidate's text.

    Args:
      signals: of each row, with their spans.

    Attributes:
      per_row: int [R].
    """

    def __init__(self, signals: pa.ListArray) -> None:
        each, self._signals = unpack(signals)
        spans, self._spans = unpack(each.field("spans"))
        self._starts, self._ends = (spans.field(name).to_numpy(zero_copy_only=False) for name in ("start", "end"))
        self.per_row = segment_sums(np.diff(self._spans) > 0, self._signals).astype(np.int64)

    def only_in(self, row: int, places: Sequence[Span]) -> np.ndarray:
        """Which signals of a row point into some places (at least one) of the text and nowhere else, bool [S]."""
        spans = self._spans[self._signals[row] : self._signals[row + 1] + 1]
        starts, ends = (values[spans[0] : spans[-1], None] for values in (self._starts, self._ends))
        inside = np.array(places)
        is_left = ~((starts < inside[:, 1]) & (ends > inside[:, 0])).any(axis=1)
        return (np.diff(spans) > 0) & (segment_sums(is_left, spans - spans[0]) == 0)

    def left(self, row: int, dropped: Sequence[Dropped]) -> int:
        """Those of a row that point into more than dropped sentences."""
        only_dropped = self.only_in(row, [each.span for each in dropped]).sum() if dropped else 0
        return int(self.per_row[row] - only_dropped)


def unpack(lists: pa.ListArray) -> tuple[pa.Array, np.ndarray]:
    """A list column → the elements of all rows, and where each row's begin: int [R + 1]."""
    offsets = lists.offsets.to_numpy()
    return lists.values.slice(offsets[0], offsets[-1] - offsets[0]), offsets - offsets[0]


def segment_sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sums of values[offsets[i]:offsets[i + 1]], float64 [R]."""
    sums = np.zeros(len(offsets) - 1)
    filled = np.diff(offsets) > 0  # reduceat gives a value, not 0, for what is empty
    if filled.any():
        sums[filled] = np.add.reduceat(values.astype(np.float64, copy=False), offsets[:-1][filled])
    return sums


def num_words(texts: pa.Array) -> np.ndarray:
    """Runs of anything but ASCII white space in each text, without its boxes, int [R]."""
    if pc.any(pc.match_substring(texts, "[")).as_py():
        texts = pa.array([text and without_boxes(text) for text in texts.to_pylist()], texts.type)
    trimmed = pc.ascii_trim_whitespace(texts)
    pieces = pc.list_value_length(pc.ascii_split_whitespace(trimmed)).to_numpy(zero_copy_only=False)
    return np.where(pc.binary_length(trimmed).to_numpy(zero_copy_only=False) > 0, pieces, 0)  # "" splits into one ""


def _starts(rows: pa.RecordBatch) -> np.ndarray:
    """First row of each image and prompt, int [G]."""
    keys = (rows.column("image"), rows.column("prompt"))
    changes = [pc.not_equal(key.slice(1), key.slice(0, len(key) - 1)).to_numpy(zero_copy_only=False) for key in keys]
    return np.concatenate(([0], np.flatnonzero(changes[0] | changes[1]) + 1))


def _checked(block: Block, folder: str) -> Block:
    starts = block.starts
    numbers = block.rows.column("candidate").to_numpy()
    expected = np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))
    if (wrong := np.flatnonzero(numbers != expected)).size:
        row = int(wrong[0])
        raise InputError(
            f"{folder}: image {block.rows.column('image')[row]}: expected candidate {expected[row]}, got "
            f"{numbers[row]}; the candidates of an image and prompt stand together, numbered from 0; sample them again"
        )
    return block


def _check_made_of(candidates: str, verdicts: Iterable[str], index: int, count: int) -> None:
    """Refuses verdicts on other candidates, which may be of the same images, by the seals of both."""
    digest = store.part_seal(candidates, index, count).digest
    for folder in verdicts:
        made_of = store.part_seal(folder, index, count).made_of
        if digest and made_of and made_of != digest:
            part = store.part_name(index, count)
            raise InputError(
                f"{store.join(folder, part)}: these are verdicts on other candidates than those in "
                f"{store.join(candidates, part)}; remove this file and run the stage score again"
            )


def _check_aligned(
    candidates: pa.RecordBatch | None,
    verdicts: pa.RecordBatch | None,
    first: int,
    folders: tuple[str, str],
    part: str,
) -> None:
    """Refuses verdicts that are not about these candidates, in this order; `first` is the row that both begin at."""
    batches = (candidates, verdicts)
    numbers = [0 if batch is None else batch.num_rows for batch in batches]
    row = min(numbers)
    if candidates is not None and verdicts is not None:
        columns = ("image", "candidate")
        pairs = [(candidates.column(name).slice(0, row), verdicts.column(name).slice(0, row)) for name in columns]
        if numbers[0] == numbers[1] and all(ours.equals(theirs) for ours, theirs in pairs):
            return
        differs = [np.flatnonzero(pc.not_equal(*pair).to_numpy(zero_copy_only=False)) for pair in pairs]
        row = min([int(found[0]) for found in differs if found.size], default=row)
    have, got = (
        f"candidate {batch.column('candidate')[row]} of {batch.column('image')[row]}"
        if batch is not None and row < number
        else "nothing"
        for batch, number in zip(batches, numbers, strict=True)
    )
    raise InputError(
        f"{folders[1]}: {part}, row {first + row}: expected {have}, as in {folders[0]}, got {got}; score the "
        "candidates again"
    )
