"""Images in the file itself: found row by row, and read when they are asked for, not before."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.preferences.form_files import BAD, BLUE, GOOD, RED, embedded, make_images, message
from vigor_jax.data.preferences import embedded as module
from vigor_jax.data.preferences.read import scan_preferences
from vigor_jax.errors import InputError

ROW = {"question": "What waits?", "chosen": GOOD, "rejected": BAD}


def struct(content, path=None):
    return {"bytes": content, "path": path}


@pytest.fixture
def reads(monkeypatch):
    """Columns that were read, with the row group if it was one."""
    found = []
    whole, batches = pq.ParquetFile.read_row_group, pq.ParquetFile.iter_batches

    def read_row_group(self, number, columns=None, **options):
        found.append((number, *columns))
        return whole(self, number, columns=columns, **options)

    def iter_batches(self, size, *, columns, **options):
        found.extend(columns)
        return batches(self, size, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_row_group)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    return found


def test_each_row_has_its_image(tmp_path):
    """Also where names repeat, or are none; no image folder is needed."""
    images = [struct(RED, "same.png"), struct(BLUE, "same.png"), struct(RED), struct(BLUE, "/data/x/abs.png")]
    scan = scan_preferences(embedded(tmp_path / "f.parquet", [ROW] * 4, images), None)
    assert not scan.bad
    assert [row.image.read_bytes() for row in scan.rows] == [RED, BLUE, RED, BLUE]
    assert [row.preference.image for row in scan.rows] == ["same.png", "same.png", "f/2", "abs.png"]
    assert [row.image.name for row in scan.rows] == [row.preference.image for row in scan.rows]
    assert str(scan.rows[1].image) == f"{tmp_path / 'f.parquet'}, row 1, same.png"


def test_scanning_reads_no_image_and_an_image_reads_its_group(tmp_path, reads):
    rows = [ROW | {"question": f"{number}?"} for number in range(7)]
    images = [struct(RED if number % 2 else BLUE, f"{number}.png") for number in range(7)]
    scan = scan_preferences(embedded(tmp_path / "f.parquet", rows, images, group=3), None)
    assert len(scan.rows) == 7
    assert "image.bytes" not in reads
    assert "image.path" in reads
    reads.clear()
    assert [scan.rows[number].image.read_bytes() for number in (5, 3, 4, 5, 0)] == [RED, RED, BLUE, RED, BLUE]
    assert reads == [(1, "image.bytes"), (0, "image.bytes")]


def test_groups_are_let_go(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(module, "CACHE_BYTES", 0)
    scan = scan_preferences(embedded(tmp_path / "f.parquet", [ROW] * 4, [struct(RED)] * 4, group=2), None)
    reads.clear()
    for number in (0, 1, 2, 3, 0):
        assert scan.rows[number].image.read_bytes() == RED
    assert [group for group, _ in reads] == [0, 1, 0]


@pytest.mark.parametrize("statistics", [True, False])
def test_a_file_that_has_some_of_its_images(statistics, tmp_path):
    """The others are in the folder; a null is no image, which this form needs."""
    folder = make_images(tmp_path / "images")
    images = [struct(RED, "x.png"), struct(None, "a.png"), None, struct(None), struct(BLUE)]
    images.append(struct(None, f"{folder}/sub/b.png"))
    path = embedded(tmp_path / "f.parquet", [ROW] * 6, images, group=6, write_statistics=statistics)
    scan = scan_preferences(path, folder)
    assert [row.number for row in scan.rows] == [0, 1, 4, 5]
    assert [row.image.read_bytes() for row in scan.rows] == [RED, RED, BLUE, BLUE]
    assert [row.preference.image for row in scan.rows] == ["x.png", "a.png", "f/4", "sub/b.png"]
    assert [(row.number, row.reason) for row in scan.bad] == [
        (number, "has no image; name it under 'image', or leave the row out") for number in (2, 3)
    ]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("large", [False, True])
def test_lists_of_one_image(statistics, large, tmp_path, reads):
    """As TRL's vision columns are written; a row of two images is refused, one of none is text alone."""
    inner = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kind = pa.large_list(inner) if large else pa.list_(inner)
    values = [[struct(RED)], [], [struct(RED), struct(BLUE)], [struct(BLUE, "b.png")], None]
    prompt, text = [message("user", None, "Q?")], [message("user", "Q?")]
    answers = {"chosen": [message("assistant", GOOD)], "rejected": [message("assistant", BAD)]}
    rows = [{"prompt": prompt if value else text, **answers} for value in values]
    table = pa.Table.from_pylist(rows).append_column("images", pa.array(values, kind))
    pq.write_table(table, tmp_path / "f.parquet", write_statistics=statistics, row_group_size=2)
    scan = scan_preferences(tmp_path / "f.parquet", None)
    assert [row.number for row in scan.rows] == [0, 1, 3, 4]
    assert [row.image and row.image.read_bytes() for row in scan.rows] == [RED, None, BLUE, None]
    assert [row.preference.image for row in scan.rows] == ["f/0", "", "b.png", ""]
    assert [row.reason for row in scan.bad] == ["expected one image under 'images', got 2"]


def test_bytes_alone(tmp_path):
    table = pa.Table.from_pylist([ROW] * 3).append_column("image", pa.array([RED, None, BLUE], pa.large_binary()))
    pq.write_table(table, tmp_path / "f.parquet")
    scan = scan_preferences(tmp_path / "f.parquet", None)
    assert [row.image.read_bytes() for row in scan.rows] == [RED, BLUE]
    assert [row.number for row in scan.bad] == [1]


@pytest.mark.parametrize("value", [RED, struct(RED)])
def test_bytes_under_another_key_are_no_text_alone(value, tmp_path):
    table = pa.Table.from_pylist([{"prompt": "Q?", "chosen": GOOD, "rejected": BAD, "jpg": value}])
    pq.write_table(table, tmp_path / "f.parquet")
    scan = scan_preferences(tmp_path / "f.parquet", None)
    assert not scan.rows
    assert scan.bad[0].reason.startswith("the key 'jpg' (")
    assert "is about an image or another medium, which would be left out" in scan.bad[0].reason


def test_lists_of_bytes_alone_are_refused(tmp_path):
    table = pa.Table.from_pylist([ROW]).append_column("images", pa.array([[RED]], pa.list_(pa.binary())))
    pq.write_table(table, tmp_path / "f.parquet")
    with pytest.raises(InputError, match=r"images as \{bytes, path\} in column images, got lists of bytes alone"):
        scan_preferences(tmp_path / "f.parquet", None)


def test_a_file_that_changes_meanwhile(tmp_path):
    path = embedded(tmp_path / "f.parquet", [ROW] * 2, [struct(RED)] * 2)
    (row, _) = scan_preferences(path, None).rows
    embedded(path, [ROW] * 2, [struct(BLUE)] * 2, compression="none")
    with pytest.raises(InputError, match="the file was changed meanwhile; start again"):
        row.image.read_bytes()
    path.unlink()
    with pytest.raises(InputError, match="there is no such file"):
        row.image.read_bytes()


@pytest.mark.parametrize("statistics", [True, False])
def test_memory_of_a_scan_does_not_grow_with_the_images(statistics, tmp_path, monkeypatch):
    """60 MB of images in 12 row groups; without statistics each group is looked at for them and let go."""
    noise = np.random.default_rng(0).bytes(500_000)
    images = [struct(noise)] * 120
    options = {"group": 10, "use_dictionary": False, "write_statistics": statistics, "compression": "none"}
    path = embedded(tmp_path / "f.parquet", [ROW] * 120, images, **options)
    held = []
    for name in ("_bytes_of", "_image_columns"):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, original=original: held.append(pa.total_allocated_bytes()) or original(*given)
        )
    before = pa.total_allocated_bytes()
    scan = scan_preferences(path, None)
    assert len(scan.rows) == 120
    assert (len(held) > 100) != statistics
    assert max(held) - before < (1e6 if statistics else 20e6)
    assert pa.total_allocated_bytes() - before < 1e6
    assert scan.rows[0].image.read_bytes() == noise
    assert max(held) - before > 4e6  # so this is a measure
