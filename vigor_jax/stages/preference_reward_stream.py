"""The reward model of preferences in a run: what its verdicts depend on, how it is opened, and what it compiles."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax import fingerprint
from vigor_jax.data.batches.tree_batches import PLACES_BUCKET, TreeRows
from vigor_jax.data.records.checksum import file_digest
from vigor_jax.data.text.image_captions import read_captions
from vigor_jax.errors import InputError
from vigor_jax.hf import hub, reward_head
from vigor_jax.hf.families import read_config
from vigor_jax.hf.load import Checkpoint, open_checkpoint
from vigor_jax.hf.peft import CONFIG as ADAPTER_CONFIG
from vigor_jax.hf.peft import base_of, is_adapter
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.response_rewards import HEAD, rewards_at
from vigor_jax.json_fields import Fields, exists
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import VlmConfig
from vigor_jax.parallel.sharding import round_up_batch
from vigor_jax.rewards.preference_reward import PreferenceReward
from vigor_jax.rewards.preference_reward_config import NAME, PreferenceRewardStreamConfig
from vigor_jax.stages.export import PROVENANCE
from vigor_jax.stages.programs import Program, Target, bytes_held, for_inference, on_mesh, tree_rows
from vigor_jax.stages.stage import PREFERENCE_REWARD_MODEL, RunContext
from vigor_jax.training.flops import forward_flops
from vigor_jax.training.heads import with_abstract_head

PROGRAM = "preference reward model"  # as a plan calls a pass over candidates


class PreferenceRewardJudge:
    """A run's reward model of preferences, which is opened when it is first asked for.

    Args:
      config: its section.
    """

    def __init__(self, config: PreferenceRewardStreamConfig) -> None:
        self._config = config

    @property
    def is_own(self) -> bool:
        """Whether it is the one that the run trains."""
        return self._config.model is None

    def settings(self, context: RunContext) -> dict[str, Any]:
        """What the verdicts depend on.

        Raises:
          InputError: a model is given and cannot be used, or the captions cannot be read.
        """
        found = fingerprint.of(self._config, NAME) | {"model.dtype": context.dtype}
        if (captions := self._config.captions) is not None:
            if not exists(captions):
                raise InputError(f"{NAME}.captions: there is no file {captions}")
            found[f"{NAME}.captions"] = file_digest(captions)
        if not self.is_own:
            checkpoint, head = self._given(context)
            weights = [checkpoint.digest(), reward_head.digest(head)]
            found |= {f"{NAME}.model": weights, f"{NAME}.model.tokenizer": checkpoint.tokenizer.digest()}
        return found

    def open(self, context: RunContext) -> PreferenceReward:
        """The stream.

        Raises:
          InputError: there is no model, or it was trained with another question.
        """
        checkpoint, head = self._given(context)
        config = self._config
        captions = read_captions(config.captions) if config.captions else None
        policy = Policy(checkpoint, context.inference_mesh, template=config.template, dtype=context.dtype)
        return PreferenceReward.of(policy, head, config, captions)

    def _given(self, context: RunContext) -> tuple[Checkpoint, reward_head.RewardHead]:
        directory = reward_head.weights_folder(self._config.model or context.dir / PREFERENCE_REWARD_MODEL)
        if not directory.is_dir():
            if not self.is_own:
                raise InputError(f"{NAME}.model: {directory} is no directory; give the folder of a reward model")
            raise InputError(
                f"{NAME}.model is not given, and this run has trained none ({directory} does not exist); run the stage "
                f"train_preference_reward, or give {NAME}.model"
            )
        try:
            if reward_head.head_file(directory) is None:
                reward_head.read_head(directory, 0)  # says so, whatever else is wrong
            base, tower = self._config.base, context.model.vision_tower
            checkpoint = open_checkpoint(base, tower, directory) if base else context.open(directory)
            head = reward_head.read_head(directory, checkpoint.config.text.hidden_size)
        except InputError as error:
            raise InputError(f"{NAME}.model: {error}") from None
        if exists(directory / PROVENANCE):
            training = Fields.read(directory / PROVENANCE).object("training")
            check_same_question(self._config, training.values if training else {}, str(directory))
        return checkpoint, head

    def program(self, stage: str, target: Target) -> Program:
        """What a pass over candidates compiles."""
        config, mesh = self._config, target.inference_mesh
        sizes, lora = self._sizes(target)
        rows, length = round_up_batch(config.batch_size, mesh), config.max_length
        judged = tree_rows(sizes, mesh, rows, length, PLACES_BUCKET)
        model = with_abstract_head(for_inference(sizes, target.dtype, mesh, lora), HEAD)
        graphdef, weights = nnx.split(on_mesh(model, mesh))

        def rewards(weights: nnx.State, rows: TreeRows) -> Any:
            return rewards_at(nnx.merge(graphdef, weights), rows)

        def lower() -> Any:
            with jax.set_mesh(mesh):
                return jax.jit(rewards, out_shardings=NamedSharding(mesh, P())).lower(weights, judged)

        flops = forward_flops(sizes, rows=rows, tokens=rows * length, images=rows)
        return Program(stage, PROGRAM, lower, flops, bytes_held(weights), rows, length)

    def _sizes(self, target: Target) -> tuple[VlmConfig, LoraConfig | None]:
        """Of the model that judges as far as it is here, else of the run's; nothing is fetched for it."""
        if self._config.model is None:
            return target.model, target.preference_adapter
        found, lora = target.model, None
        try:
            directory = reward_head.weights_folder(self._config.model)
            if is_adapter(directory):
                rank = Fields.read(directory / ADAPTER_CONFIG).integer("r", 8, least=1, most=1 << 20) or 8
                lora = LoraConfig(rank=rank)
                directory = hub.local_directory(self._config.base) if self._config.base else base_of(directory)
            if exists(directory / "config.json"):
                found = read_config(directory)
        except InputError:  # it is not here
            pass
        return found, lora


def check_same_question(config: Any, training: Mapping[str, Any], who: str) -> None:
    """A reward model is asked what it has learned to answer, and told what it was told.

    Args:
      config: of the stream.
      training: settings that the model was trained with, as far as they are known; `data` has the digest of captions.
      who: was trained with them.

    Raises:
      InputError: it was trained with another question, or with captions where there are none now, or without.
    """
    for key in ("question", "template"):
        learned, asked = training.get(key, getattr(config, key)), getattr(config, key)
        if learned != asked:
            raise InputError(f"{NAME}.{key} is {asked!r}, and {who} has {learned!r}; make them the same")
    if not training:
        return
    was_told, is_told = bool((training.get("data") or {}).get("captions")), config.captions is not None
    if was_told != is_told:
        raise InputError(
            f"{NAME}.captions: {who} was trained {'with' if was_told else 'without'} captions; "
            f"{'give a file of captions' if was_told else 'leave them out'}"
        )
