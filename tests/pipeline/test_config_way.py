"""The way of a config value, from the command to where it is used, passes no file twice."""

import dataclasses
import inspect
import sys
import typing
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

import vigor_jax
from tests.pipeline.loop_world import loop, make_world
from vigor_jax import train
from vigor_jax.config import TrainConfig

PACKAGE = str(Path(vigor_jax.__file__).parent)
# They read every value, for the command line, and to say what a result depends on; no value is used there.
READ_ALL = {"cli.py", "fingerprint.py"}


def sections(schema: type) -> set[type]:
    """The dataclasses that a config is made of."""
    found, to_do = set[type](), [schema]
    while to_do:
        one = to_do.pop()
        to_do += typing.get_args(one)
        if dataclasses.is_dataclass(one) and one not in found:
            assert isinstance(one, type)
            found.add(one)
            to_do += typing.get_type_hints(one).values()
    return found


def way(frame: FrameType | None) -> list[str]:
    """The package's files that have handed a value on, the command first, neighbors once.

    What a generator or an inner function reads, it was given where it was made: the frames that call it from between
    have not had the value.
    """
    frames: list[tuple[str, bool]] = []
    while frame:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            is_made_earlier = bool(code.co_flags & inspect.CO_GENERATOR) or "<locals>" in code.co_qualname
            frames.append((code.co_filename.removeprefix(PACKAGE + "/"), is_made_earlier))
        frame = frame.f_back
    files, place = list[str](), 0
    while place < len(frames):
        file, is_made_earlier = frames[place]
        files += [file] * (file not in files[-1:])
        above = [later for later in range(place + 1, len(frames)) if frames[later][0] == file]
        place = above[0] if is_made_earlier and above else place + 1
    return files[::-1]


@pytest.fixture
def ways(monkeypatch) -> dict[str, set[tuple[str, ...]]]:
    """Value → the ways to the places that read it; filled while something runs."""
    found: dict[str, set[tuple[str, ...]]] = {}

    def watch(schema: type) -> None:
        names = {field.name for field in dataclasses.fields(schema)}
        plain = schema.__getattribute__

        def read(self: Any, name: str) -> Any:
            if name in names and (files := way(sys._getframe(1))) and not READ_ALL & set(files):
                found.setdefault(f"{schema.__name__}.{name}", set()).add(tuple(files))
            return plain(self, name)

        monkeypatch.setattr(schema, "__getattribute__", read)

    for schema in sections(TrainConfig):
        watch(schema)
    return found


@pytest.mark.slow
def test_no_value_passes_a_file_twice(tmp_path, ways):
    train.main(loop(make_world(tmp_path / "data"), tmp_path / "run"))
    assert len(ways) > 100
    twice = {value: files for value, found in ways.items() for files in found if len(set(files)) < len(files)}
    assert not twice


def test_what_counts_as_a_way(monkeypatch):
    """A value that comes back to a file by an argument is seen; one that a generator has had from the start is not."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", "<p>")
    seen = []
    of_a = """
def by_argument(b): b.call(inner)
def inner(): look()
def lazily(b): b.call(make().__next__)
def make():
    look()
    yield
"""
    a, b = ({"look": lambda: seen.append(way(sys._getframe(1)))} for _ in range(2))
    exec(compile(of_a, "<p>/a.py", "exec"), a)
    exec(compile("def call(function): function()", "<p>/b.py", "exec"), b)
    for name in ("by_argument", "lazily"):
        a[name](SimpleNamespace(**b))
    assert seen == [["a.py", "b.py", "a.py"], ["a.py"]]
