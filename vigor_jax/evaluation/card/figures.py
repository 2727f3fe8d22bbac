"""Which figures of each benchmark stand on a card, how they are called, and how they follow from counts."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from vigor_jax.evaluation.benchmarks import (
    amber,
    captions,
    capture,
    chair,
    grounding,
    hallusion,
    llava_bench,
    mme,
    mmhal,
    mmvet,
    object_halbench,
    pope,
    questions,
    referring,
)

Unit: TypeAlias = Literal["percent", "score", "number"]
Better: TypeAlias = Literal["lower", "higher", ""]
Rates: TypeAlias = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class Figure(NamedTuple):
    """A figure of a benchmark.

    Attributes:
        key: Its name in `metrics.json`.
        label: Its name on the card.
        unit: "percent" of a share of 1; "score" of up to three digits after the point; "number" of one.
        better: Which direction is good; "" where neither is.
    """

    key: str
    label: str
    unit: Unit
    better: Better


_YES_NO = (
    Figure("accuracy", "accuracy", "percent", "higher"),
    Figure("f1", "F1", "percent", "higher"),
    Figure("yes_ratio", "yes ratio", "percent", ""),
)
_WORDS = Figure("words", "words", "number", "")
# Of the texts themselves, which `texts.count_texts` counts.
TEXTS = (
    _WORDS,
    Figure("repeats", "texts that repeat a sentence", "percent", "lower"),
    Figure("cut", "texts cut at the token limit", "percent", "lower"),
)

FIGURES: Mapping[str, tuple[Figure, ...]] = {
    "chair": (
        Figure("chair_i", "CHAIR_i", "percent", "lower"),
        Figure("chair_first", "CHAIR_i, first three mentions", "percent", "lower"),
        Figure("chair_s", "CHAIR_s", "percent", "lower"),
        Figure("recall", "recall", "percent", "higher"),
        _WORDS,
    ),
    "object-halbench": (
        Figure("chair_s", "answers with a hallucination", "percent", "lower"),
        Figure("chair_s_refine", "the same, of those that name an object", "percent", "lower"),
        Figure("chair_i", "hallucinated mentions", "percent", "lower"),
        Figure("recall", "recall", "percent", "higher"),
        _WORDS,
    ),
    "amber": (
        Figure("chair", "CHAIR", "percent", "lower"),
        Figure("cover", "Cover", "percent", "higher"),
        Figure("hal", "Hal", "percent", "lower"),
        Figure("cog", "Cog", "percent", "lower"),
        _WORDS,
        *_YES_NO,
        Figure("score", "AMBER score", "percent", "higher"),
    ),
    "mmhal": (
        Figure("score", "rating, of 6", "score", "higher"),
        Figure("hallucination_rate", "hallucination rate", "percent", "lower"),
    ),
    "pope": _YES_NO,
    "hallusion": (
        Figure("a_acc", "aAcc", "percent", "higher"),
        Figure("f_acc", "fAcc", "percent", "higher"),
        Figure("q_acc", "qAcc", "percent", "higher"),
        Figure("yes_diff", "yes, more than is true", "percent", ""),
    ),
    "mme": (
        Figure("perception", "perception, of 2,000", "number", "higher"),
        Figure("cognition", "cognition, of 800", "number", "higher"),
        *(Figure(name, f"{name.replace('_', ' ')}, of 200", "number", "higher") for name in mme.SUBTASKS),
        Figure("yes_ratio", "yes ratio", "percent", ""),
    ),
    "grounding": (
        Figure("boxed_share", "phrases with a box", "percent", ""),
        Figure("accuracy", "right boxes", "percent", "higher"),
        Figure("grounded", "right phrases with a right box", "percent", "higher"),
    ),
    "referring": (
        Figure("accuracy", "accuracy at an IoU of 0.5", "percent", "higher"),
        Figure("mean_iou", "mean IoU", "percent", "higher"),
    ),
    "detailcaps": (
        Figure("capture", "CAPTURE", "percent", "higher"),
        Figure("object_f1", "objects, F1", "percent", "higher"),
        Figure("attribute_f1", "attributes, F1", "percent", "higher"),
        Figure("relation_f1", "relations, F1", "percent", "higher"),
        _WORDS,
    ),
    "llava-bench": (Figure("relative", "relative score", "percent", "higher"), _WORDS),
    "captions": (
        Figure("bleu_4", "BLEU-4", "score", "higher"),
        Figure("rouge_l", "ROUGE-L", "score", "higher"),
        Figure("cider", "CIDEr", "score", "higher"),
        Figure("cap", "mean of the three, in percent", "number", "higher"),
    ),
    "questions": (
        Figure("accuracy", "accuracy", "percent", "higher"),
        Figure("score", "score", "percent", "higher"),
    ),
}
TITLES = {
    "chair": "CHAIR",
    "object-halbench": "Object HalBench",
    "amber": "AMBER",
    "mmhal": "MMHal-Bench",
    "pope": "POPE",
    "hallusion": "HallusionBench",
    "mme": "MME",
    "grounding": "Boxes in captions",
    "referring": "Referring expressions",
    "detailcaps": "DetailCaps",
    "llava-bench": "LLaVA-Bench",
    "captions": "Captions against references",
    "seed": "SEED-Bench",
    "mmbench": "MMBench",
    "scienceqa": "ScienceQA",
    "gqa": "GQA",
    "mmvet": "MM-Vet",
}
# Benchmark, and its part where that decides → what makes its figures of counts.
_RATES: Mapping[str, Rates] = {
    "chair": chair.rates,
    "object-halbench": object_halbench.rates,
    "amber": amber.answer_rates,
    "amber generative": amber.description_rates,
    "mmhal": mmhal.rates,
    "pope": pope.rates,
    "pope mean": pope.mean_rates,
    "hallusion": hallusion.rates,
    "mme": mme.rates,
    "grounding": grounding.rates,
    "referring": referring.rates,
    "detailcaps": capture.rates,
    "llava-bench": llava_bench.rates,
    "captions": captions.rates,
    "questions": questions.rates,
    "questions mmvet": mmvet.rates,
}


def rates_of(benchmark: str, part: str, name: str) -> Rates | None:
    """What makes a part's figures of its counts; None for a benchmark that is not known here."""
    found = _RATES.get(f"{benchmark} {part}") or _RATES.get(f"{benchmark} {name}")
    return found or _RATES.get(benchmark)


def strata_of(benchmark: str, counts: np.ndarray) -> np.ndarray | None:
    """Which stratum each image is of, as `bootstrap` takes them: MME's subtasks have a fixed number of images."""
    return np.argmax(counts[..., 2], -1) if benchmark == "mme" else None


def parts_of(benchmark: str, metrics: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], tuple[Figure, ...]]]:
    """Each part of a benchmark's metrics that has figures for a card: its name, its metrics, and these figures."""
    parts = {"": metrics} | {name: own for name, own in metrics.items() if isinstance(own, Mapping)}
    if benchmark == "mme":
        subtasks = metrics.get("subtasks", {})
        parts = {"": {**metrics, **{name: own["score"] for name, own in subtasks.items()}}}
    for name, own in parts.items():
        if name and "intervals" not in own:
            continue
        known = FIGURES.get(benchmark) or tuple(
            Figure(key, key.replace("_", " "), "score", "") for key in own.get("intervals", {})
        )
        if found := tuple(figure for figure in known if isinstance(own.get(figure.key), int | float)):
            yield name, own, found
