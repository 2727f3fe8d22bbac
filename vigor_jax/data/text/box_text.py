"""Boxes in the words of a caption, in the form that LLaVA-1.5 has learned: "a dog [0.25, 0.3, 0.58, 1.0] on a lawn".

A box is four numbers in square brackets with commas between them: left, top, right, bottom, each from 0 to 1, left not
beyond right and top not beyond bottom. They may have any number of decimals, none, and spaces or tabs around them. Any
other bracket is text like all text: of three numbers or five, of pixels, with corners in the wrong order, with a line
break inside, or never closed, as where a caption was cut off.

LLaVA's boxes are relative to the square that LLaVA-1.5 pads an image to, and not to the image: its training data are
so, and rounded to two decimals as Python writes them, 0.8 and 1.0 (haotian-liu/LLaVA, issue 606; the authors of SVIT
convert boxes for LLaVA in the same way). `in_square` and `in_image` go from one to the other.
"""

import bisect
import dataclasses
import re
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from vigor_jax.records import Span

# Left, top, right, bottom.
Box: TypeAlias = tuple[float, float, float, float]
# Behind the characters of a span.
Place: TypeAlias = tuple[Span, Box]

_NUMBER = r"[ \t]*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)[ \t]*"
# With the space that parts it from the word before.
_BOX = re.compile(rf" ?\[{','.join([_NUMBER] * 4)}\]")


class TextBox(NamedTuple):
    """A box in a text: where it stands, with the one space before it if it has one, and its corners."""

    span: Span
    box: Box


@dataclasses.dataclass(frozen=True)
class Stripped:
    """A text without its boxes.

    Attributes:
      text: what is left.
      boxes: where they stood in the whole text, in order.
    """

    text: str
    boxes: tuple[TextBox, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        """Each box and where it belongs, as `write_boxes` takes them: an empty span of `text` that it stood behind."""
        found, removed = [], 0
        for (start, end), box in self.boxes:
            found.append((Span(start - removed, start - removed), box))
            removed += end - start
        return tuple(found)

    def origin(self, index: int) -> int:
        """Where the character of `text` with this index stands in the whole text."""
        places = [place.start for place, _ in self.places]
        before = self.boxes[: bisect.bisect_right(places, index)]
        return index + sum(end - start for (start, end), _ in before)


def find_boxes(text: str) -> list[TextBox]:
    """The boxes of a text, in order."""
    if "[" not in text:  # mostly
        return []
    found = []
    for match in _BOX.finditer(text):
        left, top, right, bottom = map(float, match.groups())
        if is_box(box := (left, top, right, bottom)):
            found.append(TextBox(Span(*match.span()), box))
    return found


def is_box(box: Box) -> bool:
    """Whether four numbers are a box: in [0, 1] and in order."""
    left, top, right, bottom = box
    return 0 <= left <= right <= 1 and 0 <= top <= bottom <= 1


def strip_boxes(text: str) -> Stripped:
    """Takes the boxes out of a text, each with the one space before it."""
    boxes = tuple(find_boxes(text))
    pieces, end = [], 0
    for span, _ in boxes:
        pieces.append(text[end : span.start])
        end = span.end
    return Stripped("".join([*pieces, text[end:]]), boxes)


def without_boxes(text: str) -> str:
    """A text without its boxes, for whoever only reads it."""
    return strip_boxes(text).text if "[" in text else text


def blank_boxes(text: str) -> str:
    """A text with spaces in place of its boxes, so that whatever is found in it has the same place in the text."""
    for start, end in (box.span for box in find_boxes(text)):
        text = f"{text[:start]}{' ' * (end - start)}{text[end:]}"
    return text


def write_boxes(text: str, places: Iterable[Place]) -> str:
    """Writes boxes behind places of a text: a space and the box, rounded to two decimals.

    `strip_boxes` gives back the text, if it had no box before, and the boxes as they were rounded.

    Args:
      text: any.
      places: spans of it, in any order, and their boxes as they are to be written; of several behind one place the
        first comes first.

    Raises:
      ValueError: a span ends outside the text, or a box is none.
    """
    pieces, written = [], 0
    for span, box in sorted(places, key=lambda place: place[0].end):
        if not 0 <= span.end <= len(text):
            raise ValueError(f"boxes: expected a place in {len(text)} characters, got one that ends at {span.end}")
        pieces += [text[written : span.end], f" {format_box(box)}"]
        written = span.end
    return "".join([*pieces, text[written:]])


def format_box(box: Box) -> str:
    """A box as LLaVA-1.5 knows it.

    Raises:
      ValueError: it is none.
    """
    if len(box) != 4 or not is_box(box):
        raise ValueError(f"boxes: expected left, top, right, bottom in [0, 1] and in order, got {box}")
    return f"[{', '.join(str(round(float(corner), 2) + 0.0) for corner in box)}]"


def in_square(box: Box, size: tuple[int, int]) -> Box:
    """A box relative to an image → relative to the square that the image is padded to.

    Args:
      box: in [0, 1].
      size: width and height of the upright image in pixels.
    """
    width, height = size
    side, across, down = _padding(size)
    left, top, right, bottom = box
    return (
        (left * width + across) / side,
        (top * height + down) / side,
        (right * width + across) / side,
        (bottom * height + down) / side,
    )


def in_image(box: Box, size: tuple[int, int]) -> Box:
    """The other way; a box that reaches into the padding has corners below 0 or above 1."""
    width, height = size
    side, across, down = _padding(size)
    left, top, right, bottom = box
    return (
        (left * side - across) / width,
        (top * side - down) / height,
        (right * side - across) / width,
        (bottom * side - down) / height,
    )


def _padding(size: tuple[int, int]) -> tuple[int, int, int]:
    """Side of the square, and pixels left of the image and above it, as `data.images.preprocessing` pads."""
    width, height = size
    if min(size) < 1:
        raise ValueError(f"boxes: expected the size of an image in pixels, got {width} x {height}")
    side = max(size)
    return side, (side - width) // 2, (side - height) // 2
