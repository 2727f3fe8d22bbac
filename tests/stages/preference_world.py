"""A tiny checkpoint, pictures and preferences, for tests of what learns from them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.stages.sft_world import TINY
from tests.tiny_llava import build_checkpoint

NUM_IMAGES = 24
PROMPTS = ("What is on the table?", "Describe the image.")
BETTER, WORSE = (
    ("A red circle.", "There is a cat.", "A large wave."),
    ("A blue dog.", "Two dogs.", "A dog on the grass."),
)


def make_world(root: Path) -> Path:
    """Writes `model/`, `images/`, `captions.json` and `preferences.json`: of an image two or three responses, of which
    those with a dog are worse; and of every sixth no image."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    records, captions = [], {}
    for index in range(NUM_IMAGES):
        name = f"{index:02}.png" if index % 6 != 5 else ""
        if name:
            pixels = rng.integers(0, 256, (*rng.integers(20, 50, 2), 3), np.uint8)
            Image.fromarray(pixels).save(root / "images" / name)
            captions[name] = [f"A cat and {index} circles.", "A table."]
        responses = [str(rng.choice(BETTER)), str(rng.choice(WORSE))]
        ratings = [1.0, 0.0]
        if index % 4 == 3:
            responses.append("A red dog and a cat.")
            ratings = [3.0, 1.0, 2.0]
        order = rng.permutation(len(responses))
        records.append(
            {
                "image": name,
                "prompt": PROMPTS[index % 2],
                "responses": [responses[each] for each in order],
                "ratings": [ratings[each] for each in order],
                "name": f"row-{index}",
            }
        )
    (root / "preferences.json").write_text(json.dumps(records))
    (root / "captions.json").write_text(json.dumps(captions))
    build_checkpoint(root / "model", TINY)
    return root
