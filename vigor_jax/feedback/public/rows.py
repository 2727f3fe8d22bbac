"""The rows of any file of JSON: a list, lines, Parquet, or one object that has them under its keys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vigor_jax.data.preferences.source import rows_of
from vigor_jax.data.records.json_rows import JsonRow, begins_with, parse_json
from vigor_jax.errors import InputError

# Where a row has the key that it stood under.
KEY = "key"


def any_rows(path: Path) -> Iterator[JsonRow]:
    """The rows of a file, or of all files of a folder.

    Of one object, the rows are its only list, or what stands under its keys if that is objects or lists of objects;
    such rows have the key under "key". Any other object is the only row.

    Raises:
      InputError: the file cannot be read, or holds no JSON.
    """
    found = _object(path)
    if found is None:
        yield from rows_of(path, "judgment")
        return
    values = list(found.values())
    if len(values) == 1 and isinstance(values[0], list):
        pairs = [(f"{key}, index {index}", each) for key, own in found.items() for index, each in enumerate(own)]
    elif values and all(isinstance(value, dict) for value in values):
        pairs = [(f"key {key}", {KEY: key, **own}) for key, own in found.items()]
    elif values and all(isinstance(value, list) and all(isinstance(each, dict) for each in value) for value in values):
        pairs = [
            (f"key {key}, index {index}", {KEY: key, **each})
            for key, own in found.items()
            for index, each in enumerate(own)
        ]
    else:
        pairs = [("the object", found)]
    for number, (label, record) in enumerate(pairs):
        yield JsonRow(number, label, lambda record=record: record)  # type: ignore[misc]


def _object(path: Path) -> dict[str, Any] | None:
    """The object that a whole file is, if it is one."""
    if path.suffix.lower() == ".parquet" or not path.is_file():
        return None
    try:
        if not begins_with(path, "{"):
            return None
        found = parse_json(path.read_text(encoding="utf-8-sig"), "judgment")
    except (OSError, UnicodeDecodeError, InputError):  # lines, or what `rows_of` says
        return None
    return found if isinstance(found, dict) else None
