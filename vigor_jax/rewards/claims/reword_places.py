"""The right place in place of a wrong one: "on the left side of the image" → "on the right side of the image"."""

import dataclasses
import re
from itertools import product
from typing import cast

from vigor_jax.records import Edit
from vigor_jax.rewards.claims import number_agreement
from vigor_jax.rewards.claims.claim import Horizontal, Place, Vertical
from vigor_jax.rewards.claims.judge import Found, JudgeConfig, counted_boxes, judge_place
from vigor_jax.rewards.claims.rewording import Wording
from vigor_jax.rewards.language.words import repair_words

_OPPOSITE = {
    one: other
    for pair in (
        ("left", "right"),
        ("lefthand", "righthand"),
        ("leftmost", "rightmost"),
        ("top", "bottom"),
        ("upper", "lower"),
    )
    for one, other in (pair, pair[::-1])
}
_HORIZONTAL = frozenset(("left", "right", "lefthand", "righthand", "leftmost", "rightmost"))
_PART = re.compile(r"[a-z]+")
_LEADS = frozenset(("on", "at", "in"))
_NEAR = frozenset(("near", "toward", "towards"))
_CONTAINS = frozenset(("of", "in", "from", "within"))
_MIDDLES = repair_words("middles")
_KNOWN = frozenset(("the", "hand", "side", "corner", "part", "", *_MIDDLES, *_OPPOSITE))
# What speaks of a place by another: it would be another one.
_POINTS = re.compile(
    r"\b(?:opposite|(?:other|same|opposing)\s+(?:side|end|corner|half|part|edge)|vice versa)\b", re.IGNORECASE
)
_SIDES: tuple[Horizontal, ...] = ("left", "right")
_ROWS: tuple[Vertical, ...] = ("top", "bottom")


def reword_place(wording: Wording, subject: Found, config: JudgeConfig) -> tuple[Edit, ...]:
    """What makes a wrong claim of place right; () where that is not sure."""
    claim = wording.claim
    assert isinstance(claim.value, Place)
    boxes = counted_boxes(subject, config)
    if not len(boxes) or _POINTS.search(wording.reading.text) or _is_contrasted(wording):
        return ()
    for place in _candidates(claim.value):
        if (judge_place(place, boxes, config) > 0).all() and all(
            (judge_place(middle, boxes, _by_axis(config)) < 0).all() for middle in _left_behind(claim.value, place)
        ):
            return _swapped(wording, claim.value, place) or _rewritten(wording, place)
    return ()


def _by_axis(config: JudgeConfig) -> JudgeConfig:
    return dataclasses.replace(config, unnamed_direction="any")


def _left_behind(old: Place, new: Place) -> list[Place]:
    """The middles that a thing must be out of for sides that the words did not name: half an image may be both."""
    middles = []
    if new.horizontal in _SIDES and old.horizontal not in _SIDES:
        middles.append(Place("center", None))
    if new.vertical in _ROWS and old.vertical not in _ROWS:
        middles.append(Place(None, "center"))
    return middles


def _is_contrasted(wording: Wording) -> bool:
    """Whether the sentence tells things apart by their places: "one in the middle, the others around it"."""
    sentence = wording.sentence
    if number_agreement.has_pointer(wording, sentence):
        return True
    claimed = [claim.span for claim in wording.reading.claims]
    sides = [
        token.start()
        for token, word in zip(sentence.tokens, sentence.lower, strict=True)
        if not {*_OPPOSITE, *_MIDDLES}.isdisjoint(word.split("-"))
    ]
    return any(not any(span.start <= place < span.end for span in claimed) for place in sides)


def _candidates(old: Place) -> list[Place]:
    """The places that words can be found for, those first that change least of the form and then of the sides."""
    every = [*product(_SIDES, _ROWS), *product(_SIDES, (None,)), *product((None,), _ROWS), ("center", "center")]
    if old.vertical == "center" and old.horizontal in _SIDES:
        every += product(_SIDES, ("center",))
    if old.horizontal == "center" and old.vertical in _ROWS:
        every += product(("center",), _ROWS)
    was = (old.horizontal, old.vertical)

    def change(place: tuple[str | None, str | None]) -> tuple[int, int]:
        pairs = list(zip(was, place, strict=True))
        return sum(_form(one) != _form(other) for one, other in pairs), sum(one != other for one, other in pairs)

    return [Place(*cast("tuple[Horizontal, Vertical]", place)) for place in sorted(every, key=change)]


def _form(side: str | None) -> str | None:
    return "side" if side in _OPPOSITE else side


def _swapped(wording: Wording, old: Place, new: Place) -> tuple[Edit, ...]:
    """Left for right and top for bottom, if nothing else has changed."""
    turns_x, turns_y = _is_turned(old.horizontal, new.horizontal), _is_turned(old.vertical, new.vertical)
    if (old.horizontal != new.horizontal and not turns_x) or (old.vertical != new.vertical and not turns_y):
        return ()
    edits = []
    for place in range(wording.start + 1, wording.start + _own_words(wording)):
        word = wording.sentence.lower[place]
        changed = _PART.sub(lambda part: _turned(part.group(), turns_x, turns_y), word)
        if changed != word:
            edits.append(wording.edit(place, place + 1, changed))
    return tuple(edits)


def _is_turned(old: str | None, new: str | None) -> bool:
    return old is not None and _OPPOSITE.get(old) == new


def _turned(word: str, turns_x: bool, turns_y: bool) -> str:
    is_turned = word in _OPPOSITE and (turns_x if word in _HORIZONTAL else turns_y)
    return _OPPOSITE[word] if is_turned else word


def _own_words(wording: Wording) -> int:
    """How many words stand before "of the image"."""
    words = wording.words
    return next((place for place in range(1, len(words)) if words[place] in _CONTAINS), len(words))


def _rewritten(wording: Wording, new: Place) -> tuple[Edit, ...]:
    """Other words for a place of another form; () of words that say more than the place."""
    own = wording.words[: _own_words(wording)]
    parts = {part for word in own[1:] for part in word.split("-")}
    if own[0] not in {*_LEADS, *_NEAR} or own[1:2] != ("the",) or not parts <= _KNOWN:
        return ()
    # "On the left side of the image" rather than "on the left of the image"
    is_side = "side" in parts or len(own) < len(wording.words)
    lead, name = _in_words(new, is_side=is_side or own[0] in _NEAR, is_corner="corner" in parts or own[0] in _NEAR)
    new_words = f"{own[0] if own[0] in _NEAR else lead} the {name}"
    return (wording.edit(wording.start, wording.start + len(own), new_words),)


def _in_words(place: Place, *, is_side: bool, is_corner: bool) -> tuple[str, str]:
    """The preposition and the name of a place."""
    horizontal, vertical = place.horizontal, place.vertical
    if horizontal == "center":
        return "in", "middle"
    if horizontal and vertical:
        return ("in", f"{vertical} {horizontal} corner") if is_corner else ("at", f"{vertical} {horizontal}")
    if vertical:
        return "at", vertical
    return "on", f"{horizontal} side" if is_side else str(horizontal)
