"""Reads saved captions and says of which of the known images each is."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import tell_extra
from vigor_jax.evaluation.image_names import ImageNames
from vigor_jax.evaluation.saved_answers import SavedAnswer, read_saved


class Captions(NamedTuple):
    """Captions of known images.

    Attributes:
        pairs: Image, under its known name, and caption, in the order of the file.
        places: Where each stands, for messages.
        extra: Captions of images that are not known.
    """

    pairs: list[tuple[str, str]]
    places: list[str]
    extra: list[SavedAnswer]


def read_captions(paths: Iterable[Path], names: ImageNames, whose: str) -> Captions:
    """Reads captions; a warning tells of those of other images, which are left out.

    Args:
        paths: In any layout of `saved_answers`.
        names: The known images.
        whose: What knows them, for messages: "references".

    Raises:
        InputError: A file cannot be read, a caption has no image or one that may be several, or none is of a known
            image.
    """
    paths = list(paths)
    source = ", ".join(map(str, paths))
    pairs, places, extra = [], [], []
    for answer in read_saved(paths):
        called = answer.image or answer.id
        if called is None:
            raise InputError(f"{answer.place}: expected a caption with its 'image' or 'image_id', got neither")
        found = names.find(called)
        if len(found) > 1:
            raise InputError(
                f"{answer.place}: image {called!r} may be {found[0]!r} or {found[1]!r}; give its whole name"
            )
        if found:
            pairs.append((found[0], answer.text))
            places.append(answer.place)
        else:
            extra.append(answer)
    if not pairs:
        example = next(iter(names.names), None)
        there = "have no image at all" if example is None else f"call images {example!r}"
        raise InputError(
            f"{extra[0].place}: image {extra[0].image or extra[0].id!r} is not known, nor any other of {len(extra)} in "
            f"{source}; the {whose} {there}"
        )
    tell_extra(extra, source)
    return Captions(pairs, places, extra)


def refuse_double(captions: Captions) -> None:
    """Refuses two captions of an image.

    Raises:
        InputError: There are such; names the first.
    """
    first: dict[str, str] = {}
    for (image, _), place in zip(captions.pairs, captions.places, strict=True):
        if image in first:
            raise InputError(
                f"{place}: expected one caption an image, got a second one of {image}, first at {first[image]}"
            )
        first[image] = place
