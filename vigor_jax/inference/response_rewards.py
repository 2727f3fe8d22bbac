"""Rewards of whole responses: what a head says of the state at the last token of each."""

from typing import Any

from jaxtyping import Array, Float

from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.inference.tree_attention import hidden_states_at

# The attribute of a model that says rewards, a `models.value_head.ValueHead`.
HEAD = "reward_head"


def rewards_at(model: Any, rows: TreeRows, *, remat: str = "none") -> Float[Array, "B P"]:
    """The rewards of responses, in float32.

    Args:
      model: with a reward head.
      rows: their places are the last tokens of responses, see `data.batches.judged_rows`.
      remat: rematerialization policy of the decoder layers.
    """
    rewards: Float[Array, "B P"] = getattr(model, HEAD)(hidden_states_at(model, rows, remat=remat))
    return rewards
