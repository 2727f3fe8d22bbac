"""From estimates of single programs to a whole recipe: how often each runs, and the device-hours of it all."""

import dataclasses
import math
from collections.abc import Sequence

from vigor_jax.config import TrainConfig
from vigor_jax.plan.estimate import Estimate


@dataclasses.dataclass(frozen=True)
class Work:
    """How much there is to do.

    Attributes:
      images: unlabelled, to be sampled and judged.
      descriptions: annotated, for the reward model.
      answer: tokens of an image's longest response, on the average: for so many steps it keeps its row. 150 is the mean
        over five captions of LLaVA-13B.
      efficiency: share of the roofline that real programs reach; the time is the roofline's, divided by it.
    """

    images: int = 25_574
    descriptions: int = 16_000
    answer: int = 150
    efficiency: float = 0.5


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

    An image is a row of sampling and one of judging; a target an example of fine-tuning. A row of sampling goes to the
    next image when the longest response of the one before has ended.

    Args:
      estimates: of the config's programs.
      config: of the run.
      work: how much there is.
      num_devices: of the pod.
    """
    times = []
    for stage in dict.fromkeys(each.stage for each in estimates):
        own = [each for each in estimates if each.stage == stage]
        rows = {
            "train_reward": work.descriptions * config.train_reward.epochs,
            "sample": work.images,
            "score": work.images,
            "sft": work.images * config.sft.epochs,
        }[stage]
        calls = math.ceil(rows / (config.sft.batch_size if stage == "sft" else own[0].rows))
        seconds = calls * own[0].seconds
        if stage == "sample":
            sampling, decode = config.sample.sampling, own[1]
            share = min(1.0, work.answer / sampling.max_new_tokens)
            seconds += rows / (decode.rows / sampling.num_candidates) * decode.seconds * share
        hours = seconds / work.efficiency / 3600
        times.append(StageTime(stage, calls, hours, hours * num_devices))
    return times
