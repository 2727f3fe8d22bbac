"""What is written of each benchmark, `metrics.json`, with confidence intervals over images, and as a table.

Metrics come with what was counted on each image, which `image_counts.take_counts` takes out.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks import amber, capture, chair, mme, pope
from vigor_jax.evaluation.benchmarks.amber import AmberQuestion, CheckedDescription
from vigor_jax.evaluation.benchmarks.chair import CheckedCaption
from vigor_jax.evaluation.benchmarks.first_word import read_answer
from vigor_jax.evaluation.benchmarks.mme import MmeQuestion
from vigor_jax.evaluation.benchmarks.pope import PopeQuestion
from vigor_jax.evaluation.bootstrap import Interval, bootstrap
from vigor_jax.evaluation.image_counts import COUNTS, ImageCounts
from vigor_jax.evaluation.protocol import OWN

Metrics = dict[str, Any]

logger = logging.getLogger(__name__)

POPE_PARSERS = ("first-sentence", "exact", "contains")
# Two ways to read answers that differ by more than this say that the answers are no plain yes and no.
PARSERS_APART = 0.01
# A model that says the same to this many questions was not understood, or did not see.
NEARLY_ALL = 0.95


def pope_metrics(
    splits: Mapping[str, tuple[Sequence[PopeQuestion], Sequence[str]]], parser: str = "first-sentence"
) -> Metrics:
    """Figures of each split and their mean; `strict` has those that lmms-eval's reading of the answers gives.

    Args:
      splits: by name, questions and the texts that answer them.
      parser: "first-sentence", as the authors read answers; "exact", as lmms-eval; "contains", as VCD.

    Raises:
      InputError: there is no such parser.
    """
    if parser not in POPE_PARSERS:
        raise InputError(f"POPE: expected a parser of {', '.join(POPE_PARSERS)}, got {parser!r}; fix the protocol")
    strict = {name: pope.compute_metrics(*split, pope.parse_answer_strict) for name, split in splits.items()}
    if parser == "contains":
        splits = {name: (asked, pope.read_contained(asked, said)) for name, (asked, said) in splits.items()}
    read = pope.parse_answer_strict if parser == "exact" else pope.parse_answer
    scores = {name: pope.compute_metrics(*split, read) for name, split in splits.items()}
    counts = [pope.count(*split, read) for split in splits.values()]
    found: Metrics = {name: dataclasses.asdict(score) for name, score in scores.items()}
    for name, count in zip(splits, counts, strict=True):
        found[name]["intervals"] = plain_intervals(bootstrap(rows_of(count), pope.rates))
    found["mean"] = dataclasses.asdict(pope.mean(list(scores.values())))
    found["mean"]["intervals"] = (
        plain_intervals(bootstrap(pope.stack(counts), pope.mean_rates))
        if len(counts) > 1
        else next(iter(found.values()))["intervals"]
    )
    found["strict"] = {name: dataclasses.asdict(score) for name, score in strict.items()}
    found["strict"]["mean"] = dataclasses.asdict(pope.mean(list(strict.values())))
    images = dict.fromkeys(image for count in counts for image in count)
    mean = dict(zip(images, pope.stack(counts), strict=True))
    found[COUNTS] = {**dict(zip(splits, counts, strict=True)), "mean": mean}
    return found


def chair_metrics(captions: Sequence[CheckedCaption]) -> Metrics:
    """Figures of captions that were compared with their images."""
    return {**dataclasses.asdict(chair.compute_metrics(captions)), **counted(chair.count(captions), chair.rates)}


def mme_metrics(results: Mapping[str, Sequence[MmeQuestion]]) -> Metrics:
    """Figures of each subtask, and the sums that are complete."""
    scores = mme.compute_metrics(results)
    counts, strata = mme.count(results)
    images = [f"{subtask}/{one.image}" for subtask, questions in results.items() for one in questions[::2]]
    said = [mme.parse_answer(question.answer) for questions in results.values() for question in questions]
    return {
        "subtasks": {name: {**dataclasses.asdict(each), "score": each.score} for name, each in scores.subtasks.items()},
        "perception": scores.perception,
        "cognition": scores.cognition,
        "yes_ratio": said.count("yes") / len(said),
        "intervals": plain_intervals(bootstrap(counts, mme.rates, strata=strata)),
        COUNTS: {"": dict(zip(images, counts, strict=True))},
    }


def amber_metrics(
    descriptions: Sequence[CheckedDescription], questions: Sequence[AmberQuestion], answers: Sequence[str]
) -> Metrics:
    """Figures of AMBER's descriptions and of each table of its questions; `published` has those that its script prints.

    `strict` has the tables by the script's reading: "Yes" or "No" and nothing else, as those in `published` are.
    """
    found: Metrics = {}
    published: dict[str, Mapping[str, float]] = {}
    counts: dict[str, ImageCounts] = {}
    if descriptions:
        counts["generative"] = own = amber.count_descriptions(descriptions)
        found["generative"] = rated(rows_of(own), amber.description_rates)
        found["generative"]["descriptions"] = len(descriptions)
        published["generative"] = amber.descriptions_as_published(rows_of(own).sum(0))
    if questions:
        own = amber.count_answers(questions, answers)
        read = amber.tables(rows_of(own))
        found |= {name: rated(rows, amber.answer_rates) for name, rows in read.items()}
        counts |= {name: dict(zip(own, rows, strict=True)) for name, rows in read.items()}
        every = np.array(list(amber.count_answers(questions, answers, amber.read_answer_strict).values()))
        strict = amber.tables(every)
        found["strict"] = {name: plain_rates(amber.answer_rates(rows.sum(0))) for name, rows in strict.items()}
        published |= {name: amber.answers_as_published(rows.sum(0), name) for name, rows in strict.items()}
        found["unread"] = sum(read_answer(answer) is None for answer in answers)
    if descriptions and questions:
        found["score"] = amber.amber_score(found["generative"]["chair"], found["discriminative"]["f1"])
    return {**found, "published": published, COUNTS: counts}


def counted(counts: ImageCounts, rates: Callable[[np.ndarray], Mapping[str, np.ndarray]]) -> Metrics:
    """The intervals of figures that are computed from counts summed over images, and these counts."""
    return {"intervals": plain_intervals(bootstrap(rows_of(counts), rates)), COUNTS: {"": counts}}


def rows_of(counts: ImageCounts) -> np.ndarray:
    """[images, ...], what was counted."""
    return np.array(list(counts.values()))


def rated(counts: np.ndarray, rates: Callable[[np.ndarray], Mapping[str, np.ndarray]]) -> Metrics:
    """Figures of counts [images, ...], with their intervals."""
    return {**plain_rates(rates(counts.sum(0))), "intervals": plain_intervals(bootstrap(counts, rates))}


def plain_rates(rates: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Figures as JSON has them."""
    return {name: float(value) for name, value in rates.items()}


def warn(pope: Metrics | None = None, mme: Metrics | None = None, amber: Metrics | None = None) -> dict[str, list[str]]:
    """Warns of figures that mislead: POPE's two readings are more than a point apart, or nearly all answers the same.

    Args:
      pope: of `pope_metrics`.
      mme: of `mme_metrics`.
      amber: of `amber_metrics`.

    Returns:
      `{"warnings": [...]}`, or nothing if there is none.
    """
    warnings = []
    for name, strict in (pope or {}).get("strict", {}).items():
        found = (pope or {})[name]
        if name == "mean":
            continue
        if round(abs(found["accuracy"] - strict["accuracy"]), 9) > PARSERS_APART:
            warnings.append(
                f"POPE {name}: accuracy is {found['accuracy']:.1%} as answers are read here and "
                f"{strict['accuracy']:.1%} as lmms-eval reads them ({strict['unparsed']} answers are not exactly yes "
                "or no); say which one you report"
            )
        warnings += _one_sided(f"POPE {name}", found["yes_ratio"], 1 - found["yes_ratio"])
    if mme:
        subtasks = mme["subtasks"].values()
        unparsed = sum(one["unparsed"] for one in subtasks) / sum(2 * one["images"] for one in subtasks)
        warnings += _one_sided("MME", mme["yes_ratio"], 1 - mme["yes_ratio"] - unparsed)
    if amber and "discriminative" in amber:
        own, script = amber["discriminative"], amber["strict"]["discriminative"]
        if abs(own["accuracy"] - script["accuracy"]) > PARSERS_APART:
            warnings.append(
                f"AMBER: accuracy is {own['accuracy']:.1%} by the first word of each answer and "
                f"{script['accuracy']:.1%} as the authors' script reads it, which takes Yes or No alone; say which one "
                "you report"
            )
        warnings += _one_sided("AMBER", own["yes_ratio"], 1 - own["yes_ratio"])
    for warning in warnings:
        logger.warning(warning)
    return {"warnings": warnings} if warnings else {}


def _one_sided(what: str, yes: float, no: float) -> list[str]:
    if max(yes, no) < NEARLY_ALL:
        return []
    word, share = ("yes", yes) if yes > no else ("no", no)
    return [f"{what}: {share:.1%} of the answers are {word}, so that accuracy is the share of such labels, mostly 50.0"]


def table(metrics: Mapping[str, Mapping[str, Metrics]]) -> str:
    """Metrics of several models as text, a column for each.

    Args:
      metrics: by model and benchmark.

    Raises:
      InputError: figures of a benchmark were made by different protocols, and do not compare.
    """
    refuse_mixed(metrics)
    columns = {name: dict(_lines(values)) for name, values in metrics.items()}
    labels = dict.fromkeys(label for own in columns.values() for label in own)
    width = max(10, *(len(name) + 2 for name in metrics))
    lines = [" " * 34 + "".join(f"{name:>{width}}" for name in metrics)]
    lines += [
        f"{label:34}" + "".join(f"{own.get(label, '-'):>{width}}" for own in columns.values()) for label in labels
    ]
    return "\n".join(lines)


def refuse_mixed(metrics: Mapping[str, Mapping[str, Metrics]]) -> None:
    """Refuses figures of one benchmark by different protocols side by side.

    Args:
      metrics: by model and benchmark; those of earlier versions, which name no digest, are let through.

    Raises:
      InputError: there are such; names the benchmark and two models.
    """
    first: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for model, values in metrics.items():
        for benchmark, found in values.items():
            protocol = found.get("protocol", {})
            if "digest" not in protocol:
                continue
            before, other = first.setdefault(benchmark, (model, protocol))
            if other["digest"] != protocol["digest"]:
                raise InputError(
                    f"{benchmark}: {before} was measured by protocol {_told(other)} and {model} by {_told(protocol)}, "
                    "whose figures do not compare; measure both by one protocol"
                )


def _told(protocol: Mapping[str, Any]) -> str:
    departures = f", with {'; '.join(protocol['departures'])}" if protocol.get("departures") else ""
    return f"{protocol['name']} ({protocol['digest']}{departures})"


def _lines(metrics: Mapping[str, Metrics]) -> list[tuple[str, str]]:
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
        if isinstance(scores, Mapping) and "accuracy" in scores:  # the number of extra answers is none
            rows.append((f"POPE {split}, accuracy", f"{scores['accuracy']:.1%}"))
    for split, numbers in metrics.get("pope-questions", {}).items():
        if split != "images":
            rows.append((f"{split}, questions", f"{numbers['questions']:,}"))
    if found := metrics.get("mme"):
        scores = [values["score"] for values in found["subtasks"].values()]
        rows.append((f"MME, {len(scores)} subtasks, of {200 * len(scores)}", f"{sum(scores):.1f}"))
    if (found := metrics.get("grounding")) and "boxed" in found:
        rows += [("phrases with a box", f"{found['boxed_share']:.1%}"), ("right boxes", f"{found['accuracy']:.1%}")]
        rows += [("right phrases with right boxes", f"{found['grounded']:.1%}")]
    # The command has both under one name.
    for part, each in [*metrics.get("grounding", {}).items(), *metrics.get("referring", {}).items()]:
        if isinstance(each, Mapping) and "mean_iou" in each:
            rows.append((f"{part}, accuracy at 0.5", f"{each['accuracy']:.1%}"))
    if (found := metrics.get("amber", {})).get("generative"):
        figures = {"chair": "CHAIR", "cover": "Cover", "hal": "Hal", "cog": "Cog"}
        rows += [(f"AMBER {name}", f"{found['generative'][key]:.1%}") for key, name in figures.items()]
        rows.append(("words per description", f"{found['generative']['words']:.1f}"))
    for part in amber.TABLES:
        if part in found:
            rows.append((f"AMBER {part}, F1", f"{found[part]['f1']:.1%}"))
    if "score" in found:
        rows.append(("AMBER score", f"{found['score']:.1%}"))
    if found := metrics.get("hallusion"):
        figures = {"a_acc": "aAcc", "f_acc": "fAcc", "q_acc": "qAcc"}
        rows += [(f"HallusionBench {name}", f"{found[key]:.1%}") for key, name in figures.items()]
    if found := metrics.get("object-halbench"):
        figures = {"chair_s_refine": "response level", "chair_i": "mention level", "recall": "recall"}
        rows += [(f"Object HalBench, {name}", f"{found[key]:.1%}") for key, name in figures.items()]
        rows.append(("words per answer", f"{found['words']:.1f}"))
    if found := metrics.get("mmhal"):
        rows += [("MMHal score, of 6", f"{found['score']:.2f}")]
        rows += [("hallucination rate", f"{found['hallucination_rate']:.1%}")]
    if found := metrics.get("llava-bench"):
        rows += [
            ("LLaVA-Bench, relative score", f"{found['relative']:.1%}"),
            ("words per answer", f"{found['words']:.1f}"),
        ]
    if found := metrics.get("captions"):
        names = ("bleu_4", "rouge_l", "cider", "meteor", "spice", "cap")
        rows += [(name, f"{found[name]:.3f}") for name in names if found.get(name) is not None]
    if found := metrics.get("detailcaps"):
        rows.append(("CAPTURE", f"{found['capture']:.1%}"))
        rows += [(f"{kind}, F1", f"{found[f'{kind}_f1']:.1%}") for kind in capture.KINDS]
        rows.append(("words per caption", f"{found['words']:.1f}"))
    if found := metrics.get("questions"):
        rows += [(name, f"{found[name]:.1%}") for name in ("accuracy", "once", "score") if name in found]
        strict = found.get("strict", {})
        rows += [(f"{name}, LLaVA's reading", f"{strict[name]:.1%}") for name in ("accuracy", "once") if name in strict]
    for system, ranks in metrics.get("preference", {}).get("ranks", {}).items():
        rows.append((f"mean rank of {system}", f"{ranks['average']:.2f}"))
    for name, values in metrics.items():
        asked = values.get("protocol", {}).get("name", "paper")
        if asked not in ("paper", OWN):
            rows.append((f"protocol of {name}", asked))
    return rows


def plain_intervals(intervals: Mapping[str, Interval]) -> dict[str, list[float]]:
    """Intervals as JSON has them."""
    return {name: list(interval) for name, interval in intervals.items()}
