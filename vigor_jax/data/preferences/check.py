"""What every row of preferences must be, whatever its form."""

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from vigor_jax.data.batches.modalities import check_media
from vigor_jax.data.images.store import Images
from vigor_jax.data.preferences.parsed import Parsed, Skipped, short
from vigor_jax.data.text.conversation import IMAGE_PLACEHOLDER
from vigor_jax.errors import InputError
from vigor_jax.records import Preference

# Keys of text that have a word for an image in them.
_KNOWN = ("image", "images", "img_path", "image_path", "image_id")


def checked(
    parsed: Parsed, image: str, record: Mapping[str, Any], *, needs_image: bool, needs_question: bool
) -> Preference:
    """The preference that a row states.

    "<image>" is taken away from the first question, with white space around the question: the image comes before it. In
    a later question it stays, as it says where the image is.

    Args:
      parsed: the row.
      image: the image's name; "" if the row has none.
      record: the row as it was read.
      needs_image: whether it is wrong without an image.
      needs_question: whether it is wrong without a question, if it has an image.

    Raises:
      InputError: the row is wrong; the message does not name it.
      Skipped: all its ratings are equal.
    """
    if not image:
        if needs_image:
            raise InputError("has no image; name it under 'image', or leave the row out")
        check_media(record, has_image=False, known=(*_KNOWN, *(key for key in record if _is_ours(key))))
    *history, prompt = _placed((*parsed.history, parsed.prompt), bool(image), needs_question)
    _check_texts((*history, prompt, parsed.context, *parsed.responses, parsed.name, image))
    if any(not answer.strip() for answer in history[1::2]):
        raise InputError("an answer of the history is empty")
    for number, response in enumerate(parsed.responses):
        if not response.strip():
            raise InputError(f"response {number} is empty")
    if len(parsed.responses) < 2:
        raise InputError(f"expected two responses or more, got {len(parsed.responses)}")
    if len(set(parsed.responses)) < len(parsed.responses):
        raise InputError(f"two responses are equal ({short(_repeated(parsed.responses))}); nothing is to be learned")
    if len(set(parsed.ratings)) == 1:
        raise Skipped("ties")
    return Preference(
        image, prompt, parsed.responses, parsed.ratings, parsed.context, parsed.whole, tuple(history), parsed.name
    )


def image_path(name: str, place: Images | None) -> str:
    """The name of an image as a path in its folder; a path from the root that leads into the folder is one.

    Raises:
      InputError: it leads elsewhere, or is no file name.
    """
    path = PurePosixPath(name)
    if place is not None and path.is_absolute():
        folder = PurePosixPath(os.path.abspath(place.place))
        path = path.relative_to(folder) if path.is_relative_to(folder) else path
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"image {name!r} must be a path inside the image folder")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise InputError(f"image {name!a} is no file name; repair its encoding") from error
    return path.as_posix()


def _is_ours(key: Any) -> bool:
    return isinstance(key, str) and key.startswith("vigor_")


def _placed(texts: Sequence[str], has_image: bool, needs_question: bool) -> list[str]:
    """Questions and answers in alternation, with at most one "<image>" in all questions, none in the first."""
    found = list(texts)
    placed = [index for index in range(0, len(found), 2) if IMAGE_PLACEHOLDER in found[index]]
    if placed and not has_image:
        raise InputError(f"the question {short(found[placed[0]])} places {IMAGE_PLACEHOLDER}, but the row has no image")
    if len(placed) > 1:
        raise InputError(f"{len(placed)} questions place {IMAGE_PLACEHOLDER}; expected one")
    if has_image and not placed:
        found[0] = found[0].strip()  # as it is behind the image
    for index in placed:
        words = found[index]
        while IMAGE_PLACEHOLDER in words:  # LLaVA makes one of several
            words = words.replace(IMAGE_PLACEHOLDER, "").strip()
        found[index] = f"{IMAGE_PLACEHOLDER}\n{words}".strip() if index else words
    for index in range(0, len(found), 2):
        is_shown = has_image and index == 0 and (bool(placed) or not needs_question)
        if not found[index].strip() and not is_shown:
            raise InputError(
                "the question is empty" if index == len(found) - 1 else "a question of the history is empty"
            )
    return found


def _check_texts(texts: Sequence[str]) -> None:
    for each in texts:
        try:
            each.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                "text with a lone surrogate (half of a \\u pair): "
                f"{each[max(error.start - 20, 0) :][:40]!a}; repair its encoding"
            ) from error


def _repeated(responses: Sequence[str]) -> str:
    return next(each for index, each in enumerate(responses) if each in responses[:index])
