"""AMBER: descriptions of 1,004 images against what is and is not in them, and 14,216 questions (Wang et al. 2023).

The figures are those of the authors' script `inference.py`, without its constants: it adds 0.001 to what it divides by,
and rounds precision and recall to a tenth of a percent before it makes F1 of them. `as_published` has what it prints.
Cog is what the script computes, the share of the likely hallucinations of each image that its description mentions; the
paper divides by the objects that the description mentions instead.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.amber_nouns import SimilarWords
from vigor_jax.evaluation.benchmarks.first_word import YesNo, read_answer
from vigor_jax.evaluation.bootstrap import ratio

Kind: TypeAlias = Literal["existence", "state", "number", "action", "relation"]
KINDS: tuple[Kind, ...] = ("existence", "state", "number", "action", "relation")
# The script's tables: of all questions, and of those of some kinds.
TABLES: Mapping[str, tuple[Kind, ...]] = {
    "discriminative": KINDS,
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "state": ("state",),
    "number": ("number",),
    "action": ("action",),
    "relation": ("relation",),
}
Parser: TypeAlias = Callable[[str], YesNo | None]


@dataclass(frozen=True)
class AmberImage:
    """An image to describe.

    Attributes:
        id: The benchmark's number.
        image: File name.
        query: "Describe this image."
        truth: The objects in it.
        hallucinations: Objects that are not in it, and that models tend to see there.
    """

    id: int
    image: str
    query: str
    truth: tuple[str, ...]
    hallucinations: tuple[str, ...]


@dataclass(frozen=True)
class AmberQuestion:
    """A question with yes or no for an answer.

    Attributes:
        id: The benchmark's number.
        image: File name.
        query: "Is the sky sunny in this image?"
        kind: What it is about.
        truth: The right answer. In half of the questions and more it is no: these ask for a hallucination.
    """

    id: int
    image: str
    query: str
    kind: Kind
    truth: YesNo


@dataclass(frozen=True)
class Words:
    """Which words are the same object.

    Attributes:
        associations: Object → other words for it. Nouns that are neither are not looked at.
        safe: Words that are never a hallucination.
    """

    associations: Mapping[str, tuple[str, ...]]
    safe: frozenset[str]

    @property
    def known(self) -> frozenset[str]:
        """All objects and other words."""
        return frozenset(self.associations) | {word for words in self.associations.values() for word in words}


@dataclass(frozen=True)
class CheckedDescription:
    """A description against its image.

    Attributes:
        image: File name.
        nouns: Those that are known, in order, each as often as it stands there.
        hallucinated: Of each, whether it is not in the image.
        covered: Objects in the image that it mentions.
        objects: Objects in the image.
        likely: Of the image's likely hallucinations, how many it mentions.
        hallucinations: The image's likely hallucinations.
        words: Words of the description, cut at white space; boxes are none.
    """

    image: str
    nouns: tuple[str, ...]
    hallucinated: tuple[bool, ...]
    covered: int
    objects: int
    likely: int
    hallucinations: int
    words: int


# The last axis of the counts of descriptions, and of those of answers: "no_to_yes" is a no where yes is right.
DESCRIBED = (
    "descriptions", "hallucinated_descriptions", "nouns", "hallucinated", "objects", "covered", "hallucinations",
    "likely", "words",
)  # fmt: skip
ANSWERED = ("no_to_no", "no_to_yes", "yes_to_no", "yes_to_yes", "unread_to_no", "unread_to_yes")


def check_description(
    image: AmberImage, text: str, nouns: Sequence[str], words: Words, similar: SimilarWords
) -> CheckedDescription:
    """Compares a description with its image, as the script does.

    A noun is looked for among the words for what is in the image, then among those for likely hallucinations. One that
    is not found among the first counts for a likely hallucination that it is similar to, and is no hallucination if it
    is similar to a word for what is there.

    Args:
        image: What is and is not in it.
        text: The description.
        nouns: Of the text, see `amber_nouns.NounReader`.
        words: Which words are the same object.
        similar: Which other words are nearly the same.
    """
    there, likely = _Found(image.truth, words, similar), _Found(image.hallucinations, words, similar)
    known = [noun for noun in nouns if noun in words.known]
    hallucinated = []
    for noun in known:
        if noun in words.safe or there.mention(noun):
            hallucinated.append(False)
            continue
        likely.mention(noun)
        likely.mention_similar(noun)
        hallucinated.append(not there.mention_similar(noun))
    return CheckedDescription(
        image=image.image,
        nouns=tuple(known),
        hallucinated=tuple(hallucinated),
        covered=len(there.mentioned),
        objects=len(image.truth),
        likely=len(likely.mentioned),
        hallucinations=len(image.hallucinations),
        words=len(without_boxes(text).split()),
    )


class _Found:
    """Which of some objects are mentioned: by one of their other words, these come first, or by their own."""

    def __init__(self, objects: Sequence[str], words: Words, similar: SimilarWords) -> None:
        # In the script's order: the first that fits counts.
        self._names = [(word, place) for place, name in enumerate(objects) for word in words.associations[name]]
        self._names += [(name, place) for place, name in enumerate(objects)]
        self._similar = similar
        self.mentioned: set[int] = set()

    def mention(self, noun: str) -> bool:
        return self._first(place for word, place in self._names if word == noun)

    def mention_similar(self, noun: str) -> bool:
        return self._first(place for word, place in self._names if self._similar(noun, word))

    def _first(self, places: Iterable[int]) -> bool:
        place = next(iter(places), None)
        if place is not None:
            self.mentioned.add(place)
        return place is not None


def read_answer_strict(text: str) -> YesNo | None:
    """Yes or no as the script reads it: "Yes" or "No" and nothing else."""
    return "yes" if text == "Yes" else "no" if text == "No" else None


def count_descriptions(checked: Sequence[CheckedDescription]) -> dict[str, np.ndarray]:
    """Image → int64 [9], the sums of `DESCRIBED`; `np.array(list(....values()))` is for `bootstrap`."""
    counts: dict[str, np.ndarray] = {}
    for one in checked:
        row = [1, any(one.hallucinated), len(one.nouns), sum(one.hallucinated), one.objects, one.covered]
        row += [one.hallucinations, one.likely, one.words]
        counts[one.image] = counts.get(one.image, 0) + np.array(row, np.int64)
    return counts


def description_rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 9] → chair, cover, hal, cog, each a share, and words, a mean; each float64 [...].

    chair: nouns that are hallucinated / nouns that are known. cover: objects in the images that their descriptions
    mention / objects. hal: descriptions with a hallucination / descriptions. cog: likely hallucinations mentioned /
    likely hallucinations.
    """
    column = dict(zip(DESCRIBED, np.moveaxis(np.asarray(counts), -1, 0), strict=True))
    return {
        "chair": ratio(column["hallucinated"], column["nouns"]),
        "cover": ratio(column["covered"], column["objects"]),
        "hal": ratio(column["hallucinated_descriptions"], column["descriptions"]),
        "cog": ratio(column["likely"], column["hallucinations"]),
        "words": ratio(column["words"], column["descriptions"]),
    }


def count_answers(
    questions: Sequence[AmberQuestion], answers: Sequence[str], parser: Parser = read_answer
) -> dict[str, np.ndarray]:
    """Image → int64 [5, 6], how many of its answers are of each of `KINDS` and `ANSWERED`.

    Raises:
        InputError: Not as many answers as questions.
    """
    if len(questions) != len(answers):
        raise InputError(f"AMBER: expected an answer to each of {len(questions)} questions, got {len(answers)}")
    counts: dict[str, np.ndarray] = {}
    for question, answer in zip(questions, answers, strict=True):
        outcome = f"{parser(answer) or 'unread'}_to_{question.truth}"
        own = counts.setdefault(question.image, np.zeros((len(KINDS), len(ANSWERED)), np.int64))
        own[KINDS.index(question.kind), ANSWERED.index(outcome)] += 1
    return counts


def answer_rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 6] → accuracy, precision, recall, f1 and yes_ratio, float64 [...]; "no" is what is to be found."""
    column = dict(zip(ANSWERED, np.moveaxis(np.asarray(counts), -1, 0), strict=True))
    total = np.sum(counts, -1)
    precision = ratio(column["no_to_no"], column["no_to_no"] + column["no_to_yes"])
    recall = ratio(column["no_to_no"], column["no_to_no"] + column["yes_to_no"] + column["unread_to_no"])
    return {
        "accuracy": ratio(column["no_to_no"] + column["yes_to_yes"], total),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": ratio(column["yes_to_no"] + column["yes_to_yes"], total),
    }


def tables(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 5, 6] → those of each of `TABLES` that has questions, int64 [..., 6]."""
    found = {
        name: np.sum([counts[..., KINDS.index(kind), :] for kind in kinds], axis=0) for name, kinds in TABLES.items()
    }
    return {name: own for name, own in found.items() if np.any(own)}


def amber_score(chair: float, f1: float) -> float:
    """Both tasks in one figure, (1 - CHAIR + F1) / 2, of 1 (the paper calls it AMBER Score)."""
    return (1 - chair + f1) / 2


def descriptions_as_published(counts: np.ndarray) -> dict[str, float]:
    """Sums [9] → CHAIR, Cover, Hal and Cog in percent, to the digit that the script prints."""
    of = dict(zip(DESCRIBED, (float(number) for number in counts), strict=True))
    faithful = of["descriptions"] - of["hallucinated_descriptions"]
    return {
        "CHAIR": _percent(of["hallucinated"], of["nouns"]),
        "Cover": _percent(of["covered"], of["objects"]),
        "Hal": round(100 - faithful / (of["descriptions"] + _ADDED) * 100, 1),
        "Cog": _percent(of["likely"], of["hallucinations"]),
    }


def answers_as_published(counts: np.ndarray, table: str) -> dict[str, float]:
    """Sums [6] of one of `TABLES` → accuracy, precision, recall and F1 in percent, to the digit that is printed."""
    of = dict(zip(ANSWERED, (float(number) for number in counts), strict=True))
    added = 3 if table == "attribute" else 1  # its sums are those of three kinds, each with the constant
    precision = _percent(of["no_to_no"], of["no_to_no"] + of["no_to_yes"], added)
    recall = _percent(of["no_to_no"], of["no_to_no"] + of["yes_to_no"] + of["unread_to_no"], added)
    both = precision / 100 + recall / 100 + (0.001 if table == "existence" else 0.0001)
    return {
        "Accuracy": _percent(of["no_to_no"] + of["yes_to_yes"], sum(of.values()), added),
        "Precision": precision,
        "Recall": recall,
        "F1": round(2 * (precision / 100) * (recall / 100) / both * 100, 1),
    }


# What the script adds to each number that it divides by.
_ADDED = 0.001


def _percent(part: float, whole: float, added: int = 1) -> float:
    return round(part / (whole + added * _ADDED) * 100, 1)
