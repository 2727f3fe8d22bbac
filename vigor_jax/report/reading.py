"""Candidates, verdicts and selections of a run: their distributions, and examples for the gallery.

Arithmetic goes over columns; only images that the gallery shows become Python objects.
"""

import dataclasses
import json
import logging
import posixpath
from collections.abc import Collection, Iterator, Sequence

import fsspec
import numpy as np
import pyarrow as pa

from vigor_jax.data.records import store
from vigor_jax.data.records.blocks import Block, num_words, read_blocks, signal_sums, unpack
from vigor_jax.records import Selection
from vigor_jax.report.examples import Example, make_example

logger = logging.getLogger(__name__)

_FIELDS = ("label", "spans", "negative", "positive", "score", "absent", "boxes_xyxy", "kind")


@dataclasses.dataclass(frozen=True)
class Records:
    """What a run's records say.

    R candidates; S signals of a stream.

    Attributes:
      streams: whose verdicts there are: those that the selection went by in its order, then others.
      terms: streams of the columns of the selections' terms, none before the selection.
      groups: images (with one prompt each).
      words: of each candidate, int [R].
      chosen: whether it was, bool [R]; all false before the selection.
      target_words: of each target, int [T].
      penalties: the fused penalty of each candidate, float64 [R], empty before the selection.
      negatives: stream → its penalty of each candidate, float64 [R].
      scores: stream → score of each signal, float64 [S].
      score_chosen: stream → whether the signal is on a chosen candidate, bool [S].
      examples: of the images that were asked for; see `make_example`.
    """

    streams: tuple[str, ...]
    terms: tuple[str, ...]
    groups: int
    words: np.ndarray
    chosen: np.ndarray
    target_words: np.ndarray
    penalties: np.ndarray
    negatives: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    score_chosen: dict[str, np.ndarray]
    examples: list[Example]


def image_names(folder: str) -> list[str]:
    """The images of a run that has candidates, each once, sorted; none if it has not."""
    candidates = store.join(folder, "candidates")
    count = store.count_parts(candidates) if store.part_count(candidates) else 0
    names: set[str] = set()
    for index in range(count):
        for batch in store.read_batches(candidates, index, count, columns=["image"]):
            names.update(batch.column("image").unique().to_pylist())
    return sorted(names)


def read_records(folder: str, shown: Collection[str]) -> Records | None:
    """Reads all records of a run; None if it has no candidates.

    Args:
      folder: of the records; may be a URL.
      shown: images that become examples.

    Raises:
      InputError: records are damaged, or do not fit each other.
    """
    candidates, selections = store.join(folder, "candidates"), store.join(folder, "selections")
    if not store.part_count(candidates):
        return None
    count = store.count_parts(candidates)
    is_selected = _is_complete(selections, count)
    terms = tuple(json.loads(store.part_metadata(selections).get("streams", "[]"))) if is_selected else ()
    names = dict.fromkeys((*terms, *_streams(store.join(folder, "verdicts"))))
    verdicts = {name: store.join(folder, "verdicts", name) for name in names}
    verdicts = {name: path for name, path in verdicts.items() if _is_complete(path, count)}

    examples: list[Example] = []
    arrays: dict[tuple[str, str], list[np.ndarray]] = {}

    def add(kind: str, stream: str, values: np.ndarray) -> None:
        arrays.setdefault((kind, stream), []).append(values)

    groups = 0
    for index in range(count):
        chosen_ones = store.read_part(selections, index, count, Selection) if is_selected else None
        columns = ["text", "mean_logprob", "finish_reason"]
        for block in read_blocks(candidates, verdicts, index, count, columns=columns, fields=_FIELDS):
            starts = block.starts
            selected = [next(chosen_ones) for _ in starts[:-1]] if chosen_ones else []
            chosen = np.zeros(block.rows.num_rows, bool)
            if selected:
                chosen[starts[:-1] + [each.candidate for each in selected]] = True
                add("penalties", "", np.concatenate([each.penalties for each in selected]))
                refined = pa.array([each.refined for each in selected if not each.reason], pa.string())
                add("targets", "", num_words(refined))
            add("words", "", num_words(block.rows.column("text")))
            add("chosen", "", chosen)
            sums = signal_sums(block, list(verdicts), "negative")
            for column, stream in enumerate(verdicts):
                signals, offsets = unpack(block.signals(stream))
                add("negatives", stream, sums[:, column])
                add("scores", stream, signals.field("score").to_numpy(zero_copy_only=False))
                add("score_chosen", stream, np.repeat(chosen, np.diff(offsets)))
            groups += len(starts) - 1
            examples += _examples(block, list(verdicts), selected, shown)

    def all_of(kind: str, stream: str = "") -> np.ndarray:
        return np.concatenate(arrays.get((kind, stream), [np.zeros(0)]))

    return Records(
        streams=tuple(verdicts),
        terms=terms,
        groups=groups,
        words=all_of("words"),
        chosen=all_of("chosen").astype(bool),
        target_words=all_of("targets"),
        penalties=all_of("penalties"),
        negatives={stream: all_of("negatives", stream) for stream in verdicts},
        scores={stream: all_of("scores", stream) for stream in verdicts},
        score_chosen={stream: all_of("score_chosen", stream).astype(bool) for stream in verdicts},
        examples=examples,
    )


def _streams(folder: str) -> list[str]:
    """Names of the streams that have a folder of verdicts."""
    system, path = fsspec.core.url_to_fs(folder)
    try:
        found = system.ls(path, detail=True)
    except FileNotFoundError:
        return []
    return sorted(posixpath.basename(each["name"].rstrip("/")) for each in found if each["type"] == "directory")


def _is_complete(folder: str, count: int) -> bool:
    """Whether all parts exist; a stage that was stopped halfway is left out, and said so."""
    found = store.part_count(folder)
    if found is None:
        return False
    done = len(store.parts_done(folder, found))
    if (found, done) != (count, count):
        logger.warning("%s: has %d parts where the candidates have %d; it is left out", folder, done, count)
    return (found, done) == (count, count)


def _examples(
    block: Block, streams: Sequence[str], selected: Sequence[Selection], shown: Collection[str]
) -> Iterator[Example]:
    names = block.rows.column("image").take(pa.array(block.starts[:-1])).to_pylist()
    for group, name in enumerate(names):
        if name in shown:
            start, end = block.starts[group : group + 2].tolist()
            rows = block.rows.slice(start, end - start).to_pylist()
            yield make_example(rows, streams, selected[group] if selected else None)
