"""Rows of a JSON file: a list, or one object a line. Each may be malformed, which it says when it is asked for."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vigor_jax.errors import InputError


class JsonRow(NamedTuple):
    """A row that may be malformed.

    Attributes:
      number: its line in the file, from 1, or index in the list, from 0.
      label: the same in words, such as "line 7".
      record: what it holds; raises InputError if that is no JSON.
    """

    number: int
    label: str
    record: Callable[[], Any]


def json_rows(path: Path, what: str) -> Iterator[JsonRow]:
    """The rows of a file, in its order; of lines one is held at a time, and empty ones are left out.

    Args:
      path: the file, UTF-8.
      what: a row is, for messages.

    Raises:
      InputError: the file cannot be read, or is a list that is not JSON.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            if begins_with(path, "["):
                yield from _listed(path, file.read(), what)
                return
            # Not splitlines: inside JSON strings the other characters that it splits at are ordinary text.
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield JsonRow(number, f"line {number}", lambda line=line: parse_json(line.rstrip("\n"), what))  # type: ignore[misc]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {_offset(path)}); convert it") from error
    except OSError as error:
        raise InputError(f"{path}: cannot read the {what} file ({error.strerror}); check its path") from error


def begins_with(path: Path, bracket: str) -> bool:
    """Whether a bracket is the first letter of a file that is no white space."""
    with path.open(encoding="utf-8-sig") as file:
        return next((line.lstrip() for line in file if line.strip()), "").startswith(bracket)


def parse_json(text: str, what: str) -> Any:
    """A row's value.

    Raises:
      InputError: the text is no JSON; the message does not name the row.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f" at line {error.lineno}" if "\n" in text.strip() else ""
        raise InputError(f"malformed JSON{where}, column {error.colno}: {error.msg}; fix the file") from error
    except RecursionError as error:
        raise InputError(f"JSON nested too deeply for a {what}; fix the file") from error
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"malformed JSON: {error}; fix the file") from error


def _listed(path: Path, text: str, what: str) -> Iterator[JsonRow]:
    try:
        records = parse_json(text, what)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    for index, record in enumerate(records):
        yield JsonRow(index, f"index {index}", lambda record=record: record)  # type: ignore[misc]


def _offset(path: Path) -> int:
    """Where a file stops to be UTF-8; what reads it in pieces counts from the beginning of a piece."""
    try:
        path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return error.start
    return 0
