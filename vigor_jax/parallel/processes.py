"""What the processes of a run tell each other before they compute together: whether each can, and has the same data."""

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from vigor_jax.errors import InputError

T = TypeVar("T")


def is_first() -> bool:
    """Whether this process writes what all would write."""
    return jax.process_index() == 0


def together(prepare: Callable[[], T]) -> T:
    """Calls a function in every process; if it fails in one, all of them end.

    Args:
      prepare: must not communicate with other processes.

    Raises:
      InputError: in the processes where `prepare` did not fail, that it did in another one, and why.
    """
    if jax.process_count() == 1:
        return prepare()
    try:
        result = prepare()
    except Exception as error:
        _gather(str(error) or type(error).__name__)
        raise
    for process, message in enumerate(_gather("")):
        if message:
            raise InputError(f"process {process} cannot continue: {message}")
    return result


def same_everywhere(facts: Mapping[str, Any]) -> None:
    """Checks that all processes have the same files and settings as process 0.

    Args:
      facts: JSON values by name, in dictionaries of any depth.

    Raises:
      InputError: in a process that differs, the first thing that does; in the others, which process that is.
    """
    if jax.process_count() == 1:
        return
    own = json.loads(json.dumps(facts, default=str))
    first = json.loads(_gather(json.dumps(own) if jax.process_index() == 0 else "")[0])

    def compare() -> None:
        for key, theirs, ours in _differences(first, own):
            raise InputError(
                f"process {jax.process_index()} has {key} {_short(ours)}, and process 0 has {_short(theirs)}; give all "
                "hosts the same files and settings"
            )

    together(compare)


def gather(value: T) -> list[T]:
    """The values of all processes, in their order; any that can be pickled."""
    if jax.process_count() == 1:
        return [value]
    return [pickle.loads(content) for content in _gather_bytes(pickle.dumps(value))]


def _gather(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    return [content.decode() for content in _gather_bytes(text.encode(errors="backslashreplace"))]


def _gather_bytes(data: bytes) -> list[bytes]:
    content = np.frombuffer(data, np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(content))))
    padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
    padded[: len(content)] = content
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def _differences(theirs: Any, ours: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in {**theirs, **ours}:
            yield from _differences(theirs.get(name), ours.get(name), f"{key}.{name}" if key else name)
    elif theirs != ours:
        yield key, theirs, ours


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
