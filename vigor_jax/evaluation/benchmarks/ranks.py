"""Ranks that a judge gives to several systems: how they are read out of its reply, and their means."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vigor_jax.evaluation.bootstrap import Interval, bootstrap, ratio
from vigor_jax.evaluation.judge.judge import MalformedReplyError

CRITERIA = {
    "HL": "hallucinations: which describes nothing that is not in the image?",
    "CA": "counting accuracy: which gives the numbers of objects rightly?",
    "AA": "attribute accuracy: which gives colors, materials, sizes, states and other attributes rightly?",
    "RA": "relationship accuracy: which says rightly how objects are placed and what they do with each other?",
    "RL": "relevance: which is about this image as a whole, without side matters?",
    "RS": "reasoning: which draws sensible conclusions from what can be seen?",
    "DL": "level of detail: which covers the most of what is in the image?",
}  # from the definitions under Table 1, in our own words
AVERAGE = "average"


@dataclass(frozen=True)
class MeanRank:
    """Of one system by one criterion.

    Attributes:
        mean: Over all rankings, in [1, systems]; lower is better.
        interval: 95% bootstrap interval over images.
    """

    mean: float
    interval: Interval


def parse_ranks(text: str, num: int) -> dict[str, tuple[float, ...]]:
    """Reads the one JSON object in a reply, whatever stands around it.

    Args:
        text: The reply.
        num: How many descriptions are ranked.

    Returns:
        Criterion → rank of each description as shown, ties as the mean of their places: (1.5, 1.5, 3).

    Raises:
        MalformedReplyError: No such object, or several that differ, or ranks that are no ranking of `num`.
    """
    found = []
    for content in _json_objects(text):
        if content.keys() & CRITERIA.keys():
            found.append({name: _middle_ranks(content.get(name), num, name) for name in CRITERIA})
    if not found or any(ranks != found[0] for ranks in found):
        raise MalformedReplyError(f"expected one JSON object with {', '.join(CRITERIA)}")
    return found[0]


def _json_objects(text: str) -> list[dict[str, Any]]:
    """The outermost JSON objects in a text."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise MalformedReplyError("expected different keys in the JSON object")
        return dict(pairs)

    decoder = json.JSONDecoder(object_pairs_hook=unique)
    found, start = [], text.find("{")
    while start >= 0:
        try:
            content, end = decoder.raw_decode(text, start)
            found.append(content)
        except MalformedReplyError:
            raise
        except ValueError:
            end = start + 1
        except RecursionError as error:
            raise MalformedReplyError("expected JSON that is not nested deeply") from error
        start = text.find("{", end)
    return found


def _middle_ranks(ranks: Any, num: int, name: str) -> tuple[float, ...]:
    """Ranks by any of the usual ways to number ties (1 1 3, 1 1 2, 2 2 3, 1.5 1.5 3) → the last of these."""
    if isinstance(ranks, list) and len(ranks) == num and all(type(rank) in (int, float) for rank in ranks):
        first = [1 + sum(other < rank for other in ranks) for rank in ranks]
        last = [sum(other <= rank for other in ranks) for rank in ranks]
        middle = [(a + b) / 2 for a, b in zip(first, last, strict=True)]
        dense = [1 + len({other for other in ranks if other < rank}) for rank in ranks]
        if ranks in (first, last, middle, dense):
            return tuple(middle)
    raise MalformedReplyError(f"expected a ranking of {num} under {name}, got {ranks!r}")


def count(systems: Sequence[str], rankings: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> np.ndarray:
    """Sums of ranks, for `bootstrap`.

    Args:
        systems: Names.
        rankings: Image, and criterion → rank of each system, in the order of `systems`; several of an image allowed.

    Returns:
        float64 [images, systems, 8]: seven sums of ranks, and how many they sum.
    """
    counts: dict[str, np.ndarray] = {}
    for image, ranks in rankings:
        rows = np.array([*(ranks[name] for name in CRITERIA), np.ones(len(systems))], np.float64)
        counts[image] = counts.get(image, 0) + rows.T
    return np.array(list(counts.values())).reshape(-1, len(systems), len(CRITERIA) + 1)


def mean_ranks(counts: np.ndarray) -> np.ndarray:
    """Counts [..., systems, 8] → mean ranks, float64 [..., systems, 8]: the seven criteria, and their average."""
    means = ratio(counts[..., :-1], counts[..., -1:])
    return np.concatenate([means, means.mean(-1, keepdims=True)], -1)


def aggregate(
    systems: Sequence[str],
    rankings: Sequence[tuple[str, Mapping[str, Sequence[float]]]],
    *,
    num: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, MeanRank]]:
    """The table: system → criterion → rank.

    Args:
        systems: As for `count`.
        rankings: As for `count`; at least one.
        num: As for `bootstrap`, as the next two.
        seed: Of the draws of images.
        level: Share of the draws that an interval holds.
    """
    counts = count(systems, rankings)
    names = (*CRITERIA, AVERAGE)
    cells = [(i, j) for i in range(len(systems)) for j in range(len(names))]

    def rates(sums: np.ndarray) -> dict[str, np.ndarray]:
        means = mean_ranks(sums)
        return {f"{i} {j}": means[..., i, j] for i, j in cells}

    intervals = bootstrap(counts, rates, num=num, seed=seed, level=level)
    means = mean_ranks(counts.sum(0))
    return {
        system: {name: MeanRank(float(means[i, j]), intervals[f"{i} {j}"]) for j, name in enumerate(names)}
        for i, system in enumerate(systems)
    }
