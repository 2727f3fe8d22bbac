"""The loss of ranking against its formula in float64, written with loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vigor_jax.training.preference_reward import rank

REGULARIZATION = 0.01


def by_hand(rewards, pairs, regularization) -> dict[str, float]:
    """Of one row."""
    losses, hits, margins, sums = [], [], [], []
    for better, worse in pairs:
        margin = float(rewards[better]) - float(rewards[worse])
        losses.append(-math.log(1 / (1 + math.exp(-margin))))
        hits.append(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0)
        margins.append(margin)
        sums.append(float(rewards[better]) + float(rewards[worse]))
    count = len(pairs)
    loss = sum(losses) / count + regularization * abs(sum(sums) / count)
    return {"loss": loss, "accuracy": sum(hits) / count, "margin": sum(margins) / count}


@pytest.fixture(scope="module")
def batch():
    """Rows of one pair, of all pairs of three or four responses, of equal rewards, and without a pair."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(0.3, 2, (6, 4)).astype(np.float32)
    rewards[2, 1] = rewards[2, 0]
    pairs = [[(0, 1)], [(3, 0), (3, 1), (3, 2), (0, 1), (0, 2), (1, 2)], [(1, 0)], [(2, 0), (2, 1)], [], [(1, 2)]]
    better, worse = np.zeros((6, 6), np.int32), np.zeros((6, 6), np.int32)
    is_pair = np.zeros((6, 6), bool)
    for row, own in enumerate(pairs):
        is_pair[row, : len(own)] = True
        for index, (one, other) in enumerate(own):
            better[row, index], worse[row, index] = one, other
    return rewards, better, worse, is_pair, pairs


def test_it_is_the_formula(batch):
    rewards, better, worse, is_pair, pairs = batch
    found = rank(jnp.asarray(rewards), better, worse, is_pair, REGULARIZATION)
    for row, own in enumerate(pairs):
        expected = by_hand(rewards[row].astype(np.float64), own, REGULARIZATION) if own else {}
        for name in ("loss", "accuracy", "margin"):
            assert float(getattr(found, name)[row]) == pytest.approx(expected.get(name, 0.0), rel=2e-6, abs=1e-7), name
    assert found.has_pairs.tolist() == [bool(own) for own in pairs]
    assert found.accuracy[2] == 0.5


def test_one_pair_a_batch_is_the_loss_of_the_original(batch):
    """Binary cross-entropy of the difference, and the magnitude of the mean sum, with torch's own functions."""
    rewards, better, worse, is_pair, _ = batch
    for row in (0, 5):
        one = torch.tensor(rewards[row], dtype=torch.float64, requires_grad=True)
        high, low = one[better[row, 0]], one[worse[row, 0]]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(high - low, torch.ones_like(high))
        loss = loss + 1e-3 * (high + low).mean().abs()
        loss.backward()

        def ours(x, row=row):
            own = slice(row, row + 1)
            return rank(x[None], better[own], worse[own], is_pair[own], 1e-3).loss[0]

        value, grad = jax.value_and_grad(ours)(jnp.asarray(rewards[row]))
        assert float(value) == pytest.approx(loss.item(), rel=1e-6)
        np.testing.assert_allclose(grad, one.grad.numpy(), atol=1e-7)


def test_far_apart_rewards_keep_a_finite_loss_and_gradient():
    def loss(x):
        pair = np.int32([[0]]), np.int32([[1]]), np.array([[True]])
        return rank(x, *pair, 0.0).loss[0]

    for margin in (-200.0, 200.0):
        value, grad = jax.value_and_grad(loss)(jnp.float32([[margin, 0.0]]))
        assert float(value) == pytest.approx(max(-margin, 0.0), abs=1e-6)
        assert grad[0, 0] == pytest.approx(-1.0 if margin < 0 else 0.0, abs=1e-6)


def test_a_row_without_pairs_has_no_gradient(batch):
    rewards, better, worse, is_pair, _ = batch
    grads = jax.grad(lambda x: rank(x, better, worse, is_pair, 1e-3).loss.sum())(jnp.asarray(rewards))
    assert np.all(np.asarray(grads[4]) == 0)
    assert np.all(np.isfinite(grads))
