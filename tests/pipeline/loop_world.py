"""A world small enough to go round the whole loop in tests: a LLaVA that writes, a detector, human judgments."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

import vigor_jax.demo
from tests.detector_bridge.tiny_detector import write_transformers
from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax import train

ROOT = Path(__file__).resolve().parents[2]
TAGGER = Path(vigor_jax.demo.__file__).parent / "checkpoints" / "tagger"
TINY = Tiny()
THINGS = ("man", "dog", "red triangle", "wave", "bench", "car", "traffic light", "cat")
ENTITIES = ("man", "dog", "triangle", "wave", "bench", "car", "traffic light", "cat")
WRONG = ("dog", "car", "cat", "wave")  # are in no picture, say the judgments
PROMPT = "Describe the image."


def make_world(root: Path, *, images: int = 12) -> Path:
    """Writes `images/`, `model/` (which has begun to learn sentences about THINGS), `detector/`, `entities.txt` and
    `annotations.jsonl`."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    conversations, annotations = [], []
    for number in range(images):
        small = PIL.Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        name = f"{number:03}.png"
        small.resize((60 + 3 * number, 80), PIL.Image.Resampling.BICUBIC).save(root / "images" / name)
        sentences = [f"There is a {thing}." for thing in rng.choice(THINGS, 2 + number % 2, replace=False)]
        turns = [("human", f"<image>\n{PROMPT}"), ("gpt", " ".join(sentences))]
        conversation = [{"from": who, "value": text} for who, text in turns]
        conversations.append({"id": name, "image": name, "conversations": conversation})
        is_wrong = [any(thing in text for thing in WRONG) for text in sentences]
        judged = [{"text": text, "errors": ["object"] * wrong} for text, wrong in zip(sentences, is_wrong, strict=True)]
        annotations.append({"image": name, "description": " ".join(sentences), "sentences": judged})
    (root / "chat.json").write_text(json.dumps(conversations))
    (root / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in annotations))
    (root / "entities.txt").write_text("\n".join(ENTITIES))
    write_transformers(root / "detector")
    build_checkpoint(root / "untaught", TINY)
    train.main(
        options(
            {
                "run.dir": root / "teaching",
                "model.path": root / "untaught",
                "model.dtype": "float32",
                "sft.data": root / "chat.json",
                "sft.images": root / "images",
                "sft.batch_size": 4,
                "sft.epochs": 24,
                "sft.learning_rate": 3e-3,
                "sft.max_length": 256,
                "sft.bucket": 64,
            }
        )
    )
    (root / "teaching" / "export").rename(root / "model")
    return root


def options(values: dict[str, Any]) -> list[str]:
    return [str(part) for name, value in values.items() for part in (f"--{name}", value)]


def loop(world: Path, run_dir: Path, **changes: Any) -> list[str]:
    """Arguments of a run with three streams; `__` in the name of a change stands for a dot."""
    values = {
        "run.dir": run_dir,
        "run.stages": "train_reward,sample,score,select,sft,export",
        "model.path": world / "model",
        "model.dtype": "float32",
        "train_reward.annotations": world / "annotations.jsonl",
        "train_reward.batch_size": 4,
        "train_reward.epochs": 6,
        "train_reward.learning_rate": 1e-3,
        "train_reward.max_length": 512,
        "train_reward.held_out": 0.2,
        "train_reward.save_every": 3,
        "sample.images": world / "images",
        "sample.prompts": f"[{PROMPT}]",
        "sample.images_per_part": 3,
        "sample.sampling.num_candidates": 3,
        "sample.sampling.max_new_tokens": 40,
        "sample.sampling.temperature": 1.0,
        "sample.sampling.batch_size": 4,
        "score.streams": "detector,claims,reward_model",
        "detection.model": world / "detector",
        "detection.box_threshold": 0.6,
        "detection.text_threshold": 0.6,
        "detection.phrases.extractor": "entities",
        "detection.phrases.entities": world / "entities.txt",
        "detection.phrases.tagger": TAGGER,
        "claims.judge.attribute_margin": 0.01,  # the detector knows nothing: its scores are as good as equal
        "claims.judge.least_attribute": 0,
        "reward_model.batch_size": 4,
        "reward_model.max_length": 512,
        "sft.batch_size": 4,
        "sft.epochs": 3,
        "sft.learning_rate": 1e-3,
        "sft.max_length": 256,
        "sft.bucket": 64,
        "sft.save_every": 2,
    }
    return options(values | {name.replace("__", "."): value for name, value in changes.items()})


def start(world: Path, arguments: list[str], *, devices: int = 1, **more: str) -> subprocess.Popen:
    """`python -m vigor_jax.train` in a separate process; what it compiles is kept for the next one."""
    settings = {
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(world / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    command = [sys.executable, "-m", "vigor_jax.train", *arguments]
    return subprocess.Popen(command, env=os.environ | settings | more, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def finish(process: subprocess.Popen, *, code: int = 0) -> str:
    """Waits for its end; returns what it said."""
    _, errors = process.communicate(timeout=600)
    assert process.returncode == code, errors[-3000:]
    return errors
