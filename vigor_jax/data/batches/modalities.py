"""What a row of a conversation file shows: one image, or text alone; all else is refused rather than left out."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from vigor_jax.errors import InputError

# A key that begins or ends with one of these words (`image_path`, `input_image`, `videoUrl`) is about such a thing.
_IMAGE = frozenset(("image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos"))
_OTHER = frozenset(("video", "videos", "audio", "audios", "speech", "pixel", "pixels"))
# Words that mean other things too, in longer keys.
_ALONE = frozenset(
    ("clip", "clips", "frame", "frames", "jpeg", "jpg", "movie", "movies", "mp", "music", "png")
) | frozenset(("sound", "sounds", "voice", "wav"))
_READ = ("image", "images")
_KNOWN = frozenset((*_READ, "id", "conversations"))


def image_name(record: Mapping[str, Any]) -> str | None:
    """The name of the row's image; None if it is text alone.

    The name is under "image", or under "images" if there is just one; each may be a list of one. Nothing, null, "" and
    [] name no image.

    Raises:
        InputError: something else stands there, several images are named, or another key names an image or another
            medium, so that the row is not what it would be trained as. The message does not name the row.
    """
    names = {key: name for key in _READ if (name := _one_name(record, key)) is not None}
    if len(set(names.values())) > 1:
        raise InputError(
            f"expected one image, got {_short(record['image'])} under 'image' and {_short(record['images'])} under "
            "'images'; remove one of the keys"
        )
    check_media(record, has_image=bool(names))
    return next(iter(names.values()), None)


def check_media(record: Mapping[str, Any], *, has_image: bool, known: Collection[str] = _KNOWN) -> None:
    """Raises InputError if a key names an image or another medium that would be left out.

    Where the row has an image, keys that say more about it (`image_path`, `video_id`) do no harm.

    Args:
        record: a row, or a turn of one.
        has_image: whether the row has an image.
        known: keys that are read.
    """
    for key, value in record.items():
        if key in known or _is_empty(value):
            continue
        words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", str(key))]
        if has_image:
            harmful = len(words) == 1 and words[0] in _OTHER
        else:
            ends = {*words[:1], *words[-1:]}
            harmful = bool(ends & (_IMAGE | _OTHER)) or (len(words) == 1 and words[0] in _ALONE)
        if harmful:
            raise InputError(
                f"the key {key!r} ({_short(value)}) is about an image or another medium, which would be left out; "
                "expected text, or one file name under 'image'; put it there, or remove the key"
            )


def _one_name(record: Mapping[str, Any], key: str) -> str | None:
    value = record.get(key)
    if value is None or value in ("", []):
        return None
    name = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(name, str) or not name:
        raise InputError(f"expected one file name under {key!r}, got {_short(value)}")
    return name


def _is_empty(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_empty, value))
    return not value or (isinstance(value, str) and not value.strip())


def _short(value: Any) -> str:
    return ascii(value)[:60]
