"""One update of PPO, on rows that hold an image and its prompt once and all the responses to it as branches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.inference.logprobs import tree_logps
from vigor_jax.models.vlm import Vlm
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.training import ppo
from vigor_jax.training.config import TrainingConfig


class PpoRows(NamedTuple):
    """Responses with what an update needs to know of each of their tokens.

    Attributes:
      responses: rows of `data.batches.response_rows`.
      old_logps: under the policy that drew them.
      ref_logps: under the policy that training began with.
      old_values: of the value head at that time; 0 without one.
      advantages: as they are weighted.
      returns: what the value head is to say; 0 without one.
      kl_factor: of the divergence in the loss, the same for every row.
      is_old: the policy that is trained is still the one that drew the responses, as on an iteration's first minibatch.
        Its ratios are then 1 to the last bit, which `old_logps`, of another compiled program, would miss by rounding.
    """

    responses: TreeRows
    old_logps: Float32[Any, "B P"]
    ref_logps: Float32[Any, "B P"]
    old_values: Float32[Any, "B P"]
    advantages: Float32[Any, "B P"]
    returns: Float32[Any, "B P"]
    kl_factor: Float32[Any, "B"]
    is_old: Bool[Any, "B"]


def ppo_loss(model: Vlm, rows: PpoRows, config: TrainingConfig) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sums over all tokens: of the loss (FiSAO, equations 9 and 10, with the value head's), and of what is watched.

    The loss is the surrogate, plus `value_factor` times the value head's, plus the divergence times its factor if it is
    in the loss. A mean over tokens, not over responses: a long response counts more.

    Returns:
      The sum of the loss; and `tokens`, the sums of the loss's parts, of the tokens that the clip decides
      (`clip_share`, `value_clip_share`), of an estimate of the divergence from the old policy (`approx_kl`, half the
      square of the difference), and of how far log-probabilities are from `old_logps` (`logps_error`).
    """
    assert isinstance(config, PpoConfig)
    found = tree_logps(model, rows.responses, remat=config.remat)
    is_token = rows.responses.weights > 0
    old_logps = jnp.where(rows.is_old[:, None], jax.lax.stop_gradient(found.logps), rows.old_logps)
    surrogate = ppo.clipped_surrogate(found.logps, old_logps, rows.advantages, config.clip_range)
    parts = {"policy_loss": surrogate.loss}
    loss = surrogate.loss
    if config.baseline == "value":
        values = model.value_head(found.hidden)
        parts["value_loss"] = ppo.value_loss(values, rows.old_values, rows.returns, config.value_clip or None)
        loss += config.value_factor * parts["value_loss"]
        if config.value_clip:
            parts["value_clip_share"] = (jnp.abs(values - rows.old_values) > config.value_clip).astype(jnp.float32)
    if config.kl_in == "loss":
        parts["kl_loss"] = rows.kl_factor[:, None] * ppo.kl(found.logps, rows.ref_logps, config.kl)
        loss += parts["kl_loss"]
    parts |= {
        "clip_share": surrogate.is_clipped.astype(jnp.float32),
        "approx_kl": 0.5 * jnp.square(found.logps - old_logps),
        "logps_error": jnp.abs(found.logps - rows.old_logps),
    }
    sums = {name: jnp.sum(jax.lax.stop_gradient(part), where=is_token) for name, part in parts.items()}
    return jnp.sum(loss, where=is_token), {"tokens": jnp.sum(is_token, dtype=jnp.float32), **sums}


class Scores(NamedTuple):
    """What a policy says of given responses, at the places of each row; 0 where there is none.

    Attributes:
      logps: of the tokens.
      entropies: of the distributions that they are drawn from.
      values: of the value head; 0 without one.
    """

    logps: Float32[Any, "B P"]
    entropies: Float32[Any, "B P"]
    values: Float32[Any, "B P"]


def score_responses(model: Vlm, rows: TreeRows) -> Scores:
    """One pass without a gradient."""
    found = tree_logps(model, rows)
    values = jnp.zeros_like(found.logps)
    if hasattr(model, "value_head"):
        values = jnp.where(rows.weights > 0, model.value_head(found.hidden), 0)
    return Scores(found.logps, found.entropies, values)
