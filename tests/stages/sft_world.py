"""A tiny checkpoint, pictures and conversations to fine-tune on, and how to look at what came of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny_instructblip
from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.training import loop as loop_module
from vigor_jax.training.checkpoint import restore_params_only

ROOT = Path(__file__).resolve().parents[2]
TINY = Tiny(text_width=32, text_mlp=48, heads=4, kv_heads=2, head_dim=8, vision_width=16, vision_mlp=24)
BLIP = tiny_instructblip.TinyBlip(
    text_width=32, text_mlp=48, heads=4, kv_heads=2, head_dim=8, vision_width=16, vision_mlp=24, vision_layers=2,
    vision_heads=2, patch_size=14, mlp=32, layers=2, qformer_heads=4,
)  # fmt: skip
BUILD: dict[str, Callable[[Path], Path]] = {
    "llava": lambda directory: build_checkpoint(directory, TINY),
    "instructblip": lambda directory: tiny_instructblip.build_checkpoint(directory, BLIP),
}
"""Models of each family."""
# Of a test whose fixture `world` makes a world of `request.param`, or of LLaVA where nothing is asked for.
of_each_family = pytest.mark.parametrize("world", list(BUILD), indirect=True, scope="module")
WORDS = ("a", "red", "blue", "large", "circle", "square", "dog", "cat", "on", "the", "table", "beside", "wave")


def make_world(root: Path, *, examples: int, tiny: Tiny = TINY, family: str = "llava") -> Path:
    """Conversations of different lengths; every fifth is text, the others are about their own picture."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    records = []
    for index in range(examples):
        question = {"from": "human", "value": "What is in the picture?"}
        answer = {"from": "gpt", "value": " ".join(rng.choice(WORDS, int(rng.integers(3, 20)))) + "."}
        record: dict[str, Any] = {"id": f"example-{index}", "conversations": [question, answer]}
        if index % 5:
            height, width = rng.integers(20, 50, 2)
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(root / "images" / f"{index}.png")
            record["image"] = f"{index}.png"
            question["value"] = "<image>\n" + question["value"]
        records.append(record)
    (root / "data.json").write_text(json.dumps(records))
    build_checkpoint(root / "model", tiny) if family == "llava" else BUILD[family](root / "model")
    return root


def spawn(job: dict[str, Any], *, devices: int, cache: Path) -> subprocess.Popen:
    """Starts `run_sft`."""
    return spawn_python(["-m", "tests.stages.run_sft", json.dumps(job)], devices=devices, cache=cache)


def spawn_python(arguments: list[str], *, devices: int, cache: Path) -> subprocess.Popen:
    """Starts Python on this many CPU devices; what it compiles is kept in `cache` for the next process."""
    settings = {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen, code: int = 0) -> None:
    """Waits for processes and asserts how they ended."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), "\n".join(outputs)


def curve(run_dir: Path, stage: str = "sft") -> list[dict[str, Any]]:
    """The logged updates without their times."""
    lines = [json.loads(line) for line in (run_dir / "metrics" / f"{stage}.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def weights(run_dir: Path, stage: str = "sft") -> dict[str, np.ndarray]:
    """The trained weights of the latest checkpoint."""
    return restore_params_only(run_dir / "checkpoints" / stage)


class StopError(Exception):
    """Ends a run from inside."""


def interrupt(run: Callable[[], object], monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Has a training run do `after` updates more and fall over."""
    original = loop_module.make_train_step

    def breaking(*args):
        step, count = original(*args), 0

        def update(*args):
            nonlocal count
            if count == after:
                raise StopError
            count += 1
            return step(*args)

        return update

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "make_train_step", breaking)
        with pytest.raises(StopError):
            run()
