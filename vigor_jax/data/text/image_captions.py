"""Captions that others wrote of images, such as COCO's five: what a reward model may be told of an image."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from vigor_jax.data.records.json_rows import json_rows
from vigor_jax.errors import InputError
from vigor_jax.json_fields import check_file, show

# Image → its captions, in the order of the file.
Captions: TypeAlias = Mapping[str, tuple[str, ...]]


def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Reads `{image: [caption, ...], ...}` (LLaVA-RLHF's `image_to_caption.json`), or JSON lines of `image` and
    `captions`.

    Raises:
      InputError: the file cannot be read, or says something else.
    """
    path = Path(path)
    try:
        check_file(path)
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"captions: {path} cannot be read ({error.strerror}); name a file of captions") from None
    except UnicodeDecodeError as error:
        raise InputError(f"captions: {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    found: dict[str, tuple[str, ...]] = {}
    for where, image, captions in _entries(content, path):
        is_text = isinstance(captions, list) and all(isinstance(each, str) for each in captions)
        own = [each.strip() for each in captions if each.strip()] if is_text else []
        if not (isinstance(image, str) and image and own):
            raise InputError(
                f"captions: {path}{where}: expected the name of an image and a list of captions, got {show(image)} and "
                f"{show(captions)}"
            )
        if found.get(image, tuple(own)) != tuple(own):
            raise InputError(f"captions: {path}{where}: {show(image)} has two lists of captions; remove one of them")
        found[image] = tuple(own)
    if not found:
        raise InputError(f"captions: {path} has no captions; expected {{image: [caption, ...]}} or JSON lines")
    return found


def captions_of(captions: Captions, image: str) -> tuple[str, ...]:
    """Those of an image, which the file may name without its folders.

    Raises:
      InputError: it has none.
    """
    found = captions.get(image) or captions.get(image.rpartition("/")[2])
    if not found:
        raise InputError(f"image {image!r} has no captions; add them to the file of captions, or leave the row out")
    return found


def _entries(content: str, path: Path) -> Iterator[tuple[str, Any, Any]]:
    """Where an entry is, the image, and its captions."""
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict) and not {"image", "captions"} <= whole.keys():
        yield from (("", image, captions) for image, captions in whole.items())
        return
    for row in json_rows(path, "caption"):
        try:
            entry = row.record()
        except InputError as error:
            raise InputError(
                f"captions: {path}:{row.number}: {error} (expected {{image: [caption, ...]}}, or JSON lines of image "
                "and captions)"
            ) from None
        if not isinstance(entry, dict):
            raise InputError(f"captions: {path}:{row.number}: expected an object, got {show(entry)}")
        yield f":{row.number}", entry.get("image"), entry.get("captions")
