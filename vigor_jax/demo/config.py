"""The demo's settings, which the package carries."""

import dataclasses
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from vigor_jax import cli
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.parallel.config import DistributedConfig, MeshConfig


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """Where the demo runs, and on what: the options that it takes. It brings its model, its data and their settings.

    Attributes:
      run: where, and which stages.
      mesh: how the devices are arranged for training.
      inference_mesh: how they are for sampling and scoring.
      distributed: how processes find each other.
    """

    run: RunConfig = dataclasses.field(default_factory=lambda: RunConfig(Path("runs/demo")))
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    inference_mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)


def demo_config(arguments: Sequence[str] = ()) -> TrainConfig:
    """The demo's config, with some options of the command line in place of its values."""
    with as_file(files("vigor_jax.demo") / "demo.yaml") as path:
        return cli.parse(TrainConfig, ["--config", str(path), *arguments], description="")
