"""Several judgments of a description as one: by majority, or by weight.

First whether a sentence is wrong at all, then, among those who say so, which kinds of error it has: three people who
name three kinds agree that it is wrong. A vote that is even decides nothing and is listed. Where it is about a sentence
that is wrong or not, or about the kinds, the description is left out, since a reward model learns from whole ones.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from vigor_jax.feedback.form import KINDS
from vigor_jax.feedback.judgments import Judgment
from vigor_jax.records import AnnotatedSentence, Annotation, ErrorType, Span


class Undecided(NamedTuple):
    """A vote that was even.

    Attributes:
      image: of the description.
      description: the text.
      sentence: it is about, from 1.
      text: of the sentence.
      what: "error" (is it wrong?), "kinds" (how?), "creative", or "sentences": people judged other ones.
      votes: each person's answer.
      is_left_out: the description is not among the annotations.
    """

    image: str
    description: str
    sentence: int
    text: str
    what: str
    votes: dict[str, str]
    is_left_out: bool


class Adjudicated(NamedTuple):
    """The judgments put together.

    Attributes:
      annotations: one a description, in the order in which they were first judged.
      undecided: votes that were even.
    """

    annotations: list[Annotation]
    undecided: list[Undecided]


def adjudicate(judgments: Iterable[Judgment], weights: Mapping[str, float] = MappingProxyType({})) -> Adjudicated:
    """Puts judgments together.

    What one person alone judged stays as it is. Of several, the level of detail is the lower median, and what is
    missing is whatever anybody names, in the order of naming.

    Args:
      judgments: at most one of a person and a description.
      weights: of people's votes, 1 where none is given; a vote of weight 0 does not count.
    """
    grouped: dict[tuple[str, str], list[Judgment]] = {}
    for judgment in judgments:
        if weights.get(judgment.annotator, 1.0) > 0:
            grouped.setdefault(judgment.key, []).append(judgment)
    found = Adjudicated([], [])
    for group in grouped.values():
        undecided: list[Undecided] = []
        annotation = _together(group, weights, undecided)
        if annotation and not any(each.is_left_out for each in undecided):
            found.annotations.append(annotation)
        found.undecided.extend(undecided)
    return found


class _Vote(NamedTuple):
    who: str
    weight: float
    sentence: AnnotatedSentence


def _together(group: Sequence[Judgment], weights: Mapping[str, float], undecided: list[Undecided]) -> Annotation | None:
    first = group[0].annotation
    if len(group) == 1:
        return first

    def doubt(number: int, span: Span, what: str, votes: dict[str, str], is_left_out: bool) -> None:
        text = first.description[slice(*span)]
        undecided.append(Undecided(first.image, first.description, number, text, what, votes, is_left_out))

    spans = [sentence.span for sentence in first.sentences]
    if other := [each for each in group if [sentence.span for sentence in each.annotation.sentences] != spans]:
        counts = {each.annotator: f"{len(each.annotation.sentences)} sentences" for each in (group[0], *other)}
        doubt(1, spans[0], "sentences", counts, True)
        return None
    sentences = []
    for number, span in enumerate(spans, 1):
        votes = [
            _Vote(each.annotator, weights.get(each.annotator, 1.0), each.annotation.sentences[number - 1])
            for each in group
        ]
        told = {vote.who: ", ".join(vote.sentence.errors) or "no error" for vote in votes}
        is_wrong = _majority(votes, lambda sentence: bool(sentence.errors))
        wrong = [vote for vote in votes if vote.sentence.errors]
        shares = {kind: _majority(wrong, lambda sentence, kind=kind: kind in sentence.errors) for kind in KINDS}  # type: ignore[misc]
        errors: tuple[ErrorType, ...] = tuple(kind for kind in KINDS if shares[kind])
        if is_wrong is None:
            doubt(number, span, "error", told, True)
        elif is_wrong and (not errors or None in shares.values()):
            doubt(number, span, "kinds", told, True)
        is_creative = _majority(votes, lambda sentence: sentence.creative)
        if is_creative is None:
            said = {vote.who: "creative" if vote.sentence.creative else "not creative" for vote in votes}
            doubt(number, span, "creative", said, False)
        errors = errors if is_wrong else ()
        attribute = _attribute(wrong) if "attribute" in errors else ""
        sentences.append(AnnotatedSentence(span, errors, attribute, bool(is_creative)))
    details = [each.annotation.detail for each in group if each.annotation.detail is not None]
    missing: dict[str, str] = {}
    for each in group:
        for item in each.annotation.missing:
            missing.setdefault(" ".join(item.split()).casefold(), item)
    detail = statistics.median_low(details) if details else None
    return Annotation(first.image, first.description, tuple(sentences), detail, tuple(missing.values()))


def _majority(votes: Sequence[_Vote], says: Callable[[AnnotatedSentence], bool]) -> bool | None:
    """Whether more than half of the weight says so; None if it is half."""
    total = sum(vote.weight for vote in votes)
    share = sum(vote.weight for vote in votes if says(vote.sentence))
    return None if 2 * share == total and votes else 2 * share > total


def _attribute(votes: Sequence[_Vote]) -> str:
    """The attribute that more than half of those name who name any; "" if there is none."""
    named = [vote for vote in votes if vote.sentence.attribute]
    for name in dict.fromkeys(vote.sentence.attribute for vote in named):
        if _majority(named, lambda sentence, name=name: sentence.attribute == name):  # type: ignore[misc]
            return name
    return ""
