"""A tiny checkpoint, pictures, and a reward stream of words, for tests of PPO."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from tests.stages.sft_world import BUILD
from vigor_jax.records import ScoreItem, Signal, Span, Verdict

PROMPTS = ("What is on the table?", "Describe the image.")


class Letters:
    """Words with an "a" are good, others with an "o" bad; all others are not spoken of."""

    name = "letters"
    digest = hashlib.sha256(b"letters").hexdigest()

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        for item in items:
            yield [Verdict(item.image, i, self.name, tuple(signals(text))) for i, text in enumerate(item.texts)]


def signals(text: str) -> Iterator[Signal]:
    spans: dict[str, list[Span]] = {}
    for word in re.finditer(r"\w+", text):
        spans.setdefault(word.group(), []).append(Span(*word.span()))
    for word, places in spans.items():
        is_good = "a" in word.lower()
        if is_good or "o" in word.lower():
            yield Signal(word, tuple(places), float(not is_good), float(is_good), 0.5, absent=not is_good)


class Watched(Letters):
    """Like it; its digest is that of a file, and it counts how often it was opened."""

    name = "watched"
    opened: ClassVar[list[str]] = []

    def __init__(self, file: str) -> None:
        self.digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()

    def __enter__(self) -> "Watched":
        self.opened.append(self.digest)
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Silent(Letters):
    """Says nothing."""

    name = "silent"

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        for item in items:
            yield [Verdict(item.image, i, self.name, ()) for i in range(len(item.texts))]


class Broken(Letters):
    """Gives rewards that are no numbers."""

    name = "broken"

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        for item in items:
            one = Signal("word", (Span(0, 1),), 0.0, float("nan"), 0.5)
            yield [Verdict(item.image, i, self.name, (one,)) for i in range(len(item.texts))]


def make_world(root: Path, *, images: int, family: str = "llava") -> Path:
    """Writes `model/`, `images/` and `data.json`, which asks a question about each."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    records = []
    for index in range(images):
        height, width = rng.integers(20, 50, 2)
        name = f"{index:02}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / "images" / name)
        turns = [("human", f"<image>\n{PROMPTS[index % 2]}"), ("gpt", "A cat.")]
        conversation = [{"from": who, "value": text} for who, text in turns]
        records.append({"id": str(index), "image": name, "conversations": conversation})
    (root / "data.json").write_text(json.dumps(records))
    BUILD[family](root / "model")
    return root
