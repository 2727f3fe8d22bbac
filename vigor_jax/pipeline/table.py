"""The stages of a run, in the order of the paper."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vigor_jax.config import TrainConfig
from vigor_jax.json_fields import Fields, exists
from vigor_jax.stages.dpo import DpoStage
from vigor_jax.stages.evaluate import EvaluateStage
from vigor_jax.stages.export import PROVENANCE, ExportStage
from vigor_jax.stages.pair import PairStage
from vigor_jax.stages.ppo import PpoStage
from vigor_jax.stages.preference_reward_stream import check_same_question as check_same_preference_question
from vigor_jax.stages.reward_model_stream import check_same_question
from vigor_jax.stages.sample import SampleStage
from vigor_jax.stages.score import ScoreStage
from vigor_jax.stages.select import SelectStage
from vigor_jax.stages.sft import SftStage
from vigor_jax.stages.stage import EXPORT, OnPart, Progress, RunContext, Stage
from vigor_jax.stages.train_preference_reward import TrainPreferenceRewardStage
from vigor_jax.stages.train_reward import TrainRewardStage
from vigor_jax.training.checkpoint import latest_step
from vigor_jax.training.config import TrainingConfig

# Stages whose checkpoints may be exported; where several have run, the first one's is.
TRAINED = ("ppo", "dpo", "sft")


def make_stages(config: TrainConfig) -> dict[str, Stage]:
    """All stages that a config can be asked for, by name.

    Which of them are to be run plays no part in their results, so `run.stages` may name any at any time; only what is
    exported follows from it, where a run has trained in two ways.

    Raises:
      InputError: settings of two stages contradict each other.
    """
    config = filled(config)
    images = config.sample.images
    score = ScoreStage(
        config.score,
        config.detection,
        config.reward_model,
        images,
        config.clip,
        config.claims,
        config.clip_attributes,
        config.preference_reward,
    )
    trains_its_own = "train_reward" in config.run.stages and not config.score.reward_model
    if score.has_reward_model and trains_its_own:
        check_same_question(config.reward_model, dataclasses.asdict(config.train_reward), "train_reward")
    if judges := "train_preference_reward" in score.trained_by:
        _check_same_preference_question(config)
    if "pair" in config.run.stages:
        config.pair.check(refine=config.select.refine, streams=tuple(score.streams))
    of = _exported(config)
    trained: TrainingConfig = getattr(config, of)
    stages = (
        TrainRewardStage(config.train_reward),
        TrainPreferenceRewardStage(config.train_preference_reward, judges=judges),
        SampleStage(config.sample, score.ahead if "score" in config.run.stages else _nothing_ahead),
        score,
        SelectStage(config.select, score.streams, images),
        PairStage(config.pair, config.sample, score),
        SftStage(config.sft),
        DpoStage(config.dpo),
        PpoStage(config.ppo, score),
        ExportStage(config.export, of=of, lora=trained.lora),
        EvaluateStage(config.evaluate),
    )
    return {stage.name: stage for stage in stages}


def filled(config: TrainConfig) -> TrainConfig:
    """The config with what stages leave open: the template is that of the model, images those that are sampled."""
    changes: dict[str, Any] = {}
    named = ("train_reward", "train_preference_reward", "sample", "reward_model", "preference_reward")
    for name in (*named, "sft", "dpo", "ppo", "evaluate"):
        section: Any = getattr(config, name)
        changes[name] = dataclasses.replace(section, template=section.template or config.model.template)
    for name in ("train_reward", "train_preference_reward", "sft", "dpo", "ppo"):
        changes[name] = dataclasses.replace(changes[name], images=changes[name].images or config.sample.images)
    return dataclasses.replace(config, **changes)


def _check_same_preference_question(config: TrainConfig) -> None:
    """The reward model that this run trains is asked what it learns to answer, if it is trained now."""
    training = config.train_preference_reward
    if "train_preference_reward" in config.run.stages:
        learned = {
            "question": training.question,
            "template": training.template,
            "data": {"captions": training.captions},
        }
        check_same_preference_question(config.preference_reward, learned, "train_preference_reward")


def _exported(config: TrainConfig) -> str:
    """The stage whose checkpoint is exported: the one that is to be run with the export, or else that did run."""
    run = config.run
    if "export" in run.stages and (named := [name for name in TRAINED if name in run.stages]):
        return named[0]
    if "export" not in run.stages and exists(path := run.dir / EXPORT / PROVENANCE):
        return Path(Fields.read(path).text("checkpoint", "sft")).name
    trained = [name for name in TRAINED if latest_step(run.dir / "checkpoints" / name) is not None]
    return trained[0] if trained else "sft"


@contextmanager
def _nothing_ahead(context: RunContext, progress: Progress) -> Iterator[OnPart]:
    yield lambda index, count: None
