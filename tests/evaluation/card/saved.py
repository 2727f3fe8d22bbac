"""Saved results of made-up models, written as `vigor_jax.evaluate` and runs write them."""

import json
from pathlib import Path

import numpy as np

from vigor_jax.evaluation.benchmarks.chair import CheckedCaption
from vigor_jax.evaluation.benchmarks.pope import PopeQuestion
from vigor_jax.evaluation.benchmarks.synonyms import Mention
from vigor_jax.evaluation.image_counts import take_counts, write_counts
from vigor_jax.evaluation.metrics import chair_metrics, pope_metrics
from vigor_jax.evaluation.protocol import read_protocol

PLAIN = "A dog. A cat."


def pope(truth: float, seed: int = 0, images: range = range(40), protocol: str = "paper") -> dict:
    """Metrics of two splits, an answer right with probability `truth`."""
    rng = np.random.default_rng(seed)
    questions = [PopeQuestion(n, f"{n:03}.png", "Is there a dog?", "yes" if n % 2 else "no") for n in images]
    other = {"yes": "no", "no": "yes"}
    splits = {
        split: (questions, [q.label if rng.random() < truth else other[q.label] for q in questions])
        for split in ("random", "popular")
    }
    return {**pope_metrics(splits), "protocol": read_protocol(protocol, "pope").stored()}


def chair(truth: float, seed: int = 0, images: range = range(40)) -> dict:
    """Metrics of captions with four mentions each, one true with probability `truth`."""
    rng = np.random.default_rng(seed)
    captions = [
        CheckedCaption(
            f"{n:03}.png",
            tuple(Mention("word", "dog" if rng.random() < truth else "car") for _ in range(4)),
            frozenset({"dog", "cat"}),
            int(rng.integers(6, 12)),
        )
        for n in images
    ]
    return {**chair_metrics(captions), "protocol": read_protocol("paper", "chair").stored()}


def write_run(folder: Path, metrics: dict[str, dict], text: str = PLAIN) -> Path:
    """As a run writes what one model said."""
    folder.mkdir(parents=True)
    split = {name: take_counts(own) for name, own in metrics.items()}
    (folder / "metrics.json").write_text(json.dumps({name: own for name, (own, _) in split.items()}))
    write_counts(folder / "counts.json", {name: counts for name, (_, counts) in split.items()})
    lines = [{"image": f"{n:03}.png", "prompt": "Describe.", "text": text, "finish_reason": "stop"} for n in range(40)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"model": "/home/somebody/runs/x/export", "dtype": "float32", "sampling.max_new_tokens": 96}
    (folder / "captions.jsonl.settings.json").write_text(json.dumps(settings))
    return folder


def write_result(folder: Path, benchmark: str, metrics: dict) -> Path:
    """As `vigor_jax.evaluate` writes a benchmark's result."""
    folder.mkdir(parents=True)
    found, counts = take_counts(metrics)
    (folder / "metrics.json").write_text(json.dumps(found))
    write_counts(folder / "counts.json", {benchmark: counts})
    return folder
