"""Settings files of others (config.json and its like), read value by value: what is wrong is said in one line.

JSON says nothing about types, and a file that a person has edited may hold anything. So no value is used before
`Fields` has looked at its type and its range.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from vigor_jax.errors import InputError

Json: TypeAlias = dict[str, Any]
D = TypeVar("D")
T = TypeVar("T", str, int, bool)

# No settings file is larger; the largest tokenizer.json known has 34 MB.
_MAX_BYTES = 256 << 20
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def exists(path: Path) -> bool:
    """Whether something has this name; a name that no file can have is one that nothing has."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def check_file(path: Path) -> None:
    """Refuses what is no file before it is opened: a named pipe would wait for ever. Links to files are files.

    Raises:
      InputError: the path is a directory, a pipe, a device or a link to nothing.
      OSError: it does not exist, or cannot be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == errno.ENOENT and path.is_symlink():
            raise InputError(
                f"{path} is a link to {os.readlink(path)}, which is missing: download the file again"
            ) from None
        raise
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise InputError(f"{path} cannot be read: it is {name}, expected a file; put the file of that name there")


def read_json(path: Path) -> Json:
    """A JSON object from a file.

    Raises:
      InputError: the file is missing, no file, no JSON object, or gives a key two values.
    """
    path = Path(path)
    try:
        check_file(path)
        size = path.stat().st_size
        content = path.read_bytes() if size <= _MAX_BYTES else b""
    except FileNotFoundError:
        raise InputError(f"{path} is missing; a checkpoint directory needs it") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a file that can be") from None
    if size > _MAX_BYTES:
        raise InputError(f"{path} has {size} bytes, which no settings file has; copy it from the checkpoint again")
    return parse_json(content, path)


def parse_json(content: bytes, path: Path) -> Json:
    """The JSON object that the bytes of a file say; a byte order mark in front is no part of it.

    Raises:
      InputError: they say none, or give a key two values.
    """
    if not content.strip():
        raise InputError(f"{path} is empty, expected a JSON object; copy it from the checkpoint again")
    twice: list[str] = []

    def unite(pairs: list[tuple[str, Any]]) -> Json:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.extend(key for key, value in pairs if _differs(found[key], value))
        return found

    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=unite)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as JSON (byte {error.start} is not UTF-8); save it as UTF-8") from None
    except RecursionError:
        raise InputError(
            f"{path} cannot be read as JSON (nested too deeply); copy it from the checkpoint again"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); copy it from the checkpoint again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {show(value)}; copy it from the checkpoint again")
    if twice:
        raise InputError(f"{path}: the key {show(twice[0])} has two values; remove one of them")
    return value


class Fields:
    """One object of a settings file.

    Every method returns a key's value, or `default` where the key is absent; `null=True` says that null means the
    same as absent. What is of another type or outside its range is refused.

    Args:
      values: the object.
      path: of the file, for messages.
      inside: dotted key of the object in the file, "" for the whole.
    """

    def __init__(self, values: Json, path: Path | str, inside: str = "") -> None:
        self.values = values
        self.path = path
        self._inside = inside

    @classmethod
    def read(cls, path: Path) -> "Fields":
        """Those of a whole file; raises as `read_json`."""
        return cls(read_json(path), path)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def integer(self, key: str, default: D, *, least: int, most: int, null: bool = False) -> int | D:
        """A whole number in least..most; 8.0, "8" and true are none."""
        if self._is_absent(key, null):
            return default
        value = self.values[key]
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: D, *, least: float, most: float, null: bool = False) -> float | D:
        """A finite number in least..most, written with or without a point."""
        if self._is_absent(key, null):
            return default
        value = self.values[key]
        if not _is_number(value, least, most):
            raise self.wrong(key, f"a number from {least:g} to {most:g}")
        return float(value)

    def numbers(self, key: str, default: D, *, count: int, least: float, most: float) -> tuple[float, ...] | D:
        """A list of `count` numbers; one number stands for as many equal ones."""
        if key not in self.values:
            return default
        value = self.values[key]
        if not isinstance(value, list | tuple):
            value = [value] * count
        if len(value) != count or not all(_is_number(item, least, most) for item in value):
            raise self.wrong(key, f"a list of {count} numbers from {least:g} to {most:g}")
        return tuple(map(float, value))

    def text(self, key: str, default: D, *, null: bool = False) -> str | D:
        """A string."""
        if self._is_absent(key, null):
            return default
        if not isinstance(self.values[key], str):
            raise self.wrong(key, "a string")
        return self.values[key]

    def boolean(self, key: str, default: bool, *, null: bool = False) -> bool:
        """true or false; 1 and "true" are neither."""
        if self._is_absent(key, null):
            return default
        if not isinstance(self.values[key], bool):
            raise self.wrong(key, "true or false")
        return self.values[key]

    def choice(self, key: str, choices: Collection[T], default: T, *, null: bool = False) -> T:
        """One of the values that are supported."""
        if self._is_absent(key, null):
            return default
        value = self.values[key]
        for choice in choices:
            if type(choice) is type(value) and choice == value:
                return choice
        raise InputError(f"{self.place(key)} {show(value)} is not supported, only {_either(choices)}")

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, which must be there."""
        value = self.values.get(key)
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
            raise InputError(f"{self.place(key)}: expected a list of strings, got {show(value)}; the file is damaged")
        return tuple(value)

    def object(self, key: str) -> "Fields | None":
        """An object inside; None if it is absent or null."""
        if self._is_absent(key, null=True):
            return None
        if not isinstance(self.values[key], dict):
            raise self.wrong(key, "an object")
        return Fields(self.values[key], self.path, f"{self._inside}{key}.")

    def place(self, key: str) -> str:
        """Where a key is: the file and the dotted key."""
        return f"{self.path}: {self._inside}{key}"

    def wrong(self, key: str, expected: str) -> InputError:
        """The error that a key's value is not what is expected."""
        return InputError(
            f"{self.place(key)}: expected {expected}, got {show(self.values[key])}; correct it, or copy the file "
            "from the checkpoint again"
        )

    def _is_absent(self, key: str, null: bool) -> bool:
        return key not in self.values or (null and self.values[key] is None)


def show(value: Any) -> str:
    """A value of a JSON file, short and in one line; of lists and objects only the size."""
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {len(value)} keys"
    if not isinstance(value, str | int | float | None):
        return type(value).__name__
    text = ascii(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_number(value: Any, least: float, most: float) -> bool:
    # A whole number may be too large for a float; comparing it needs no conversion.
    return (
        type(value) in (int, float) and not (isinstance(value, float) and math.isnan(value)) and least <= value <= most
    )


def _differs(left: Any, right: Any) -> bool:
    try:
        return bool(left != right) or type(left) is not type(right)
    except RecursionError:
        return True


def _either(choices: Iterable[Any]) -> str:
    return " or ".join(map(show, choices))
