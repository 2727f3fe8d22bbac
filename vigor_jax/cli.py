"""What every command shares: typed options from YAML and the command line, and errors in one line."""

import dataclasses
import itertools
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse

from vigor_jax.disk import describe
from vigor_jax.errors import InputError, nearest
from vigor_jax.parallel.lost_process import HEARTBEAT_TIMEOUT, is_sign_of_loss

T = TypeVar("T")

# What TensorStore's threads raise when they end a write of a checkpoint that has failed already.
_LATE_WRITE = "Event loop is closed"


def parse(schema: type[T], arguments: Sequence[str] | None = None, *, description: str) -> T:
    """Reads a frozen dataclass from `--config FILE` and `--section.key value`; what comes later wins.

    A tuple may be written `a,b` or `a b` on the command line.

    Args:
      schema: a dataclass whose fields are values or dataclasses in turn.
      arguments: without the program's name; the process's own by default.
      description: for `--help`, which shows its first paragraph.

    Raises:
      InputError: an unknown key (the known one that it resembles is named), a missing or malformed value.
      SystemExit: after `--help`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = jsonargparse.ArgumentParser(description=description.split("\n\n")[0], exit_on_error=False)
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="YAML file of the options below")
    parser.add_class_arguments(schema, nested_key=None, fail_untyped=True)
    keys = _keys(schema)
    try:
        values = parser.instantiate(parser.parse_args(_bracket(arguments, keys)))
    except jsonargparse.ArgumentError as error:
        raise InputError(_explain(str(error), keys, arguments)) from None
    return schema(**{field.name: values[field.name] for field in dataclasses.fields(schema)})  # type: ignore[arg-type]


def dump(config: Any) -> str:
    """A config as YAML that `parse` reads back."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(config), nested_key=None, fail_untyped=True)
    return parser.dump(parser.parse_object(_plain(config)))


def show_progress() -> None:
    """Sends to stderr what the stages tell, as it is, and what streams of users tell; of libraries, only warnings.

    Libraries tell of each file that they write (absl), each request that they send (httpx), and each kind of device
    that is not there (jax).
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for library in ("absl", "httpcore", "httpx", "httpx2", "jax", "matplotlib", "openai"):
        logging.getLogger(library).setLevel(logging.WARNING)


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a command: exit code 0 when done, 2 with one line when what the user gave is wrong or a place cannot be read
    or written, 1 for a defect.

    One of several processes that fails ends at once, without waiting for the others, which notice it.
    """
    sys.unraisablehook = _interrupt_again
    try:
        main()
    except InputError as error:
        _leave(2, f"error: {' '.join(str(error).splitlines())}")  # names of files may have line breaks
    except KeyboardInterrupt:
        _leave(130, "interrupted; the same command goes on from here")
    except OSError as error:
        if (line := describe(error)) is None:
            raise
        _leave(2, f"error: {line}")
    except Exception as error:
        if not _is_distributed():
            raise
        if is_sign_of_loss(error):  # JAX is about to say of whom, and ends this process
            time.sleep(1.5 * HEARTBEAT_TIMEOUT)
        _leave(1, traceback.format_exc().rstrip())
    sys.exit(0)


def _is_distributed() -> bool:
    jax = sys.modules.get("jax")  # not every command needs it
    return jax is not None and jax.distributed.is_initialized()


def _leave(code: int, text: str) -> NoReturn:
    print(text, file=sys.stderr, flush=True)
    if not _is_distributed():
        sys.exit(code)
    if sys.modules["jax"].process_index() == 0:  # what fails here may fail in all; let them say so themselves
        time.sleep(3)
    sys.stdout.flush()
    os._exit(code)  # `sys.exit` would wait for processes that wait for this one


def _interrupt_again(unraisable: Any) -> None:
    """Python drops a Ctrl-C that falls into a destructor or a callback of the garbage collector; this repeats it."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # Not at once: that would fall into this hook.
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    elif str(unraisable.exc_value) != _LATE_WRITE:
        sys.__unraisablehook__(unraisable)


def _keys(schema: Any, prefix: str = "") -> dict[str, Any]:
    """Every dotted key with its type."""
    hints = typing.get_type_hints(schema)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        key, kind = prefix + field.name, hints[field.name]
        found |= {key: kind} | (_keys(kind, f"{key}.") if dataclasses.is_dataclass(kind) else {})
    return found


def _bracket(arguments: Sequence[str], keys: dict[str, Any]) -> list[str]:
    """`--run.stages sft,export` and `--run.stages sft export` → `--run.stages [sft,export]`, where the key holds a
    tuple."""
    bracketed: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        key, equals, value = argument.partition("=")
        if equals and _is_tuple(key, keys) and not value.startswith("["):
            argument = f"{key}=[{value}]"
        bracketed.append(argument)
        if _is_tuple(argument, keys) and left and not left[0].startswith(("[", "-")):
            values = list(itertools.takewhile(lambda value: not value.startswith("-"), left))
            del left[: len(values)]
            bracketed.append(f"[{','.join(values)}]")
    return bracketed


def _is_tuple(argument: str, keys: dict[str, Any]) -> bool:
    return argument.startswith("--") and typing.get_origin(keys.get(argument[2:])) is tuple


def _explain(message: str, keys: dict[str, Any], arguments: Sequence[str]) -> str:
    """jsonargparse's message in one line, an unknown key with the known one that it resembles."""
    unknown = (
        re.search(r"Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'", message)
        or re.search(r"Option '(?P<key>[^']+)' is not accepted", message)
        or re.search(r"unrecognized arguments: --(?P<key>[\w.-]+)", message, re.IGNORECASE)
    )
    if not unknown:
        return re.sub(r"\s*\n\s*", " ", message).strip()
    key = ".".join(filter(None, (unknown.groupdict().get("group"), unknown["key"])))
    in_file = "unrecognized" not in message.lower() and "--config" in arguments
    where = f"{arguments[arguments.index('--config') + 1]}: " if in_file else ""
    return f"{where}unknown key {key}; {nearest(key, keys)} (--help lists all)"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
