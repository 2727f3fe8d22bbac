"""Eqs. 7 and 8 against their definitions, written out."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.errors import InputError
from vigor_jax.rewards.clip_baselines import (
    Baselines,
    Side,
    Thresholds,
    make_baselines,
    shares,
    thresholds,
)

SCALE = 250.0
MADE_OF = {"verifier": "v", "entities": "e", "per": "word", "pad": True}


def responses(seed: int = 0, count: int = 60, gap: float = 0.05):
    """Some without words, some with one kind only; correct words score higher on average."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        wrong = rng.random(rng.integers(0, 7)) < 0.3
        found.append([(float(rng.normal(0.2 - gap * is_wrong, 0.02)), bool(is_wrong)) for is_wrong in wrong])
    return found


@pytest.fixture(scope="module")
def baselines():
    return make_baselines(responses(), MADE_OF)


def test_means_are_of_responses_and_not_of_words(baselines):
    """A long response counts once (eq. 7)."""
    for is_wrong, side in ((False, baselines.correct), (True, baselines.hallucinated)):
        total, count, words = 0.0, 0, []
        for response in responses():
            own = [cosine for cosine, wrong in response if wrong == is_wrong]
            words += own
            if own:
                total += sum(own) / len(own)
                count += 1
        assert side.mean == pytest.approx(total / count)
        assert side.mean != pytest.approx(sum(words) / len(words), abs=1e-6)
        assert side.std == pytest.approx(np.std(words))
        assert (side.words, side.responses) == (len(words), count)
        assert (side.quantiles[0], side.quantiles[-1]) == (min(words), max(words))
        assert side.quantiles[50] == pytest.approx(np.median(words))
    assert baselines.highest == max(cosine for response in responses() for cosine, _ in response)
    assert baselines.lowest == min(cosine for response in responses() for cosine, _ in response)


def test_thresholds_in_every_unit(baselines):
    right, wrong = baselines.correct, baselines.hallucinated

    def limits(*margin):
        return thresholds(baselines, SCALE, *margin)[:2]

    assert limits(10) == pytest.approx((SCALE * right.mean + 10, SCALE * wrong.mean - 10))
    assert limits(0) == pytest.approx((SCALE * right.mean, SCALE * wrong.mean))
    assert limits(2, "absolute", "-") == pytest.approx((SCALE * right.mean - 2, SCALE * wrong.mean + 2))
    expected = SCALE * (right.mean + 0.5 * right.std), SCALE * (wrong.mean - 0.5 * wrong.std)
    assert limits(0.5, "std") == pytest.approx(expected)
    words = [[c for r in responses() for c, w in r if w == is_wrong] for is_wrong in (False, True)]
    expected = SCALE * np.quantile(words[0], 0.75), SCALE * np.quantile(words[1], 0.25)
    assert limits(0.75, "quantile") == pytest.approx(expected)


def test_the_reward_is_what_eq_8_says():
    limits = Thresholds(reward=60.0, punish=40.0, highest=80.0, lowest=30.0)
    points = {100: 1, 80: 1, 70: 0.5, 60: 0, 59.9: 0, 50: 0, 40.1: 0, 40: 0, 35: -0.5, 30: -1, 0: -1}
    for score, reward in points.items():
        assert limits(score) == pytest.approx(reward), score
    # A score beyond all that the baselines' words have: as much as there is.
    beyond = Thresholds(reward=90.0, punish=20.0, highest=80.0, lowest=30.0)
    assert [beyond(score) for score in (91, 80, 30, 19)] == [1, 0, 0, -1]


@given(st.floats(-250, 250), st.floats(-250, 250), st.lists(st.floats(-250, 250), min_size=4, max_size=4, unique=True))
def test_rewards_are_in_order_and_in_range(one, other, given):
    lowest, punish, reward, highest = sorted(given)
    limits = Thresholds(reward, punish, highest, lowest)
    low, high = limits(min(one, other)), limits(max(one, other))
    assert -1 <= low <= high <= 1


@pytest.mark.parametrize("margin", [(10,), (3,), (0,), (0.5, "std"), (0.6, "quantile"), (40,)])
def test_shares_are_those_of_the_words(baselines, margin):
    limits = thresholds(baselines, SCALE, *margin)
    found = shares(baselines, limits, SCALE)
    for is_wrong, rewarded, punished in (
        (False, found.correct_rewarded, found.correct_punished),
        (True, found.hallucinated_rewarded, found.hallucinated_punished),
    ):
        words = [SCALE * cosine for response in responses() for cosine, wrong in response if wrong == is_wrong]
        assert rewarded == pytest.approx(np.mean([word >= limits.reward for word in words]), abs=0.03)
        assert punished == pytest.approx(np.mean([word <= limits.punish for word in words]), abs=0.03)
    if margin == (40,):
        assert found == (0, 0, 0, 0)


def test_scores_that_would_be_both(baselines):
    for margin in ((10, "absolute", "-"), (0.01, "quantile")):
        with pytest.raises(InputError, match=r"clip.margin: with .* both rewarded and punished; .* apart") as error:
            thresholds(baselines, SCALE, *margin)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "wrong"), [("correct", True), ("hallucinated", False)])
def test_one_kind_of_word_alone_has_no_baselines(kind, wrong):
    with pytest.raises(InputError, match=f"no {kind} word in any response"):
        make_baselines([[], [(0.1, wrong), (0.2, wrong)]], MADE_OF)


def test_a_file_keeps_all(baselines, tmp_path):
    baselines.write(tmp_path / "b.json")
    assert Baselines.read(tmp_path / "b.json") == baselines


def test_files_that_are_something_else(baselines, tmp_path):
    path = tmp_path / "b.json"

    def refused(match):
        with pytest.raises(InputError, match=match) as error:
            Baselines.read(path)
        assert "\n" not in str(error.value)

    refused("clip.baselines: .*b.json is missing; python -m vigor_jax.verifier makes it")
    path.write_text("{}")
    refused("correct is missing")
    path.write_text("[1]")
    refused("expected a JSON object")
    baselines.write(path)
    whole = json.loads(path.read_text())
    for key, value, match in (
        ("mean", "high", "correct.mean: expected a number"),
        ("mean", None, "correct.mean"),
        ("quantiles", [0.1], "quantiles: expected a list of 101 numbers"),
        ("quantiles", list(range(101)), "quantiles: expected a list of 101 numbers"),
        ("quantiles", [-x / 100 for x in range(101)], "ascending"),
        ("words", 1.5, "words: expected a whole number"),
    ):
        path.write_text(json.dumps(whole | {"correct": whole["correct"] | {key: value}}))
        refused(match)
    path.write_text(json.dumps({key: value for key, value in whole.items() if key != "made_of"}))
    refused("is no file of python -m vigor_jax.verifier")
    assert {field.name for field in dataclasses.fields(Side)} == set(whole["correct"])
