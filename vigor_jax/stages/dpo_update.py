"""One update of preference learning, on rows that hold an image and its prompt once and all responses as branches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vigor_jax.data.batches.preference_rows import PreferenceRows
from vigor_jax.inference.logprobs import likeliest, target_logps, tree_logps
from vigor_jax.inference.tree_attention import hidden_states_at
from vigor_jax.models.vlm import Vlm
from vigor_jax.stages.dpo_config import DpoConfig
from vigor_jax.training import dpo
from vigor_jax.training.config import TrainingConfig
from vigor_jax.training.image_noise import noised


class Logps(NamedTuple):
    """What a policy says of the responses of rows, at their places; 0 where there is none.

    Attributes:
      own: log p of the tokens.
      unseen: the same under the part of the image that `crop` shows; or, with noise, log p under the image itself of
        what the policy would say under noise in place of each token. None if only the image itself is shown.
    """

    own: Float[Array, "B P"]
    unseen: Float[Array, "B P"] | None


def logps_of(model: Vlm, rows: PreferenceRows, config: DpoConfig, *, remat: str = "none") -> Logps:
    """One pass, or two where another image is shown."""
    found = tree_logps(model, rows.responses, remat=remat)
    if rows.other_pixels is not None:
        other = tree_logps(model, rows.responses._replace(pixels=rows.other_pixels), remat=remat)
        return Logps(found.logps, other.logps)
    if rows.noise_keys is not None:
        sees = model.config.vision
        pixels = noised(rows.pixels, rows.noise_keys, config.noise_step, sees.image_mean, sees.image_std)
        guesses = likeliest(model, hidden_states_at(model, rows.responses._replace(pixels=pixels), remat=remat))
        logps, _ = target_logps(model, found.hidden, guesses)
        return Logps(found.logps, jnp.where(rows.responses.weights > 0, logps, 0))
    return Logps(found.logps, None)


def dpo_loss(
    model: Vlm, rows: PreferenceRows, config: TrainingConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sums over all pairs: of the loss, and of what is watched.

    Returns:
      The sum of the loss; and `tokens`, the number of pairs, with sums over the pairs: of `accuracy` (the better
      response scores higher), `margin` (beta times that of the scores), `better_reward` and `worse_reward` (beta times
      the scores), `better_logps` (the better response's log-probability), and of the loss's parts where there are more
      than one.
    """
    assert isinstance(config, DpoConfig)
    found, responses = logps_of(model, rows, config, remat=config.remat), rows.responses
    num_responses = rows.lengths.shape[1]

    def scores(logps: Array, reference: Array) -> Float[Array, "B C"]:
        return dpo.response_sums(responses.weights * (logps - reference), rows.owners, num_responses)

    own = scores(found.own, rows.ref_logps)
    better, worse = _of_pairs(own, rows.better), _of_pairs(own, rows.worse)

    def loss_of(margins: Array) -> Float[Array, "B K"]:
        return dpo.preference_loss(margins, config.loss, config.beta, config.label_smoothing)

    parts = {"pair_loss": (config.pair_factor, loss_of(better - worse))}
    totals = dpo.response_sums(found.own, rows.owners, num_responses)
    if config.sft_factor:
        per_token = -totals / jnp.maximum(rows.lengths, 1)
        parts["sft_loss"] = config.sft_factor, _of_pairs(per_token, rows.better)
    if found.unseen is not None and rows.ref_unseen is not None:
        unseen = _of_pairs(scores(found.unseen, rows.ref_unseen), rows.better)
        parts["image_loss"] = config.image_factor, loss_of(better - unseen)
    if config.anchor_factor:
        parts["anchor_loss"] = config.anchor_factor, dpo.anchor_loss(better, config.beta, config.anchor)
    watched = {name: part for name, (_, part) in parts.items() if len(parts) > 1} | {
        "accuracy": (better > worse).astype(jnp.float32),
        "margin": config.beta * (better - worse),
        "better_reward": config.beta * better,
        "worse_reward": config.beta * worse,
        "better_logps": _of_pairs(totals, rows.better),
    }
    loss = jnp.sum(jnp.stack([factor * part for factor, part in parts.values()]).sum(0), where=rows.is_pair)
    sums = {name: jnp.sum(jax.lax.stop_gradient(part), where=rows.is_pair) for name, part in watched.items()}
    return loss, {"tokens": jnp.sum(rows.is_pair, dtype=jnp.float32), **sums}


def _of_pairs(x: Float[Array, "B C"], indices: Int[Array, "B K"]) -> Float[Array, "B K"]:
    return jnp.take_along_axis(x, indices, axis=1)
