"""The language of the demo: statements to sentences and back, what is wrong with them, and questions."""

import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.demo.scenes import COLORS, PLACES, SHAPES, Scene, Statement

# What no detector of things sees, color, number and place, comes after the thing: it is looked up, not planned ahead.
SINGULAR = (
    "there is {thing} {place}.",
    "we see {thing} {place}.",
    "{thing} is {place}.",
)
PLURAL = (
    "there are {things}, {number} of them.",
    "we see {things}, {number} in all.",
    "{things} can be seen, {number} of them.",
)
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
# Penn Treebank tags of all words but colors and shapes, as the sentences use them.
TAGS = {
    **dict.fromkeys(("a", "an", "the", "no"), "DT"),
    **dict.fromkeys(("at", "on", "in", "of"), "IN"),
    **dict.fromkeys(("top", "bottom", "left", "right", "middle"), "NN"),
    **dict.fromkeys(NUMBERS[1:], "CD"),
    "there": "EX",
    "is": "VBZ",
    "are": "VBP",
    "we": "PRP",
    "see": "VBP",
    "can": "MD",
    "be": "VB",
    "seen": "VBN",
    "them": "PRP",
    "all": "DT",
    ".": ".",
    ",": ",",
}

PROMPTS = (
    "Describe this image in detail.",
    "What do you see in this picture? Give a detailed description.",
    "Write a thorough description of the image.",
)

ErrorKind = Literal["object", "color", "count", "place"]
QuestionKind = Literal["existence", "count", "position", "color"]  # MME's spelling


class Sentence(NamedTuple):
    """One sentence of a caption.

    Attributes:
      text: its words.
      statement: what it says; None if it is none of the demo's.
    """

    text: str
    statement: Statement | None


def say(statement: Statement, form: int) -> str:
    """A statement in words.

    Args:
      statement: of any truth.
      form: which of the forms; any number.
    """
    if statement.number == 1:
        thing = f"{article(statement.shape)} {statement.shape} in {statement.color}"
        words = SINGULAR[form % len(SINGULAR)].format(place=statement.place, thing=thing)
    else:
        things, number = f"{plural(statement.shape)} in {statement.color}", NUMBERS[statement.number]
        words = PLURAL[form % len(PLURAL)].format(things=things, number=number)
    return words[0].upper() + words[1:]


def parse(caption: str) -> list[Sentence]:
    """The sentences of a caption, without boxes, and what they say."""
    parts = (part.strip() for part in re.findall(r"[^.]+\.?", without_boxes(caption)))
    return [Sentence(part, _parse_sentence(part)) for part in parts if part]


def errors(statement: Statement, scene: Scene) -> tuple[ErrorKind, ...]:
    """What is wrong with a statement; of what is not there, nothing else is asked."""
    own = [item for item in scene.objects if item.shape == statement.shape]
    if not own:
        return ("object",)
    found: list[ErrorKind] = []
    if statement.color != own[0].color:
        found.append("color")
    if statement.number > 1 and statement.number != len(own):
        found.append("count")
    if statement.place is not None and statement.place not in scene.places(statement.shape):
        found.append("place")
    return tuple(found)


def question(kind: QuestionKind, statement: Statement) -> str:
    """A yes-or-no question about one property of what a statement says."""
    shape, color = statement.shape, statement.color
    if kind == "existence":
        return f"Is there {article(shape)} {shape} in the image?"
    if kind == "color":
        return f"Is there {article(shape)} {shape} in {color}?"
    if kind == "position":
        return f"Is there {article(shape)} {shape} {statement.place}?"
    if statement.number == 1:
        return f"Is there one {shape} in the image?"
    return f"Are there {NUMBERS[statement.number]} {plural(shape)} in the image?"


def open_question(kind: QuestionKind, truth: Statement) -> tuple[str, str]:
    """A question after one property of a thing, and what is true."""
    shape = truth.shape
    if kind == "count":
        return f"How many {plural(shape)} are in the image?", f"{NUMBERS[truth.number].capitalize()}."
    if kind == "position":
        return f"Where is the {shape} in the image?", f"{(truth.place or '').capitalize()}."
    if kind == "color":
        return f"What color has the {shape} in the image?", f"{truth.color.capitalize()}."
    return question(kind, truth), "Yes."


def inventory(scene: Scene, order: Iterable[str]) -> str:
    """All that there is to say of each shape, whether it is there or not, right behind its name.

    What is to be looked up is asked for by the latest word, which is learned fast; what takes two hops of attention,
    such as the answer to a question, is then learned upon it.
    """
    truths = {truth.shape: truth for truth in scene.statements}
    parts = []
    for shape in order:
        truth = truths.get(shape)
        known = (NUMBERS[truth.number], truth.color, truth.place or "") if truth else (NUMBERS[0],)
        parts.append(f"{shape} {' '.join(filter(None, known))}.")
    return " ".join(parts)


def article(word: str) -> str:
    """What stands before a word: "a" or "an"."""
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str) -> str:
    """Several of a shape."""
    return f"{shape}es" if shape.endswith("ss") else f"{shape}s"


def tagged_sentences(rng: np.random.Generator, count: int) -> Iterator[list[tuple[str, str]]]:
    """Sentences of the demo with each word's tag, to teach a tagger."""
    tags = TAGS | dict.fromkeys(COLORS, "JJ") | dict.fromkeys(SHAPES, "NN") | {plural(s): "NNS" for s in SHAPES}
    for _ in range(count):
        number = int(rng.integers(1, 4))
        place = str(rng.choice(PLACES)) if number == 1 else None
        statement = Statement(str(rng.choice(SHAPES)), str(rng.choice(COLORS)), number, place)
        words = re.findall(r"\w+|[.,]", say(statement, int(rng.integers(12))).lower())
        yield [(word, tags[word]) for word in words]


def _parse_sentence(text: str) -> Statement | None:
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(text.lower()):
            found = match.groupdict()
            shape = found["shape"] if found["shape"] in SHAPES else _SINGULARS[found["shape"]]
            return Statement(shape, found["color"], NUMBERS.index(found.get("number") or "one"), found.get("place"))
    return None


def _pattern(form: str) -> re.Pattern[str]:
    colors, shapes, plurals = "|".join(COLORS), "|".join(SHAPES), "|".join(map(plural, SHAPES))
    # The longest first: "at the top" begins "at the top left" too.
    places = "|".join(sorted(PLACES, key=len, reverse=True))
    return re.compile(
        form.replace(".", r"\.").format(
            place=f"(?P<place>{places})",
            thing=f"an? (?P<shape>{shapes}) in (?P<color>{colors})",
            things=f"(?P<shape>{plurals}) in (?P<color>{colors})",
            number=f"(?P<number>{'|'.join(NUMBERS[2:])})",
        )
    )


_PATTERNS = tuple(map(_pattern, SINGULAR + PLURAL))
_SINGULARS = {plural(shape): shape for shape in SHAPES}
