"""The stages of a run, in the order of the paper."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from vigor_jax.config import TrainConfig
from vigor_jax.stages.evaluate import EvaluateStage
from vigor_jax.stages.export import ExportStage
from vigor_jax.stages.sample import OnPart, SampleStage
from vigor_jax.stages.score import ScoreStage, check_same_question
from vigor_jax.stages.select import SelectStage
from vigor_jax.stages.sft import SftStage
from vigor_jax.stages.stage import Progress, RunContext, Stage
from vigor_jax.stages.train_reward import TrainRewardStage


def make_stages(config: TrainConfig) -> dict[str, Stage]:
    """All stages that a config can be asked for, by name, each after those whose results it reads.

    Which of them are to be run plays no part in their results, so `run.stages` may name any at any time.

    Raises:
      InputError: settings of two stages contradict each other.
    """
    images = config.sample.images
    train_reward = dataclasses.replace(config.train_reward, images=config.train_reward.images or images)
    sft = dataclasses.replace(config.sft, images=config.sft.images or images)
    score = ScoreStage(config.score, config.detection, config.reward_model, images)
    if "reward_model" in score.streams and not config.score.reward_model and "train_reward" in config.run.stages:
        check_same_question(config.reward_model, dataclasses.asdict(train_reward), "train_reward")
    stages = (
        TrainRewardStage(train_reward),
        SampleStage(config.sample, score.ahead if "score" in config.run.stages else _nothing_ahead),
        score,
        SelectStage(config.select, score.streams),
        SftStage(sft),
        ExportStage(config.export, of="sft"),
        EvaluateStage(config.evaluate),
    )
    return {stage.name: stage for stage in stages}


@contextmanager
def _nothing_ahead(context: RunContext, progress: Progress) -> Iterator[OnPart]:
    yield lambda index, count: None
