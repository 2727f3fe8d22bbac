"""Reads LLaVA's conversation files: which picture, who says what. docs/data.md says what is taken and what is not."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from vigor_jax.data.batches.modalities import check_media, image_name
from vigor_jax.data.images.store import Images, open_images
from vigor_jax.data.records.bad_rows import BadRow, bad_row
from vigor_jax.data.records.json_rows import JsonRow, json_rows
from vigor_jax.data.text.conversation import IMAGE_PLACEHOLDER, Turn, check_turns
from vigor_jax.errors import InputError
from vigor_jax.records import ImageFile

logger = logging.getLogger(__name__)

_ROLES: dict[str, Literal["human", "gpt"]] = {"human": "human", "gpt": "gpt"}


@dataclass(frozen=True)
class Example:
    """One conversation, about one picture or none.

    Attributes:
        id: The name it has in its file, or else its place there; need not be unique.
        image: The picture's file, or what reads it from a shard; known to exist.
        turns: Human and assistant in alternation, human first; exactly one "<image>" among the human turns if
            there is a picture; where there is none it is text.
        number: Its line in the file, from 1, or index in the list, from 0.
        label: The same in words, such as "line 7".
        digest: Of the picture's name and the turns.
    """

    id: str
    image: ImageFile | None
    turns: tuple[Turn, ...]
    number: int = field(default=0, compare=False)
    label: str = field(default="", compare=False)
    digest: bytes = field(default=b"", compare=False, repr=False)

    @property
    def name(self) -> str | None:
        """Its id, None if that is no more than its place."""
        return None if self.id == self.label else self.id


class Scan(NamedTuple):
    """What a file holds.

    Attributes:
        examples: those that can be used, in the order of the file.
        bad: the others, in the order of the file.
        total: rows in all.
    """

    examples: list[Example]
    bad: list[BadRow]
    total: int


def scan_examples(path: Path, image_folder: str | Path | None) -> Scan:
    """Reads conversations in LLaVA's format, and tells the rows that cannot be used from those that can.

    The file is a JSON list, or JSON lines, of
    `{"id": str, "image": str, "conversations": [{"from": "human" | "gpt", "value": str}, ...]}`, `id` and `image`
    being optional; `image` is one of the names in `image_folder`. Other keys are ignored unless they name an image or
    another medium.

    Args:
        path: The file, UTF-8.
        image_folder: Where the pictures are, a folder or any other place of `open_images`; None if no example has
            one.

    Raises:
        InputError: There are no rows, the file is no such file, no image folder is given where one is needed, or it has
            none of several images.
    """
    path = Path(path)
    images = None if image_folder is None else open_images(image_folder)
    examples: list[Example] = []
    names: list[str | None] = []
    bad: list[BadRow] = []
    total = 0
    for row in json_rows(path, "conversation"):
        total += 1
        record: Any = None
        try:
            record = row.record()
            example, name = _parse(record, row, images)
        except InputError as error:
            bad.append(bad_row(path, row.number, row.label, _id(record), str(error)))
            continue
        if name is not None and images is None:
            reason = f"has an image ({name}) but no image folder is given; set the image folder"
            raise InputError(bad_row(path, row.number, row.label, _id(record), reason).message)
        examples.append(example)
        names.append(name)
    if not total:
        raise InputError(f"{path}: no examples; expected a JSON list, or one JSON object a line, of conversations")
    if images is not None:
        missing = _missing(path, examples, names, images)
        examples = [example for index, example in enumerate(examples) if index not in missing]
        bad = sorted([*bad, *missing.values()], key=lambda row: row.number)
    quoting = [example for example in examples if example.image is None and _num_placed(example.turns)]
    if quoting:
        logger.warning(
            "%s: %d rows without an image quote %s (the first: %s), which they learn as text",
            path, len(quoting), IMAGE_PLACEHOLDER, quoting[0].label,
        )  # fmt: skip
    return Scan(examples, bad, total)


def _id(record: Any) -> str | None:
    """What a row calls itself; any string or number, as nobody but messages reads it."""
    name = record.get("id") if isinstance(record, dict) else None
    return str(name) if isinstance(name, str | int | float) and not isinstance(name, bool) else None


def _parse(record: Any, row: JsonRow, images: Images | None) -> tuple[Example, str | None]:
    """The conversation, and its image's name."""
    if not isinstance(record, dict):
        raise InputError(f"expected an object with id and conversations, got {type(record).__name__}")
    conversation = record.get("conversations")
    if not isinstance(conversation, list):
        raise InputError(f"expected a list under 'conversations', got {_found(record, 'conversations')}")
    name = image_name(record)
    turns = [_parse_turn(turn, index, name is not None) for index, turn in enumerate(conversation)]
    # LLaVA skips a first turn that is not the human's.
    skipped = int(bool(turns) and turns[0].role == "gpt")
    turns = turns[skipped:]
    check_turns(turns, first=skipped)
    if name is not None:
        name = _inside(name)
        turns = [_with_one_placeholder(turn) for turn in turns]
        num_placed = _num_placed(turns)
    else:
        num_placed = sum(_is_placed(turn) for turn in turns)
    num_images = int(name is not None)
    if num_placed != num_images:
        raise InputError(
            f"the human turns place {IMAGE_PLACEHOLDER} {num_placed} times but the example has "
            f"{num_images or 'no'} image; expected {num_images}"
        )
    content = json.dumps([name, [[turn.role, turn.text] for turn in turns]]).encode()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    image = None if name is None or images is None else images.file(name)
    return Example(_id(record) or row.label, image, tuple(turns), row.number, row.label, digest), name


def _parse_turn(turn: Any, index: int, has_image: bool) -> Turn:
    if not isinstance(turn, dict):
        raise InputError(f"turn {index} should be an object with from and value, got {type(turn).__name__}")
    text = turn.get("value")
    if not isinstance(text, str):
        raise InputError(f"turn {index}: expected a string under 'value', got {_found(turn, 'value')}")
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise InputError(f"turn {index}: expected 'human' or 'gpt' under 'from', got {_found(turn, 'from')}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"turn {index}: text with a lone surrogate (half of a \\u pair) cannot be tokenized: "
            f"{text[max(error.start - 20, 0) :][:40]!a}; repair its encoding"
        ) from error
    if len(turn) > 2:
        try:
            check_media(turn, has_image=has_image, known=("from", "value"))
        except InputError as error:
            raise InputError(f"turn {index}: {error}") from error
    return Turn(_ROLES[speaker], text)


def _num_placed(turns: Sequence[Turn]) -> int:
    return sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")


def _with_one_placeholder(turn: Turn) -> Turn:
    """LLaVA moves all the placeholders of a turn to its front, as one."""
    if turn.role != "human" or turn.text.count(IMAGE_PLACEHOLDER) < 2:
        return turn
    words = turn.text.replace(IMAGE_PLACEHOLDER, "").strip()
    return Turn(turn.role, f"{IMAGE_PLACEHOLDER}\n{words}".strip())


def _is_placed(turn: Turn) -> bool:
    """Whether a question begins or ends with a line that is the placeholder alone, as where there is an image."""
    lines = turn.text.strip().split("\n")
    return turn.role == "human" and IMAGE_PLACEHOLDER in (lines[0].strip(), lines[-1].strip())


def _inside(name: str) -> str:
    """The name of an image as a path in its folder."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(f"image {name!r} must be a path inside the image folder")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise InputError(f"image {name!a} is no file name; repair its encoding") from error
    return relative.as_posix()


def _found(record: dict[str, Any], key: str) -> str:
    """What stands under `key`, in words short enough for one line."""
    return ascii(record[key])[:60] if key in record else "nothing"


def _missing(path: Path, examples: Sequence[Example], names: Sequence[str | None], images: Images) -> dict[int, BadRow]:
    """Examples whose pictures do not exist, by their numbers here."""
    wanted = [name for name in names if name is not None]
    absent = images.missing(wanted)
    gone = set(absent)
    if len(absent) == len(wanted) > 1:
        raise InputError(f"{path}: none of its {len(wanted)} images exists; check the image folder {images.place}")
    missing: dict[int, BadRow] = {}
    for index, (example, name) in enumerate(zip(examples, names, strict=True)):
        if name in gone:
            reason = f"image {example.image} does not exist"
            if not missing:
                reason += f"; {len(absent)} of {len(wanted)} images are missing; check the image folder {images.place}"
            missing[index] = bad_row(path, example.number, example.label, example.name, reason)
    return missing
