"""Settings that a program gives, checked as those of the command line are."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np

from vigor_jax import cli
from vigor_jax.errors import InputError, nearest

PathLike: TypeAlias = str | os.PathLike[str]
T = TypeVar("T")


def parsed(schema: type[T], options: Mapping[str, Any], *, what: str) -> T:
    """A config from keywords.

    Args:
      schema: its dataclass.
      options: fields of it.
      what: the function that takes them, for messages.

    Raises:
      InputError: an option is unknown, or its value cannot be used.
    """
    known = [field.name for field in dataclasses.fields(schema)]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise InputError(f"{what}: unknown option {name!r}; {nearest(name, known, noun='option')}")
    try:
        return cli.parse(schema, arguments_of(schema, options), description="")
    except InputError as error:
        raise InputError(f"{what}: {error}") from None


def arguments_of(schema: Any, values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A mapping as options of the command line; sections may be mappings or parts of a `TrainConfig`."""
    found: list[str] = []
    kinds = {field.name: field.type for field in dataclasses.fields(schema)} if schema else {}
    for key, value in values.items():
        kind = kinds.get(key)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = plain(value)
        if isinstance(value, Mapping) and (kind is None or dataclasses.is_dataclass(kind)):
            found += arguments_of(kind, value, f"{prefix}{key}.")
        else:
            found.append(f"--{prefix}{key}={_written(value, prefix + key)}")
    return found


def _written(value: Any, name: str) -> str:
    """The value of an option as the command line has it."""
    value = _value(value, name)
    return value if isinstance(value, str) else json.dumps(value)


def _value(value: Any, name: str) -> Any:
    """A value of what JSON has."""
    if isinstance(value, os.PathLike):
        return os.path.join(".", value)  # a name on the Hub never begins so
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = plain(value)
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _value(each, name) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_value(each, name) for each in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise InputError(f"{name}: {value!r} is no value of an option"[:200])


def plain(config: Any) -> dict[str, Any]:
    """The fields of a config, those of its parts in turn."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: plain(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}
