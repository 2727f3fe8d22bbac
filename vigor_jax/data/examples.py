"""Reads LLaVA's conversation files: which picture, who says what."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from vigor_jax.data.conversation import IMAGE_PLACEHOLDER, Turn, check_turns
from vigor_jax.data.image_store import Images, open_images
from vigor_jax.errors import InputError
from vigor_jax.records import ImageFile


@dataclass(frozen=True)
class Example:
    """One conversation, about one picture or none.

    Attributes:
        id: The name it has in its file; need not be unique.
        image: The picture's file, or what reads it from a shard; known to exist.
        turns: Human and assistant in alternation, human first; exactly one "<image>" among the human turns if
            there is a picture, else none.
    """

    id: str
    image: ImageFile | None
    turns: tuple[Turn, ...]


def read_examples(path: Path, image_folder: str | Path | None) -> list[Example]:
    """Reads conversations in LLaVA's format.

    The file is a JSON list, or JSON lines, of
    `{"id": str, "image": str, "conversations": [{"from": "human" | "gpt", "value": str}, ...]}`, `image`
    being optional and one of the names in `image_folder`. Other keys are ignored.

    Args:
        path: The file, UTF-8.
        image_folder: Where the pictures are, a folder or any other place of `open_images`; None if no example has
            one.

    Raises:
        InputError: Anything in the file, or missing from the folder, that could not be trained on. Names the
            file, the line (from 1) or list index (from 0), and the id.
    """
    path = Path(path)
    images = None if image_folder is None else open_images(image_folder)
    examples, names, places = [], [], []
    for place, record in _records(path):
        example, name = _parse(record, place, images)
        examples.append(example)
        names.append(name)
        places.append(place)
    if not examples:
        raise InputError(f"{path}: no examples; expected a JSON list, or one JSON object a line, of conversations")
    if images is not None:
        _check_images(examples, names, places, images)
    return examples


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Each record with the words that say where it stands."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise InputError(f"{path}: cannot read the conversation file ({error.strerror}); check its path") from error
    if text.lstrip().startswith("["):
        for index, record in enumerate(_parse_json(text, str(path))):
            yield f"{path}, index {index}", record
        return
    # Not splitlines: inside JSON strings the other characters that it splits at are ordinary text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, _parse_json(line, place)


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f" at line {error.lineno}" if "\n" in text.strip() else ""
        raise InputError(f"{place}: malformed JSON{where}, column {error.colno}: {error.msg}; mend the file") from error
    except RecursionError as error:
        raise InputError(f"{place}: JSON nested too deeply for a conversation; mend the file") from error


def _parse(record: Any, place: str, images: Images | None) -> tuple[Example, str | None]:
    """The conversation, and its image's name."""
    if not isinstance(record, dict):
        raise InputError(f"{place}: expected an object with id and conversations, got {type(record).__name__}")
    name = record.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise InputError(f"{place}: expected a string under 'id', got {_found(record, 'id')}")
    place = f"{place} (id {str(name)!r})"
    conversation = record.get("conversations")
    if not isinstance(conversation, list):
        raise InputError(f"{place}: expected a list under 'conversations', got {_found(record, 'conversations')}")
    turns = tuple(_parse_turn(turn, index, place) for index, turn in enumerate(conversation))
    try:
        check_turns(turns)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    image = _parse_image(record["image"], place, images) if record.get("image") is not None else None
    num_placed = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")
    num_images = int(image is not None)
    if num_placed != num_images:
        raise InputError(
            f"{place}: the human turns place {IMAGE_PLACEHOLDER} {num_placed} times but the example has "
            f"{num_images or 'no'} image; expected {num_images}"
        )
    return Example(str(name), None if images is None or image is None else images.file(image), turns), image


def _parse_turn(turn: Any, index: int, place: str) -> Turn:
    if not isinstance(turn, dict):
        raise InputError(f"{place}: turn {index} should be an object with from and value, got {type(turn).__name__}")
    text = turn.get("value")
    if not isinstance(text, str):
        raise InputError(f"{place}: turn {index}: expected a string under 'value', got {_found(turn, 'value')}")
    roles: dict[Any, Literal["human", "gpt"]] = {"human": "human", "gpt": "gpt"}
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in roles:
        raise InputError(f"{place}: turn {index}: expected 'human' or 'gpt' under 'from', got {_found(turn, 'from')}")
    return Turn(roles[speaker], text)


def _parse_image(name: Any, place: str, images: Images | None) -> str:
    if not isinstance(name, str) or not name:
        raise InputError(f"{place}: expected one file name under 'image', got {name!r}")
    if images is None:
        raise InputError(f"{place}: has an image ({name}) but no image folder is given; set the image folder")
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(f"{place}: image {name!r} must be a path inside the image folder {images.place}")
    return relative.as_posix()


def _found(record: dict[str, Any], key: str) -> str:
    """What stands under `key`, in words short enough for one line."""
    return ascii(record[key])[:60] if key in record else "nothing"


def _check_images(
    examples: Sequence[Example], names: Sequence[str | None], places: Sequence[str], images: Images
) -> None:
    """Raises unless every picture exists."""
    wanted = [name for name in names if name is not None]
    if missing := images.missing(wanted):
        first = names.index(missing[0])
        example = examples[first]
        raise InputError(
            f"{places[first]} (id {example.id!r}): image {example.image} does not exist; {len(missing)} of "
            f"{len(wanted)} images are missing; check the image folder {images.place}"
        )
