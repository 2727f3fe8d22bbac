"""How far a benchmark's figures would move on other images: percentile bootstrap (Efron 1979), over images.

Answers about one image are not independent, so whole images are drawn, each with all that was counted on it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from vigor_jax.errors import InputError

_WEIGHTS_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """Limits between which a figure lies, in its own unit."""

    low: float
    high: float


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
    if len(counts) == 0:
        raise InputError("bootstrap: expected counts of at least one image, got none")
    if num < 1 or not 0 < level < 1:
        raise InputError(f"bootstrap: expected num of 1 or more and a level in (0, 1), got {num} and {level}")
    flat = counts.reshape(len(counts), -1).astype(np.float64)
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
    tail = (1 - level) / 2
    return {
        name: Interval(*(float(limit) for limit in np.quantile(values, (tail, 1 - tail))))
        for name, values in rates(sums.reshape(num, *counts.shape[1:])).items()
    }


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, float64; 0 where there is nothing to divide by."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole != 0)
