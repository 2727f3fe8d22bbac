"""Random CLIPs, images and captions with boxes, for tests of attributes that a CLIP judges."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vigor_jax.demo
from tests.rewards.clip_world import mesh
from tests.tiny_clip import TinyClip, build_checkpoint, build_model, small_vocabulary
from vigor_jax.hf.clip.checkpoint import open_clip
from vigor_jax.records import ScoreItem, Signal, Span, Verdict
from vigor_jax.rewards.claims.clip_attributes import ClipAttributeStream
from vigor_jax.rewards.claims.crops import ClipAttributesConfig
from vigor_jax.rewards.claims.stream import ClaimsConfig
from vigor_jax.rewards.phrases import PhrasesConfig

PHRASES = PhrasesConfig(tagger=Path(vigor_jax.demo.__file__).parent / "checkpoints" / "tagger")
TINY, SCALE = TinyClip(), 40.0
# The texts about each image, and where a detector found what they name.
WORLD = (
    (
        ("There is a star in red at the top. We see moons in blue, two in all.", "There is a star in black."),
        {"star": ((0.1, 0.2, 0.45, 0.7),), "moon": ((0.5, 0.5, 0.95, 0.9), (0.0, 0.6, 0.3, 1.0))},
    ),
    (("There is a house in orange.", "", "There is a house in orange.", "We see a ring."), {"house": ((0, 0, 1, 1),)}),
    (("We see a ring in green.",), {"ring": ()}),
    (
        ("There are stars in purple, three of them. We see a moon in yellow.",),
        {"star": ((0.2, 0.2, 0.6, 0.5), (0.6, 0.1, 0.9, 0.4), (0.21, 0.2, 0.61, 0.5)), "moon": ((0.98, 0.99, 1, 1),)},
    ),
    (("The cloud is in the middle.",), {"cloud": ((0.3, 0.3, 0.7, 0.7),)}),
    (("There is a heart in white.",), {"heart": ((0.05, 0.4, 0.9, 0.41),)}),
)


def make_world(root: Path, tiny: TinyClip = TINY) -> Path:
    """Writes `clip/` and `images/`."""
    model = build_model(tiny, small_vocabulary()[0])
    with torch.no_grad():
        model.logit_scale.fill_(math.log(SCALE))
    build_checkpoint(root / "clip", tiny, model=model)
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(len(WORLD)):
        coarse = rng.integers(0, 256, (*rng.integers(4, 9, 2), 3), np.uint8)
        size = tuple(map(int, rng.integers(40, 90, 2)))
        Image.fromarray(coarse).resize(size).save(root / "images" / f"{number}.png")
    return root


def detected(texts, found, image="a.png"):
    """The detector's verdicts on texts."""
    return tuple(
        Verdict(
            image,
            number,
            "detector",
            tuple(
                Signal(phrase, (Span(0, 1),), float(not boxes), float(bool(boxes)), 0.9, not boxes, tuple(boxes))
                for phrase, boxes in found.items()
            ),
        )
        for number, _ in enumerate(texts)
    )


def items(root: Path) -> list[ScoreItem]:
    return [
        ScoreItem(path.name, path, "?", texts, {"detector": detected(texts, found, path.name)})
        for (texts, found), path in zip(WORLD, sorted((root / "images").iterdir()), strict=True)
    ]


def stream(root: Path, *sizes: int, claims: ClaimsConfig | None = None, **changes) -> ClipAttributeStream:
    given = {"model": root / "clip", "batch_size": 3}
    config = ClipAttributesConfig(**given | changes)
    return ClipAttributeStream(open_clip(config.model), config, claims or ClaimsConfig(), PHRASES, mesh(*sizes))
