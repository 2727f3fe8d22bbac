"""Fine-tunes a tiny world in a separate process, for tests that need several devices or processes, or kill it.

python -m tests.stages.run_sft '{"world": DIR, "runs": [{"run_dir": DIR, "mesh": [d, f, t], "sft": {...}}]}'
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from vigor_jax.hf.load import open_checkpoint
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.parallel.config import DistributedConfig, MeshConfig
from vigor_jax.parallel.sharding import join_processes, make_mesh
from vigor_jax.stages.sft import SftConfig, sft

if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    join_processes(DistributedConfig(**job.get("distributed", {})))
    world = Path(job["world"])
    checkpoint = open_checkpoint(world / "model")
    for run in job["runs"]:
        settings = run["sft"]
        if lora := settings.get("lora"):
            parts = {name: tuple(value) for name, value in lora.items() if isinstance(value, list)}
            settings |= {"lora": LoraConfig(**{**lora, **parts})}
        config = SftConfig(data=world / "data.json", images=world / "images", **settings)
        sizes = run.get("mesh", (1, -1, 1))
        devices = jax.devices()[: run["devices"]] if "devices" in run else None
        sft(config, checkpoint, Path(run["run_dir"]), make_mesh(MeshConfig(*sizes), devices), dtype=jnp.float32)
