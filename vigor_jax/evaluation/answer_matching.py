"""Which saved answer is to which question: by id, else by image and words, else by their order.

What is missing or double is an error that names it; answers to other questions are counted, named and left out.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path

from vigor_jax.errors import InputError, some
from vigor_jax.evaluation.image_names import ImageNames
from vigor_jax.evaluation.saved_answers import SPLITS, SavedAnswer, read_saved
from vigor_jax.evaluation.wording import SUFFIXES

logger = logging.getLogger(__name__)

_NAMED = 3


@dataclass(frozen=True)
class Asked:
    """A question, as far as its answer is known by it.

    Attributes:
        ids: What the benchmark and tools call it; the first is for messages.
        image: Its image; None: it has none.
        words: The question itself, without options and without what a protocol adds; empty where it is not known, and
            then nothing is checked against it.
        body: The question with its options.
        options: Texts of the options, A first.
        split: Of POPE.
    """

    ids: tuple[str, ...]
    image: str | None
    words: str
    body: str = ""
    options: tuple[str, ...] = ()
    split: str | None = None


@dataclass(frozen=True)
class Matched:
    """Each question's answer.

    Attributes:
        answers: In the order of the questions.
        extra: Answers to none of them.
    """

    answers: list[SavedAnswer]
    extra: list[SavedAnswer]

    @property
    def texts(self) -> list[str]:
        """What the model said, in the order of the questions."""
        return [answer.text for answer in self.answers]


def match(answers: Sequence[SavedAnswer], asked: Sequence[Asked], source: str) -> Matched:
    """Finds each question's answer.

    An answer goes by its id if the benchmark has it, and is no answer to that question if its image, words or options
    are others. Without such an id it goes by image and words, or by the words alone where only one question has them.
    If nothing in the file says which question is meant, the order does; words that are there are checked.

    Args:
        answers: Of one system.
        asked: Questions; of two that are the same, one answer is enough.
        source: Names the answers, in messages.

    Raises:
        InputError: A question has no answer, or two; the first few are named. Or there is no telling which question
            the answers are to.
    """
    found = _Finder(asked)
    places: dict[int, list[SavedAnswer]] = defaultdict(list)
    extra = []
    for answer in answers:
        mine = found.places(answer)
        for place in mine:
            places[place].append(answer)
        if not mine:
            extra.append(answer)
    missing = [place for place in range(len(asked)) if place not in places]
    if missing and (in_order := _in_order(answers, asked, found)):
        return in_order
    if not places:
        raise InputError(_why_not_in_order(answers, asked, found, source))
    _share_out(places)
    _refuse_double(places, asked, source)
    if missing:
        near = next((text for answer in extra if (text := found.contradiction(answer, set(missing)))), "")
        raise InputError(
            f"{source}: expected {len(asked)} answers, {len(missing)} are missing, to question "
            f"{some((asked[place].ids[0] for place in missing), _NAMED)}{near}"
        )
    return Matched([places[place][0] for place in range(len(asked))], extra)


def read_answers(paths: Iterable[Path], asked: Sequence[Asked]) -> Matched:
    """Reads saved answers and matches them; a warning tells of answers to other questions.

    Args:
        paths: One system's file or files.
        asked: As for `match`.

    Raises:
        InputError: As `saved_answers.read_saved` and `match`.
    """
    paths = list(paths)
    source = ", ".join(map(str, paths))
    matched = match(read_saved(paths), asked, source)
    tell_extra(matched.extra, source)
    return matched


def tell_extra(extra: Sequence[SavedAnswer], source: str) -> None:
    """Warns that answers are left out."""
    if extra:
        logger.warning(
            "%s: %d answers are to nothing that is asked here and are left out: %s",
            source, len(extra), some((answer.id or answer.image or answer.place for answer in extra), _NAMED),
        )  # fmt: skip


def plain(text: str) -> str:
    """Words as they are compared: without the place of the image, in lower case, with single spaces."""
    return " ".join(text.replace("<image>", " ").split()).casefold()


class _Finder:
    """Looks questions up."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self.asked = asked
        self.words = [plain(one.words) for one in asked]
        self._bodies = [plain(one.body or one.words) for one in asked]
        # Questions with the same key are the same question.
        self._keys = [(one.image, body, one.options) for one, body in zip(asked, self._bodies, strict=True)]
        self.images = ImageNames(one.image for one in asked if one.image is not None)
        self._by_id: dict[str, list[int]] = defaultdict(list)
        self._by_image: dict[str, list[int]] = defaultdict(list)
        for place, one in enumerate(asked):
            for called in one.ids:
                self._by_id[called].append(place)
            if one.image is not None:
                self._by_image[one.image].append(place)

    @cached_property
    def _by_words(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for place, one in enumerate(self.asked):
            # What LLaVA-1.5 adds is known; other words around a question need an id or an image.
            for words in {self.words[place], self._bodies[place], *(plain(f"{one.body}\n{end}") for end in SUFFIXES)}:
                found[words].append(place)
        return found

    def places(self, answer: SavedAnswer) -> list[int]:
        """The questions that an answer may be to; all are the same but for an id."""
        if answer.id is not None and (places := self._called(answer.id, answer)) is not None:
            return self._narrow(places, answer)
        # MME's and LLaVA's ids of it are names of images.
        called = answer.image or (None if (answer.id or "0").isdecimal() else answer.id)
        if called is not None and (answer.image is not None or self.images.find(called)):
            return self._narrow([p for image in self.images.find(called) for p in self._by_image[image]], answer)
        return self._one(self._by_words.get(plain(answer.question), [])) if answer.question else []

    def _one(self, places: Sequence[int]) -> list[int]:
        return list(places) if len({self._keys[place] for place in places}) == 1 else []

    def _called(self, called: str, answer: SavedAnswer) -> list[int] | None:
        """The questions of an id, None if the benchmark has no such id; of a question in rounds, that of the round."""
        if answer.round and answer.options is None:
            return self._by_id.get(f"{called}#{answer.round}", [])
        places = self._by_id.get(called)
        if answer.options is not None and places is not None:
            turned = (self._by_id.get(f"{called}#{shift}", []) for shift in range(1, len(answer.options)))
            return [p for p in (*places, *(p for one in turned for p in one)) if self._shows(p, answer.options)]
        return places

    def _shows(self, place: int, options: tuple[str, ...]) -> bool:
        own = self.asked[place].options
        return not own or [option.strip() for option in own] == [option.strip() for option in options]

    def _narrow(self, places: Sequence[int], answer: SavedAnswer) -> list[int]:
        """Those of some questions that an answer's image, split and words do not contradict, the likeliest ones."""
        if answer.image is not None:
            images = set(self.images.find(answer.image))
            # Tools number images as they like; where the words confirm the question, that is no contradiction.
            if images or not answer.question:
                places = [p for p in places if self.asked[p].image is None or self.asked[p].image in images]
        if answer.split is not None:
            places = [p for p in places if self.asked[p].split in (None, answer.split)]
        if answer.question is not None:
            said = plain(answer.question)
            whole = [p for p in places if fits(self._bodies[p], said)]
            places = whole or [p for p in places if fits(self.words[p], said)]
            if exact := [p for p in places if said in (self.words[p], self._bodies[p])]:
                places = exact
            elif places:  # "a dog bed", and not "a dog"
                longest = max(len(self._bodies[p]) for p in places)
                places = [p for p in places if len(self._bodies[p]) == longest]
        return self._one(places)

    def contradiction(self, answer: SavedAnswer, missing: set[int]) -> str:
        """Why an answer with the id of a question without an answer is not to it; empty if that is not so."""
        places = [p for p in self._by_id.get(answer.id or "", ()) if p in missing]
        if not places:
            return ""
        place, one = places[0], self.asked[places[0]]
        if answer.question is not None and not fits(self.words[place], plain(answer.question)):
            return f"; {answer.place} has that id but answers {answer.question[:80]!r}, not {one.words[:80]!r}"
        if answer.image is not None and one.image not in self.images.find(answer.image):
            return f"; {answer.place} has that id but is about image {answer.image!r}, not {one.image!r}"
        return f"; {answer.place} has that id but not its options" if answer.options else ""


def fits(words: str, said: str) -> bool:
    """Whether a question is in what a model was asked, both as `plain` makes them, or the other way round."""
    if not words or not said:
        return True
    return bool(re.search(rf"(?<!\w){re.escape(words)}(?!\w)", said)) or said in words


def _share_out(places: dict[int, list[SavedAnswer]]) -> None:
    """Where the same question is asked n times and answered n times, each place gets one answer, in order."""
    same: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place in sorted(places):
        same[tuple(map(id, places[place]))].append(place)
    for group in same.values():
        answers = places[group[0]]
        if len(group) == len(answers) > 1:
            places |= {place: [answer] for place, answer in zip(group, answers, strict=True)}


def _refuse_double(places: dict[int, list[SavedAnswer]], asked: Sequence[Asked], source: str) -> None:
    double = sorted(place for place, answers in places.items() if len(answers) > 1)
    if double:
        first, second = places[double[0]][:2]
        raise InputError(
            f"{second.place}: question {asked[double[0]].ids[0]} is answered twice, first at {first.place}; keep one "
            f"answer to each question ({len(double)} in {source} have more: "
            f"{some((asked[p].ids[0] for p in double), _NAMED)})"
        )


def _in_order(answers: Sequence[SavedAnswer], asked: Sequence[Asked], found: _Finder) -> Matched | None:
    """The answers in the order of the questions, or in that of their splits in another order; None: not so."""
    has_words = all(one.question is not None for one in answers)
    has_names = any(one.image is not None or (one.id is not None and not has_words) for one in answers)
    if has_names or len(answers) < len(asked) or (len(answers) > len(asked) and not has_words):
        return None
    numbers = [answer.number for answer in answers]
    if None not in numbers and len(set(numbers)) == len(numbers):
        answers = sorted(answers, key=lambda one: one.number or 0)
    splits = list(dict.fromkeys(one.split for one in asked))
    for order in permutations(splits) if len(splits) <= len(SPLITS) else [splits]:
        places = [place for split in order for place, one in enumerate(asked) if one.split == split]
        if _first_other(answers, places, found) is None:
            placed = dict(zip(places, answers, strict=False))
            return Matched([placed[place] for place in range(len(asked))], list(answers[len(asked) :]))
    return None


def _why_not_in_order(answers: Sequence[SavedAnswer], asked: Sequence[Asked], found: _Finder, source: str) -> str:
    """What is wrong with answers of which none has an id, or image and words, that a question has."""
    image = next((one.image for one in asked if one.image), None)
    called = f"questions are called {asked[0].ids[0]!r}, images {image!r}"
    if answer := next((one for one in answers if one.image is not None), None):
        words = "" if answer.question is None else f", question {answer.question[:80]!r}"
        return (
            f"{answer.place}: expected the answer to one of {len(asked)} questions, by id or by image and question, "
            f"got id {answer.id!r}, image {answer.image!r}{words}; {called}"
        )
    at = _first_other(answers, range(len(asked)), found)
    if at is not None:
        return (
            f"{answers[at].place}: expected the answer to question {asked[at].ids[0]}, {asked[at].words[:80]!r}, got "
            f"that to {(answers[at].question or '')[:80]!r}; answers without ids that are known go by the order of the "
            "questions"
        )
    if (answer := next((one for one in answers if one.id is not None), None)) and answer.question is None:
        return (
            f"{answer.place}: expected the answer to one of {len(asked)} questions, got that to {answer.id!r}; {called}"
        )
    return (
        f"{source}: expected {len(asked)} answers, got {len(answers)}; they have no ids and go by the order of the "
        "questions"
    )


def _first_other(answers: Sequence[SavedAnswer], places: Sequence[int], found: _Finder) -> int | None:
    """Where an answer stands whose words are not those of its question."""
    pairs = enumerate(zip(places, answers, strict=False))
    return next((at for at, (p, one) in pairs if one.question and not fits(found.words[p], plain(one.question))), None)
