"""Images in Parquet: which columns they are found in, and how much is read and kept for them."""

import concurrent.futures
import uuid

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.images.image_worlds import pictures, write_parquet
from vigor_jax.data.images import parquet_shards
from vigor_jax.data.images.store import open_images
from vigor_jax.errors import InputError

IMAGES = pictures(30)
BYTES = pa.array([b"1", b"2"], pa.binary())
LARGE = pa.array(["a", "b"], pa.large_string())
NO_PATH = pa.array([{"bytes": b"1", "path": None}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
STRUCTS = pa.array([{"bytes": b"1", "path": "a.jpg"}, {"bytes": b"2", "path": "b.jpg"}])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def groups(monkeypatch):
    """Row groups that were decoded."""
    decoded = []
    original = pq.ParquetFile.read_row_group

    def read_row_group(self, number, **options):
        decoded.append(number)
        return original(self, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_row_group)
    return decoded


FOUND = {
    "name and image": ({"name": ["a", "b"], "image": BYTES}, "", ["a", "b"]),
    "the only bytes": ({"file_name": ["a", "b"], "jpg": BYTES, "width": [1.0, 2.0]}, "", ["a", "b"]),
    "image among others": ({"id": [7, 8], "mask": BYTES, "image": BYTES}, "", ["7", "8"]),
    "large types": ({"key": LARGE, "x": BYTES.cast(pa.large_binary())}, "", ["a", "b"]),
    "struct": ({"image": STRUCTS}, "", ["a.jpg", "b.jpg"]),
    "struct before id": ({"id": [7, 8], "image": STRUCTS}, "", ["a.jpg", "b.jpg"]),
    "path before struct": ({"path": ["x", "y"], "image": STRUCTS}, "", ["x", "y"]),
    "chosen name": ({"name": ["a", "b"], "sha": ["c", "d"], "image": BYTES}, "#name=sha", ["c", "d"]),
    "chosen struct's path": ({"name": ["a", "b"], "image": STRUCTS}, "#name=.path", ["a.jpg", "b.jpg"]),
    "chosen image": ({"id": [1, 2], "one": BYTES[::-1], "two": BYTES}, "#image=two", ["1", "2"]),
    "chosen both": ({"id": [1, 2], "n m": ["x", "y"], "o": BYTES, "t": STRUCTS}, "#image=t&name=n%20m", ["x", "y"]),
}  # fmt: skip


@pytest.mark.parametrize("what", FOUND)
def test_columns_are_found_or_chosen(what, tmp_path):
    columns, option, names = FOUND[what]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    images = open_images(f"{tmp_path}{option}")
    assert list(images) == names
    assert [images.read(name) for name in images] == [b"1", b"2"]


REFUSED = {
    "no bytes": ({"name": ["a"], "image": ["x"]}, "", r"images as bytes, .* in column image, got name \(string\)"),
    "two columns of bytes": ({"id": [1], "a": BYTES[:1], "b": BYTES[:1]}, "", "in column image, got .*#image=COLUMN"),
    "no such image column": ({"id": [1], "a": BYTES[:1]}, "#image=b", "in column b, got id"),
    "no name": ({"width": [1.5], "image": BYTES[:1]}, "", "expected the images' names in column name or path or"),
    "no such name column": ({"id": [1], "image": BYTES[:1]}, "#name=key", "names in column key, got id"),
    "no path in the bytes": ({"id": [1], "image": BYTES[:1]}, "#name=.path", "names in column .path, got id"),
    "names that are none": ({"id": [1.5], "image": BYTES[:1]}, "#name=id", r"names in column id, got id \(double\)"),
    "a name is null": ({"name": ["a", None], "image": BYTES}, "", "column name has no name in row 1 .1 in all."),
    "a path is null": ({"image": NO_PATH}, "", "column image.path has no name in row 0"),
    "a name twice": ({"name": ["a", "a"], "image": BYTES}, "", r"a is in .*a\.parquet twice"),
    "no columns": ({}, "", "in column image, got no columns"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_columns_in_one_line(what, tmp_path):
    columns, option, message = REFUSED[what]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message) as error:
        open_images(f"{tmp_path}{option}")
    assert "\n" not in str(error.value)
    assert "a.parquet" in str(error.value)


@pytest.mark.parametrize("column", [pa.array([None, b"2"], pa.binary()), STRUCTS.take(pa.array([None, 1]))])
def test_an_image_without_bytes_is_named_when_it_is_read(column, tmp_path):
    pq.write_table(pa.table({"name": ["a", "b"], "image": column}), tmp_path / "a.parquet")
    images = open_images(tmp_path)
    assert images.read("b") == b"2"
    with pytest.raises(InputError, match=r"a\.parquet: image a \(row 0\) has no bytes"):
        images.read("a")


@pytest.mark.parametrize("size", [0, 4, 1000, -4])
def test_a_truncated_file_is_refused(size, tmp_path):
    write_parquet(tmp_path, IMAGES, shards=1)
    path = tmp_path / "00000.parquet"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"00000\.parquet: not a whole Parquet file") as error:
        open_images(tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    images = open_images(write_parquet(tmp_path, IMAGES, shards=1, rows=5))
    first, *_, last = IMAGES
    write_parquet(tmp_path, dict(reversed(IMAGES.items())), shards=1, rows=5)
    with pytest.raises(InputError, match=f"image {last} is not where it was"):
        images.read(last)
    write_parquet(tmp_path, {first: b"x"}, shards=1)
    with pytest.raises(InputError, match=r"00000\.parquet"):
        images.read(list(IMAGES)[7])


@pytest.mark.parametrize("remote", [False, True])
def test_a_row_group_is_decoded_once_for_images_in_a_row(remote, tmp_path, groups):
    place = f"memory://{uuid.uuid4().hex}" if remote else str(tmp_path)
    images = open_images(write_parquet(place, IMAGES, shards=1, rows=7))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(images.read, images)) == list(IMAGES.values())
    assert sorted(groups) == [0, 1, 2, 3, 4]
    if remote:
        fsspec.filesystem("memory").rm(place, recursive=True)


def test_what_is_kept_is_bounded(tmp_path, groups, monkeypatch):
    images = open_images(write_parquet(tmp_path, IMAGES, shards=1, rows=5))
    size = sum(map(len, IMAGES.values())) / 6  # of a group, more or less
    monkeypatch.setattr(parquet_shards, "CACHE_BYTES", int(3.5 * size))
    names = list(IMAGES)
    for _ in range(3):
        for name in names[:15]:
            images.read(name)
    assert groups == [0, 1, 2]
    for name in [names[0], names[15], names[0], names[5]]:  # the group that was not asked for longest goes first
        images.read(name)
    assert groups == [0, 1, 2, 3, 1]
    monkeypatch.setattr(parquet_shards, "CACHE_BYTES", 0)
    for name in (*names[20:25], *names[25:]):
        images.read(name)
    assert groups[5:] == [4, 5]


def test_a_failed_read_is_tried_again(tmp_path, monkeypatch):
    images = open_images(write_parquet(tmp_path, IMAGES, shards=1, rows=5))
    name = next(iter(IMAGES))
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "read_row_group", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            images.read(name)
    assert images.read(name) == IMAGES[name]
