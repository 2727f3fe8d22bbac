from fractions import Fraction

import numpy as np
import pytest

from vigor_jax.errors import InputError
from vigor_jax.evaluation import bootstrap as module
from vigor_jax.evaluation.benchmarks import chair, mme, pope
from vigor_jax.evaluation.bootstrap import bootstrap, paired_bootstrap, ratio


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


def test_a_difference_equals_a_plain_loop_over_the_same_draws():
    rng = np.random.default_rng(5)
    own, other = (np.stack([rng.integers(0, 5, 20), rng.integers(5, 9, 20)], 1) for _ in range(2))
    draws = np.random.default_rng(7)
    differences = []
    for _ in range(200):
        times = [int(time) for time in draws.multinomial(20, [1 / 20] * 20)]
        shares = []
        for counts in (own, other):
            part, whole = (sum(t * int(row[c]) for t, row in zip(times, counts, strict=True)) for c in (0, 1))
            shares.append(Fraction(part, whole))
        differences.append(shares[0] - shares[1])
    found = paired_bootstrap(own, other, share, num=200, seed=7, level=0.9)["share"]
    points = [Fraction(int(c[:, 0].sum()), int(c[:, 1].sum())) for c in (own, other)]
    assert found.value == pytest.approx(float(points[0] - points[1]), abs=1e-12)
    assert found.low == pytest.approx(quantile([float(d) for d in differences], 0.05), abs=1e-9)
    assert found.high == pytest.approx(quantile([float(d) for d in differences], 0.95), abs=1e-9)
    smaller = min(sum(d <= 0 for d in differences), sum(d >= 0 for d in differences))
    assert found.p_value == pytest.approx(min(1.0, 2 * (smaller + 1) / 201), abs=1e-12)
    back = paired_bootstrap(other, own, share, num=200, seed=7, level=0.9)["share"]
    assert (back.low, back.high, back.p_value) == pytest.approx((-found.high, -found.low, found.p_value), abs=1e-12)


def test_a_system_does_not_differ_from_itself():
    counts = np.random.default_rng(1).integers(1, 9, (30, 2))
    assert paired_bootstrap(counts, counts, share)["share"] == (0, 0, 0, 1)
    # Two ways to the same share, whose floating-point values differ.
    assert paired_bootstrap(np.tile([1, 10], (9, 1)), np.tile([3, 30], (9, 1)), share)["share"].p_value == 1
    with pytest.raises(InputError, match=r"on the same images, got \[30, 2\] and \[29, 2\]"):
        paired_bootstrap(counts, counts[1:], share)


WORLDS, IMAGES, BASE, TUNED = 1000, 400, 0.30, 0.24


def draw_worlds(rates: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Hallucinated mentions and mentions of two systems in each of many draws of the world, [images, worlds, 2] each.

    A caption has 4 to 8 mentions. An image is hard or easy for both systems: neither the mentions of a caption nor the
    two systems are independent.
    """
    rng = np.random.default_rng(11)
    hard = rng.normal(0, 0.1, (IMAGES, WORLDS, 1))
    mentions = rng.integers(4, 9, (IMAGES, WORLDS, 2))
    wrong = rng.binomial(mentions, np.clip(np.array(rates) + hard, 0, 1))
    return np.stack([wrong[..., 0], mentions[..., 0]], -1), np.stack([wrong[..., 1], mentions[..., 1]], -1)


def of_each_world(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {str(world): sums[..., world, 0] / sums[..., world, 1] for world in range(WORLDS)}


def test_intervals_hold_the_truth_as_often_as_they_say():
    """1,000 draws of 400 images: an interval of 95% holds the true figure, or difference, in 93% to 97% of them."""
    base, tuned = draw_worlds((BASE, TUNED))
    plain = bootstrap(base, of_each_world)
    assert 930 <= sum(low <= BASE <= high for low, high in plain.values()) <= 970
    paired = paired_bootstrap(tuned, base, of_each_world)
    assert 930 <= sum(one.low <= TUNED - BASE <= one.high for one in paired.values()) <= 970
    told = sum(one.p_value < 0.05 for one in paired.values())
    alone = bootstrap(tuned, of_each_world)
    assert told > 990 > sum(alone[world].high < plain[world].low for world in plain), "two plain intervals tell less"


def test_systems_that_are_alike_seldom_seem_to_differ():
    base, tuned = draw_worlds((BASE, BASE))
    found = paired_bootstrap(tuned, base, of_each_world)
    assert 30 <= sum(one.p_value < 0.05 for one in found.values()) <= 70
    assert 930 <= sum(one.low <= 0 <= one.high for one in found.values()) <= 970
