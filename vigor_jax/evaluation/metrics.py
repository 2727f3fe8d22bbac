"""What is written of each benchmark, `metrics.json`, with confidence intervals over images, and as a table."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vigor_jax.evaluation import chair, mme, pope
from vigor_jax.evaluation.bootstrap import Interval, bootstrap
from vigor_jax.evaluation.chair import JudgedCaption
from vigor_jax.evaluation.mme import MmeQuestion
from vigor_jax.evaluation.pope import PopeQuestion

Metrics = dict[str, Any]


def pope_metrics(splits: Mapping[str, tuple[Sequence[PopeQuestion], Sequence[str]]]) -> Metrics:
    """Figures of each split and their mean; `strict` has those that lmms-eval's reading of the answers gives.

    Args:
      splits: by name, questions and the texts that answer them.
    """
    scores = {name: pope.score(*split) for name, split in splits.items()}
    strict = {name: pope.score(*split, pope.parse_answer_strict) for name, split in splits.items()}
    counts = [pope.count(*split) for split in splits.values()]
    found: Metrics = {name: dataclasses.asdict(score) for name, score in scores.items()}
    for name, count in zip(splits, counts, strict=True):
        found[name]["intervals"] = _plain(bootstrap(pope.stack([count])[:, 0], pope.rates))
    found["mean"] = dataclasses.asdict(pope.mean(list(scores.values())))
    found["mean"]["intervals"] = _plain(bootstrap(pope.stack(counts), pope.mean_rates))
    found["strict"] = {name: dataclasses.asdict(score) for name, score in strict.items()}
    found["strict"]["mean"] = dataclasses.asdict(pope.mean(list(strict.values())))
    return found


def chair_metrics(captions: Sequence[JudgedCaption]) -> Metrics:
    """Figures of captions that were compared with their images."""
    counts = np.array(list(chair.count(captions).values()))
    return {**dataclasses.asdict(chair.score(captions)), "intervals": _plain(bootstrap(counts, chair.rates))}


def mme_metrics(results: Mapping[str, Sequence[MmeQuestion]]) -> Metrics:
    """Figures of each subtask, and the sums that are complete."""
    scores = mme.score(results)
    counts, strata = mme.count(results)
    return {
        "subtasks": {name: {**dataclasses.asdict(each), "score": each.score} for name, each in scores.subtasks.items()},
        "perception": scores.perception,
        "cognition": scores.cognition,
        "intervals": _plain(bootstrap(counts, mme.rates, strata=strata)),
    }


def table(metrics: Mapping[str, Mapping[str, Metrics]]) -> str:
    """Metrics of several models as text, a column for each.

    Args:
      metrics: by model and benchmark.
    """
    rows: dict[str, list[str]] = {}
    for values in metrics.values():
        for label, text in _rows(values):
            rows.setdefault(label, []).append(text)
    width = max(10, *(len(name) + 2 for name in metrics))
    lines = [" " * 34 + "".join(f"{name:>{width}}" for name in metrics)]
    lines += [f"{label:34}" + "".join(f"{text:>{width}}" for text in texts) for label, texts in rows.items()]
    return "\n".join(lines)


def _rows(metrics: Mapping[str, Metrics]) -> list[tuple[str, str]]:
    rows = []
    if found := metrics.get("chair"):
        rows = [
            ("CHAIR_i", f"{found['chair_i']:.1%}"),
            ("CHAIR_i, first three mentions", f"{found['chair_first']:.1%}"),
            ("CHAIR_s", f"{found['chair_s']:.1%}"),
            ("recall", f"{found['recall']:.1%}"),
            ("words per caption", f"{found['words']:.1f}"),
        ]
    for split, scores in metrics.get("pope", {}).items():
        if split != "strict":
            rows.append((f"POPE {split}, accuracy", f"{scores['accuracy']:.1%}"))
    for split, numbers in metrics.get("pope-questions", {}).items():
        if split != "images":
            rows.append((f"{split}, questions", f"{numbers['questions']:,}"))
    if found := metrics.get("mme"):
        scores = [values["score"] for values in found["subtasks"].values()]
        rows.append((f"MME, {len(scores)} subtasks, of {200 * len(scores)}", f"{sum(scores):.1f}"))
    if found := metrics.get("mmhal"):
        rows += [("MMHal score, of 6", f"{found['score']:.2f}")]
        rows += [("hallucination rate", f"{found['hallucination_rate']:.1%}")]
    if found := metrics.get("captions"):
        names = ("bleu_4", "rouge_l", "cider", "meteor", "spice", "cap")
        rows += [(name, f"{found[name]:.3f}") for name in names if found.get(name) is not None]
    if found := metrics.get("questions"):
        rows += [(name, f"{found[name]:.1%}") for name in ("accuracy", "once", "score") if name in found]
    for system, ranks in metrics.get("preference", {}).get("ranks", {}).items():
        rows.append((f"mean rank of {system}", f"{ranks['average']:.2f}"))
    return rows


def _plain(intervals: Mapping[str, Interval]) -> dict[str, list[float]]:
    return {name: list(interval) for name, interval in intervals.items()}
