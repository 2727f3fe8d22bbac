"""What every command shares: typed options from YAML and the command line, and errors in one line."""

import argparse
import dataclasses
import inspect
import itertools
import logging
import os
import re
import signal
import sys
import textwrap
import threading
import time
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse

from vigor_jax import disk, memory
from vigor_jax.errors import InputError, RunEndedError, nearest
from vigor_jax.parallel.lost_process import HEARTBEAT_TIMEOUT, is_sign_of_loss

T = TypeVar("T")

# Config files that are elsewhere now: name → what to say.
_MOVED = {
    "demo.yaml": f"; the demo's config is now in the package, {Path(__file__).parent / 'demo' / 'demo.yaml'}, and "
    "python -m vigor_jax.train without options runs it"
}

# What TensorStore's threads raise when they end a write of a checkpoint that has failed already.
_LATE_WRITE = "Event loop is closed"


class Parser(argparse.ArgumentParser):
    """For a command with a few options; the module's docstring is its description, an error is one line."""

    def __init__(self, command: str, description: str | None) -> None:
        self._command = command
        super().__init__(
            prog=f"python -m vigor_jax.{command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self._command}: {message} (--help lists the options)")


class UnknownKeyError(InputError):
    """An argument, or a key of a config file, that a command does not have."""


class MissingKeyError(InputError):
    """An option without a default was given neither as an argument nor in a config file."""


def parse(schema: type[T], arguments: Sequence[str] | None = None, *, description: str) -> T:
    """Reads a frozen dataclass from `--config FILE` and `--section.key value`; what comes later wins.

    A tuple may be written `a,b` or `a b` on the command line.

    Args:
      schema: a dataclass whose fields are values or dataclasses in turn.
      arguments: without the program's name; the process's own by default.
      description: for `--help`, which shows its first paragraph.

    Raises:
      UnknownKeyError: an unknown key; the known one that it resembles is named.
      MissingKeyError: a key without a default is not given.
      InputError: a malformed value, or a config file that cannot be read.
      SystemExit: after `--help`.
    """
    parser = _WithOptionalSections(description=description.split("\n\n")[0], allow_abbrev=False)
    parser.told_last = _optional_help(schema)
    return _parse(schema, arguments, parser)


class _WithOptionalSections(jsonargparse.ArgumentParser):
    """Its help also tells of options within sections that may be left out, which jsonargparse takes and does not list.

    Attributes:
      told_last: follows all other options.
    """

    told_last = ""

    def format_help(self, *args: Any) -> str:
        text: str = super().format_help(*args)
        return text + self.told_last


def _optional_help(schema: Any, prefix: str = "") -> str:
    """The options within sections that may be left out (`X | None`), as the help lists options."""
    hints, meanings, text = typing.get_type_hints(schema), _meanings(schema), ""
    for field in dataclasses.fields(schema):
        key, kind, section = prefix + field.name, hints[field.name], _section(hints[field.name])
        if section is kind and section:
            text += _optional_help(section, f"{key}.")
        elif section:
            text += f"\nwithin {key}:\n"
            for inner in dataclasses.fields(section):
                default = inner.default if inner.default is not dataclasses.MISSING else "none"
                told = f"{meanings[f'{field.name}.{inner.name}']} (type: {inner.type}, default: {default})"
                text += f"  --{key}.{inner.name} {inner.name.upper()}\n"
                text += textwrap.fill(told, 79, initial_indent=" " * 24, subsequent_indent=" " * 24) + "\n"
    return text


def parse_if_known(schema: type[T], arguments: Sequence[str], *, with_config: bool = True) -> T | None:
    """`parse`, or None if an argument or a key is not in the schema, so that another schema can be tried.

    `--help` is in no schema here, and `--config` only `with_config`.

    Raises:
      InputError: as `parse`, except for `UnknownKeyError`.
    """
    parser = jsonargparse.ArgumentParser(add_help=False, print_config=None, allow_abbrev=False)
    try:
        return _parse(schema, arguments, parser, with_config=with_config)
    except UnknownKeyError:
        return None


def _parse(
    schema: type[T],
    arguments: Sequence[str] | None,
    parser: jsonargparse.ArgumentParser,
    *,
    with_config: bool = True,
) -> T:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser.exit_on_error = False
    keys, files = _keys(schema), dict[str, str]()
    if with_config:
        parser.add_argument("--config", action=_config_file(keys, files), help="YAML file of the options below")
    parser.add_class_arguments(schema, nested_key=None, fail_untyped=True)
    meanings = _meanings(schema)
    for action in parser._actions:
        action.help = meanings.get(action.dest, action.help)
    try:
        values = parser.instantiate(parser.parse_args(_bracket(arguments, keys)))
    except jsonargparse.ArgumentError as error:
        raise _explain(str(error), keys, files) from None
    except ValueError as error:  # of a section that may be left out, jsonargparse hides the InputError in another
        if refused := re.search(r"Union subtypes.*?Errors:\s+- (.*?)\s+- Expected", str(error), re.DOTALL):
            raise InputError(refused[1]) from None
        raise
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
    logging.getLogger("asyncio").addFilter(_is_news)
    for library in ("absl", "httpcore", "httpx", "httpx2", "jax", "matplotlib", "openai"):
        logging.getLogger(library).setLevel(logging.WARNING)


def _is_news(record: logging.LogRecord) -> bool:
    """Orbax gives several writes up when a disk is full, and asyncio tells of each; the command says it, once."""
    error = record.exc_info and record.exc_info[1]
    is_of_the_disk = isinstance(error, OSError) and disk.describe(error)
    return not (is_of_the_disk or "[os_error_code=" in str(error))  # as tensorstore says it, of any class


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a command: exit code 0 when done, 2 with one line when what the user gave is wrong or a place cannot be read
    or written, 3 with one line when numbers are not finite or memory is full, 1 for a defect.

    One of several processes that fails ends at once, without waiting for the others, which notice it.
    """
    sys.unraisablehook = _interrupt_again
    try:
        main()
    except InputError as error:
        _leave(2, _line(error))
    except (RunEndedError, FloatingPointError) as error:
        _leave(3, _line(error))
    except KeyboardInterrupt:
        _leave(130, "interrupted; the same command continues from here")
    except OSError as error:
        if (line := disk.describe(error)) is None:
            raise
        _leave(2, f"error: {line}")
    except Exception as error:
        if line := memory.describe(error):
            _leave(3, f"error: {line}; use smaller batches, or more devices")
        if not _is_distributed():
            raise
        if is_sign_of_loss(error):  # JAX is about to say of whom, and ends this process
            time.sleep(1.5 * HEARTBEAT_TIMEOUT)
        _leave(1, traceback.format_exc().rstrip())
    sys.exit(0)


def _line(error: Exception) -> str:
    return f"error: {' '.join(str(error).splitlines())}"  # names of files may have line breaks


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
        section = _section(kind)
        found |= {key: kind} | (_keys(section, f"{key}.") if section else {})
    return found


def _section(kind: Any) -> Any:
    """The dataclass that a field holds, or may hold (`X | None`); None if it holds values, or several in a tuple."""
    if typing.get_origin(kind) is tuple:
        return None
    return next((each for each in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(each)), None)


def _meanings(schema: Any, prefix: str = "") -> dict[str, str]:
    """What every dotted key means, from the attributes in the docstrings of the classes that declare them."""
    hints, found = typing.get_type_hints(schema), dict[str, str]()
    for owner in reversed(schema.__mro__):
        _, _, attributes = inspect.cleandoc(owner.__dict__.get("__doc__") or "").partition("\nAttributes:\n")
        section = textwrap.dedent(re.split(r"\n\n(?=\S)", attributes)[0])
        for entry in re.finditer(r"^(\w+): ?(.*(?:\n[ \t]+.*)*)", section, re.MULTILINE):
            found[prefix + entry[1]] = " ".join(entry[2].split()).replace("%", "%%")
    for field in dataclasses.fields(schema):
        if section := _section(hints[field.name]):
            found |= _meanings(section, f"{prefix}{field.name}.")
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


def _config_file(keys: dict[str, Any], files: dict[str, str]) -> type[jsonargparse.ActionConfigFile]:
    """Reads a config file; adds its keys to `files`, with its name; what is wrong with it is said with its name."""

    class ConfigFile(jsonargparse.ActionConfigFile):
        def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
            try:
                super().__call__(parser, cfg, values, option_string)
            except (TypeError, KeyError, jsonargparse.ArgumentError) as error:
                if "File does not exist" in str(error):
                    moved = _MOVED.get(Path(values).name, "")
                    raise InputError(f"--config: there is no file {values}{moved}") from None
                raise _explain(str(error), keys, files, values) from None
            for key in cfg.keys():  # noqa: SIM118 (dotted, which iteration would not give)
                files.setdefault(key, values)

    return ConfigFile


def _explain(message: str, keys: dict[str, Any], files: dict[str, str], file: str = "") -> InputError:
    """jsonargparse's message in one line, an unknown key with the known one that it resembles.

    Args:
      message: what jsonargparse says.
      keys: all that are known.
      files: those that config files have, with the name of the first file that has it.
      file: the config file that is being read.
    """
    where, message = f"{file}: " if file else "", _of_optional(message)
    unknown = (
        re.search(r"Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'", message)
        or re.search(r"Option '(?P<key>[^']+)' is not accepted", message)
        or re.search(r"unrecognized arguments: --(?P<key>[\w.-]+)", message, re.IGNORECASE)
    )
    if unknown:
        key = ".".join(filter(None, (unknown.groupdict().get("group"), unknown["key"])))
        if not file and "unrecognized" not in message.lower() and key in files:
            where = f"{files[key]}: "
        return UnknownKeyError(f"{where}unknown key {key}; {nearest(key, keys)} (--help lists all)")
    if missing := re.search(r"the following arguments are required: (.+)", message):
        names = missing[1].split(", ")
        are = "is" if len(names) == 1 else "are"
        options = " and ".join(f"--{name}" for name in names)
        return MissingKeyError(
            f"{where}{' and '.join(names)} {are} missing; give {options}, or a --config that says it"
        )
    section = re.search(r'Parser key "(?P<key>[^"]+)":\s+(Unable to load config|Does not validate against)', message)
    if section and (own := [key for key in keys if key.startswith(f"{section['key']}.")]):
        return InputError(
            f"{where}{section['key']} has options, such as --{own[0]}; give one of them (--help lists all)"
        )
    line = re.sub(r"\s*\n\s*", " ", message).strip()
    return (UnknownKeyError if line.startswith("unrecognized") else InputError)(where + line)


def _of_optional(message: str) -> str:
    """What jsonargparse says of a section that may be left out (`X | None`), as it says it of any other section."""
    found = re.search(
        r"""Parser key "(?P<key>[^"]+)":\s+Does not validate against any of the Union subtypes.*?"""
        r"""- Problem with given class_path '[^']+':\s+(?P<what>.*?)\s+- Expected a <class 'NoneType'>""",
        message,
        re.DOTALL,
    )
    if found is None:
        return message
    what = re.sub(r"(Parser key \"|Option ')", rf"\g<1>{found['key']}.", found["what"])
    return re.sub(r"Given value type:.*", "", what, flags=re.DOTALL).strip()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
