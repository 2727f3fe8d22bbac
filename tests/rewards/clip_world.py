"""A random CLIP, images and captions for tests of the verifier."""

from pathlib import Path

import jax
import numpy as np
from PIL import Image

from tests.tiny_clip import TinyClip, build_checkpoint
from vigor_jax.hf.clip.checkpoint import open_clip
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.records import ScoreItem
from vigor_jax.rewards.verifier_config import ClipStreamConfig

ENTITIES = "dog, puppy, hot-dog\ncat\nbench\ntraffic_light\nperson, man, woman\nglass, glasses\n"
TEXTS = (
    ("A dog and two cats. The Dog sees a puppy.", "Two dogs on a bench.", ""),
    ("No cat, but traffic-lights and men.", "   \n"),
    ("A glass, his glasses.", "Possibly a woman. A woman with hot dogs.", "nothing", "A bench, a bench and a bench."),
    ("A man. He smiles.",),
    ("cat " * 40,),
)


def make_world(root: Path) -> Path:
    """Writes `clip/`, `entities.txt` and `images/`."""
    build_checkpoint(root / "clip", TinyClip())
    (root / "entities.txt").write_text(ENTITIES)
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(len(TEXTS)):
        shape = (*rng.integers(20, 60, 2), 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(root / "images" / f"{number}.png")
    return root


def items(root: Path) -> list[ScoreItem]:
    images = [root / "images" / f"{number}.png" for number in range(len(TEXTS))]
    return [ScoreItem(path.name, path, "?", texts) for path, texts in zip(images, TEXTS, strict=True)]


def config(root: Path, **changes) -> ClipStreamConfig:
    given = {"model": root / "clip", "entities": root / "entities.txt", "batch_size": 2}
    return ClipStreamConfig(**given | changes)


def checkpoint(root: Path):
    return open_clip(root / "clip")


def mesh(*sizes: int):
    sizes = sizes or (1, 1, 1)
    return make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
