"""Random annotations with the characters that go wrong, and a run to ask people about."""

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vigor_jax.data.records.store import write_part
from vigor_jax.feedback.form import ATTRIBUTES, KINDS
from vigor_jax.feedback.judgments import Judgment
from vigor_jax.records import AnnotatedSentence, Annotation, Candidate, Signal, Span, Verdict
from vigor_jax.rewards.sentences import split_sentences

WORDS = (
    "car", '"car"', "'s", "😀", "𝒳", "👨‍👩‍👧", "é", "e\u0301", "\\n", "<b>", "&amp;", "{{x}}", "$image", "日本", "a\tb",
    "\u00a0", "50%",
)  # fmt: skip
GAPS = (" ", "  ", "\n", "\n\n", "\r\n", "\t")


def random_annotation(rng: random.Random, number: int) -> Annotation:
    """Sentences that are parted in many ways, each with any errors."""
    text, spans = rng.choice(("", " ", "\n")), []
    for _ in range(rng.randint(1, 6)):
        start = len(text)
        text += "A " + " ".join(rng.choices(WORDS, k=rng.randint(1, 6))).strip() + rng.choice(".!?")
        spans.append(Span(start, len(text)))
        text += rng.choice(GAPS)
    sentences = []
    for span in spans:
        errors = tuple(rng.sample(list(KINDS), rng.choice((0, 0, 0, 1, 2, 5))))
        attribute = rng.choice(("", *ATTRIBUTES)) if "attribute" in errors else ""
        sentences.append(AnnotatedSentence(span, errors, attribute, rng.random() < 0.3))
    missing = tuple(rng.choice(WORDS).strip() or "x" for _ in range(rng.randint(0, 3)))
    return Annotation(f"{number:03d}.jpg", text, tuple(sentences), rng.choice((None, 1, 5)), missing)


def random_annotations(count: int, seed: int = 0) -> list[Annotation]:
    """No two of one image."""
    rng = random.Random(seed)
    return [random_annotation(rng, number) for number in range(count)]


def annotation(text: str, *judged: Sequence[str], image: str = "a.jpg", **others: object) -> Annotation:
    """A description whose sentences have the errors that are given, "attribute:color" and "creative" among them."""
    sentences = []
    for span, own in zip(split_sentences(text), judged, strict=True):
        named = [each.partition(":") for each in own if each != "creative"]
        attribute = next((name for _, _, name in named if name), "")
        errors = tuple(kind for kind, _, _ in named)
        sentences.append(AnnotatedSentence(span, errors, attribute, "creative" in own))  # type: ignore[arg-type]
    return Annotation(image, text, tuple(sentences), **others)  # type: ignore[arg-type]


def judgments(*said: tuple[str, Annotation]) -> list[Judgment]:
    """What people said, in order, a minute apart."""
    return [
        Judgment(who, what, str(number), 30.0, f"2026-05-01T{number // 60:02d}:{number % 60:02d}:00Z")
        for number, (who, what) in enumerate(said)
    ]


TEXT = "A red car waits at the left. A dog sleeps. He may wait for a friend."


def write_run(folder: Path) -> tuple[Path, Path]:
    """A run with three candidates of two images, two of them alike, and verdicts on them; and the images."""
    candidates = [
        Candidate("a.png", "?", 0, TEXT, (1,), -0.1, "stop"),
        Candidate("a.png", "?", 1, TEXT, (1,), -0.1, "stop"),
        Candidate("deep/b 1.png", "?", 0, 'Two "cats".\nThey 😀 sit.', (1,), -0.1, "stop"),
    ]
    color = Signal("car: red", (Span(2, 5),), 1, 0, 0.1, absent=True, kind="attribute")
    dog = Signal("dog", (Span(31, 34),), 1, 0, 0.1, absent=True)
    guess = Signal("0 conjecture", (Span(43, 68),), 0.9, 0.1, 0.1)
    found = {"claims": [color], "detector": [dog], "reward_model": [guess]}
    run, images = folder / "run", folder / "photos"
    write_part(run / "candidates", 0, 1, candidates, Candidate)
    for stream, signals in found.items():
        verdicts = [
            Verdict(each.image, each.candidate, stream, tuple(signals) if each.text == TEXT else ())
            for each in candidates
        ]
        write_part(run / "verdicts" / stream, 0, 1, verdicts, Verdict)
    for name in ("a.png", "deep/b 1.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (640, 480), "firebrick").save(images / name)
    return run, images
