"""Checkpoints of a training stage: written in the background, complete or absent, readable on any mesh.

`DIR/STEP/` holds the trained weights (`params`), what else a run needs to continue (`rest`: optimizer state, RNG
key), `record/record.json`: position in the data, fingerprint of the run, last metrics; and `sums/sums`, by which
reading finds damage that Orbax does not (most of it: its files have no checksums of the numbers). A step is written
under a temporary name and renamed when it is complete, so after a kill the one before it is the latest.
"""

import contextlib
import errno
import functools
import gc
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from vigor_jax.disk import check_room, no_room
from vigor_jax.errors import InputError, StaleError
from vigor_jax.fingerprint import differences, plain
from vigor_jax.json_fields import check_file, show
from vigor_jax.training.bit_sums import bit_sums

# How TensorStore says it, now and in earlier versions.
_OS_ERROR = re.compile(r"os_error_code='?(\d+)|OS error (\d+)")


class Checkpoints:
    """The checkpoints in one directory; a context manager, which waits for the last write when it is left."""

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        """Opens the directory, making it if need be, and removes what a killed save left there.

        Args:
          directory: on a file system that all processes see.
          keep: how many of the newest checkpoints stay.
        """
        self.directory = directory.absolute()  # Orbax takes no relative path
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        logging.getLogger("absl").addFilter(_is_not_raised)  # for good: threads of a failed save outlive this object
        self._size = 0
        self._manager = ocp.CheckpointManager(self.directory, options=options, handler_registry=_handlers())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._one_error() if kind is None else contextlib.suppress(Exception):
            self._manager.close()

    def latest_step(self) -> int | None:
        """The newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, params: Any, rest: Any, record: Mapping[str, Any]) -> None:
        """Copies the arrays to the host, then writes in the background; the caller may donate them at once.

        Args:
          step: steps done.
          params: pytree of arrays, sharded anyhow.
          rest: the same.
          record: JSON values; the method `record` compares the one under `fingerprint`.

        Raises:
          InputError: there is no room for it, or there was none for the one before.
          OSError: this or the save before it could not be written.
        """
        self.check_room(params, rest)
        save = ocp.args.StandardSave
        sums = ocp.args.JsonSave({"params": bit_sums(params), "rest": bit_sums(rest)})
        items = ocp.args.Composite(params=save(params), rest=save(rest), record=ocp.args.JsonSave(record), sums=sums)
        with self._one_error():
            self._manager.save(step, args=items, force=True)

    def check_room(self, params: Any, rest: Any) -> None:
        """Compares what the disk has free with the bytes of a checkpoint, which is written before an older one goes.

        Args:
          params: pytree of arrays, or of their `jax.ShapeDtypeStruct`s.
          rest: the same.

        Raises:
          InputError: there is no room for it; says how much is wanted and how much is free.
        """
        self._size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, rest)))
        check_room(self.directory, self._size, "a checkpoint")

    def restore(self, step: int, params: Any, rest: Any) -> tuple[Any, Any]:
        """Reads to where `jax.ShapeDtypeStruct`s with shardings say, whatever mesh wrote the checkpoint.

        Raises:
          InputError: the checkpoint is damaged; says which older one exists.
        """
        restored = _restore(self._manager, self.directory, step, {"params": params, "rest": rest})
        return restored["params"], restored["rest"]

    def record(self, step: int, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
        """What was recorded with a step.

        Raises:
          InputError: it is missing or damaged.
          StaleError: its fingerprint is another one; the first thing that differs is named.
        """
        return matching_record(self.directory, step, fingerprint)

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
          InputError: there was no room.
          OSError: a write in the background failed.
        """
        with self._one_error():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _one_error(self) -> Iterator[None]:
        """What a save raises on a full or read-only disk as one `OSError`."""
        found: OSError | None = None
        try:
            yield
        except Exception as error:
            if (found := _os_error(error, self.directory)) is None:
                raise
        if found:
            gc.collect()  # the writes that were given up say so when they go; now rather than at the end
            if found.errno in (errno.ENOSPC, errno.EDQUOT):
                raise no_room(self.directory, self._size, "a checkpoint")
            raise found


def latest_step(directory: Path) -> int | None:
    """The newest complete checkpoint in a directory that need not exist; None where there is none."""
    return max(ocp.utils.checkpoint_steps(directory), default=None) if directory.is_dir() else None


def read_record(directory: Path, step: int) -> dict[str, Any]:
    """The JSON next to a checkpoint.

    Raises:
      InputError: it is missing or damaged.
    """
    record = _read_json(directory, step, "record/record.json")
    if not isinstance(record.get("fingerprint"), dict):
        raise _damaged(directory, step, "record/record.json cannot be read: it has no fingerprint")
    return record


def matching_record(directory: Path, step: int, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """As `Checkpoints.record`."""
    record = read_record(directory, step)
    # What JSON changes (tuples to lists) is no difference.
    for changed in differences(record["fingerprint"], plain(fingerprint)):
        raise StaleError(f"{directory / str(step)} was made with {changed}", "go back to that value")
    return record


def restore_params_only(directory: Path, abstract: Any = None, step: int | None = None) -> Any:
    """The trained weights of a checkpoint, without the optimizer state or any knowledge of it.

    Args:
      directory: what `Checkpoints` was given.
      abstract: `jax.ShapeDtypeStruct`s with shardings to read to; NumPy arrays by default.
      step: the latest by default.

    Raises:
      InputError: no such checkpoint exists, or it is damaged; says which older one exists.
    """
    directory = directory.absolute()
    step = latest_step(directory) if step is None else step
    if step is None or not (directory / str(step) / "params").is_dir():
        raise InputError(f"{directory}: no checkpoint{'' if step is None else f' of step {step}'} is here")
    options = ocp.CheckpointManagerOptions(create=False, save_root_metadata=False)
    with ocp.CheckpointManager(directory, options=options, handler_registry=_handlers()) as manager:
        if abstract is None:
            with _damage(directory, step):
                shapes = manager.item_metadata(step)["params"].tree
                abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
        return _restore(manager, directory, step, {"params": abstract})["params"]


def saved_params(directory: Path, step: int) -> frozenset[str]:
    """Paths of the trained weights of a checkpoint.

    Raises:
      InputError: it is damaged.
    """
    options = ocp.CheckpointManagerOptions(create=False, save_root_metadata=False)
    with (
        ocp.CheckpointManager(directory.absolute(), options=options, handler_registry=_handlers()) as manager,
        _damage(directory, step),
    ):
        return frozenset(manager.item_metadata(step)["params"].tree)


def _restore(manager: ocp.CheckpointManager, directory: Path, step: int, items: Mapping[str, Any]) -> Any:
    """Reads items of a step and compares them with what was saved."""
    with _damage(directory, step):
        args = {name: ocp.args.StandardRestore(abstract) for name, abstract in items.items()}
        restored = manager.restore(step, args=ocp.args.Composite(**args))
    if not (directory / str(step) / "sums").exists():  # saved before there were any
        return restored
    sums = _read_json(directory, step, "sums/sums")
    for name in items:
        saved = sums.get(name)
        for path, (kind, found) in bit_sums(restored[name]).items():
            expected = saved.get(path) if isinstance(saved, dict) else None
            if expected != [kind, found] and (not isinstance(expected, list) or expected[:1] == [kind]):
                raise _damaged(directory, step, f"{name}{path} is not what was saved")
    return restored


@contextlib.contextmanager
def _damage(directory: Path, step: int) -> Iterator[None]:
    """What Orbax raises for damaged files, which is nearly anything, as one line."""
    unraisable = sys.unraisablehook
    sys.unraisablehook = functools.partial(_tell_of_others, unraisable)
    try:
        yield
        sys.unraisablehook = unraisable  # only then: reads that were given up end later
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        where = directory / str(step)
        if "PERMISSION_DENIED" in reason or isinstance(error, PermissionError):
            raise InputError(f"{where} cannot be read ({reason}); give it read permission") from None
        if re.search("not match|not compatible|mismatch", reason):
            raise InputError(
                f"{where} does not fit this model ({reason}); give the model that training began with"
            ) from None
        raise _damaged(directory, step, reason) from None


def _tell_of_others(tell: Callable[[Any], Any], unraisable: Any) -> None:
    """Leaves out what each read that Orbax gave up would print when it ends, with a traceback."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(unraisable.exc_traceback)]
    if not any("orbax" in name or "asyncio" in name for name in frames):
        tell(unraisable)


def _read_json(directory: Path, step: int, name: str) -> dict[str, Any]:
    path = directory / str(step) / name
    try:
        check_file(path)
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"expected a JSON object, got {show(value)}")
    except (OSError, ValueError, RecursionError) as error:  # InputError is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise _damaged(directory, step, f"{name} cannot be read: {reason}") from None
    return value


def _damaged(directory: Path, step: int, reason: str) -> InputError:
    """The error for a step whose files are not what was written, with the way back to one before it."""
    older = max((other for other in ocp.utils.checkpoint_steps(directory) if other < step), default=None)
    back = "begin again, for no older one is there" if older is None else f"go back to step {older}, which is there"
    return InputError(f"{directory / str(step)} is damaged ({reason}); remove that folder to {back}")


def _is_not_raised(record: logging.LogRecord) -> bool:
    """Orbax logs with a traceback, in each of its threads, what `save`, `wait` or the end of the context raises."""
    return not (record.exc_info and "orbax" in record.pathname)


def _os_error(error: BaseException | None, directory: Path) -> OSError | None:
    """The error of the disk that another one was made of."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return OSError(error.errno, os.strerror(error.errno), error.filename or str(directory))
        if match := _OS_ERROR.search(str(error)):
            number = int(match[1] or match[2])
            return OSError(number, os.strerror(number), str(directory))
        error = error.__cause__ or error.__context__
    return None


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    arrays, record = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler(filename="record.json")
    for item in ("params", "rest"):
        registry.add(item, ocp.args.StandardSave, arrays)
        registry.add(item, ocp.args.StandardRestore, arrays)
    registry.add("sums", ocp.args.JsonSave, ocp.JsonCheckpointHandler(filename="sums"))
    registry.add("record", ocp.args.JsonSave, record)
    registry.add("record", ocp.args.JsonRestore, record)
    return registry
