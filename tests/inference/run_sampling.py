"""Samples from a tiny checkpoint in a separate process, for tests that need several devices or processes.

python -m tests.inference.run_sampling JSON

where JSON is {"model": DIR, "out": FILE, "distributed": {...}, "runs": [{"mesh": [d, f, t]}]}
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.inference.sampler import Completion, Request, Sampler
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.parallel.config import DistributedConfig, MeshConfig
from vigor_jax.parallel.sharding import join_processes, make_mesh

CONFIG = SamplingConfig(temperature=1.0, max_new_tokens=70, num_candidates=2, batch_size=4, prompt_bucket=64, seed=3)


def make_requests(checkpoint: Any, count: int = 7) -> list[Request]:
    """Ragged prompts, each with another image; every third is text alone."""
    rng = np.random.default_rng(0)
    requests = []
    for i in range(count):
        image_ids = [] if i % 3 == 2 else [checkpoint.config.image_token_id] * checkpoint.config.num_image_tokens
        words = rng.integers(3, 500, rng.integers(2, 40)).tolist()
        pixels = rng.integers(0, 256, (checkpoint.preprocessing.size, checkpoint.preprocessing.size, 3)).astype(
            np.uint8
        )
        ids = [checkpoint.tokenizer.bos_id, *image_ids, *words]
        requests.append(Request(f"{i}.jpg", ids, pixels if image_ids else None, "Describe."))
    return requests


def plain(completions: list[list[Completion]]) -> list[Any]:
    """What can be compared and stored."""
    return [[dataclasses.asdict(c) | {"logprobs": c.logprobs.tolist()} for c in group] for group in completions]


def _counted(request: Request, read: list[str]) -> Request:
    def pixels() -> np.ndarray:
        read.append(request.image_id)
        return np.asarray(request.pixels)

    call: Callable[[], np.ndarray] | None = None if request.pixels is None else pixels
    return dataclasses.replace(request, pixels=call)


def _runs(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    checkpoint = open_checkpoint(Path(job["model"]))
    for sizes in job["meshes"]:
        mesh = make_mesh(MeshConfig(*sizes))
        model = load_model(checkpoint, mesh=mesh, dtype=jnp.float32, scan=False)
        read: list[str] = []
        requests = [_counted(request, read) for request in make_requests(checkpoint)]
        # A stop string makes the host send its own findings back to every device.
        three = dataclasses.replace(CONFIG, batch_size=3)  # becomes 4 where it is split over 4
        sampler = Sampler(model, checkpoint.tokenizer, three, mesh, stop=job["stop"])
        yield {"completions": plain(list(sampler.generate(requests))), "read": sorted(read)}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    join_processes(DistributedConfig(**job["distributed"]))
    results = list(_runs(job))
    Path(job["out"]).with_suffix(f".{jax.process_index()}").write_text(json.dumps(results))
