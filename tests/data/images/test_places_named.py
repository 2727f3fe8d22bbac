"""Patterns of places, and a remote file by ranges."""

import io

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.data.images.places import Ranges, expand, list_pattern, parse


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{8..10}.tar", ["8.tar", "9.tar", "10.tar"]),
        ("{train,val}/{0..1}.tar", ["train/0.tar", "train/1.tar", "val/0.tar", "val/1.tar"]),
        ("{a,{0..1}}.tar", ["a.tar", "0.tar", "1.tar"]),
        ("{}{x}.tar", ["{}{x}.tar"]),
        ("{a..c}-{0..4..2}.tar", [f"{letter}-{number}.tar" for letter in "abc" for number in (0, 2, 4)]),
        ("{a,a,{b,a}}.tar", ["a.tar", "b.tar"]),
        ("{0..2.tar", ["{0..2.tar"]),
        ("0..2}{a,b}.tar", ["0..2}{a,b}.tar"]),
        (r"C:\{a,b}\.tar", [r"C:\a\.tar", r"C:\b\.tar"]),
        ("s3://b/{000..002}-*.tar", ["s3://b/000-*.tar", "s3://b/001-*.tar", "s3://b/002-*.tar"]),
    ],
)
def test_braces(pattern, names):
    assert sorted(expand(pattern)) == sorted(names)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 6))
def test_ranges_of_braces(low, size, width):
    text = str(low).zfill(width)
    names = expand(f"x-{{{text}..{low + size}}}.tar")
    assert [int(name[2:-4]) for name in names] == list(range(low, low + size + 1))
    assert {len(name) for name in names} <= {max(len(text), len(str(n))) + 6 for n in (low, low + size)} | {
        len(str(n)) + 6 for n in range(low, low + size + 1) if len(str(n)) > len(text)
    }


def test_each_file_once_by_path(tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.tar").write_bytes(b"12")
    found = list_pattern(f"{tmp_path}/{{b,a,*}}.tar")
    assert [(file.url, file.size, file.is_local) for file in found] == [
        (str(tmp_path / name), 2, True) for name in ("a.tar", "b.tar")
    ]
    assert len({file.version for file in found}) >= 1


def test_a_version_changes_with_the_file(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"12")
    (before,) = list_pattern(str(path))
    path.write_bytes(b"34")
    (after,) = list_pattern(str(path))
    assert before.version != after.version
    assert before.version


def test_options_behind_the_path():
    assert parse("a/*.parquet") == ("a/*.parquet", {})
    assert parse("gs://b/c.parquet#image=jpg&name=a%26b") == ("gs://b/c.parquet", {"image": "jpg", "name": "a&b"})


@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 220), st.integers(0, 50)), max_size=10))
def test_ranges_read_as_a_file_does(content, steps):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/ranges/a", content)
    (file,) = list_pattern("memory://ranges/a")
    ours, theirs = io.BufferedReader(Ranges(file), 16), io.BytesIO(content)
    for position, size in steps:
        assert ours.seek(position) == theirs.seek(position)
        assert ours.read(size) == theirs.read(size)
    assert ours.seek(0, io.SEEK_END) == len(content)
    ours.seek(0)
    assert ours.read() == content
