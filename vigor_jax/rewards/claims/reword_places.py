"""The right place in place of a wrong one: "on the left side of the image" → "on the right side of the image"."""

import re
from collections.abc import Container
from itertools import product
from typing import cast

from vigor_jax.records import Edit
from vigor_jax.rewards.claims.claim import Claim, Horizontal, Place, Vertical
from vigor_jax.rewards.claims.judge import Found, JudgeConfig, Truth, counted_boxes, judge
from vigor_jax.rewards.claims.rewording import Wording

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
_CONTAINS = frozenset(("of", "in", "from", "within"))
_KNOWN = frozenset(("the", "hand", "side", "corner", "part", "middle", "center", "centre", "", *_OPPOSITE))
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
    if not len(boxes) or _POINTS.search(wording.reading.text):
        return ()
    for place in _candidates(claim.value):
        moved = Claim(claim.subject, claim.span, place)
        if all(judge(moved, Found(box[None]), config=config) is Truth.RIGHT for box in boxes):
            return _swapped(wording, claim.value, place) or _rewritten(wording, place)
    return ()


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
    if own[0] not in _LEADS or own[1:2] != ("the",) or not parts <= _KNOWN:
        return ()
    return (wording.edit(wording.start, wording.start + len(own), _in_words(new, parts)),)


def _in_words(place: Place, parts: Container[str]) -> str:
    horizontal, vertical = place.horizontal, place.vertical
    if horizontal == "center":
        return "in the middle"
    if horizontal and vertical:
        return f"in the {vertical} {horizontal} corner" if "corner" in parts else f"at the {vertical} {horizontal}"
    if vertical:
        return f"at the {vertical}"
    return f"on the {horizontal} side" if "side" in parts else f"on the {horizontal}"
