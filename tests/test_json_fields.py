"""JSON settings: what counts as which type, and that every other file gives one line."""

import json
import math
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigor_jax.errors import InputError, some
from vigor_jax.json_fields import Fields, read_json, show

PATH = Path("folder/config.json")


def refusal(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fields(value: Any) -> Fields:
    return Fields({"key": value}, PATH, "part.")


VALUES = [None, True, False, 0, 3, -1, 2**70, 2.0, 1e-5, math.nan, math.inf, "3", "", [], [3], {}, {"key": 3}]
ACCEPTED = {
    "integer": [0, 3],
    "number": [0, 3, 2.0, 1e-5],
    "text": ["3", ""],
    "boolean": [True, False],
    "choice": [3],
    "numbers": [0, 3, 2.0, 1e-5],
}
OPTIONS: dict[str, Any] = {
    "integer": {"default": 7, "least": 0, "most": 9},
    "number": {"default": 7.0, "least": 0, "most": 9},
    "text": {"default": "seven"},
    "boolean": {"default": True},
    "choice": {"default": 7, "choices": (3, 7)},
    "numbers": {"default": (7.0, 7.0), "count": 2, "least": 0, "most": 9},
}


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_value_is_of_its_type_or_refused(kind: str, value: Any) -> None:
    def read() -> Any:
        return getattr(fields(value), kind)("key", **OPTIONS[kind])

    if any(type(value) is type(good) and value == good for good in ACCEPTED[kind]):
        assert read() == ((value, value) if kind == "numbers" else value)
    else:
        message = refusal(read)
        assert message.startswith(f"{PATH}: part.key")
        assert "expected" in message or "is not supported, only 3 or 7" in message
        assert show(value) in message


@pytest.mark.parametrize("kind", OPTIONS)
def test_absent_is_the_default_and_null_where_it_may_be(kind: str) -> None:
    default = OPTIONS[kind]["default"]
    assert getattr(Fields({}, PATH), kind)("key", **OPTIONS[kind]) == default
    if kind != "numbers":
        assert getattr(fields(None), kind)("key", null=True, **OPTIONS[kind]) == default


def test_an_object_inside_says_where_it_is() -> None:
    inner = fields({"deeper": {"n": "x"}}).object("key")
    assert inner is not None
    deeper = inner.object("deeper")
    assert deeper is not None
    assert "config.json: part.key.deeper.n: expected a whole number from 1 to 2, got 'x'" in refusal(
        deeper.integer, "n", 1, least=1, most=2
    )
    assert fields(None).object("key") is None
    assert Fields({}, PATH).object("key") is None
    for value in ("x", 1, [], True):
        assert "expected an object" in refusal(fields(value).object, "key")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "cannot be read as JSON"),
        (b"[1]", "expected a JSON object, got a list of 1"),
        (b"null", "expected a JSON object, got null"),
        (b'"x"', "expected a JSON object, got 'x'"),
        (b"NaN", "expected a JSON object, got NaN"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "is not UTF-8"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a":' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "cannot be read as JSON"),
        (b'{"a": 1, "a": 2}', "the key 'a' has two values"),
        (b'{"b": {"a": 1, "a": true}}', "the key 'a' has two values"),
        (b"\x00" * 50, "cannot be read as JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes, fragment: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    message = refusal(read_json, path)
    assert fragment in message
    assert message.startswith(str(path))
    assert len(message) < len(str(path)) + 300


@pytest.mark.parametrize("content", [b'\xef\xbb\xbf{"a": 1}', b'{"a": 1, "a": 1}', b'{"a": 1}\n\n'])
def test_what_says_one_thing_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert read_json(tmp_path / "config.json") == {"a": 1}


@settings(max_examples=300, deadline=None, database=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,0123456789.eE+-truefalsn \\u', max_size=60).map(str.encode))
def test_any_bytes_are_an_object_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    try:
        found = read_json(path)
    except InputError as error:
        lines = str(error).count("\n") + 1
        assert lines == 1
    else:
        assert isinstance(found, dict)


def put(kind: str, path: Path) -> None:
    """Something that is no file, under this name."""
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a directory":
        path.mkdir()
    elif kind == "a socket":
        here = os.getcwd()
        os.chdir(path.parent)  # the whole path may be longer than a socket's can be
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(here)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a link to nothing":
        path.symlink_to("blobs/absent")
    elif kind == "a link to itself":
        path.symlink_to(path.name)


NO_FILES = {
    "a named pipe": "it is a named pipe, expected a file",
    "a directory": "it is a directory, expected a file",
    "a socket": "it is a socket, expected a file",
    "a device": "it is a device, expected a file",
    "a link to nothing": "is a link to blobs/absent, which is missing",
    "a link to itself": "cannot be read",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    put(kind, tmp_path / "config.json")
    assert NO_FILES[kind] in refusal(read_json, tmp_path / "config.json")


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text(json.dumps({"a": 1}))
    (tmp_path / "config.json").symlink_to("blob")
    assert read_json(tmp_path / "config.json") == {"a": 1}


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, ""), (1, "n0"), (10, "n0, n1, n2, n3, n4, n5, n6, n7, n8, n9"), (4000, "n8, n9 and 3990 more")],
)
def test_some_names(count: int, expected: str) -> None:
    assert some(f"n{i}" for i in range(count)).endswith(expected)
    assert some(["a\nb", "c" * 1000]).count("\n") == 0
    assert len(some("c" * 1000 for _ in range(1000))) < 3000
