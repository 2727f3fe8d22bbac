"""Our reward model in a run: what its verdicts depend on, how it is opened, and what it compiles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax import fingerprint
from vigor_jax.data.batches.tree_batches import TreeRows
from vigor_jax.errors import InputError
from vigor_jax.hf.hub import local_directory
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.tree_attention import answer_places
from vigor_jax.json_fields import Fields
from vigor_jax.parallel.sharding import round_up_batch
from vigor_jax.rewards.reward_model import RewardModel
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.stages.export import PROVENANCE
from vigor_jax.stages.programs import Program, Target, bytes_held, for_inference, tree_rows
from vigor_jax.stages.stage import REWARD_MODEL, RunContext
from vigor_jax.training.flops import forward_flops


class RewardModelJudge:
    """A run's reward model.

    Args:
      config: its section.
      given: one that was trained before; by default the one that the run trains.
    """

    def __init__(self, config: RewardModelConfig, given: str | Path | None) -> None:
        self._config, self._given = config, given

    def settings(self, context: RunContext) -> dict[str, Any]:
        """What the verdicts depend on."""
        checkpoint = context.open(self._given) if self._given else None
        weights, tokenizer = (checkpoint.digest(), checkpoint.tokenizer.digest()) if checkpoint else (None, None)
        weights_of = {"score.reward_model": weights, "score.reward_model.tokenizer": tokenizer}
        return fingerprint.of(self._config, "reward_model") | weights_of | {"model.dtype": context.dtype}

    def open(self, context: RunContext) -> RewardModel:
        """The stream.

        Raises:
          InputError: there is no reward model, or it answers another question.
        """
        directory = local_directory(self._given or context.dir / REWARD_MODEL)
        if not directory.is_dir():
            raise InputError(
                f"score: there is no reward model in {directory}; run the stage train_reward, or give "
                "score.reward_model"
            )
        checkpoint, mesh = context.open(directory), context.inference_mesh
        if (directory / PROVENANCE).exists():
            training = Fields.read(directory / PROVENANCE).object("training")
            check_same_question(self._config, training.values if training else {}, str(directory))
        policy = Policy(checkpoint, mesh, template=self._config.template, dtype=context.dtype)
        return RewardModel.of(policy, self._config)

    def program(self, stage: str, target: Target) -> Program:
        """What judging a batch of images compiles."""
        config, model, mesh = self._config, target.model, target.inference_mesh
        rows = round_up_batch(config.batch_size, mesh)
        length = min(config.max_length, target.sizes.branch_row)
        judged = tree_rows(model, mesh, rows, length, target.sizes.sentences)
        graphdef, weights = nnx.split(for_inference(model, target.dtype, mesh, target.judge_adapter))

        def answer(weights: nnx.State, rows: TreeRows, scored: jax.Array, is_answer: jax.Array) -> Any:
            merged = nnx.merge(graphdef, weights)
            return answer_places(merged, rows, scored, is_answer, num_tokens=config.answer_tokens, eos_id=2)

        def lower() -> Any:
            whole = NamedSharding(mesh, P())
            scored = jax.ShapeDtypeStruct((2,), jnp.int32, sharding=whole)
            is_answer = jax.ShapeDtypeStruct((model.text.vocab_size,), jnp.bool_, sharding=whole)
            with jax.set_mesh(mesh):  # weights that nothing reads, such as the tower's last norm, are held, too
                judge = jax.jit(answer, out_shardings=whole, keep_unused=True)
                return judge.lower(weights, judged, scored, is_answer)

        flops = forward_flops(model, rows=rows, tokens=rows * length, images=rows)
        return Program(stage, "reward model", lower, flops, bytes_held(weights), rows, length)


def check_same_question(config: RewardModelConfig, training: Mapping[str, Any], who: str) -> None:
    """A reward model is asked what it has learned to answer.

    Raises:
      InputError: it was trained to answer another question.
    """
    for key in ("per", "question", "template"):
        learned, asked = training.get(key, getattr(config, key)), getattr(config, key)
        if learned != asked:
            raise InputError(f"reward_model.{key} is {asked!r}, and {who} has {learned!r}; make them the same")
