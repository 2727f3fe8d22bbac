"""JSON files that hold a list of objects, in the two layouts that benchmarks use."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vigor_jax.errors import InputError

_KINDS: dict[type, str] = {str: "a string", int: "an integer", list: "a list"}


def read_json(path: Path) -> Any:
    """The content of one JSON document.

    Raises:
        InputError: The file cannot be read or is no JSON.
    """
    return _parse(_read(path), str(path))


def read_records(path: Path, keys: Mapping[str, type]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file: one a line, or one JSON list of them, whatever the file is called.

    Args:
        path: UTF-8; empty lines are left out.
        keys: What each object must have, and of which type; other keys are let through.

    Yields:
        Where the object stands ("a.jsonl:3"), for messages about it, and the object.

    Raises:
        InputError: The file cannot be read, or an object is not as described; names its place.
    """
    text = _read(path)
    if text.lstrip().startswith("["):
        content = _parse(text, str(path))
        found = [(f"{path}, item {number}", item) for number, item in enumerate(content, 1)]
    else:
        # Only \n ends a line: JSON strings may hold the other characters at which splitlines() cuts.
        lines = [(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        found = [(place, _parse(line, place)) for place, line in lines]
    for place, record in found:
        if not isinstance(record, dict):
            raise InputError(f"{place}: expected an object with {', '.join(keys)}, got {_short(record)}")
        for key, kind in keys.items():
            if key not in record:
                raise InputError(f"{place}: expected the keys {', '.join(keys)}, got none called {key!r}")
            if not isinstance(record[key], kind) or isinstance(record[key], bool):
                raise InputError(f"{place}: expected {_KINDS[kind]} under {key!r}, got {_short(record[key])}")
        yield place, record


def _read(path: Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
        raise InputError(f"{path}: expected a JSON file in UTF-8, cannot read it ({reason}); check the path") from error


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " if "\n" in text else ""
        raise InputError(f"{place}: malformed JSON at {where}column {error.colno} ({error.msg}); mend it") from error
    except RecursionError as error:
        raise InputError(f"{place}: JSON nested too deeply; mend it") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
