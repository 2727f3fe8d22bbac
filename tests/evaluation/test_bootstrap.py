from fractions import Fraction

import numpy as np
import pytest

from vigor_jax.errors import InputError
from vigor_jax.evaluation import bootstrap as module
from vigor_jax.evaluation.benchmarks import chair, mme, pope
from vigor_jax.evaluation.bootstrap import bootstrap, ratio


def share(sums):
    return {"share": sums[..., 0] / sums[..., 1]}


def quantile(values, place):
    """Linear between the two values next to the place."""
    ordered = sorted(values)
    position = place * (len(ordered) - 1)
    below = min(int(position), len(ordered) - 2)
    return ordered[below] + (ordered[below + 1] - ordered[below]) * (position - below)


def test_intervals_equal_a_plain_loop():
    rng = np.random.default_rng(3)
    counts = np.stack([rng.integers(0, 5, 20), rng.integers(5, 9, 20)], 1)
    draws = np.random.default_rng(7)
    shares = []
    for _ in range(200):
        times = draws.multinomial(20, [1 / 20] * 20)
        part = sum(int(t) * int(row[0]) for t, row in zip(times, counts, strict=True))
        whole = sum(int(t) * int(row[1]) for t, row in zip(times, counts, strict=True))
        shares.append(float(Fraction(part, whole)))
    interval = bootstrap(counts, share, num=200, seed=7, level=0.9)["share"]
    assert interval.low == pytest.approx(quantile(shares, 0.05), abs=1e-9)
    assert interval.high == pytest.approx(quantile(shares, 0.95), abs=1e-9)


def test_intervals_are_those_of_drawing_images_with_replacement():
    rng = np.random.default_rng(0)
    counts = np.stack([rng.binomial(6, 0.7, 400), np.full(400, 6)], 1)
    low, high = bootstrap(counts, share, num=4000)["share"]
    means = counts[:, 0] / 6
    error = 1.959964 * means.std() / np.sqrt(400)
    assert low == pytest.approx(means.mean() - error, abs=0.15 * error)
    assert high == pytest.approx(means.mean() + error, abs=0.15 * error)
    narrow = bootstrap(counts, share, num=4000, level=0.5)["share"]
    assert low < narrow.low < narrow.high < high


def test_same_seed_same_interval_whatever_the_memory(monkeypatch):
    counts = np.random.default_rng(0).integers(1, 9, (30, 2))
    first = bootstrap(counts, share, seed=1)
    assert bootstrap(counts, share, seed=2) != first
    monkeypatch.setattr(module, "_WEIGHTS_AT_ONCE", 70)
    again = bootstrap(counts, share, seed=1)["share"]
    assert again == pytest.approx(first["share"], abs=1e-12)


def test_strata_keep_their_sizes():
    counts = np.array([[1, 1], [1, 1], [1, 1], [0, 1]])
    assert bootstrap(counts, share, strata=np.array([0, 0, 0, 5]))["share"] == (0.75, 0.75)
    low, high = bootstrap(counts, share)["share"]
    assert low < 0.75 < high


def test_images_that_are_all_alike_leave_no_doubt():
    assert bootstrap(np.tile([[1, 4]], (9, 1)), share)["share"] == (0.25, 0.25)


def test_every_benchmark_has_its_rates():
    rng = np.random.default_rng(0)
    some = pope.rates(np.array([6, 2, 7, 3, 2]))
    assert {name: float(value) for name, value in some.items()} == pytest.approx(
        {"accuracy": 13 / 20, "precision": 6 / 8, "recall": 6 / 9, "f1": 12 / 17, "yes_ratio": 8 / 20}, abs=1e-9
    )
    for counts, rates in (
        (rng.integers(0, 4, (50, 5)), pope.rates),
        (rng.integers(0, 4, (50, 3, 5)), pope.mean_rates),
        (rng.integers(1, 4, (50, len(chair.COUNTS))), chair.rates),
        (rng.integers(1, 2, (50, 14, 3)), mme.rates),
    ):
        points = rates(counts.sum(0))
        intervals = bootstrap(counts, rates, num=200)
        assert intervals.keys() == points.keys()
        for name, (low, high) in intervals.items():
            assert low <= points[name] + 1e-9
            assert high >= points[name] - 1e-9


def test_nothing_to_divide_by_is_nought():
    assert ratio(np.array([1, 0, 3]), np.array([2, 0, 0])).tolist() == [0.5, 0, 0]
    assert ratio(np.int64(3), np.int64(4)) == 0.75


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        (np.zeros((0, 5)), {}, "at least one image"),
        (np.ones((3, 2)), {"num": 0}, "num of 1 or more"),
        (np.ones((3, 2)), {"level": 1.0}, "a level in"),
    ],
)
def test_bad_arguments_are_refused(counts, options, message):
    with pytest.raises(InputError, match=message):
        bootstrap(counts, share, **options)
