"""The whole configuration of a run, composed of the parts that each module owns."""

import dataclasses
from pathlib import Path
from typing import Literal, TypeAlias

from vigor_jax.errors import InputError
from vigor_jax.hf.export import ExportConfig
from vigor_jax.hf.load import ModelConfig
from vigor_jax.sharding import DistributedConfig, MeshConfig
from vigor_jax.stages.train_step import SftConfig

Stage: TypeAlias = Literal["sft", "export"]


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where a run lives and what it does.

    Attributes:
      dir: everything the run writes; the same command again goes on from what is there.
      stages: what to do, in this order.
    """

    dir: Path
    stages: tuple[Stage, ...] = ("sft", "export")

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError("run.stages: expected at least one stage, got none")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run: `python -m vigor_jax.train --config F [--section.key value]`.

    Attributes:
      run: where, and which stages.
      model: the checkpoint to begin with.
      mesh: how the devices are arranged.
      distributed: how processes find each other.
      sft: supervised fine-tuning.
      export: the checkpoint to take home.
    """

    run: RunConfig
    model: ModelConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    sft: SftConfig = dataclasses.field(default_factory=SftConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
