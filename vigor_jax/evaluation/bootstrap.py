"""How far a benchmark's figures would move on other images: percentile bootstrap (Efron 1979), over images.

Answers about one image are not independent, so whole images are drawn, each with all that was counted on it. Two
systems are compared on the same draws of the same images: an image that is hard for both says nothing of which is
better.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from vigor_jax.errors import InputError

_WEIGHTS_AT_ONCE = 4_000_000
# A difference that is none but for rounding.
_SAME = 1e-12


class Interval(NamedTuple):
    """Limits between which a figure lies, in its own unit."""

    low: float
    high: float


class Difference(NamedTuple):
    """How much one system's figure is above another's, on the same images.

    Attributes:
        value: The difference itself, in the figure's unit.
        low: Of the interval that it lies in.
        high: The same.
        p_value: Two-sided, of no difference, in (0, 1].
    """

    value: float
    low: float
    high: float
    p_value: float


def bootstrap(
    counts: np.ndarray,
    rates: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    *,
    num: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    strata: np.ndarray | None = None,
) -> dict[str, Interval]:
    """Confidence intervals of figures that are computed from counts summed over images.

    Args:
        counts: [images, ...], what was counted on each image.
        rates: Makes the figures, sums [R, ...] → {name: [R]}: `pope.rates`, `pope.mean_rates`, `chair.rates`,
            `mme.rates`.
        num: How often as many images as there are are drawn, with replacement.
        seed: Of the draws; the same arguments give the same intervals.
        level: Share of the draws that an interval holds, in (0, 1).
        strata: [images], which stratum an image is of; each keeps its number of images. Default: all are of one.

    Raises:
        InputError: No image, or `num` or `level` out of range.
    """
    found = rates(_drawn_sums(counts, num=num, seed=seed, level=level, strata=strata))
    return {name: _interval(values, level) for name, values in found.items()}


def paired_bootstrap(
    counts: np.ndarray,
    others: np.ndarray,
    rates: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    *,
    num: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    strata: np.ndarray | None = None,
) -> dict[str, Difference]:
    """How much the figures of two systems differ on the same images.

    Args:
        counts: [images, ...], what was counted on each image of one system.
        others: The same of the system that it is compared with, in the same order of images.
        rates: As for `bootstrap`, and so are the rest.

    Raises:
        InputError: The two are not about the same images, or as `bootstrap`.
    """
    if counts.shape != others.shape:
        raise InputError(
            f"bootstrap: expected what was counted on the same images, got {list(counts.shape)} and "
            f"{list(others.shape)}"
        )
    both = np.stack([counts, others], 1)
    sums = _drawn_sums(both, num=num, seed=seed, level=level, strata=strata)
    own, other = (rates(sums[:, place]) for place in (0, 1))
    values = [rates(both[:, place].sum(0)) for place in (0, 1)]
    return {
        name: Difference(
            float(values[0][name] - values[1][name]),
            *_interval(own[name] - other[name], level),
            _two_sided(own[name] - other[name]),
        )
        for name in own
        if name in other
    }


def _drawn_sums(counts: np.ndarray, *, num: int, seed: int, level: float, strata: np.ndarray | None) -> np.ndarray:
    """Sums over as many images as there are, drawn with replacement: float64 [num, ...]."""
    if len(counts) == 0:
        raise InputError("bootstrap: expected counts of at least one image, got none")
    if num < 1 or not 0 < level < 1:
        raise InputError(f"bootstrap: expected num of 1 or more and a level in (0, 1), got {num} and {level}")
    flat = counts.reshape(len(counts), -1).astype(np.float64)
    if strata is None and num * len(counts) <= _WEIGHTS_AT_ONCE:
        return (_weights(len(counts), num, seed) @ flat).reshape(num, *counts.shape[1:])
    sums = np.zeros((num, flat.shape[1]))
    rng = np.random.default_rng(seed)
    groups = np.zeros(len(counts), np.int64) if strata is None else np.asarray(strata)
    for group in np.unique(groups):
        rows = flat[groups == group]
        block = max(1, _WEIGHTS_AT_ONCE // len(rows))
        for start in range(0, num, block):
            size = min(block, num - start)
            # How often each image is drawn, instead of the draws: then a sum over images is a product of matrices.
            weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=size)
            sums[start : start + size] += weights @ rows
    return sums.reshape(num, *counts.shape[1:])


@functools.lru_cache(maxsize=1)
def _weights(images: int, num: int, seed: int) -> np.ndarray:
    """The same draws for every part of a benchmark that has as many images: they take longer than the sums."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=num)


def _interval(values: np.ndarray, level: float) -> Interval:
    tail = (1 - level) / 2
    return Interval(*(float(limit) for limit in np.quantile(values, (tail, 1 - tail))))


def _two_sided(differences: np.ndarray) -> float:
    """Twice the smaller share of draws on one side of 0, those of 0 on both; one more draw keeps it above 0 (Davison
    and Hinkley 1997, section 4.2)."""
    sides = (np.sum(differences <= _SAME), np.sum(differences >= -_SAME))
    return min(1.0, 2 * (int(min(sides)) + 1) / (len(differences) + 1))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, float64; 0 where there is nothing to divide by."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole != 0)
