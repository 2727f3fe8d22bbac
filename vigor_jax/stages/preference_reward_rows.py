"""Settings, rows, loss and evaluation of a reward model that ranks responses (LLaVA-RLHF, section 2)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vigor_jax.data.batches.preference_rows import PreferenceLoader, PreferenceRow, PreferenceRows
from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.inference.response_rewards import HEAD, rewards_at
from vigor_jax.models.vlm import Vlm
from vigor_jax.parallel.sharding import to_global
from vigor_jax.stages.preference_reward_config import PreferenceRewardConfig
from vigor_jax.stages.reward_rows import is_held_out
from vigor_jax.training.config import TrainingConfig
from vigor_jax.training.heads import with_abstract_head
from vigor_jax.training.preference_reward import rank
from vigor_jax.training.train_step import Weights, merge_params


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
