"""Loading and exporting a checkpoint: ours and transformers, each time in a separate process.

    python -m benchmarks.checkpoint                    1.6 billion weights in bfloat16, 3.1 GB
    python -m benchmarks.checkpoint --job round        a checkpoint in float32, 6.3 GB, is written in bfloat16
    python -m benchmarks.checkpoint --job merge        a LoRA adapter of rank 64 is merged into bfloat16
    python -m benchmarks.checkpoint --size 7b          13 GB, three times as much on disk and in memory for a while

The first job reads a llava-hf directory into bfloat16 weights, ours stacked as for training, and writes a new one: ours
with everything that training changes from its own arrays, as after a run. Next to it, "new memory" reads the same
files into NumPy arrays and does nothing else: who does not map the files cannot be faster than that, and on a virtual
machine that has to ask its host for memory it takes most of the time. The other jobs write what `python -m
vigor_jax.export` does, and what transformers, with PEFT, saves. Imports do not count, compiling does. The directory is
in the system's file cache. Processes alternate; speed is the size of the files that are read, or written, over the
seconds, by the clock and of the processor, and the peak is the process's, interpreter and libraries included.
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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
import transformers
from flax import nnx

from benchmarks.common import build_peer, describe_machine, print_table, sizes
from vigor_jax.hf.export import export_checkpoint
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.hf.options import ExportConfig
from vigor_jax.models.vlm import param_paths
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.pipeline.export import export_any

ROOT = Path(__file__).parents[1]
FROZEN = "vision_tower"


def write_checkpoint(directory: Path, size: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Random weights, with the tokenizer and the processor of the demo's policy."""
    build_peer(size, dtype).save_pretrained(directory)
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


def write_adapter(directory: Path, base: Path) -> None:
    """A LoRA adapter of PEFT for the language model's layers."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.bfloat16)
    layers = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    settings = peft.LoraConfig(r=64, lora_alpha=16, target_modules=layers, init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(directory)


def ours(directory: Path, out: Path) -> dict[str, Taken]:
    """What loading and exporting take."""
    start = begin()
    checkpoint = open_checkpoint(directory)
    model = load_model(checkpoint, mesh=make_mesh(MeshConfig()), dtype=jnp.bfloat16)
    jax.block_until_ready(nnx.state(model))
    loaded, start = taken(start), begin()
    params = {path: each.get_value() for path, each in param_paths(nnx.state(model)).items() if FROZEN not in path}
    export_checkpoint(checkpoint, params, out)
    return {"load": loaded, "export": taken(start)}


def peer(directory: Path, out: Path) -> dict[str, Taken]:
    """The same by transformers, whose tensors are first read where a file was only mapped into memory."""
    start = begin()
    model = transformers.LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.bfloat16)
    for weight in model.parameters():
        weight.view(-1)[:: 4096 // weight.element_size()].sum()  # a number of every page
    loaded, start = taken(start), begin()
    model.save_pretrained(out)
    return {"load": loaded, "export": taken(start)}


def new_memory(directory: Path, out: Path) -> dict[str, Taken]:
    """The files of weights read into arrays and no more."""
    start = begin()
    arrays = [np.fromfile(file, np.uint8) for file in directory.glob("*.safetensors")]
    found = taken(start)
    assert all(array.size for array in arrays)
    return {"load": found}


def export_ours(directory: Path, out: Path) -> dict[str, Taken]:
    """As the command `export`; `directory` is a model or an adapter."""
    start = begin()
    export_any(ExportConfig(layout="llava-hf", dtype="bfloat16"), directory, out)
    return {"export": taken(start)}


def round_peer(directory: Path, out: Path) -> dict[str, Taken]:
    start = begin()
    transformers.LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.bfloat16).save_pretrained(out)
    return {"export": taken(start)}


def merge_peer(directory: Path, out: Path) -> dict[str, Taken]:
    start = begin()
    base = peft.PeftConfig.from_pretrained(directory).base_model_name_or_path
    model = transformers.LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.bfloat16)
    peft.PeftModel.from_pretrained(model, directory).merge_and_unload().save_pretrained(out)
    return {"export": taken(start)}


JOBS: dict[str, dict[str, Callable[[Path, Path], dict[str, Taken]]]] = {
    "load": {"vigor_jax": ours, "transformers": peer, "new memory": new_memory},
    "round": {"vigor_jax": export_ours, "transformers": round_peer},
    "merge": {"vigor_jax": export_ours, "transformers + PEFT": merge_peer},
}


def measure(job: str, side: str, directory: Path) -> dict[str, dict[str, float]]:
    """One side in a separate process."""
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--job", job, "--side", side, "--directory", directory]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def run_alone(job: str, side: str, directory: Path) -> None:
    """Prints seconds and peaks as a line of JSON, and the size of what it wrote, which is removed."""
    out = directory.with_name("out")
    found = {what: each._asdict() for what, each in JOBS[job][side](directory, out).items()}
    for each in found.values():
        each["gigabytes"] = weight_bytes(out if out.exists() else directory) / 1e9
    shutil.rmtree(out, ignore_errors=True)
    print(json.dumps(found))


def weight_bytes(directory: Path) -> int:
    return sum(os.path.getsize(file) for file in directory.glob("*.safetensors"))


def print_job(runs: dict[str, list[dict[str, dict[str, float]]]]) -> None:
    """Tables of every part of a job, of the sides that have it."""
    for what in next(iter(runs.values()))[0]:
        parts = {side: [run[what] for run in found] for side, found in runs.items() if what in found[0]}
        for unit, of in (("GB/s", "seconds"), ("GB a CPU second", "cpu_seconds")):
            rates = {side: [part["gigabytes"] / part[of] for part in found] for side, found in parts.items()}
            print_table(f"{what}, {unit}", rates)
        peaks = {side: statistics.median(part["peak"] for part in found) for side, found in parts.items()}
        print("\npeak of the process: " + ", ".join(f"{side} {peak:.2f} GiB" for side, peak in peaks.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", choices=JOBS, default="load")
    parser.add_argument("--size", choices=sizes(), default="1b")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_alone(options.job, options.side, options.directory)
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = directory = Path(scratch) / "checkpoint"
        write_checkpoint(model, options.size, torch.float32 if options.job == "round" else torch.bfloat16)
        if options.job == "merge":
            directory = Path(scratch) / "adapter"
            write_adapter(directory, model)
        runs: dict[str, list[dict[str, dict[str, float]]]] = {side: [] for side in JOBS[options.job]}
        for _ in range(options.repeats):
            for side, found in runs.items():
                found.append(measure(options.job, side, directory))
        print(f"{describe_machine()}; {weight_bytes(model) / 1e9:.2f} GB of weights")
    print_job(runs)


if __name__ == "__main__":
    main()
