"""Each formula of PPO against loops over tokens in float64; settings of TRL's PPOTrainer, written out, among them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vigor_jax.training import ppo

LENGTHS = st.lists(st.integers(0, 7), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**31)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
few = settings(max_examples=40, deadline=None)


def mask_of(lengths, width=7):
    """Tokens first; a width that is always the same, for jax compiles per shape."""
    lengths = [*lengths, *[0] * (4 - len(lengths))]
    return np.arange(width) < np.array(lengths)[:, None]


def numbers(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def tokens(x, mask):
    """The numbers of each response, as float64."""
    return [row[: int(real.sum())].astype(np.float64) for row, real in zip(x, mask, strict=True)]


def expect(found, rows, mask):
    """`found` holds `rows` and is 0 behind them."""
    expected = np.zeros(mask.shape)
    for index, row in enumerate(rows):
        expected[index, : len(row)] = row
    np.testing.assert_allclose(np.asarray(found), expected, **TOLERANCE)


@few
@given(LENGTHS, SEEDS, st.sampled_from([1.0, 0.9, 0.0]), st.sampled_from([0.95, 1.0, 0.0]))
@example([0, 0, 0, 0], 0, 1.0, 0.95)
@example([1], 0, 1.0, 0.95)
def test_gae_is_the_sum_of_discounted_differences(lengths, seed, gamma, lam):
    mask = mask_of(lengths)
    rewards, values = numbers(seed, 2, 4, 7)
    rows = []
    for r, v in zip(tokens(rewards, mask), tokens(values, mask), strict=True):
        after = [*v[1:], 0.0][: len(v)]
        deltas = [r[t] + gamma * after[t] - v[t] for t in range(len(r))]
        # Equation 16 as it is printed: no recursion.
        rows.append([sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(r))) for t in range(len(r))])
    found = ppo.gae(rewards, values, mask, gamma, lam)
    assert found.dtype == jnp.float32
    expect(found, rows, mask)
    expect(ppo.returns(found, values, mask), [a + v for a, v in zip(rows, tokens(values, mask), strict=True)], mask)


def test_gae_with_lambda_1_is_the_reward_to_come_less_the_value():
    mask = mask_of([5, 7, 2])
    rewards, values = numbers(1, 2, 4, 7)
    to_come = [np.cumsum(r[::-1])[::-1] - v for r, v in zip(tokens(rewards, mask), tokens(values, mask), strict=True)]
    expect(ppo.gae(rewards, values, mask, 1.0, 1.0), to_come, mask)


def test_what_stands_behind_a_response_changes_nothing():
    mask = mask_of([3, 0, 7, 1])
    rewards, values = numbers(2, 2, 4, 7)
    dirty = [np.where(mask, x, np.nan) for x in (rewards, values)]
    np.testing.assert_array_equal(ppo.gae(*dirty, mask, 1.0, 0.95), ppo.gae(rewards, values, mask, 1.0, 0.95))
    np.testing.assert_array_equal(ppo.whiten(dirty[0], mask), ppo.whiten(rewards, mask))
    assert np.isfinite(ppo.returns(rewards, dirty[1], mask)).all()


@few
@given(LENGTHS, SEEDS)
@example([0], 0)
@example([1], 0)
@example([2], 0)
def test_whitening_is_over_all_tokens_together(lengths, seed):
    mask = mask_of(lengths)
    x = numbers(seed, 4, 7, scale=3) + 2
    rows = tokens(x, mask)
    everything = np.concatenate(rows)
    if len(everything) > 1:  # TRL: masked_whiten, whose variance is the unbiased one
        mean, variance = everything.mean(), everything.var(ddof=1)
        rows = [(row - mean) / math.sqrt(variance + 1e-8) for row in rows]
    else:
        rows = [row * 0 for row in rows]
    expect(ppo.whiten(x, mask), rows, mask)


@few
@given(SEEDS, st.sampled_from([0.01, 1.0, 5.0]))
def test_kl_estimates(seed, scale):
    logps, ref_logps = numbers(seed, 2, 4, 7, scale=scale)
    difference = logps.astype(np.float64) - ref_logps.astype(np.float64)
    np.testing.assert_allclose(ppo.kl(logps, ref_logps, "k1"), difference, rtol=1e-4, atol=1e-6)
    k3 = np.exp(np.clip(-difference, -20, 20)) - 1 + difference
    np.testing.assert_allclose(ppo.kl(logps, ref_logps, "k3"), k3, rtol=1e-3, atol=1e-6)
    assert (np.asarray(ppo.kl(logps, ref_logps, "k3")) >= -1e-6).all()


def test_k3_never_pulls_away_from_the_reference():
    """Its gradient is 1 - exp(-d), whose sign is that of d; however far the two are apart, it is a number."""
    differences = np.array([-200, -30, -20.5, -19, -3, -0.5, 0.5, 3, 19, 30, 200], np.float32)
    slopes = np.asarray(jax.grad(lambda d: ppo.kl(d, jnp.zeros_like(d), "k3").sum())(differences))
    assert np.isfinite(slopes).all()
    assert (slopes * differences >= 0).all()
    near = np.abs(differences) < 20
    np.testing.assert_allclose(slopes[near], 1 - np.exp(-differences[near].astype(np.float64)), rtol=1e-4)


def test_both_kl_estimates_have_the_divergence_as_their_mean():
    rng = np.random.default_rng(0)
    p, q = (rng.dirichlet(np.ones(6)) for _ in range(2))
    divergence = float(np.sum(p * np.log(p / q)))
    for kind in ("k1", "k3"):
        each = np.asarray(ppo.kl(np.log(p).astype(np.float32), np.log(q).astype(np.float32), kind))
        assert np.sum(p * each) == pytest.approx(divergence, rel=1e-4)


@few
@given(SEEDS, st.sampled_from([0.0, 1e-3, 0.5, 5.0, 200.0]), st.sampled_from([0.2, 0.05]))
def test_the_surrogate_is_the_lesser_of_two_and_finite(seed, scale, clip):
    logps, old_logps, advantages = numbers(seed, 3, 4, 7, scale=1.0)
    logps = old_logps + logps * scale
    advantages[0] = 0  # infinity times nothing is not a number
    found = ppo.clipped_surrogate(logps, old_logps, advantages, clip)
    log_ratio = np.clip(logps.astype(np.float64) - old_logps.astype(np.float64), -20, 20)
    for place in np.ndindex(logps.shape):
        ratio, a = math.exp(log_ratio[place]), float(advantages[place])
        kept = min(max(ratio, 1 - clip), 1 + clip)
        assert float(found.loss[place]) == pytest.approx(-min(ratio * a, kept * a), rel=1e-3, abs=1e-5)
    gradient = jax.grad(lambda x: ppo.clipped_surrogate(x, old_logps, advantages, clip).loss.sum())(logps)
    assert np.isfinite(np.asarray(gradient)).all()
    assert not np.asarray(gradient)[np.asarray(found.is_clipped)].any()


def test_the_gradient_on_the_first_update_is_that_of_the_policy_gradient():
    logps, _, advantages = numbers(3, 3, 4, 7)
    found = ppo.clipped_surrogate(logps, logps, advantages, 0.2)
    assert (np.asarray(found.ratio) == 1).all()
    assert not found.is_clipped.any()
    gradient = jax.grad(lambda x: ppo.clipped_surrogate(x, logps, advantages, 0.2).loss.sum())(jnp.asarray(logps))
    np.testing.assert_allclose(gradient, -advantages, rtol=1e-6)


@few
@given(SEEDS, st.sampled_from([0.2, 0.01, None]))
def test_value_loss_is_the_larger_of_two(seed, clip):
    values, old, target = numbers(seed, 3, 4, 7)
    v, o, t = (x.astype(np.float64) for x in (values, old, target))
    error = (v - t) ** 2
    if clip is not None:  # TRL: clip_by_value(vpreds, values - cliprange_value, values + cliprange_value)
        error = np.maximum(error, (np.minimum(np.maximum(v, o - clip), o + clip) - t) ** 2)
    np.testing.assert_allclose(ppo.value_loss(values, old, target, clip), 0.5 * error, **TOLERANCE)


@few
@given(LENGTHS, SEEDS, st.lists(st.booleans(), min_size=4, max_size=4))
def test_only_the_last_token_of_an_unfinished_response_is_punished(lengths, seed, ended):
    mask = mask_of(lengths)
    rewards = np.where(mask, numbers(seed, 4, 7), 0).astype(np.float32)
    rows = tokens(rewards, mask)
    for row, has_ended in zip(rows, ended, strict=True):
        if len(row) and not has_ended:
            row[-1] -= 8
    expect(ppo.with_missing_eos(rewards, mask, np.array(ended), 8.0), rows, mask)


@few
@given(LENGTHS, SEEDS, st.sampled_from([0.0, 0.2]))
def test_kl_in_the_reward(lengths, seed, factor):
    mask = mask_of(lengths)
    rewards, divergence = numbers(seed, 2, 4, 7)
    pairs = zip(tokens(rewards, mask), tokens(divergence, mask), strict=True)
    expect(ppo.with_kl(rewards, divergence, mask, factor), [r - factor * d for r, d in pairs], mask)


@few
@given(SEEDS, st.integers(2, 6))
def test_group_baselines(seed, count):
    scores = numbers(seed, 3, count)
    for group, rloo, grpo in zip(
        scores.astype(np.float64), ppo.group_baseline(scores, "rloo"), ppo.group_baseline(scores, "grpo"), strict=True
    ):
        for i in range(count):
            others = [group[j] for j in range(count) if j != i]
            assert float(rloo[i]) == pytest.approx(group[i] - sum(others) / len(others), abs=1e-5)
            deviation = math.sqrt(sum((x - group.mean()) ** 2 for x in group) / (count - 1))
            assert float(grpo[i]) == pytest.approx((group[i] - group.mean()) / (deviation + 1e-4), rel=1e-3, abs=1e-5)


def test_equal_scores_give_no_advantage():
    same = np.full((2, 5), 0.7, np.float32)
    for kind in ("rloo", "grpo"):
        np.testing.assert_allclose(ppo.group_baseline(same, kind), 0, atol=1e-2 if kind == "grpo" else 1e-6)


@few
@given(LENGTHS, SEEDS)
def test_explained_variance(lengths, seed):
    mask = mask_of(lengths)
    values, target = numbers(seed, 2, 4, 7)
    v, t = (np.concatenate(tokens(x, mask)) for x in (values, target))
    expected = 1 - (t - v).var() / t.var() if len(t) > 1 else 0
    assert float(ppo.explained_variance(values, target, mask)) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert float(ppo.explained_variance(target, target, mask)) == pytest.approx(1.0 if len(t) > 1 else 0)


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [(6.0, 0.2), (6.6, 0.2 * (1 + 0.1 * 256 / 10_000)), (60.0, 0.2 * (1 + 0.2 * 256 / 10_000)),
     (0.0, 0.2 * (1 - 0.2 * 256 / 10_000))],
)  # fmt: skip
def test_the_kl_factor_follows_its_target(divergence, expected):
    assert ppo.AdaptiveKl(6.0, 10_000).next(0.2, divergence, 256) == pytest.approx(expected, rel=1e-12)
    assert ppo.AdaptiveKl(None, 10_000).next(0.2, divergence, 256) == 0.2


def test_rewards_stay_what_they_are():
    """Integer buffers would turn 0.7 into 0."""
    mask = np.ones((1, 1), bool)
    for rewards in (np.float64([[0.7]]), np.float32([[0.7]])):
        assert float(ppo.gae(rewards, np.zeros((1, 1), np.float32), mask, 1.0, 0.95)[0, 0]) == pytest.approx(0.7)
