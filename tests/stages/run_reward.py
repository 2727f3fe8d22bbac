"""Trains a reward model of two sources in a separate process, for tests that need several.

python -m tests.stages.run_reward '{"world": DIR, "run_dir": DIR, "mesh": [d, f, t]}'
"""

import json
import sys
from pathlib import Path

import jax.numpy as jnp

from tests.stages.reward_world import make_config
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.parallel.sharding import DistributedConfig, MeshConfig, join_processes, make_mesh
from vigor_jax.stages.train_reward import train_reward

if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    join_processes(DistributedConfig(**job.get("distributed", {})))
    world, mesh = Path(job["world"]), make_mesh(MeshConfig(*job["mesh"]))
    train_reward(make_config(world), open_checkpoint(world / "model"), Path(job["run_dir"]), mesh, dtype=jnp.float32)
