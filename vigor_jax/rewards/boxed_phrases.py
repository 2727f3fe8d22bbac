"""Which boxes a chosen text gets, and where: each thing that was found, behind its first mention, the best one.

The paper's third open question is whether a model that says where things are says fewer that are not there (ViGoR,
section 5).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vigor_jax.data.text.box_text import Box, find_boxes, format_box, in_square, is_box
from vigor_jax.errors import InputError
from vigor_jax.records import Edit, Span, Verdict


class BoxedPhrase(NamedTuple):
    """A thing that was found.

    Attributes:
      places: where a text names it, in order; at least one.
      box: as it is to be written.
    """

    places: tuple[Span, ...]
    box: Box


def boxed_phrases(verdicts: Iterable[Verdict], size: tuple[int, int]) -> list[BoxedPhrase]:
    """The things that streams have found, with their best boxes relative to the square that the image is padded to.

    A thing that several streams have found has the box of the first of them. Claims and what the text denies have none.

    Args:
      verdicts: on one text.
      size: width and height of the upright image in pixels.

    Raises:
      InputError: a stream gives a box that is none.
    """
    found: dict[str, BoxedPhrase] = {}
    for verdict in verdicts:
        for signal in verdict.signals:
            is_found = signal.boxes_xyxy and signal.spans and not (signal.absent or signal.denied or signal.kind)
            if not is_found or signal.label in found:
                continue
            left, top, right, bottom = (min(max(corner, 0.0), 1.0) for corner in signal.boxes_xyxy[0])
            if not is_box(box := (left, top, right, bottom)):
                raise InputError(
                    f"verdict of {verdict.stream} on {verdict.image}, candidate {verdict.candidate}: {signal.label!r} "
                    f"has the box {list(signal.boxes_xyxy[0])}, expected left, top, right, bottom in [0, 1]; fix the "
                    "stream and score again"
                )
            found[signal.label] = BoxedPhrase(tuple(sorted(signal.spans)), in_square(box, size))
    return list(found.values())


def box_edits(
    text: str, phrases: Sequence[BoxedPhrase], dropped: Sequence[Span], edits: Iterable[Edit]
) -> Iterator[Edit]:
    """What takes the boxes out of a text that it has, and writes others.

    A box stands behind the first place of its phrase that is not dropped; none where another phrase has its box, or
    within the words of one.

    Args:
      text: the whole.
      phrases: what gets a box; of several at one place the first does.
      dropped: sentences that are left out.
      edits: of other words; a box follows the words that it stood behind.
    """
    replaced = [edit.span for edit in edits]
    for span in (found.span for found in find_boxes(text)):
        if not any(_meet(span, other) for other in replaced):
            yield Edit(span, "")
    named = [place for phrase in phrases for place in phrase.places]
    taken: set[int] = set()
    for phrase in phrases:
        kept = (place for place in phrase.places if not any(_meet(place, other) for other in dropped))
        end = next((place.end for place in kept), None)
        if end is None or any(place.start < end < place.end for place in named):
            continue
        end = next((span.end for span in replaced if span.start < end < span.end), end)
        if end not in taken:
            taken.add(end)
            yield Edit(Span(end, end), f" {format_box(_clipped(phrase.box))}")


def _clipped(box: Box) -> Box:
    left, top, right, bottom = (min(max(corner, 0.0), 1.0) for corner in box)
    return left, top, right, bottom


def _meet(one: Span, other: Span) -> bool:
    return one.start < other.end and one.end > other.start
