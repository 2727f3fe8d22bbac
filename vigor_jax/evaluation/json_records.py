"""JSON files that hold a list of objects, in the layouts that benchmarks use, as they are or packed by gzip."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vigor_jax.errors import InputError

_GZIP = b"\x1f\x8b"
_KINDS: dict[type, str] = {str: "a string", int: "an integer", list: "a list"}


def read_json(path: Path) -> Any:
    """The content of one JSON document.

    Raises:
        InputError: The file cannot be read or is no JSON.
    """
    return parse(read_text(path), str(path))


def read_records(path: Path, keys: Mapping[str, type]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file: one a line, or one JSON list of them, whatever the file is called.

    Args:
        path: UTF-8, perhaps packed by gzip; empty lines are left out.
        keys: What each object must have, and of which type; other keys are let through.

    Yields:
        Where the object stands ("a.jsonl:3"), for messages about it, and the object.

    Raises:
        InputError: The file cannot be read, or an object is not as described; names its place.
    """
    text = read_text(path)
    for place, record in parse_list(text, path) if text.lstrip().startswith("[") else parse_lines(text, path):
        if not isinstance(record, dict):
            raise InputError(f"{place}: expected an object with {', '.join(keys)}, got {short(record)}")
        for key, kind in keys.items():
            if key not in record:
                raise InputError(f"{place}: expected the keys {', '.join(keys)}, got none called {key!r}")
            if not isinstance(record[key], kind) or isinstance(record[key], bool):
                raise InputError(f"{place}: expected {_KINDS[kind]} under {key!r}, got {short(record[key])}")
        yield place, record


def read_text(path: Path) -> str:
    """The text of a file; what gzip packed is unpacked, whatever it is called.

    Raises:
        InputError: The file cannot be read, or is no UTF-8.
    """
    try:
        data = Path(path).read_bytes()
        return (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
        raise InputError(f"{path}: expected a JSON file in UTF-8, cannot read it ({reason}); check the path") from error


def parse_list(text: str, path: Path) -> list[tuple[str, Any]]:
    """The items of a JSON list, each with its place."""
    return [(f"{path}, item {number}", item) for number, item in enumerate(parse(text, str(path)), 1)]


def parse_lines(text: str, path: Path) -> list[tuple[str, Any]]:
    """The values of JSON lines, each with its place."""
    # Only \n ends a line: JSON strings may hold the other characters at which splitlines() cuts.
    lines = [(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [(place, parse(line, place)) for place, line in lines]


def parse(text: str, place: str) -> Any:
    """The value of a JSON text.

    Raises:
        InputError: It is no JSON; names `place`.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " if "\n" in text else ""
        raise InputError(f"{place}: malformed JSON at {where}column {error.colno} ({error.msg}); fix it") from error
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"{place}: a number that is too long; fix it") from error
    except RecursionError as error:
        raise InputError(f"{place}: JSON nested too deeply; fix it") from error


def short(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
