"""PPO in a separate process, for tests that need several devices or processes, or kill it, or watch its memory.

python -m tests.stages.run_ppo '{"world": DIR, "runs": [{"run_dir": DIR, "mesh": [d, f, t], "ppo": {...}}]}'

With "watch", a file, an iteration adds a line to it: bytes of the process and of the arrays on its devices, the number
of these arrays, and how often it has compiled anything.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import psutil

from tests.stages.ppo_world import PROMPTS, Letters
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.parallel.config import DistributedConfig, MeshConfig
from vigor_jax.parallel.sharding import join_processes, make_mesh
from vigor_jax.stages import ppo as stage
from vigor_jax.stages.ppo_config import PpoConfig


def make_config(world: Path, **changes: Any) -> PpoConfig:
    """Small and quick; learns something in three iterations."""
    sampling = {"temperature": 1.0, "num_candidates": 2, "max_new_tokens": 12, "batch_size": 4, "prompt_bucket": 8}
    settings: dict[str, Any] = {
        "images": str(world / "images"),
        "prompts": PROMPTS,
        "batch_size": 8,
        "minibatch": 4,
        "ppo_epochs": 2,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.0,
        "eps": 1e-3,
        "bucket": 32,
        "sampling": SamplingConfig(**sampling | changes.pop("sampling", {})),
    }
    if isinstance(lora := changes.get("lora"), dict):
        changes["lora"] = LoraConfig(**lora)
    return PpoConfig(**settings | changes)


def watch(file: Path) -> None:
    """After each iteration; nothing is collected for it that would not be collected without it."""
    compiled = 0

    def listen(event: str, *_: Any, **__: Any) -> None:
        nonlocal compiled
        compiled += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    learn, process = stage._learn, psutil.Process()

    def watched(*args: Any) -> dict[str, float]:
        metrics = learn(*args)
        arrays = jax.live_arrays()
        found = {
            "resident": process.memory_info().rss,
            "held": sum(array.nbytes for array in arrays),
            "arrays": len(arrays),
            "compiled": compiled,
        }
        with file.open("a") as lines:
            lines.write(json.dumps(found) + "\n")
        return metrics

    stage._learn = watched


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    join_processes(DistributedConfig(**job.get("distributed", {})))
    world = Path(job["world"])
    checkpoint = open_checkpoint(world / "model")
    if "watch" in job:
        watch(Path(job["watch"]))
    for run in job["runs"]:
        mesh = make_mesh(MeshConfig(*run.get("mesh", (1, -1, 1))))
        inference = make_mesh(MeshConfig(*run.get("inference", (-1, 1, 1))))
        config = make_config(world, **run["ppo"])
        run_dir = Path(run["run_dir"])
        stage.ppo(config, checkpoint, run_dir, mesh, inference, lambda: {"letters": Letters()}, dtype="float32")
