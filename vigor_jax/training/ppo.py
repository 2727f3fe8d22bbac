"""Proximal policy optimization per token (Schulman et al. 2017), as FiSAO uses it: pure functions of arrays.

Responses are rows of tokens: R places each, of which `mask` says which hold a token; those of a response are its
first ones. What stands behind them means nothing, and what is not of one token is 0 there. Where the FiSAO paper is
silent (its equations 9 and 10 are the clipped objective per token with discount 1), these are the formulas of TRL's
PPOTrainer: our reading.
"""

import dataclasses
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vigor_jax.training.config import MOST_KL_ERROR, Kl

GroupBaseline: TypeAlias = Literal["rloo", "grpo"]

# exp of it is far beyond any clip range, and finite: a ratio that overflows, times an advantage of 0, is not a number.
MOST_LOG_RATIO = 20.0
# Added to variances and deviations that are divided by, as TRL does.
WHITEN_EPS, GRPO_EPS = 1e-8, 1e-4


def gae(
    rewards: Float[Array, "*B R"], values: Float[Array, "*B R"], mask: Bool[Array, "*B R"], gamma: float, lam: float
) -> Float[Array, "*B R"]:
    """Generalized advantage estimation (Schulman et al. 2016, equation 16).

    A_t = d_t + gamma * lam * A_(t+1), with d_t = r_t + gamma * V_(t+1) - V_t. A response is over after its last token:
    nothing comes after it, neither a value nor an advantage.

    Args:
      rewards: of each token.
      values: of the state before each token.
      mask: which places hold a token.
      gamma: discount.
      lam: 0 is one step's difference, 1 is the sum of all rewards to come, less the value.
    """
    rewards, values = (jnp.where(mask, x, 0.0).astype(jnp.float32) for x in (rewards, values))
    after = jnp.pad(values[..., 1:], [(0, 0)] * (values.ndim - 1) + [(0, 1)])
    return _discounted_sums(rewards + gamma * after - values, mask, gamma * lam)


@jax.jit  # outside of a program, a scan whose step is made for it would be compiled at each call
def _discounted_sums(x: Float[Array, "*B R"], mask: Bool[Array, "*B R"], discount: float) -> Float[Array, "*B R"]:
    """Of each token and those after it."""

    def step(later: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        own, is_token = now
        total = jnp.where(is_token, own + discount * later, 0.0)
        return total, total

    places_first = jnp.moveaxis(x, -1, 0), jnp.moveaxis(mask, -1, 0)
    _, sums = jax.lax.scan(step, jnp.zeros_like(x[..., 0]), places_first, reverse=True)
    return jnp.moveaxis(sums, 0, -1)


def returns(
    advantages: Float[Array, "*B R"], values: Float[Array, "*B R"], mask: Bool[Array, "*B R"]
) -> Float[Array, "*B R"]:
    """What the value head is to say: advantages, not whitened, and the values that they are differences to."""
    return jnp.where(mask, advantages + values, 0.0)


def masked_mean(x: Float[Array, "*B R"], mask: Bool[Array, "*B R"]) -> Float[Array, ""]:
    """Mean over the tokens of all responses; 0 if there are none."""
    return jnp.sum(x, where=mask) / jnp.maximum(jnp.sum(mask), 1)


def whiten(x: Float[Array, "*B R"], mask: Bool[Array, "*B R"]) -> Float[Array, "*B R"]:
    """Mean 0 and variance 1 over the tokens of all responses together, whatever devices they are on.

    (x - mean) / sqrt(variance + 1e-8), the variance divided by the number of tokens less one, as TRL has it; a single
    token becomes 0.
    """
    centered = jnp.where(mask, x - masked_mean(x, mask), 0.0)
    variance = jnp.sum(jnp.square(centered)) / jnp.maximum(jnp.sum(mask) - 1, 1)
    return centered * jax.lax.rsqrt(variance + WHITEN_EPS)


def kl(logps: Float[Array, "*B R"], ref_logps: Float[Array, "*B R"], kind: Kl) -> Float[Array, "*B R"]:
    """Estimates, from one sampled token each, of the divergence of a policy from the reference.

    With d = log p - log p_ref: "k1" is d, unbiased and of any sign; "k3" is exp(-d) - 1 + d, unbiased and never
    negative (Schulman 2020, "Approximating KL divergence"); below d = -20 "k3" grows no more.

    Args:
      logps: of the tokens under the policy that drew them; in a loss, under the one that is trained.
      ref_logps: under the reference.
      kind: of the estimate.
    """
    difference = logps - ref_logps
    if kind == "k1":
        return difference
    # In both terms: where exp has its limit, the second alone would pull away from the reference.
    difference = jnp.maximum(difference, -MOST_LOG_RATIO)
    return jnp.expm1(-difference) + difference


def with_kl(
    rewards: Float[Array, "*B R"], kl: Float[Array, "*B R"], mask: Bool[Array, "*B R"], factor: float
) -> Float[Array, "*B R"]:
    """Rewards less the factor times the divergence of each token (FiSAO, equation 8)."""
    return jnp.where(mask, rewards - factor * kl, 0.0)


def with_missing_eos(
    rewards: Float[Array, "*B R"], mask: Bool[Array, "*B R"], has_ended: Bool[Array, "*B"], penalty: float
) -> Float[Array, "*B R"]:
    """Rewards, less a penalty at the last token of every response that did not end by itself."""
    is_last = mask & ~jnp.pad(mask[..., 1:], [(0, 0)] * (mask.ndim - 1) + [(0, 1)])
    return rewards - penalty * (is_last & ~has_ended[..., None])


def group_baseline(scores: Float[Array, "*B C"], kind: GroupBaseline) -> Float[Array, "*B C"]:
    """Advantages of whole responses from the other responses to the same image and prompt: no critic.

    "rloo" is the difference to the mean of the others (Ahmadian et al. 2024); "grpo" the difference to the mean of all,
    divided by their deviation + 1e-4 (Shao et al. 2024), that with C - 1 as TRL has it.

    Args:
      scores: sum of each response's rewards; two or more responses a group.
      kind: of the baseline.
    """
    count = scores.shape[-1]
    assert count > 1, "a group of one has no baseline"
    centered = scores - scores.mean(-1, keepdims=True)
    if kind == "rloo":
        return centered * (count / (count - 1))
    return centered / (jnp.std(scores, -1, ddof=1, keepdims=True) + GRPO_EPS)


class Surrogate(NamedTuple):
    """The policy's part of the loss.

    Attributes:
      loss: of each token.
      ratio: new to old probability of each token.
      is_clipped: whether the clip decides a token's loss, which then has no gradient.
    """

    loss: Float[Array, "*B R"]
    ratio: Float[Array, "*B R"]
    is_clipped: Bool[Array, "*B R"]


def clipped_surrogate(
    logps: Float[Array, "*B R"],
    old_logps: Float[Array, "*B R"],
    advantages: Float[Array, "*B R"],
    clip_range: float,
) -> Surrogate:
    """-min(ratio * A, clip(ratio, 1 - e, 1 + e) * A) of each token (FiSAO, equations 9 and 10).

    Args:
      logps: under the policy that is trained.
      old_logps: under the one that drew the tokens.
      advantages: of the tokens.
      clip_range: e.
    """
    ratio = jnp.exp(jnp.clip(logps - old_logps, -MOST_LOG_RATIO, MOST_LOG_RATIO))
    free, clipped = -advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip_range, 1 + clip_range)
    return Surrogate(jnp.maximum(free, clipped), ratio, clipped > free)


def value_loss(
    values: Float[Array, "*B R"], old_values: Float[Array, "*B R"], returns: Float[Array, "*B R"], clip: float | None
) -> Float[Array, "*B R"]:
    """Half the square of the value head's error at each token, the larger of two: as it is, and with the value held
    within `clip` of the old one (None: as it is alone)."""
    error = jnp.square(values - returns)
    if clip is not None:
        held = old_values + jnp.clip(values - old_values, -clip, clip)
        error = jnp.maximum(error, jnp.square(held - returns))
    return 0.5 * error


def explained_variance(
    values: Float[Array, "*B R"], returns: Float[Array, "*B R"], mask: Bool[Array, "*B R"]
) -> Float[Array, ""]:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect value head, 0 one that says the mean. 0 where the
    returns do not vary."""

    def variance(x: Array) -> Array:
        return masked_mean(jnp.square(x - masked_mean(x, mask)), mask)

    of_returns = variance(returns)
    return jnp.where(of_returns > 0, 1 - variance(returns - values) / jnp.where(of_returns > 0, of_returns, 1), 0.0)


@dataclasses.dataclass(frozen=True)
class AdaptiveKl:
    """Holds the divergence near a target by changing its factor (Ziegler et al. 2019, section 2.2).

    Attributes:
      target: sum over a response's tokens that is aimed at; None leaves the factor as it is.
      horizon: responses after which the factor is about 1.2 times itself, or a 1.2th, at the largest error that counts.
    """

    target: float | None
    horizon: int

    def next(self, factor: float, kl: float, num_responses: int) -> float:
        """The factor after responses with this mean divergence."""
        if self.target is None:
            return factor
        error = min(max(kl / self.target - 1, -MOST_KL_ERROR), MOST_KL_ERROR)
        return factor * (1 + error * num_responses / self.horizon)
