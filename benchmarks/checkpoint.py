"""Loading and exporting a checkpoint: ours and transformers, each time in a separate process.

    python -m benchmarks.checkpoint              1.6 billion weights in bfloat16, 3.1 GB
    python -m benchmarks.checkpoint --size 7b    13 GB, three times as much on disk and in memory for a while

A process reads a llava-hf directory into bfloat16 weights, ours stacked as for training, and writes a new one: ours
with everything that training changes from its own arrays, as after a run. Imports do not count, compiling does. The
directory is in the system's file cache. Processes alternate; speed is the size on disk over the seconds, by the clock
and of the processor, and the peak is the process's while it loads or exports, interpreter and libraries included.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import torch
import transformers
from flax import nnx

from benchmarks.common import build_peer, describe_machine, print_table, sizes
from vigor_jax.hf.export import export_checkpoint
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.models.vlm import param_paths
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh

ROOT = Path(__file__).parents[1]
FROZEN = "vision_tower"


def write_checkpoint(directory: Path, size: str) -> None:
    """Random weights in bfloat16, with the tokenizer and the processor of the demo's policy."""
    model = build_peer(size, torch.bfloat16)
    model.save_pretrained(directory)
    policy = ROOT / "vigor_jax" / "demo" / "checkpoints" / "policy"
    for file in policy.glob("*.json"):
        if file.name not in ("config.json", "generation_config.json"):
            shutil.copy(file, directory)
    config, of_policy = (json.loads((folder / "config.json").read_text()) for folder in (directory, policy))
    config["image_token_index"] = of_policy["image_token_index"]
    (directory / "config.json").write_text(json.dumps(config))
    file = directory / "preprocessor_config.json"
    edge = config["vision_config"]["image_size"]
    preprocessor = json.loads(file.read_text()) | {"size": {"shortest_edge": edge}}
    file.write_text(json.dumps(preprocessor | {"crop_size": {"height": edge, "width": edge}}))


class Taken(NamedTuple):
    """What a job takes: seconds by the clock and of the processor, peak of the process in GiB."""

    seconds: float
    cpu_seconds: float
    peak: float


def begin() -> Taken:
    """The clocks now; the peak begins again."""
    with contextlib.suppress(OSError):  # where a process may not, the peak is of all until then
        Path("/proc/self/clear_refs").write_text("5")
    return Taken(time.perf_counter(), time.process_time(), 0)


def taken(start: Taken) -> Taken:
    """Since `begin`."""
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    seconds, cpu_seconds = time.perf_counter() - start.seconds, time.process_time() - start.cpu_seconds
    return Taken(seconds, cpu_seconds, int(peak.split()[1]) / 2**20)


def ours(directory: Path, out: Path) -> tuple[Taken, Taken]:
    """What loading and exporting take."""
    start = begin()
    checkpoint = open_checkpoint(directory)
    model = load_model(checkpoint, mesh=make_mesh(MeshConfig()), dtype=jnp.bfloat16)
    jax.block_until_ready(nnx.state(model))
    loaded, start = taken(start), begin()
    params = {path: each.get_value() for path, each in param_paths(nnx.state(model)).items() if FROZEN not in path}
    export_checkpoint(checkpoint, params, out)
    return loaded, taken(start)


def peer(directory: Path, out: Path) -> tuple[Taken, Taken]:
    """The same by transformers, whose tensors are first read where a file was only mapped into memory."""
    start = begin()
    model = transformers.LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.bfloat16)
    for weight in model.parameters():
        weight.view(-1)[:: 4096 // weight.element_size()].sum()  # a number of every page
    loaded, start = taken(start), begin()
    model.save_pretrained(out)
    return loaded, taken(start)


SIDES = {"vigor_jax": ours, "transformers": peer}


def measure(side: str, directory: Path) -> dict[str, dict[str, float]]:
    """One side in a separate process."""
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--side", side, "--directory", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def run_alone(side: str, directory: Path) -> None:
    """Prints seconds and peak as a line of JSON; what it writes is removed."""
    out = directory.with_name("out")
    load, export = SIDES[side](directory, out)
    shutil.rmtree(out)
    print(json.dumps({"load": load._asdict(), "export": export._asdict()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sizes(), default="1b")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_alone(options.side, options.directory)
        return
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "checkpoint"
        write_checkpoint(directory, options.size)
        gigabytes = sum(os.path.getsize(file) for file in directory.glob("*.safetensors")) / 1e9
        runs = {side: [] for side in SIDES}
        for _ in range(options.repeats):
            for side, found in runs.items():
                found.append(measure(side, directory))
    print(f"{describe_machine()}; {gigabytes:.2f} GB of weights in bfloat16")
    for what in ("load", "export"):
        for unit, of in (("GB/s", "seconds"), ("GB a CPU second", "cpu_seconds")):
            rates = {side: [gigabytes / run[what][of] for run in found] for side, found in runs.items()}
            print_table(f"{what}, {unit}", rates)
        peaks = {side: statistics.median(run[what]["peak"] for run in found) for side, found in runs.items()}
        print("\npeak of the process: " + ", ".join(f"{side} {peak:.2f} GiB" for side, peak in peaks.items()))


if __name__ == "__main__":
    main()
