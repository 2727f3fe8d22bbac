"""The entry: reads a config and runs its stages in order; what is already done is found and left alone.

    python -m vigor_jax.train --config configs/sft.yaml --sft.data chat.json --sft.images images/

Without a config it runs the embedded demo.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from vigor_jax import cli
from vigor_jax.config import TrainConfig
from vigor_jax.demo.build import prepare
from vigor_jax.demo.show import show
from vigor_jax.hf.load import Source, open_checkpoint
from vigor_jax.sharding import join_processes, make_mesh
from vigor_jax.stages.export import export
from vigor_jax.stages.sft import sft

logger = logging.getLogger(__name__)

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
NUM_SCENES, NUM_HELD_OUT = 4000, 200


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax tells of every file
    is_demo = not any(argument.split("=")[0] in ("--config", "--model.path", "-h", "--help") for argument in arguments)
    if is_demo:
        arguments = ["--config", str(DEMO), *arguments]
    config = cli.parse(TrainConfig, arguments, description=__doc__ or "")
    join_processes(config.distributed)
    if is_demo:
        prepare(config.model.path.parent, num_train=NUM_SCENES, num_held_out=NUM_HELD_OUT)
    train(config)
    if is_demo:
        show(config.run.dir)


def train(config: TrainConfig) -> None:
    """Runs the stages of a config."""
    mesh = make_mesh(config.mesh)
    source = open_checkpoint(config.model.path, config.model.vision_tower)
    if jax.process_index() == 0:
        config.run.dir.mkdir(parents=True, exist_ok=True)
        (config.run.dir / "config.yaml").write_text(cli.dump(config), encoding="utf-8")
    stages = {"sft": run_sft, "export": run_export}
    for stage in config.run.stages:
        logger.info("stage %s", stage)
        stages[stage](config, source, mesh)


def run_sft(config: TrainConfig, source: Source, mesh: Mesh) -> None:
    """Fine-tunes on given conversations."""
    sft(config.sft, source, config.run.dir, mesh, dtype=config.model.dtype)


def run_export(config: TrainConfig, source: Source, mesh: Mesh) -> None:
    """Writes the fine-tuned checkpoint in a layout that others load."""
    export(config.export, source, config.run.dir / "checkpoints" / "sft", config.run.dir / "export", mesh)


if __name__ == "__main__":
    cli.run(main)
