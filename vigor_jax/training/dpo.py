"""Direct preference optimization and its forms: pure functions of arrays.

The score of a response is the sum over its tokens of w (log p - log p_ref), with the reference policy's log p_ref and
the tokens' weights w: 1 in Rafailov et al. 2023. A pair's margin is the better response's score less the worse one's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vigor_jax.training.config import DpoLoss


def response_sums(
    x: Float[Array, "B P"], owners: Int[Array, "B P"], num_responses: int
) -> Float[Array, "B {num_responses}"]:
    """Sums over the tokens of each response.

    Args:
      x: of each token.
      owners: the response that the token belongs to; -1 for none.
      num_responses: of a row.
    """
    is_own = owners[:, None, :] == jnp.arange(num_responses)[:, None]
    return jnp.sum(jnp.where(is_own, x[:, None, :], 0), axis=-1)


def preference_loss(
    margins: Float[Array, "*B"], kind: DpoLoss, beta: float, label_smoothing: float = 0.0
) -> Float[Array, "*B"]:
    """Loss of each pair with margin h.

    "sigmoid" is -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h) (Rafailov et al. 2023, equation 7; with e,
    Mitchell 2023), "ipo" is (h - 1 / (2 beta))^2 (Azar et al. 2024, equation 17), "hinge" is max(0, 1 - beta h) (Zhao
    et al. 2023, with the reference).

    Args:
      margins: h.
      kind: of the loss.
      beta: how much the policy is held to the reference.
      label_smoothing: e, the share of pairs that are thought to be the wrong way around; of "sigmoid" alone.
    """
    if kind == "ipo":
        return jnp.square(margins - 1 / (2 * beta))
    if kind == "hinge":
        return jax.nn.relu(1 - beta * margins)
    right, wrong = jax.nn.log_sigmoid(beta * margins), jax.nn.log_sigmoid(-beta * margins)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def anchor_loss(scores: Float[Array, "*B"], beta: float, anchor: float = 0.0) -> Float[Array, "*B"]:
    """-log sigmoid(beta score - anchor) of better responses: they are to become more likely themselves, not only more
    likely than others (mDPO, Wang et al. 2024, section 3.3).

    Args:
      scores: of the better responses.
      beta: as in the loss of pairs.
      anchor: that beta times the score is to reach.
    """
    return -jax.nn.log_sigmoid(beta * scores - anchor)
