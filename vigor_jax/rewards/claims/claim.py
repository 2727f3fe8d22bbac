"""A claim: one thing that a caption says of something it names, beyond that it is there."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from vigor_jax.records import ClaimKind, Span

Horizontal: TypeAlias = Literal["left", "center", "right"]
Vertical: TypeAlias = Literal["top", "center", "bottom"]
RelationName: TypeAlias = Literal["left", "right", "above", "below", "on", "inside"]


@dataclass(frozen=True)
class Thing:
    """What a claim speaks of.

    Attributes:
        phrase: As the phrases have it, and detectors are asked for it: "metal fence".
        span: The place in the caption where it is named.
        head: Its last word in the singular: "fence".
    """

    phrase: str
    span: Span
    head: str


@dataclass(frozen=True)
class Number:
    """How many there are.

    Attributes:
        least: At least 1.
        most: None where the words set no limit: "several".
        narrowed: The caption may not count all of them in the image: "two dogs on the couch", "two white dogs", "two
            other dogs", or it speaks of more elsewhere. Then there are at least that many.
    """

    least: int
    most: int | None
    narrowed: bool = False


@dataclass(frozen=True)
class Place:
    """Where in the image it is; None for a direction of which the words say nothing: "at the top"."""

    horizontal: Horizontal | None
    vertical: Vertical | None


@dataclass(frozen=True)
class Relation:
    """Where it is in relation to another thing: "left" is "to the left of"."""

    name: RelationName
    object: Thing


@dataclass(frozen=True)
class Attribute:
    """What it is like.

    Attributes:
        kind: A heading of the attributes' list: color, material, pattern, shape, size.
        value: The first word of a line below it; of several colors all, as in "black and white".
    """

    kind: str
    value: str


@dataclass(frozen=True)
class Claim:
    """What a caption says of a thing.

    Attributes:
        subject: The thing; of one that the words only point to ("the other is on the left") the place of its name.
        span: The words that say it, in the same sentence as the subject.
        value: What they say.
    """

    subject: Thing
    span: Span
    value: Number | Place | Relation | Attribute

    @property
    def kind(self) -> ClaimKind:
        if isinstance(self.value, Number):
            return "number"
        if isinstance(self.value, Place):
            return "place"
        return "relation" if isinstance(self.value, Relation) else "attribute"
