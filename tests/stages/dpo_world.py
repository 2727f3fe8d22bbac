"""A tiny checkpoint, pictures and preferences to learn from, and how to look at what came of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.stages.sft_world import BUILD, WORDS
from vigor_jax.data.records import store
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.stages.dpo_config import DpoConfig
from vigor_jax.stages.dpo_reference import Reference
from vigor_jax.training.checkpoint import restore_params_only


def make_world(root: Path, *, rows: int, family: str = "llava") -> Path:
    """Writes `model/`, `images/` and `preferences.json`: responses of all lengths, of which the better ones are about a
    circle; every fourth row has three, every fifth a context, and every eighth a conversation before it."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    records = []
    for index in range(rows):
        height, width = rng.integers(20, 50, 2)
        name = f"{index:02}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / "images" / name)
        count = 3 if index % 4 == 0 else 2
        texts = [" ".join(rng.choice(WORDS, int(rng.integers(3, 16)))) for _ in range(count)]
        record: dict[str, Any] = {
            "name": f"row-{index}",
            "image": name,
            "prompt": "What is in the picture?",
            "responses": [f"A circle, {texts[0]}.", *(f"{text}." for text in texts[1:])],
            "ratings": [2, *range(1 - count + 1, 1)][:count],
        }
        if index % 5 == 4:
            record |= {"context": "It shows a table.", "whole": False}
            record["responses"] = [f" {text}" for text in record["responses"]]
        if index % 8 == 7:
            record["history"] = ["Is it large?", "Yes."]
        records.append(record)
    (root / "preferences.json").write_text(json.dumps(records))
    BUILD[family](root / "model")
    return root


def make_config(world: Path, **changes: Any) -> DpoConfig:
    """Small and quick; learns something in a few updates."""
    settings: dict[str, Any] = {
        "data": world / "preferences.json",
        "images": str(world / "images"),
        "batch_size": 8,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.0,
        "eps": 1e-3,
        "max_length": 400,
        "bucket": 64,
        "save_every": 2,
    }
    if isinstance(lora := changes.get("lora"), dict):
        changes["lora"] = LoraConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in lora.items()})
    return DpoConfig(**settings | changes)


def curve(run_dir: Path) -> list[dict[str, Any]]:
    """The logged updates without their times."""
    lines = [json.loads(line) for line in (run_dir / "metrics" / "dpo.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    """The trained weights of the latest checkpoint."""
    return restore_params_only(run_dir / "checkpoints" / "dpo")


def folders(run_dir: Path) -> list[Path]:
    """Of references: one for all that they depend on."""
    return sorted((run_dir / "references" / "dpo").glob("*"))


def references(run_dir: Path) -> dict[str, Reference]:
    """What the reference said of each row, by the row's digest."""
    (folder,) = folders(run_dir)
    return {each.digest: each for each in store.read_parts(folder, Reference)}
