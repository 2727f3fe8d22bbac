"""What a result depends on: the settings of a config, in one form, compared in one wording.

A field of a config that changes no result says so where it is declared: `place`, where something is on this host, and
`neutral`, how fast something is computed or how often it is saved. All other fields are part of the fingerprint, an
`optional` section where it is given.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_ABSENT = object()


def neutral(default: Any = dataclasses.MISSING) -> Any:
    """A field of a config dataclass that changes no result."""
    return dataclasses.field(default=default, metadata={"affects_results": False})


def place(default: Any = dataclasses.MISSING) -> Any:
    """A field that says where something is: equal content elsewhere gives equal results, and hosts may differ."""
    return dataclasses.field(default=default, metadata={"affects_results": False, "differs_on_hosts": True})


def optional(default: Any = None) -> Any:
    """A section that a config may lack (None), or an option that earlier versions had not: with its default it leaves
    nothing in the fingerprint, so that results of versions without it stay valid."""
    return dataclasses.field(default=default, metadata={"absent_by_default": True})


def of(config: Any, section: str = "", *, with_neutral: bool = False) -> dict[str, Any]:
    """The fields of a config that affect results, as JSON values.

    Args:
      config: a dataclass; dataclasses among its fields count with their own fields.
      section: begins the keys, such as "sft".
      with_neutral: also those that change no result, but for places: what all hosts must have in common.

    Returns:
      `section.field` → value, in the order of the fields; dots for dataclasses within, and numbers from 0 for those
      in a tuple.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        key = f"{section}.{field.name}" if section else field.name
        value = getattr(config, field.name)
        is_neutral, is_place = not field.metadata.get("affects_results", True), "differs_on_hosts" in field.metadata
        is_absent = "absent_by_default" in field.metadata and value == field.default
        if is_place or (is_neutral and not with_neutral) or is_absent:
            continue
        if dataclasses.is_dataclass(value):
            found |= of(value, key, with_neutral=with_neutral)
        elif isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
            for number, each in enumerate(value):
                found |= of(each, f"{key}.{number}", with_neutral=with_neutral)
        else:
            found[key] = plain(value)
    return found


def plain(value: Any) -> Any:
    """A value as JSON reads it back: tuples become lists, paths strings."""
    return json.loads(json.dumps(value, default=str))


def digest(settings: Any) -> str:
    """SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def content(path: Path | None) -> str:
    """SHA-256 of what a file or the files of a folder hold; "" for none."""
    if path is None:
        return ""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class Difference(NamedTuple):
    """A setting that is not what it was.

    Attributes:
      key: its name; dots lead into objects.
      before: its value, None if it had none.
      now: the same.
    """

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} {_short(self.before)}, which is now {_short(self.now)}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any], key: str = "") -> Iterator[Difference]:
    """What differs between two fingerprints, in the order of `now`, then what only `before` has."""
    for name in [*now, *(name for name in before if name not in now)]:
        inner, left, right = f"{key}.{name}" if key else name, before.get(name, _ABSENT), now.get(name, _ABSENT)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from differences(left, right, inner)
        elif left is _ABSENT or right is _ABSENT or left != right:
            yield Difference(inner, *(None if value is _ABSENT else value for value in (left, right)))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
