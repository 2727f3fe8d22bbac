"""The loss of a reward model that ranks responses (Bradley and Terry 1952; LLaVA-RLHF, section 2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Ranking(NamedTuple):
    """How rows of responses are ranked; 0 for a row without pairs.

    Attributes:
      loss: of each row.
      accuracy: share of its pairs whose better response has more reward; equal rewards count half.
      margin: mean of r(better) - r(worse) over its pairs.
      has_pairs: rows in which anything is ranked.
    """

    loss: Float[Array, " B"]
    accuracy: Float[Array, " B"]
    margin: Float[Array, " B"]
    has_pairs: Bool[Array, " B"]


def rank(
    rewards: Float[Array, "B C"],
    better: Int[Array, "B K"],
    worse: Int[Array, "B K"],
    is_pair: Bool[Array, "B K"],
    regularization: float,
) -> Ranking:
    """With the means over a row's pairs,

        loss = mean(-log sigmoid(r(better) - r(worse))) + regularization · |mean(r(better) + r(worse))|

    The second term holds the rewards around 0, which the first one leaves open. LLaVA-RLHF's code takes its mean over
    all pairs of a device before the magnitude, which depends on the number of devices; the two are equal for one pair a
    device, and where the sums have one sign.

    Args:
      rewards: of each response; float32.
      better: of each pair, the index of the better response.
      worse: of the worse one.
      is_pair: which of the K are pairs.
      regularization: LLaVA-RLHF's 1e-3.
    """
    r_better, r_worse = (jnp.take_along_axis(rewards, index, axis=1) for index in (better, worse))
    count = is_pair.sum(axis=1)

    def mean(x: Float[Array, "B K"]) -> Float[Array, " B"]:
        return jnp.sum(x, axis=1, where=is_pair) / jnp.maximum(count, 1)

    loss = mean(-jax.nn.log_sigmoid(r_better - r_worse)) + regularization * jnp.abs(mean(r_better + r_worse))
    accuracy = mean((r_better > r_worse) + 0.5 * (r_better == r_worse))
    return Ranking(loss, accuracy, mean(r_better - r_worse), count > 0)
