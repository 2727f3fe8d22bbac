"""What is written of each benchmark, `metrics.json`, with confidence intervals over images, and as a table."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vigor_jax.evaluation import chair, mme, pope
from vigor_jax.evaluation.bootstrap import Interval, bootstrap
from vigor_jax.evaluation.chair import JudgedCaption
from vigor_jax.evaluation.mme import MmeQuestion
from vigor_jax.evaluation.pope import PopeQuestion

Metrics = dict[str, Any]

logger = logging.getLogger(__name__)

# Two ways to read answers that differ by more than this say that the answers are no plain yes and no.
PARSERS_APART = 0.01
# A model that says the same to so many questions was not understood, or did not see.
NEARLY_ALL = 0.95


def pope_metrics(splits: Mapping[str, tuple[Sequence[PopeQuestion], Sequence[str]]]) -> Metrics:
    """Figures of each split and their mean; `strict` has those that lmms-eval's reading of the answers gives.

    Warns, and keeps under `warnings`, where the two readings differ by more than a point or nearly all answers are the
    same.

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
    warnings = [
        f"POPE {name}: accuracy is {score.accuracy:.1%} as the authors read answers and {strict[name].accuracy:.1%} as "
        f"lmms-eval does ({strict[name].unparsed} answers are not exactly yes or no); say which one you report"
        for name, score in scores.items()
        if round(abs(score.accuracy - strict[name].accuracy), 9) > PARSERS_APART
    ]
    return _warn(found, [*warnings, *(_one_sided(f"POPE {name}", score.yes_ratio) for name, score in scores.items())])


def chair_metrics(captions: Sequence[JudgedCaption]) -> Metrics:
    """Figures of captions that were compared with their images."""
    counts = np.array(list(chair.count(captions).values()))
    return {**dataclasses.asdict(chair.score(captions)), "intervals": _plain(bootstrap(counts, chair.rates))}


def mme_metrics(results: Mapping[str, Sequence[MmeQuestion]]) -> Metrics:
    """Figures of each subtask, and the sums that are complete."""
    scores = mme.score(results)
    counts, strata = mme.count(results)
    said = [mme.parse_answer(question.answer) for questions in results.values() for question in questions]
    yes = said.count("yes") / len(said)
    found = {
        "subtasks": {name: {**dataclasses.asdict(each), "score": each.score} for name, each in scores.subtasks.items()},
        "perception": scores.perception,
        "cognition": scores.cognition,
        "yes_ratio": yes,
        "intervals": _plain(bootstrap(counts, mme.rates, strata=strata)),
    }
    no_answer = 1 - (yes + said.count("no") / len(said))
    return _warn(found, [_one_sided("MME", yes, no_answer)])


def _one_sided(what: str, yes: float, neither: float = 0.0) -> str:
    """A warning where nearly all answers are the same; empty where not."""
    no = 1 - yes - neither
    if max(yes, no) < NEARLY_ALL:
        return ""
    word, share = ("yes", yes) if yes > no else ("no", no)
    return f"{what}: {share:.1%} of the answers are {word}, so that accuracy is the share of such labels, mostly 50.0"


def _warn(found: Metrics, warnings: Sequence[str]) -> Metrics:
    if warnings := [warning for warning in warnings if warning]:
        for warning in warnings:
            logger.warning(warning)
        found["warnings"] = list(warnings)
    return found


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
        if "accuracy" in scores:
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
        strict = found.get("strict", {})
        rows += [(f"{name}, LLaVA's reading", f"{strict[name]:.1%}") for name in ("accuracy", "once") if name in strict]
    for system, ranks in metrics.get("preference", {}).get("ranks", {}).items():
        rows.append((f"mean rank of {system}", f"{ranks['average']:.2f}"))
    for name, values in metrics.items():
        asked = values.get("protocol", {}).get("name", "paper")
        if asked != "paper":
            rows.append((f"protocol of {name}", asked))
    return rows


def _plain(intervals: Mapping[str, Interval]) -> dict[str, list[float]]:
    return {name: list(interval) for name, interval in intervals.items()}
