"""Two sources of judged descriptions for a tiny LLaVA, some of the same images under other names."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.stages.sft_world import TINY
from tests.tiny_llava import build_checkpoint
from vigor_jax.data.records.annotations import write_annotations
from vigor_jax.records import AnnotatedSentence, Annotation, Span
from vigor_jax.stages.train_reward_config import AnnotationSource, TrainRewardConfig

SETTINGS: dict[str, Any] = {
    "question": "True?",  # short, and all rows have one shape: for the sake of speed
    "epochs": 2,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "eps": 1e-3,
    "held_out": 0.3,
    "max_length": 160,
    "bucket": 160,
    "remat": "none",
    "save_every": 3,
}
WEIGHTS = {"people": 1.0, "bought": 0.5}


def make_world(root: Path) -> Path:
    """Writes `model/` and, of each source, `NAME.jsonl` and `NAME/`: `people` has 12 images, `bought` 10, the last 6 of
    `people` among them, with COCO's names of 2014 in place of those of 2017."""
    rng = np.random.default_rng(0)
    build_checkpoint(root / "model", TINY)
    pixels = rng.integers(0, 256, (16, 30, 40, 3), np.uint8)
    for source, numbers in (("people", range(12)), ("bought", range(6, 16))):
        annotations = []
        for number in numbers:
            name = f"{number:012d}.jpg" if source == "people" else f"val2014/COCO_val2014_{number:012d}.jpg"
            (root / source / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[number]).save(root / source / name)
            annotations += [make_annotation(rng, name) for _ in range(1 + number % 2)]
        write_annotations(root / f"{source}.jsonl", annotations)
    return root


def make_annotation(rng: np.random.Generator, image: str) -> Annotation:
    """Sentences of which those with a dog are wrong."""
    things = rng.choice(["cat", "dog", "wave"], rng.integers(1, 4))
    text, sentences = "", []
    for thing in things:
        start = len(text) + bool(text)
        text += "\n" * bool(text) + f"A {thing}."
        sentences.append(AnnotatedSentence(Span(start, len(text)), ("object",) * (thing == "dog"), "", False))
    return Annotation(image, text, tuple(sentences), None, ())


def make_config(world: Path, **changes: Any) -> TrainRewardConfig:
    sources = tuple(
        AnnotationSource(name, world / f"{name}.jsonl", str(world / name), weight) for name, weight in WEIGHTS.items()
    )
    return TrainRewardConfig(**{"sources": sources, **SETTINGS, **changes})
