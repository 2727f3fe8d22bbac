"""The fastest settings of a config that fit a pod: meshes, batches of inference, rematerialization, accumulation."""

import dataclasses
import logging
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from vigor_jax.config import Stage, TrainConfig
from vigor_jax.errors import InputError
from vigor_jax.models.layers import REMAT_POLICIES
from vigor_jax.plan.estimate import Estimate
from vigor_jax.plan.hardware import Topology
from vigor_jax.stages.clip_attributes_stream import PROGRAM as CROPS
from vigor_jax.stages.preference_reward_stream import PROGRAM as PREFERENCE_REWARD
from vigor_jax.training.config import REMAT

logger = logging.getLogger(__name__)

Flags: TypeAlias = dict[str, Any]
# Compiles the programs of a config's stages; an InputError is a mesh or a batch that does not divide.
Estimator: TypeAlias = Callable[[TrainConfig], Sequence[Estimate]]

TRAINING: tuple[Stage, ...] = ("train_reward", "train_preference_reward", "sft", "dpo")
INFERENCE: tuple[Stage, ...] = ("sample", "score", "pair", "ppo")  # the last two do both at the same time
# The section whose batch a program that judges has, if it is not the reward model's.
JUDGES = {PREFERENCE_REWARD: "preference_reward", "verifier": "clip", CROPS: "clip_attributes"}
LEARNING = ("score", "update")  # programs of ppo that take less if updates save memory
MOST_PARTS = 8  # that a layer's heads are worth splitting into
ACCUMULATE = (1, 2, 4, 8)
assert set(REMAT) == set(REMAT_POLICIES)


class Found(NamedTuple):
    """What a search comes to.

    Attributes:
      config: with the flags.
      flags: what is to be given on the command line.
      missing: stages that nothing tried makes fit.
    """

    config: TrainConfig
    flags: Flags
    missing: tuple[Stage, ...]


def search(config: TrainConfig, num_devices: int, estimate: Estimator, *, enlarge: bool = True) -> Found:
    """Tries settings of each group of stages from the fastest on; the first that fits is taken.

    For training: what is computed again in the backward pass, and then parts of a batch, one after the other; weights,
    optimizer and batch over all devices, or over as many as the batch divides by, and the weights over the rest. For
    sampling and scoring, which share a mesh: the splits of the weights, fewest parts first, since each layer's
    activations are added up over the parts. PPO, which samples, scores and trains with all weights on the devices,
    tries the savings of training with each split. Batches are then doubled while that makes an image cheaper.

    Args:
      config: where to begin.
      num_devices: of the pod.
      estimate: of a config's programs.
      enlarge: whether to try larger batches; without, it ends with the first stage that nothing makes fit.
    """
    flags: Flags = {}
    missing: list[Stage] = []
    mesh = _training_mesh(config, num_devices)
    for stage in TRAINING:
        if stage in config.run.stages:
            fitting = _first(config, (stage,), [[mesh | saving for saving in _savings(stage)]], estimate)
            if fitting is None:
                missing.append(stage)
            flags |= fitting or {}
    idle = () if config.pair.kind == "sentences" else ("pair",)  # pairs of responses need no device
    inference = tuple(stage for stage in INFERENCE if stage in config.run.stages and stage not in idle)
    if inference and (enlarge or not missing):
        savings = [mesh | saving for saving in _savings("ppo")] if "ppo" in inference else [{}]
        fitting = _first(config, inference, ([split | saving for saving in savings] for split in _splits()), estimate)
        if fitting is None:
            missing += inference
        else:
            flags |= fitting
            for stage in inference if enlarge else ():
                flags |= _larger_batches(with_flags(config, flags), stage, estimate)
    return Found(with_flags(config, flags), flags, tuple(missing))


def nearest(
    config: TrainConfig, topology: Topology, compiler: Callable[[Topology, list[Any]], Estimator]
) -> tuple[Topology, Found] | None:
    """The smallest pod of the same chips, this one to begin with, on which some settings make a config fit.

    Args:
      config: that does not fit as it is.
      topology: that it does not fit on.
      compiler: from a pod and its devices to what estimates programs there.
    """
    for pod in (topology, *topology.larger()):
        devices = pod.devices()
        found = search(config, len(devices), compiler(pod, devices), enlarge=False)
        if not found.missing:
            return pod, found
        logger.info("%s: nothing tried makes %s fit", pod.name, ", ".join(found.missing))
    return None


def with_flags(config: Any, flags: Mapping[str, Any]) -> Any:
    """A config with other values, by dotted name.

    >>> with_flags(config, {"sft.remat": "none"}).sft.remat
    'none'
    """
    for name, value in flags.items():
        first, _, rest = name.partition(".")
        inner = with_flags(getattr(config, first), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{first: inner})
    return config


def _splits() -> Iterator[Flags]:
    parts = 1
    while parts <= MOST_PARTS:
        yield {"inference_mesh.data": -1, "inference_mesh.fsdp": 1, "inference_mesh.tensor": parts}
        parts *= 2


def _training_mesh(config: TrainConfig, num_devices: int) -> Flags:
    """Everything over all devices; of more devices than examples, several share one."""
    batches = {
        "train_reward": config.train_reward.batch_size,
        "train_preference_reward": config.train_preference_reward.batch_size,
        "sft": config.sft.batch_size // config.sft.pack,
        "dpo": config.dpo.batch_size,
        "ppo": config.ppo.minibatch,
    }
    common = math.gcd(*(size for stage, size in batches.items() if stage in config.run.stages))
    return {
        "mesh.data": 1,
        "mesh.fsdp": -1,
        "mesh.tensor": num_devices // math.gcd(common, num_devices) if common else 1,
    }


def _savings(stage: Stage) -> Iterator[Flags]:
    for remat in REMAT:
        yield {f"{stage}.remat": remat, f"{stage}.accumulate": 1}
    for parts in ACCUMULATE[1:]:
        yield {f"{stage}.remat": REMAT[-1], f"{stage}.accumulate": parts}


def _first(
    config: TrainConfig, stages: tuple[Stage, ...], tries: Iterable[Iterable[Flags]], estimate: Estimator
) -> Flags | None:
    """The first flags with which all programs fit. The flags of a group differ in what updates take: what is left of a
    group is passed over if anything else does not fit."""
    for group in tries:
        for flags in group:
            found = _estimates(config, flags, stages, estimate)
            too_large = {(each.stage, each.name) for each in found if not each.fits}
            if found and not too_large:
                return flags
            if too_large.difference(("ppo", name) for name in LEARNING) and stages[0] not in TRAINING:
                break
    return None


def _larger_batches(config: TrainConfig, stage: Stage, estimate: Estimator) -> Flags:
    best: Flags = {}
    first = _estimates(config, {}, (stage,), estimate)
    if not first:
        return best
    most = math.inf
    if stage == "sample":
        name, rows = "sample.sampling.batch_size", config.sample.sampling.batch_size
    elif stage == "pair":
        name, rows = "pair.sampling.batch_size", config.pair.sampling.batch_size
    elif stage == "ppo":
        name, rows = "ppo.sampling.batch_size", config.ppo.sampling.batch_size
        most = config.ppo.batch_size  # an iteration has no more images
    else:  # of the first one that judges: reward models come before CLIPs
        section = JUDGES.get(first[0].name, "reward_model")
        name, rows = f"{section}.batch_size", getattr(config, section).batch_size
    # The programs whose batch it is: another one that takes longer would hide what is gained.
    own = {"sample": {each.name for each in first}, "pair": {"decode"}, "ppo": {"decode"}}
    which = own.get(stage, {first[0].name})
    least = _seconds(first, which) / rows
    while True:
        rows *= 2
        found = _estimates(config, {name: rows}, (stage,), estimate) if rows <= most else ()
        if not found or not all(each.fits for each in found) or _seconds(found, which) / rows >= 0.98 * least:
            return best
        best, least = {name: rows}, _seconds(found, which) / rows


def _seconds(estimates: Sequence[Estimate], names: Container[str]) -> float:
    """Of the longest program: of sampling, the one that a larger batch makes cheaper."""
    return max(each.seconds for each in estimates if each.name in names)


def _estimates(config: TrainConfig, flags: Flags, stages: tuple[Stage, ...], estimate: Estimator) -> Sequence[Estimate]:
    """Of some stages; none where a mesh or a batch does not divide."""
    try:
        config = with_flags(config, flags)
        return estimate(dataclasses.replace(config, run=dataclasses.replace(config.run, stages=stages)))
    except InputError as error:
        logger.info("not possible: %s", error)
        return ()
