"""Lengths and repetitions of the texts that a model wrote for a benchmark; a hallucination rate says little without."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.evaluation.bootstrap import ratio
from vigor_jax.evaluation.image_counts import ImageCounts
from vigor_jax.evaluation.json_records import parse_lines, parse_list, read_text
from vigor_jax.rewards.repetitions import repetitions

# Benchmarks whose answers are texts, and the files that have them, the first that exists: what a model was asked, with
# how each answer ended, or what a command made of saved texts.
FILES: Mapping[str, tuple[str, ...]] = {
    "chair": ("captions.jsonl", "captions.json"),
    "grounding": ("captions.jsonl", "captions.json"),
    "captions": ("captions.jsonl",),
    "detailcaps": ("captions.jsonl", "captions.json"),
    "object-halbench": ("object-halbench.jsonl", "answers.json"),
    "amber": ("amber-descriptions.jsonl", "descriptions.json"),
    "mmhal": ("mmhal.jsonl",),
    "llava-bench": ("llava-bench.jsonl",),
    "mmvet": ("mmvet.jsonl",),
}
# The last axis of counts.
COUNTED = ("texts", "words", "repeats", "ends", "cut")


def count_texts(folder: Path, benchmark: str, images: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Image → float64 [5], the sums of `COUNTED` over its texts; empty where there are no texts.

    Args:
        folder: What a benchmark wrote.
        benchmark: Which one.
        images: Only these; empty: all.

    Raises:
        InputError: A file is damaged.
    """
    path = next((folder / name for name in FILES.get(benchmark, ()) if (folder / name).is_file()), None)
    counts: dict[str, np.ndarray] = {}
    for line in _records(path) if path else []:
        image, text = line.get("image"), line.get("text")
        if isinstance(image, str) and isinstance(text, str) and (not images or image in images):
            end = line.get("finish_reason")
            row = [1, len(without_boxes(text).split()), bool(repetitions(text)), end is not None, end == "length"]
            counts[image] = counts.get(image, 0) + np.array(row, np.float64)
    return counts


def _records(path: Path) -> list[Mapping[str, Any]]:
    text = read_text(path)
    found = parse_list(text, path) if path.suffix == ".json" else parse_lines(text, path)
    return [record for _, record in found if isinstance(record, dict)]


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 5] → words, repeats, and cut where it is known how texts ended; each float64 [...]."""
    column = dict(zip(COUNTED, np.moveaxis(np.asarray(counts), -1, 0), strict=True))
    found = {name: ratio(column[name], column["texts"]) for name in ("words", "repeats")}
    return found | ({"cut": ratio(column["cut"], column["ends"])} if np.any(column["ends"]) else {})


def metrics(counts: ImageCounts) -> dict[str, float]:
    """The figures of texts; none where there are no texts."""
    return {name: float(value) for name, value in rates(np.sum(list(counts.values()), 0)).items()} if counts else {}
