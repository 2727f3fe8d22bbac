"""The losses of preference learning against their formulas in float64, and where their gradients point."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigor_jax.training import dpo, image_noise


def sigmoid_loss(h, beta, e):
    def log_sigmoid(x):
        return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))

    return -(1 - e) * log_sigmoid(beta * h) - e * log_sigmoid(-beta * h)


FORMULAS = {
    "sigmoid": sigmoid_loss,
    "ipo": lambda h, beta, e: (h - 0.5 / beta) ** 2,
    "hinge": lambda h, beta, e: max(0.0, 1 - beta * h),
}
MARGINS = st.floats(-300, 300, width=32)


@pytest.mark.parametrize("kind", FORMULAS)
@settings(deadline=None)
@given(st.lists(MARGINS, min_size=1, max_size=4), st.floats(0.01, 2), st.floats(0, 0.49))
def test_losses_are_their_formulas(kind, margins, beta, smoothing):
    smoothing = smoothing if kind == "sigmoid" else 0.0
    found = dpo.preference_loss(jnp.array(margins, jnp.float32), kind, beta, smoothing)
    expected = [FORMULAS[kind](margin, beta, smoothing) for margin in margins]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", FORMULAS)
def test_gradients_are_finite_far_out(kind):
    slopes = jax.vmap(jax.grad(lambda h: dpo.preference_loss(h, kind, 0.1)))(jnp.array([-1e6, -30.0, 0.0, 30.0, 1e6]))
    assert np.isfinite(slopes).all()
    assert slopes[0] < 0
    assert slopes[2] < 0


@settings(deadline=None)
@given(MARGINS, st.floats(0.01, 2), st.floats(-3, 3))
def test_anchor_is_its_formula(score, beta, anchor):
    found = float(dpo.anchor_loss(jnp.float32(score), beta, anchor))
    assert found == pytest.approx(np.logaddexp(0, -(beta * score - anchor)), rel=1e-5, abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_sums_are_those_of_each_response(seed):
    rng = np.random.default_rng(seed)
    owners, x = rng.integers(-1, 3, (2, 12)), rng.standard_normal((2, 12)).astype(np.float32)
    found = dpo.response_sums(jnp.asarray(x), jnp.asarray(owners), 3)
    expected = [[x[row][owners[row] == response].sum() for response in range(3)] for row in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_noise_keeps_the_schedules_share():
    share = 1.0
    for t in range(501):
        x = -6 + 12 * t / 999
        share *= 1 - ((0.005 - 1e-5) / (1 + math.exp(-x)) + 1e-5)
    assert image_noise.kept(500) == pytest.approx(share, rel=1e-12)
    assert image_noise.kept(0) > 0.999 > image_noise.kept(999) > 0


@pytest.mark.parametrize("step", [0, 500, 999])
def test_noise_has_the_right_mean_and_variance_and_is_that_of_its_key(step):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 1, 64, 64, 3)).astype(np.uint8)
    keys = np.array([[1, 2], [3, 4]], np.uint32)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    found = np.asarray(image_noise.noised(jnp.asarray(pixels), jnp.asarray(keys), step, mean, std), np.float64)
    share = image_noise.kept(step)
    seen = (pixels / 255 - mean) / std
    noise = ((found / 255 - mean) / std - math.sqrt(share) * seen) / math.sqrt(1 - share)
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.03
    alone = image_noise.noised(jnp.asarray(pixels[1:]), jnp.asarray(keys[1:]), step, mean, std)
    np.testing.assert_array_equal(found[1:].astype(np.float32), alone)
