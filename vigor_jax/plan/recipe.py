"""From estimates of single programs to a whole recipe: how often each runs, and the device-hours of it all."""

import dataclasses
from collections.abc import Sequence

from vigor_jax.config import TrainConfig
from vigor_jax.pipeline.table import make_stages
from vigor_jax.plan.estimate import Estimate
from vigor_jax.stages.programs import Work

# Of GroundingDINO with its smaller tower on one image of 800 x 1,066 pixels with 64 tokens of phrases, as
# torch.utils.flop_counter counts those of transformers' model.
DETECTOR_FLOPS = 0.71e12


@dataclasses.dataclass(frozen=True)
class StageTime:
    """What a stage takes, all devices together.

    Attributes:
      stage: its name.
      calls: of its program; of sampling, those that read prompts.
      hours: on the clock.
      device_hours: hours × devices.
    """

    stage: str
    calls: int
    hours: float
    device_hours: float


def recipe(estimates: Sequence[Estimate], config: TrainConfig, work: Work, num_devices: int) -> list[StageTime]:
    """The stages of a config over all the work, one after the other.

    An image is a row of sampling and one of judging; a target an example of fine-tuning. A slot of sampling goes to the
    next response when the one before has ended, and some of its steps are in vain (`stages.sample.USEFUL_STEPS`).

    Args:
      estimates: of the config's programs.
      config: of the run.
      work: how much there is.
      num_devices: of the pod.
    """
    times, stages = [], make_stages(config)
    for stage in dict.fromkeys(each.stage for each in estimates):
        own = [each for each in estimates if each.stage == stage]
        calls, seconds = stages[stage].cost(work_of(stage, config, work), own)
        times.append(StageTime(stage, calls, seconds / 3600, seconds / 3600 * num_devices))
    return times


def detector_flops(config: TrainConfig, work: Work) -> float:
    """Of the detector, which works elsewhere: each image is looked at once, for the phrases of all its candidates.

    Args:
      config: of the run.
      work: of the stage that asks it.
    """
    asks = {"score", "pair", "ppo"} & set(config.run.stages) and "detector" in config.score.streams
    detectors = 1 + (config.detection.second is not None)
    return DETECTOR_FLOPS * work.images * detectors if asks else 0.0


def work_of(stage: str, config: TrainConfig, work: Work) -> Work:
    """What a stage has to do: of the images, those that `sample.limit` leaves are sampled, judged and learned from,
    unless a stage has other data; PPO has images and another limit, which it knows."""
    if stage == "ppo" or (stage in ("sft", "dpo") and getattr(config, stage).data is not None):
        return work
    return dataclasses.replace(work, images=min(work.images, config.sample.limit or work.images))
