"""Fusion against the formula in decimals of 60 digits, where ties are ties; and what must not matter to a choice."""

import decimal
import logging
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.errors import InputError
from vigor_jax.rewards.fusion import Choice, FusionConfig, Moments, Scale, choose, per_unit

STREAMS = ("detector", "reward_model", "own")
CONFIGS = st.builds(
    FusionConfig,
    rule=st.sampled_from(["paper", "balanced"]),
    weights=st.dictionaries(st.sampled_from(STREAMS), st.sampled_from([0.0, 0.5, 3.0])),
    gamma=st.sampled_from([0.0, 0.5, 1.0]),
    normalize=st.sampled_from(["variance", "std"]),
    per=st.sampled_from(["caption", "sentence"]),
)


class Made(NamedTuple):
    """A candidate: sums of signals, one a stream, and the rest that counts."""

    negative: tuple[float, ...]
    positive: tuple[float, ...]
    logprob: float
    sentences: int


# Few values, so that there are ties of every kind, and streams without variance.
SUMS = st.tuples(*[st.sampled_from([0.0, 0.25, 1.0, 3.0])] * len(STREAMS))
CANDIDATES = st.builds(Made, SUMS, SUMS, st.sampled_from([-0.5, -1.0, -2.0]), st.integers(1, 3))
RUNS = st.lists(st.lists(CANDIDATES, min_size=1, max_size=4), min_size=1, max_size=4)


def arrays(image):
    return (
        np.array([made.negative for made in image]),
        np.array([made.positive for made in image]),
        np.array([made.logprob for made in image]),
        np.array([made.sentences for made in image]),
    )


def scale_of(run, config):
    moments = Moments(len(STREAMS)), Moments(len(STREAMS))
    for image in run:
        negatives, positives, _, sentences = arrays(image)
        for each, sums in zip(moments, (negatives, positives), strict=True):
            each.add(sums / per_unit(sentences, config))
    return Scale.of(STREAMS, *moments, config)


def choices(run, config) -> list[Choice]:
    starts = np.cumsum([0, *map(len, run)])
    return choose(*arrays([made for image in run for made in image]), starts, scale_of(run, config), config)


def outcomes(run, config):
    return [(choice.candidate, choice.decided_by) for choice in choices(run, config)]


def expected(run, config):
    """For each image: the penalties, the terms, the chosen one and the next best, and what tells them apart."""

    def sums(made, kind, k):
        return Decimal(getattr(made, kind)[k]) / (made.sentences if config.per == "sentence" else 1)

    def factor(kind, k):
        values = [sums(made, kind, k) for image in run for made in image]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        if abs(variance) < Decimal("1e-50"):
            return Decimal(0)
        weight = Decimal(config.weights.get(STREAMS[k], 1.0))
        return weight / (variance if config.normalize == "variance" else variance.sqrt())

    with decimal.localcontext(prec=60):
        factors = {kind: [factor(kind, k) for k in range(len(STREAMS))] for kind in ("negative", "positive")}
        for image in run:
            keys, terms = [], []
            for index, made in enumerate(image):
                bad = [sums(made, "negative", k) * factors["negative"][k] for k in range(len(STREAMS))]
                good = [sums(made, "positive", k) * factors["positive"][k] for k in range(len(STREAMS))]
                gamma = Decimal(config.gamma) if config.rule == "balanced" else Decimal(0)
                terms.append([b - gamma * g for b, g in zip(bad, good, strict=True)])
                keys.append((round(sum(terms[-1]), 40), -round(sum(good), 40), -made.logprob, index))
            best, *others = sorted(keys)
            decided_by = "only"
            if others:
                names = ("penalty", "positive", "logprob", "index")
                decided_by = next(name for name, a, b in zip(names, best, others[0], strict=True) if a != b)
            yield [key[0] for key in keys], terms, best[-1], others[0][-1] if others else None, decided_by


@given(RUNS, CONFIGS)
def test_choices_are_those_of_the_formula(run, config):
    for choice, (penalties, terms, best, next_best, decided_by) in zip(
        choices(run, config), expected(run, config), strict=True
    ):
        assert (choice.candidate, choice.decided_by) == (best, decided_by)
        terms = np.array(terms, dtype=np.float64)
        np.testing.assert_allclose(choice.terms, terms, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(choice.penalties, np.array(penalties, np.float64), rtol=1e-12, atol=1e-11)
        if decided_by == "penalty":
            in_favor = terms[next_best] - terms[best]
            assert in_favor[STREAMS.index(choice.decisive_stream)] == pytest.approx(in_favor.max(), abs=1e-9)
        else:
            assert choice.decisive_stream == ""


def test_a_run_by_hand():
    # Var(neg): 1 and 4 (means 1 and 2). Penalties: 2/1 + 0/4 = 2, 0/1 + 4/4 = 1.
    run = [[Made((2, 0, 0), (0, 0, 0), -1.0, 1), Made((0, 4, 0), (0, 0, 0), -1.0, 1)]]
    (choice,) = choices(run, FusionConfig())
    assert (choice.candidate, choice.decided_by, choice.decisive_stream) == (1, "penalty", "detector")
    assert choice.penalties == (2.0, 1.0)
    (choice,) = choices(run, FusionConfig(weights={"detector": 0.25}))
    assert (choice.candidate, choice.decisive_stream) == (0, "reward_model")
    (choice,) = choices(run, FusionConfig(normalize="std"))
    assert choice.penalties == (2.0, 2.0)
    assert (choice.candidate, choice.decided_by) == (0, "index")


@pytest.mark.parametrize(
    ("first", "second", "decided_by"),
    [
        (Made((1, 1, 1), (1, 0, 0), -9.0, 1), Made((1, 1, 1), (0, 0, 0), -1.0, 1), "positive"),
        (Made((1, 1, 1), (1, 0, 0), -1.0, 1), Made((1, 1, 1), (1, 0, 0), -9.0, 1), "logprob"),
        (Made((1, 1, 1), (1, 0, 0), -1.0, 1), Made((1, 1, 1), (1, 0, 0), -1.0, 1), "index"),
    ],
)
def test_ties(first, second, decided_by):
    other = [Made((0, 0, 0), (4, 4, 4), -1.0, 1)]  # gives the streams a variance
    assert outcomes([[first, second], other], FusionConfig())[0] == (0, decided_by)
    if decided_by != "index":
        assert outcomes([[second, first], other], FusionConfig())[0] == (1, decided_by)


def test_penalties_that_differ_by_rounding_are_equal():
    # 0.1 + 0.2 is not 0.3 in floats; the second candidate has the better log-probability.
    sums = np.array([[0.3], [0.1 + 0.2]])
    assert sums[0] != sums[1]
    scale = Scale(("detector",), np.array([7.0]), np.array([1.0]))
    logprobs, starts = np.array([-2.0, -1.0]), np.array([0, 2])
    (choice,) = choose(sums, np.ones((2, 1)), logprobs, np.ones(2, int), starts, scale, FusionConfig())
    assert (choice.candidate, choice.decided_by) == (1, "logprob")


def scaled(run, factors):
    def times(sums):
        return tuple(value * factor for value, factor in zip(sums, factors, strict=True))

    return [[made._replace(negative=times(made.negative), positive=times(made.positive)) for made in i] for i in run]


FACTORS = st.sampled_from([2.0**-20, 0.3, 10.0, 1e6])


@given(RUNS, CONFIGS, st.tuples(*[FACTORS] * len(STREAMS)))
def test_units_of_streams_do_not_matter_to_deviations(run, config, factors):
    config = FusionConfig(config.rule, config.weights, config.gamma, "std", config.per)
    assert outcomes(scaled(run, factors), config) == outcomes(run, config)


@given(RUNS, CONFIGS, st.sampled_from([2.0**-20, 8.0, 2.0**20]))
def test_variances(run, config, factor):
    """A common unit does not matter, and a stream's own divides its weight, as the module says."""
    config = FusionConfig(config.rule, config.weights, config.gamma, "variance", config.per)
    assert outcomes(scaled(run, [factor] * len(STREAMS)), config) == outcomes(run, config)
    weights = {**config.weights, "own": config.weights.get("own", 1.0) / factor}
    lighter = FusionConfig(config.rule, weights, config.gamma, "variance", config.per)
    assert outcomes(scaled(run, [1, 1, factor]), config) == outcomes(run, lighter)


@given(RUNS, CONFIGS, st.data())
def test_permutation_of_candidates(run, config, data):
    orders = [data.draw(st.permutations(range(len(image)))) for image in run]
    permuted = [[image[i] for i in order] for image, order in zip(run, orders, strict=True)]
    pairs = zip(run, orders, choices(run, config), choices(permuted, config), strict=True)
    for image, order, before, after in pairs:
        assert after.decided_by == before.decided_by
        if before.decided_by != "index":
            assert order[after.candidate] == before.candidate
        else:  # among equals it is the first one, wherever that stands now
            assert image[order[after.candidate]].logprob == image[before.candidate].logprob
            assert after.penalties[after.candidate] == pytest.approx(before.penalties[before.candidate], abs=1e-9)


def test_a_stream_without_variance_is_left_out_with_a_warning(caplog):
    run = [[Made((0.1, 1, 0), (0, 0, 0), -1.0, 1), Made((0.1, 0, 0), (0, 0, 0), -1.0, 1)]]
    with caplog.at_level(logging.WARNING):
        (choice,) = choices(run, FusionConfig())
    assert [record.message.split(":")[0] for record in caplog.records] == ["stream detector", "stream own"]
    assert (choice.candidate, choice.decisive_stream) == (1, "reward_model")
    assert {(terms[0], terms[2]) for terms in choice.terms} == {(0.0, 0.0)}


def test_a_single_candidate():
    run = [[Made((1, 2, 3), (0, 0, 0), -1.0, 1)], [Made((0, 0, 0), (1, 1, 1), -1.0, 1)]]
    assert outcomes(run, FusionConfig()) == [(0, "only")] * 2
    assert outcomes(run[:1], FusionConfig()) == [(0, "only")]  # then no stream has a variance


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1)), min_size=1, max_size=40),
    st.lists(st.integers(0, 40), max_size=4),
    st.integers(0, 4),
)
def test_streaming_equals_in_memory(rows, cuts, merged):
    values = np.array(rows)
    batches = np.split(values, sorted(min(cut, len(values)) for cut in cuts))
    total, other = Moments(2), Moments(2)
    for number, batch in enumerate(batches):
        (total if number < merged else other).add(batch)
    total.merge(other)
    assert total.count == len(values)
    np.testing.assert_allclose(total.mean, values.mean(axis=0), rtol=1e-12, atol=1e-300)
    # What is equal but for rounding counts as equal; relative to the squares, for that is what floats can tell.
    np.testing.assert_allclose(
        total.variance(), values.var(axis=0), rtol=1e-9, atol=1e-15 * float(np.square(values).max())
    )


def test_moments_of_a_large_mean():
    values = 1e8 + np.arange(1000.0)[:, None]
    moments = Moments(1)
    for batch in np.split(values, 10):
        moments.add(batch)
    np.testing.assert_allclose(moments.variance(), (1000**2 - 1) / 12, rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
@pytest.mark.parametrize("kind", ["negative", "positive"])
def test_what_has_no_variance_in_floats_is_refused_by_name(value, kind):
    moments = {"negative": Moments(2), "positive": Moments(2)}
    with np.errstate(all="ignore"):
        moments[kind].add(np.array([[0.0, 0.0], [1.0, value]]))
    with pytest.raises(InputError, match=rf"stream reward_model: the variance of its {kind} signals is (nan|inf)"):
        Scale.of(("detector", "reward_model"), moments["negative"], moments["positive"], FusionConfig())


def test_weights_of_unknown_streams_are_refused():
    with pytest.raises(InputError, match=r"no stream 'detecter'; the nearest stream is detector"):
        Scale.of(("own", "detector"), Moments(2), Moments(2), FusionConfig(weights={"detecter": 1.0}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": -1.0}, r"fusion\.gamma: expected a finite number of 0 or more, got -1\.0"),
        ({"gamma": np.nan}, r"fusion\.gamma: .* got nan"),
        ({"weights": {"detector": np.inf}}, r"fusion\.weights\.detector: .* got inf"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        FusionConfig(**settings)


def chosen(run, config=None, **more):
    """What `choose` says of one image, whose candidates are scaled by 1."""
    scale = Scale(STREAMS, np.ones(len(STREAMS)), np.ones(len(STREAMS)))
    (choice,) = choose(*arrays(run), np.array([0, len(run)]), scale, config or FusionConfig(), **more)
    return choice.candidate, choice.decided_by


EMPTY = Made((0, 0, 0), (0, 0, 0), -0.1, 0)


@given(
    st.lists(st.tuples(CANDIDATES, st.booleans(), st.integers(0, 2)), min_size=1, max_size=5), CONFIGS, st.booleans()
)
def test_content_comes_first_and_fewer_repeats_before_likelihood(candidates, config, with_repeats):
    """Against the keys in full, in order; among those without content the same order holds."""
    run, contents, repeats = zip(*candidates, strict=True)
    more = {"has_content": np.array(contents), "repeats": np.array(repeats) if with_repeats else None}
    scale = Scale(STREAMS, np.ones(len(STREAMS)), np.ones(len(STREAMS)))
    (choice,) = choose(*arrays(run), np.array([0, len(run)]), scale, config, **more)
    per = [made.sentences if config.per == "sentence" else 1 for made in run]
    good = [sum(made.positive) / n for made, n in zip(run, per, strict=True)]
    again = repeats if with_repeats else [0] * len(run)
    keys = [
        (not has, round(penalty, 9), round(-g, 9), repeat, -made.logprob, number)
        for number, (has, penalty, g, repeat, made) in enumerate(
            zip(contents, choice.penalties, good, again, run, strict=True)
        )
    ]
    best, *others = sorted(keys)
    assert choice.candidate == best[-1]
    if others:
        names = ("content", "penalty", "positive", "repetition", "logprob", "index")
        assert choice.decided_by == next(name for name, a, b in zip(names, best, others[0], strict=True) if a != b)
    else:
        assert choice.decided_by == "only"


@pytest.mark.parametrize("rule", ["paper", "balanced"])
@pytest.mark.parametrize("per", ["caption", "sentence"])
def test_what_says_nothing_loses_to_the_worst_that_says_something(rule, per):
    worst = Made((9, 9, 9), (0, 0, 0), -9.0, 3)
    config = FusionConfig(rule=rule, per=per)
    assert chosen([EMPTY, worst], config, has_content=np.array([False, True])) == (1, "content")
    assert chosen([EMPTY, worst], config) == (0, "penalty")  # as it would be
    assert chosen([EMPTY, EMPTY], config, has_content=np.array([False, False])) == (0, "index")
    assert chosen([EMPTY], config, has_content=np.array([False])) == (0, "only")
