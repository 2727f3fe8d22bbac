"""A plan: all programs of a config on one pod."""

import dataclasses
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from vigor_jax.config import TrainConfig
from vigor_jax.errors import InputError
from vigor_jax.hf.families import read_config
from vigor_jax.hf.hub import local_directory, origin
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.options import ModelConfig
from vigor_jax.hf.other_folders import has_whole_model
from vigor_jax.hf.peft import CONFIG as ADAPTER_CONFIG
from vigor_jax.hf.peft import base_of, is_adapter
from vigor_jax.json_fields import Fields
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import VlmConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.pipeline.table import make_stages
from vigor_jax.plan.estimate import EFFICIENCY, Estimate, Known, estimate
from vigor_jax.plan.hardware import GIB, Topology
from vigor_jax.plan.recipe import StageTime, detector_flops, recipe, work_of
from vigor_jax.plan.search import Estimator
from vigor_jax.stages.programs import Program, Sizes, Target, Work

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known beforehand.

    Attributes:
      topology: name of the pod.
      num_devices: of it.
      model: where the model's sizes are from.
      compiler: what compiled the programs, with versions.
      estimates: of each program.
      stages: time of each stage, which means something if all programs fit.
      work: that the times are for.
      detector_flops: of the detector for that work; it is not among these devices.
    """

    topology: str
    num_devices: int
    model: str
    compiler: str
    estimates: tuple[Estimate, ...]
    stages: tuple[StageTime, ...]
    work: Work
    detector_flops: float = 0.0

    @property
    def fits(self) -> bool:
        return all(each.fits for each in self.estimates)

    @property
    def reckoned(self) -> str:
        """How the times were found."""
        if all(each.compiler_seconds is None for each in self.estimates):
            return f"at {EFFICIENCY:.0%} of the roofline, for this compiler says nothing of time"
        return "by what the compiler says of its programs' time"

    def table(self) -> str:
        """For people."""
        lines = [
            f"{self.topology}, {self.num_devices} devices, {self.model}; GiB, GB and seconds are of one device; by "
            f"{self.compiler}"
        ]
        head = (
            "program",
            "rows",
            "held",
            "working",
            "peak",
            "of",
            "",
            "TFLOP",
            "GB sent",
            "bound by",
            "s",
            "MFU",
        )
        lines.append("  ".join(f"{title:>{width}}" for title, width in zip(head, WIDTHS, strict=True)))
        for each in self.estimates:
            bound = max(("arithmetic", "memory", "network"), key=lambda kind: getattr(each, SECONDS[kind]))
            missing = f"{(each.peak - each.memory) / GIB:.1f} GiB short"
            row = (
                f"{each.stage}, {each.name}", f"{each.rows}", f"{each.arguments / GIB:.1f}",
                f"{each.temporaries / GIB:.1f}", f"{each.peak / GIB:.1f}", f"{each.memory / GIB:.1f}",
                "fits" if each.fits else missing, f"{each.flops / 1e12:.1f}",
                f"{sum(each.collectives.values()) / 1e9:.2f}", bound, f"{each.seconds:.3f}", f"{each.mfu:.0%}",
            )  # fmt: skip
            lines.append("  ".join(f"{text:>{width}}" for text, width in zip(row, WIDTHS, strict=True)))
        if not self.fits:
            return "\n".join(lines)
        lines.append(
            f"the whole recipe, {self.work.images:,} images, responses of {self.work.answer} tokens, "
            f"{self.work.descriptions:,} annotated descriptions, {self.reckoned}:"
        )
        for stage in self.stages:
            lines.append(
                f"  {stage.stage:14} {stage.calls:7,} calls  {stage.hours:8.2f} h  "
                f"{stage.device_hours:9.1f} device-hours"
            )
        total = sum(stage.device_hours for stage in self.stages)
        lines.append(f"  {'together':14} {'':13}  {total / self.num_devices:8.2f} h  {total:9.1f} device-hours")
        if self.detector_flops:
            lines.append(
                f"and the detector, on other devices: {self.detector_flops / 1e15:.1f} PFLOP, "
                f"{self.detector_flops / DETECTOR_SPEED / 3600:.2f} h of an A100 at half of its peak in TF32"
            )
        return "\n".join(lines)


WIDTHS = (20, 5, 6, 8, 6, 6, 14, 8, 8, 10, 8, 10)
DETECTOR_SPEED = 156e12 / 2
SECONDS = {"arithmetic": "compute_seconds", "memory": "memory_seconds", "network": "network_seconds"}


def plan(config: TrainConfig, topology: Topology, work: Work, known: Known | None = None) -> Plan:
    """Compiles all programs of a config, but for those that are known.

    Raises:
      InputError: the pod or the mesh is not possible.
    """
    found = model_config(config.model.path, config.model.vision_tower)
    name = origin(Path(config.model.path))
    named = name if found else f"LLaVA-1.5 7B, for there is no {name}"
    devices = topology.devices()
    estimates = compile_all(config, topology, devices, known)
    stages = recipe(estimates, config, work, len(devices))
    told = work_of("ppo" if "ppo" in config.run.stages else "sample", config, work)
    return Plan(
        topology.name, len(devices), named, _versions(topology), tuple(estimates), tuple(stages), told,
        detector_flops(config, told),
    )  # fmt: skip


def _versions(topology: Topology) -> str:
    """Of JAX and of what compiles for these devices, since figures change with them."""
    names = "jax", "jax-cuda13-plugin" if topology.is_gpu else "libtpu"
    found = {each.name: each.version for each in metadata.distributions() if each.name in names}
    return ", ".join(f"{name} {found[name]}" for name in names if name in found)


def compiler(topology: Topology, devices: list[Any], known: Known | None = None) -> Estimator:
    """What `search` asks of settings on a pod with these devices."""
    return lambda config: compile_all(config, topology, devices, known)


def compile_all(
    config: TrainConfig, topology: Topology, devices: list[Any], known: Known | None = None
) -> list[Estimate]:
    """Estimates of the programs of a config's stages.

    Args:
      config: of a run.
      topology: what to compile for.
      devices: its own.
      known: programs that need not be compiled again; gets those that are compiled.

    Raises:
      InputError: the mesh is not possible.
    """
    model = model_config(config.model.path, config.model.vision_tower) or LlavaConfig()

    def compile_one(program: Program) -> Estimate:
        made = estimate(program, topology.chip, len(devices), known)
        logger.info("compiled %s, %s, in %.0f s", program.stage, program.name, made.compiled_in)
        return made

    # A compiler uses one core, and lets other threads of Python run.
    with ThreadPoolExecutor() as pool:
        return list(pool.map(compile_one, programs(config, model, devices, _sizes(config, model))))


def model_config(path: str | Path, vision_tower: str | Path | None = None) -> VlmConfig | None:
    """Sizes of the model in a checkpoint directory, with a tower that it does not bring; None if there is no model."""
    directory = Path(path)
    directory = base_of(directory) if is_adapter(directory) else directory
    return read_config(directory, vision_tower) if (directory / "config.json").is_file() else None


def programs(config: TrainConfig, model: VlmConfig, devices: list[Any], sizes: Sizes) -> Iterator[Program]:
    """The programs of the config's stages, in their order.

    Args:
      config: of the run.
      model: sizes.
      devices: to compile for.
      sizes: of texts.

    Raises:
      InputError: a mesh does not fit the devices, or a batch the mesh.
    """
    adapters = {"adapter": _adapter(config.model), "judge_adapter": _judge_adapter(config)}
    adapters["preference_adapter"] = config.train_preference_reward.lora
    dtype = jnp.dtype(config.model.dtype)
    target = Target(model, dtype, devices, config.mesh, config.inference_mesh, sizes, **adapters)
    make_mesh(config.mesh, devices), make_mesh(config.inference_mesh, devices)
    stages = make_stages(config)
    for name in config.run.stages:
        yield from stages[name].programs(target)


def _sizes(config: TrainConfig, model: VlmConfig) -> Sizes:
    """Texts as long as the config lets them be, but for prompts, which are as long as LLaVA's."""
    prompt = model.num_image_tokens + 64
    response = max(config.sample.sampling.max_new_tokens, config.ppo.sampling.max_new_tokens)
    return Sizes(prompt, response, config.reward_model.max_length, 40, config.sft.max_length)


def _adapter(model: ModelConfig) -> LoraConfig | None:
    """Of the model in a checkpoint directory, or that lies on top of it, if there is one.

    Nothing is fetched for it: where the weights below it are not here, it is one of its rank on the language model.
    """
    path = Path(model.path)
    directory = local_directory(model.adapter) if model.adapter else path
    if not is_adapter(directory):
        return None
    base = path if model.adapter else base_of(directory)
    if has_whole_model(base):
        found = open_checkpoint(model.path, model.vision_tower, model.adapter).adapter
        return None if found is None else found.lora
    return LoraConfig(rank=Fields.read(directory / ADAPTER_CONFIG).integer("r", 8, least=1, most=1 << 20) or 8)


def _judge_adapter(config: TrainConfig) -> LoraConfig | None:
    """Of the reward model that judges: one that is here, or that this run trains."""
    given = config.score.reward_model
    if given is None:
        return config.train_reward.lora if "train_reward" in config.run.stages else None
    try:
        return _adapter(ModelConfig(local_directory(given), config.model.vision_tower))
    except InputError:  # it is not here: a whole model
        return None
