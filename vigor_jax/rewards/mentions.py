"""What a caption says of the things that it names: that they are there, that they are not, or only that they may be."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from vigor_jax.records import Span


class Factuality(IntEnum):
    """What a sentence says of a thing at one place.

    ASSERTED: it is there.
    DENIED: the picture has none: "there are no people".
    DENIED_HERE: something or some place has none: "a man without a helmet". Others may have one.
    SUPPOSED: none of these: "possibly a school", "for children to sit", "no other people", "shaped like a heart".
    QUOTED: the words are on a sign, or are no mention at all: "a sign that says 'Stop'", "no sign of".
    """

    ASSERTED = 0
    DENIED = 1
    DENIED_HERE = 2
    SUPPOSED = 3
    QUOTED = 4


@dataclass(frozen=True)
class Phrase:
    """Something a caption names; each place lies within one sentence, and each kind of place is in order.

    Attributes:
        text: Lower case, the last word in the singular: "traffic light".
        mentions: Where the caption asserts that it is there.
        denied: Where the caption says that it is not there. A denial for a part of the picture ("no dog on the sofa",
            "a man without a helmet") of what the caption asserts elsewhere is in `supposed`, for both may be true.
        supposed: Where the caption names it and commits itself to neither.
    """

    text: str
    mentions: tuple[Span, ...] = ()
    denied: tuple[Span, ...] = ()
    supposed: tuple[Span, ...] = ()


def gather(found: Iterable[tuple[str, Span, Factuality]]) -> list[Phrase]:
    """Phrases in the order of their first place, from their places in order."""
    places: dict[str, tuple[list[Span], ...]] = {}
    for phrase, span, factuality in found:
        if phrase not in places:
            places[phrase] = ([], [], [], [])
        places[phrase][factuality].append(span)
    return [_phrase(name, *kinds) for name, kinds in places.items()]


def _phrase(name: str, asserted: list[Span], denied: list[Span], here: list[Span], supposed: list[Span]) -> Phrase:
    if not here:
        return Phrase(name, tuple(asserted), tuple(denied), tuple(supposed))
    if asserted:
        return Phrase(name, tuple(asserted), tuple(denied), tuple(sorted(supposed + here)))
    return Phrase(name, (), tuple(sorted(denied + here)), tuple(supposed))
