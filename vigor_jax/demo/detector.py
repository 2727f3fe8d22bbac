"""Makes the demo's detector: lessons from drawn scenes, training in a separate process, and a test of the sidecar.

PyTorch is the other process's: this one draws, `detector_bridge.miniature` trains, and the sidecar is asked.
"""

import io
import itertools
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from detector_bridge.client import BlockingClient, ClientConfig
from detector_bridge.local import LocalConfig, LocalDetector
from detector_bridge.messages import Request
from vigor_jax.demo.detector_data import Phrase, write_lessons
from vigor_jax.demo.detector_files import write_card, write_processor
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.scenes import COLORS, SHAPES, Scene, make_scene

NUM_STEPS = 5000
NUM_PICTURES = 30_000
BATCH_SIZE = 32
NUM_TEST_SCENES = 1000
SIDECAR_OPTIONS = ("--batch-size", "16")


def build_detector(
    out: Path,
    *,
    num_steps: int = NUM_STEPS,
    seed: int = 0,
    num_pictures: int = NUM_PICTURES,
    num_test_scenes: int = NUM_TEST_SCENES,
) -> None:
    """Trains the detector on one core, tests it, and writes a directory that transformers and the sidecar load.

    The same seed gives the same weights on the same machine with the same versions.

    Args:
      out: directory, made where there is none: config.json, model.safetensors (float16), the files of processor and
        tokenizer, README.md.
      num_steps: updates.
      seed: of scenes, prompts and weights; the next one draws the scenes of the test.
      num_pictures: scenes drawn beforehand; each is seen several times, with other prompts.
      num_test_scenes: scenes of the test.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lessons = Path(folder) / "lessons.npz"
        write_lessons(lessons, num_steps, BATCH_SIZE, num_pictures, np.random.default_rng(seed))
        command = [sys.executable, "-m", "detector_bridge.miniature", "--lessons", lessons, "--out", out]
        subprocess.run([*map(str, command), "--seed", str(seed)], check=True)
    write_processor(out)
    minutes = (time.monotonic() - start) / 60
    accuracy = evaluate_detector(out, num_scenes=num_test_scenes, seed=seed + 1)
    training = {"num_steps": num_steps, "batch_size": BATCH_SIZE, "num_pictures": num_pictures, "seed": seed}
    write_card(out, {**training, "minutes": minutes}, accuracy)
    print(
        f"wrote {out}: right about {accuracy['overall']:.2%} of nouns, {accuracy['attributes']:.2%} of phrases with a "
        f"color; {minutes:.1f} minutes of training on one core"
    )


def evaluate_detector(directory: Path, *, num_scenes: int, seed: int) -> dict[str, Any]:
    """How often the sidecar says rightly whether something is there, on new scenes of the demo.

    Each scene is asked about all twelve nouns in one request, and about colored nouns in another, at the default
    thresholds of 0.25.

    Args:
      directory: as `build_detector` writes it.
      num_scenes: of the test.
      seed: of the scenes; another one than that of the training.

    Returns:
      "num_scenes", "seed", and shares of right answers: "overall" and "nouns" (noun → share); "attributes", of phrases
      with a color, and its parts "true", "wrong color" and "absent".
    """
    rng = np.random.default_rng(seed)
    scenes = [make_scene(rng) for _ in range(num_scenes)]
    asked = [colored_phrases(scene, rng) for scene in scenes]
    nouns, attributes = defaultdict(list), defaultdict(list)
    local = LocalConfig(directory, options=SIDECAR_OPTIONS)
    with LocalDetector(local) as sidecar, BlockingClient(ClientConfig((sidecar.address,))) as client:
        futures = [
            [client.submit(Request(image, tuple(rng.permutation(SHAPES).tolist()))), client.submit(Request(image, own))]
            for image, own in (
                (_encode(scene), tuple(phrase.text for phrase, _ in phrases))
                for scene, phrases in zip(scenes, asked, strict=True)
            )
        ]
        for scene, phrases, (about_nouns, about_colors) in zip(scenes, asked, futures, strict=True):
            found = {each.phrase: each.present for each in about_nouns.result().detections}
            for noun in SHAPES:
                nouns[noun].append(found[noun] == any(item.shape == noun for item in scene.objects))
            found = {each.phrase: each.present for each in about_colors.result().detections}
            for phrase, kind in phrases:
                attributes[kind].append(found[phrase.text] == (kind == "true"))
    return {
        "num_scenes": num_scenes,
        "seed": seed,
        "overall": float(np.mean(list(nouns.values()))),
        "nouns": {noun: float(np.mean(right)) for noun, right in nouns.items()},
        "attributes": float(np.mean([*itertools.chain.from_iterable(attributes.values())])),
        **{kind: float(np.mean(right)) for kind, right in attributes.items()},
    }


def colored_phrases(scene: Scene, rng: np.random.Generator) -> list[tuple[Phrase, str]]:
    """Three for each shape in a scene: what is "true", in a "wrong color" (often one that is there), and "absent"."""
    own = {item.shape: item.color for item in scene.objects}
    absent = rng.permutation([shape for shape in SHAPES if shape not in own])
    phrases = []
    for (shape, color), other in zip(own.items(), absent.tolist(), strict=False):
        wrong = [c for c in (*COLORS, *own.values(), *own.values()) if c != color]
        phrases += [
            (Phrase(color, shape), "true"),
            (Phrase(str(rng.choice(wrong)), shape), "wrong color"),
            (Phrase(str(rng.choice(list(own.values()))), other), "absent"),
        ]
    return phrases


def _encode(scene: Scene) -> bytes:
    file = io.BytesIO()
    draw(scene).save(file, "PNG")
    return file.getvalue()
