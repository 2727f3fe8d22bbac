"""Pairs on a tiny checkpoint, for tests that compare updates of ours with others'."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from tests.stages.sft_world import TINY, WORDS
from tests.tiny_llava import build_checkpoint
from vigor_jax.data.batches.loader import batch_indices
from vigor_jax.hf.llava.names import module_name
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.stages.dpo import dpo
from vigor_jax.stages.dpo_config import DpoConfig
from vigor_jax.training.checkpoint import restore_params_only
from vigor_jax.training.trainable import load_trainable

PAIRS, UPDATES = 10, 5
LORA = LoraConfig(rank=4, alpha=8)
SETTINGS: dict[str, Any] = {
    "batch_size": PAIRS // UPDATES,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.0,
    "weight_decay": 0.1,
    "eps": 1e-6,  # below it are gradients that are rounding errors, which AdamW would otherwise follow
    "max_grad_norm": 1.0,
    "bucket": 128,  # one shape, so that one program is compiled
    "remat": "none",
    "seed": 3,
    "save_every": UPDATES,
}


class Run(NamedTuple):
    """What five updates have done.

    Attributes:
      losses: of each.
      grad_norms: of each, before clipping.
      weights: what was trained, at the end, as `named` gives it.
    """

    losses: list[float]
    grad_norms: list[float]
    weights: dict[str, np.ndarray]


def make_pairs(root: Path) -> Path:
    """Writes `model/`, `images/` and `pairs.json`, in TRL's form."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    rows = []
    for index in range(PAIRS):
        edge = TINY.image_size  # so that no side resizes it
        Image.fromarray(rng.integers(0, 256, (edge, edge, 3), np.uint8)).save(root / "images" / f"{index}.png")
        chosen, rejected = (" ".join(rng.choice(WORDS, int(rng.integers(3, 9)))).capitalize() + "." for _ in range(2))
        prompt = ("What is in the picture?", "Describe the image in detail.")[index % 2]
        rows.append({"images": [f"{index}.png"], "prompt": prompt, "chosen": chosen, "rejected": rejected})
    (root / "pairs.json").write_text(json.dumps(rows))
    build_checkpoint(root / "model", TINY)
    return root


def config_of(root: Path, **changes: Any) -> DpoConfig:
    return DpoConfig(data=root / "pairs.json", images=str(root / "images"), **SETTINGS | changes)


def in_order(root: Path, config: DpoConfig) -> list[dict[str, Any]]:
    """The rows of the file in the order in which a run takes them."""
    rows = json.loads((root / "pairs.json").read_text())
    return [rows[index] for index in batch_indices(len(rows), config.seed, range(len(rows)))]


def ours(root: Path, run_dir: Path, config: DpoConfig) -> Run:
    dpo(config, open_checkpoint(root / "model"), run_dir, one_device(), dtype=jnp.float32)
    lines = [json.loads(line) for line in (run_dir / "metrics" / "dpo.jsonl").read_text().splitlines()]
    weights = named(root, restore_params_only(run_dir / "checkpoints" / "dpo"))
    return Run([line["loss"] for line in lines], [line["grad_norm"] for line in lines], weights)


def before(root: Path, config: DpoConfig) -> dict[str, np.ndarray]:
    """What is trained, as it is before, as `named` gives it."""
    loaded = load_trainable(open_checkpoint(root / "model"), config, one_device(), jnp.float32)
    return named(root, {path: np.asarray(weight) for path, weight in loaded.params.items()})


def one_device() -> Mesh:
    return make_mesh(MeshConfig(), jax.devices()[:1])


def named(root: Path, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights of ours by the names, and in the shapes, that transformers and PEFT have in memory.

    Such as `model.language_model.layers.0.self_attn.q_proj.weight`, or with `lora_A` in place of `weight`.
    """
    found = {}
    for entry in open_checkpoint(root / "model").entries:
        layer, name = ... if entry.layer is None else entry.layer, module_name(entry.name)
        if entry.path in weights:
            found[name] = weights[entry.path][layer].transpose(np.argsort(entry.axes))
        for letter in "AB" * entry.path.endswith(".kernel"):
            path = entry.path.removesuffix("kernel") + f"lora_{letter.lower()}"
            if path in weights:
                found[name.removesuffix("weight") + f"lora_{letter}"] = weights[path][layer].T
    assert sum(weight.size for weight in found.values()) == sum(weight.size for weight in weights.values())
    return found


def assert_equal_weights(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray], most: float
) -> None:
    """Each to this share of itself, and to ten times as much of what was learned."""
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        error, learned = np.linalg.norm(found[name] - weight), np.linalg.norm(weight - first[name])
        assert learned > 0, name
        assert error < most * np.linalg.norm(weight), (name, error / np.linalg.norm(weight))
        assert error < 10 * most * learned, (name, error / learned)
