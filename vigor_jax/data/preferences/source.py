"""The rows of files of preferences, whatever they are written in."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vigor_jax.data.images.row_groups import RowGroups
from vigor_jax.data.preferences.embedded import ParquetRows
from vigor_jax.data.records.json_rows import JsonRow, begins_with, json_rows
from vigor_jax.errors import InputError

_PARQUET, _JSON = (".parquet",), (".json", ".jsonl")


def rows_of(path: Path, what: str = "preference") -> Iterator[JsonRow]:
    """The rows of a file, or of all files of a folder by name; of Parquet, images stay in the file.

    Args:
      path: of the file or the folder.
      what: a row is, for messages.

    Raises:
      InputError: a file cannot be read, or the folder has none.
    """
    if not path.is_dir():
        yield from _rows(path, RowGroups(), what)
        return
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    of_kinds = ([file for file in files if file.suffix.lower() in kind] for kind in (_PARQUET, _JSON))
    if not (chosen := next(filter(None, of_kinds), [])):
        raise InputError(f"{path}: expected files of {what}s that end in {', '.join((*_PARQUET, *_JSON))}, got none")
    groups: RowGroups[Any] = RowGroups()
    number = 0
    for file in chosen:
        for row in _rows(file, groups, what):
            yield row._replace(number=number, label=f"{file.name}, {row.label}")
            number += 1


def _rows(path: Path, groups: RowGroups[Any], what: str) -> Iterator[JsonRow]:
    if path.suffix.lower() in _PARQUET:
        for number, record in enumerate(ParquetRows(path, groups)):
            yield JsonRow(number, f"row {number}", lambda record=record: record)  # type: ignore[misc]
        return
    keyed = _keyed(path)
    yield from json_rows(path, what) if keyed is None else keyed


def _keyed(path: Path) -> Iterator[JsonRow] | None:
    """Rows of an object that has lists of pairs under the numbers of images, as SENTINEL's; None if it is no such.

    Raises:
      InputError: more than this object is in the file.
    """
    try:
        if not begins_with(path, "{"):
            return None
        with path.open(encoding="utf-8-sig") as file:
            first = next(line for line in file if line.strip())
            found = _object(first) or _object(first + file.read())  # on one line, or on many
            if found is None or not _has_pairs(found):
                return None
            if file.read().strip():
                raise InputError(
                    f"{path}: expected one object with the pairs of all images, got more behind it; join them into one"
                )
    except (OSError, UnicodeDecodeError):  # which `json_rows` says
        return None
    return _pairs(found)


def _has_pairs(found: dict[str, Any]) -> bool:
    if not all(isinstance(pairs, list) for pairs in found.values()):
        return False
    first = next((pair for pairs in found.values() for pair in pairs), None)
    return isinstance(first, dict) and not {"y_win", "win"}.isdisjoint(first)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _pairs(found: dict[str, Any]) -> Iterator[JsonRow]:
    number = 0
    for image, pairs in found.items():
        for index, pair in enumerate(pairs):
            record = {"image_id": image, **pair} if isinstance(pair, dict) else pair
            yield JsonRow(number, f"image {image}, pair {index}", lambda record=record: record)  # type: ignore[misc]
            number += 1
