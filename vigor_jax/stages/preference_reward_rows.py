"""Settings, rows, loss and evaluation of a reward model that ranks responses (LLaVA-RLHF, section 2)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vigor_jax import fingerprint
from vigor_jax.data.batches.preference_rows import PreferenceLoader, PreferenceRow, PreferenceRows
from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.data.text.quality_question import find_question
from vigor_jax.errors import InputError
from vigor_jax.inference.response_rewards import HEAD, rewards_at
from vigor_jax.models.vlm import Vlm
from vigor_jax.parallel.sharding import to_global
from vigor_jax.stages.reward_rows import is_held_out
from vigor_jax.training.heads import with_abstract_head
from vigor_jax.training.preference_reward import rank
from vigor_jax.training.train_step import TrainingConfig, Weights, merge_params

NAME = "train_preference_reward"


@dataclasses.dataclass(frozen=True)
class PreferenceRewardConfig(TrainingConfig):
    """Training of a reward model on preferences: what `TrainingConfig` says, and the following.

    Attributes:
      data: preferences, see docs/preferences.md; by default those that the stage pair made.
      form: how the file is written; by default it is found out.
      max_length: most tokens of a row: image, prompt and all responses, with the question behind each.
      held_out: share of the images that is not trained on but evaluated after each epoch, chosen by their names.
      question: what is asked behind each response, with {captions} where captions of the image stand, and {answer}
        where the assistant's answer begins; "" for our words, "none" asks nothing.
      captions: a file of captions of the images, which the model is told (factual augmentation): `{image: [caption,
        ...]}`, or JSON lines of `image` and `captions`.
      regularization: of the rewards' distance from 0.
    """

    data: Path | None = fingerprint.place(None)
    form: str | None = None
    max_length: int = 4096
    held_out: float = 0.05
    question: str = ""
    captions: Path | None = fingerprint.place(None)
    regularization: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < 1:
            raise InputError(f"max_length: expected at least 1, got {self.max_length!r}")
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out: expected 0 to less than 1, got {self.held_out}")
        if not self.regularization >= 0:
            raise InputError(f"regularization: expected 0 or more, got {self.regularization}")
        find_question(self.question, with_captions=self.captions is not None, section=NAME)


def is_left_for_evaluation(row: PreferenceRow, share: float) -> bool:
    """Whether a row is held out: with all others of its image, or of its prompt if it has none."""
    return is_held_out(row.preference.image or row.preference.prompt, share)


def preference_reward_loss(
    model: Vlm, rows: PreferenceRows, config: TrainingConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sums over the rows: of the loss; and `tokens`, the number of rows, with the sums of `accuracy` and `margin`."""
    assert isinstance(config, PreferenceRewardConfig)
    rewards = rewards_at(model, rows.responses, remat=config.remat)
    ranked = rank(rewards, rows.better, rows.worse, rows.is_pair, config.regularization)
    sums = {"accuracy": ranked.accuracy.sum(), "margin": ranked.margin.sum()}
    return ranked.loss.sum(), {"tokens": jnp.sum(ranked.has_pairs, dtype=jnp.float32), **sums}


class Evaluation:
    """How often the better of two held-out responses gets more reward.

    Args:
      loader: of the rows; it is read in order.
      model: its shapes, with the adapter if one is trained.
      mesh: of the weights.
      dtype: type to compute in.
    """

    def __init__(self, loader: PreferenceLoader, model: Vlm, mesh: Mesh, dtype: Any) -> None:
        self._loader, self._mesh = loader, mesh
        graphdef = nnx.graphdef(with_abstract_head(model, HEAD))

        def rewards(weights: Weights, rows: TreeRows) -> Float[Array, "B P"]:
            rounded = {path: weight.astype(dtype) for path, weight in weights.items()}
            return rewards_at(merge_params(graphdef, rounded), rows)

        self._rewards = jax.jit(rewards, out_shardings=NamedSharding(mesh, P()))

    def __call__(self, weights: Weights) -> dict[str, Any]:
        """What `evaluate` says of a model with these weights, frozen ones included; under `jax.set_mesh`."""
        found: list[np.ndarray] = []
        rows = [row for row in self._loader.data if row is not None]
        for batch in self._loader.in_order():
            found += list(np.asarray(self._rewards(weights, to_global(batch.rows.responses, self._mesh))))
        return evaluate(found[: len(rows)], rows)  # rows of padding come last


def evaluate(rewards: Sequence[np.ndarray], rows: Sequence[PreferenceRow]) -> dict[str, Any]:
    """How well rewards rank responses.

    Args:
      rewards: of each row's responses, and anything behind them.
      rows: what they are of.

    Returns:
      `rows`, `pairs` (their numbers), `accuracy`: the share of pairs whose better response has more reward, where equal
      rewards count half; `margin`: the mean difference of the two; `reward`: the mean over all responses.
    """
    margins = [
        float(own[better]) - float(own[worse])
        for own, row in zip(rewards, rows, strict=True)
        for better, worse in row.preference.pairs()
    ]
    counted = [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]
    every = [own[: len(row.preference.responses)] for own, row in zip(rewards, rows, strict=True)]
    return {
        "rows": len(rows),
        "pairs": len(margins),
        "accuracy": float(np.mean(counted)),
        "margin": float(np.mean(margins)),
        "reward": float(np.mean(np.concatenate(every))),
    }
