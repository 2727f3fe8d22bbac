"""Learns from the preferences of a tiny world in a separate process, for tests that need several devices or processes,
or kill it.

python -m tests.stages.run_dpo '{"world": DIR, "runs": [{"run_dir": DIR, "mesh": [d, f, t], "dpo": {...}}]}'

"part" is how many rows a part of the references has; "watch", a file, gets a line before the training: how many bytes
of arrays there are.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from tests.stages.dpo_world import make_config
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.parallel.config import DistributedConfig, MeshConfig
from vigor_jax.parallel.sharding import join_processes, make_mesh
from vigor_jax.stages import dpo as stage
from vigor_jax.stages import dpo_reference


def barrier() -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("references")


def watch(file: Path) -> None:
    """Of what the reference's pass has left, without any help by the garbage collector."""
    found = stage.fine_tune

    def fine_tune(*args: Any, **told: Any) -> Path:
        with file.open("a") as lines:
            lines.write(f"{sum(array.nbytes for array in jax.live_arrays())}\n")
        return found(*args, **told)

    stage.fine_tune = fine_tune


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    join_processes(DistributedConfig(**job.get("distributed", {})))
    dpo_reference.PART = job.get("part", dpo_reference.PART)
    if "watch" in job:
        watch(Path(job["watch"]))
    world = Path(job["world"])
    checkpoint = open_checkpoint(world / "model")
    for run in job["runs"]:
        devices = jax.devices()[: run["devices"]] if "devices" in run else None
        mesh = make_mesh(MeshConfig(*run.get("mesh", (1, -1, 1))), devices)
        config = make_config(world, **run["dpo"])
        stage.dpo(config, checkpoint, Path(run["run_dir"]), mesh, dtype=jnp.float32, barrier=barrier)
