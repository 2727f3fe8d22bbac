"""The word lists of claims: numbers, places, relations and attributes, each a file that a user may replace."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

from vigor_jax.errors import InputError, nearest
from vigor_jax.rewards.claims.claim import RelationName
from vigor_jax.rewards.language.words import DATA, Matcher, read_lines, split

_RANGE = re.compile(r"(\d{1,4})(?:(-)(\d{1,4})?)?")
_RELATIONS: tuple[RelationName, ...] = get_args(RelationName)
_NUMBER_HEADINGS = (
    "numbers",
    "at least",
    "more than",
    "not after",
    "never counted",
    "same plural",
    "counted again",
    "introductions",
)
_PLACE_HEADINGS = (
    "left",
    "right",
    "top",
    "bottom",
    "center",
    "leads",
    "degrees",
    "parts",
    "fillers",
    "pictures",
    "rooms",
    "stands",
    "shows",
    "introduces",
)
_RELATION_HEADINGS = ("relations", "boundless", "holds")
_ATTRIBUTE_HEADINGS = ("(shades)", "(fully)", "(people)", "(fixed)")


class Line(NamedTuple):
    """A line of a list, with where it is for messages."""

    where: str
    text: str


@dataclass(frozen=True)
class NumberWords:
    """See `claim_numbers.txt`; `ranges` has the least and the most for each of the values that `match` gives."""

    match: Matcher
    ranges: Mapping[str, tuple[int, int | None]]
    at_least: Matcher
    more_than: Matcher
    not_after: Matcher
    never_counted: frozenset[str]
    same_plural: frozenset[str]
    counted_again: frozenset[tuple[str, ...]]
    introductions: frozenset[str]


@dataclass(frozen=True)
class PlaceWords:
    """See `claim_places.txt`; `sides` maps a word to "left", "right", "top", "bottom" or "center"."""

    sides: Mapping[str, str]
    leads: frozenset[str]
    degrees: frozenset[str]
    parts: frozenset[str]
    fillers: frozenset[str]
    pictures: frozenset[str]
    rooms: frozenset[str]
    stands: frozenset[str]
    shows: frozenset[str]
    introduces: frozenset[str]


@dataclass(frozen=True)
class RelationWords:
    """See `claim_relations.txt`."""

    match: Matcher
    boundless: frozenset[str]
    holds: frozenset[str]


@dataclass(frozen=True)
class AttributeWords:
    """See `claim_attributes.txt`.

    Attributes:
        values: A word → its kind and value.
        rivals: A kind and value → the values that rule it out.
        shades: "light" of "light blue".
        fully: "mostly" of "is mostly blue".
        people: Heads whose colors and sizes say nothing.
        fixed: Names whose first word tells nothing, such as ("white", "wine").
    """

    values: Mapping[str, tuple[str, str]]
    rivals: Mapping[tuple[str, str], tuple[str, ...]]
    shades: frozenset[str]
    fully: frozenset[str]
    people: frozenset[str]
    fixed: frozenset[tuple[str, ...]]


def number_words(path: Path | None = None) -> NumberWords:
    """Reads `claim_numbers.txt`, or a file in its place.

    Raises:
        InputError: The file cannot be read, or a line of it, which the message names.
    """
    sections = _sections(path or DATA / "claim_numbers.txt", _NUMBER_HEADINGS)
    ranges: dict[str, tuple[int, int | None]] = {}
    table = {}
    for line in sections["numbers"]:
        words, value = _pair(line, 'words, a colon and a number or range such as "2-3" or "3-"')
        found = _RANGE.fullmatch(value)
        least, most = (int(found[1]), _most(found)) if found else (0, None)
        if least < 1 or (most is not None and most < least):
            raise InputError(f'{line.where}: expected a number from 1, or a range such as "2-3" or "3-", got {value!r}')
        ranges[value] = (least, most)
        table[words] = value
    return NumberWords(
        match=Matcher(table),
        ranges=ranges,
        at_least=_matcher(sections["at least"]),
        more_than=_matcher(sections["more than"]),
        not_after=_matcher(sections["not after"]),
        never_counted=_words(sections["never counted"]),
        same_plural=_words(sections["same plural"]),
        counted_again=_names(sections["counted again"]),
        introductions=_words(sections["introductions"]),
    )


def place_words(path: Path | None = None) -> PlaceWords:
    """Reads `claim_places.txt`, or a file in its place.

    Raises:
        InputError: As for `number_words`.
    """
    sections = _sections(path or DATA / "claim_places.txt", _PLACE_HEADINGS)
    sides = {word: side for side in ("left", "right", "top", "bottom", "center") for word in _words(sections[side])}
    others = {heading: _words(sections[heading]) for heading in _PLACE_HEADINGS[5:]}
    return PlaceWords(sides=sides, **others)


def relation_words(path: Path | None = None) -> RelationWords:
    """Reads `claim_relations.txt`, or a file in its place.

    Raises:
        InputError: As for `number_words`.
    """
    sections = _sections(path or DATA / "claim_relations.txt", _RELATION_HEADINGS)
    table = {}
    for line in sections["relations"]:
        words, value = _pair(line, "words, a colon and a relation")
        if value not in _RELATIONS:
            raise InputError(
                f"{line.where}: expected one of the relations {', '.join(_RELATIONS)}, got {value!r}; "
                f"{nearest(value, _RELATIONS)}"
            )
        table[words] = value
    return RelationWords(Matcher(table), _words(sections["boundless"]), _words(sections["holds"]))


def attribute_words(path: Path | None = None) -> AttributeWords:
    """Reads `claim_attributes.txt`, or a file in its place, whose kinds may be others.

    Raises:
        InputError: As for `number_words`.
    """
    sections = _sections(path or DATA / "claim_attributes.txt", _ATTRIBUTE_HEADINGS, others=True)
    values: dict[str, tuple[str, str]] = {}
    alike: set[frozenset[str]] = set()
    kinds: dict[str, list[str]] = {}
    for kind, lines in sections.items():
        if kind in _ATTRIBUTE_HEADINGS:
            continue
        for line in lines:
            words, _, near = line.text.partition("~")
            name, *synonyms = words.split() or [""]
            if not name:
                raise InputError(f'{line.where}: expected a value and other words for it before "~", got none')
            for word in (name, *synonyms):
                if values.setdefault(word, (kind, name)) != (kind, name):
                    raise InputError(f"{line.where}: {word!r} is a word for {values[word][1]!r} already; leave out one")
            kinds.setdefault(kind, []).append(name)
            alike |= {frozenset((name, other)) for other in near.split()}
    rivals = {
        (kind, name): tuple(other for other in names if other != name and frozenset((name, other)) not in alike)
        for kind, names in kinds.items()
        for name in names
    }
    return AttributeWords(
        values=values,
        rivals=rivals,
        shades=_words(sections["(shades)"]),
        fully=_words(sections["(fully)"]),
        people=_words(sections["(people)"]),
        fixed=_names(sections["(fixed)"]),
    )


def _sections(path: Path, headings: Collection[str], *, others: bool = False) -> dict[str, list[Line]]:
    """Lines below their headings; headings that are not there have none."""
    sections: dict[str, list[Line]] = {heading: [] for heading in headings}
    current: list[Line] | None = None
    for number, text in read_lines(path):
        where = f"{path}, line {number}"
        if re.fullmatch(r"\[.*\]|\(.*\)", text):
            heading = text.strip("[]")
            if heading not in headings and (not others or text.startswith("(") or not heading):
                known = nearest(heading, headings, noun="heading")
                raise InputError(f"{where}: expected a heading of this list, got {text}; {known}")
            current = sections.setdefault(heading, [])
        elif current is None:
            raise InputError(f"{where}: expected a heading such as [{next(iter(headings))}] first, got {text!r}")
        else:
            current.append(Line(where, text))
    return sections


def _pair(line: Line, expected: str) -> tuple[tuple[str, ...], str]:
    words, colon, value = line.text.rpartition(":")
    if not (colon and split(words)):
        raise InputError(f"{line.where}: expected {expected}, got {line.text!r}")
    return split(words), value.strip()


def _most(found: re.Match[str]) -> int | None:
    if not found[2]:
        return int(found[1])
    return int(found[3]) if found[3] else None


def _words(lines: Iterable[Line]) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.text.split())


def _names(lines: Iterable[Line]) -> frozenset[tuple[str, ...]]:
    return frozenset(split(line.text) for line in lines)


def _matcher(lines: Iterable[Line]) -> Matcher:
    return Matcher({split(line.text): line.text for line in lines})
