"""Parts that were changed, cut short or exchanged after they were written: refused in one line, and never read."""

import itertools
import os
import random
import shutil

import fsspec
import pyarrow.parquet as pq
import pytest

from vigor_jax.data.records import seal, store
from vigor_jax.data.records.checksum import check_checksum, write_checksum
from vigor_jax.errors import InputError
from vigor_jax.records import Candidate, Dropped, Selection, Signal, Span, Target, Verdict

IMAGES, COUNT = 12, 2
FLIPS = 300


def candidate(i):
    text = f"There is a thing {i}. It is näturally red."
    return Candidate(f"{i // 3}.jpg", "Describe it.", i % 3, text, (1, 29901 + i, 2), -0.25 * i, "stop")


def verdict(i):
    box = (0.0, 0.25, 0.5, 1.0 / (i + 1))
    return Verdict(f"{i // 3}.jpg", i % 3, "detector", (Signal("thing", (Span(2, 5),), 1.0, 0.0, 0.1, True, (box,)),))


def selection(i):
    dropped = (Dropped(Span(0, 20), "mentions nothing"),)
    penalties = (1.0, 2.0 / (i + 1), 3.0)
    return Selection(
        *(f"{i}.jpg", "Describe it.", 1, "penalty", penalties, ((1.0,), (2.0,), (3.0,)), "There is. It is."),
        *(dropped, "It is.", "", "detector", (4, 5, 6), ((1,), (2,), (3,)), (1,)),
    )


def target(i):
    return Target(f"{i}.jpg", "Describe it.", f"Text {i}.")


KINDS = {
    "candidates": (Candidate, candidate, "sample"),
    "verdicts/detector": (Verdict, verdict, "score"),
    "selections": (Selection, selection, "select"),
    "targets": (Target, target, "select"),
}


def records(kind, index):
    _, make, _ = KINDS[kind]
    return [make(i) for i in range(index * IMAGES, (index + 1) * IMAGES)]


def write(folder, kind, **seals):
    for index in range(COUNT):
        store.write_part(folder, index, COUNT, records(kind, index), KINDS[kind][0], {"digest": "abc"}, **seals)


def without_seal(folder, kind):
    """As earlier versions wrote parts."""
    write(folder, kind)
    for path in folder.iterdir():
        table = pq.read_table(path)
        schema = table.schema.with_metadata({"digest": "abc"})
        pq.write_table(table.cast(schema), path, compression="zstd", row_group_size=store.ROWS_PER_GROUP)


def refusal(folder, kind, index=0):
    """The line that reading a part is refused with; None if what is read is what was written."""
    try:
        assert store.inspect_parts(folder).metadata == {"digest": "abc"}
        assert list(store.read_part(folder, index, COUNT, KINDS[kind][0])) == records(kind, index)
    except InputError as error:
        return str(error)
    return None


def flips(content, seed=0):
    """The content with one bit turned over, in places all over it: the first and the last bytes among them."""
    size = 8 * len(content)
    places = random.Random(seed).sample(range(size), FLIPS - 128)
    for place in (*range(64), *range(size - 64, size), *places):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)


def assert_refused(line, path, kind):
    assert line is not None, "it was read"
    assert "\n" not in line
    assert str(path) in line
    assert f"remove it and run the stage {KINDS[kind][2]} again" in line


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_refused(tmp_path, kind):
    folder = tmp_path / kind
    write(folder, kind, made_with="a" * 64, made_of="b" * 64)
    path = folder / store.part_name(0, COUNT)
    content = path.read_bytes()
    for changed in flips(content):
        path.write_bytes(changed)
        assert_refused(refusal(folder, kind), path, kind)
    path.write_bytes(content)
    assert refusal(folder, kind) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_of_a_remote_part_is_refused(kind):
    folder = f"memory://seal/{kind}"
    write(folder, kind)
    system, path = fsspec.core.url_to_fs(store.join(folder, store.part_name(0, COUNT)))
    content = system.cat_file(path)
    for changed in itertools.islice(flips(content, seed=1), 100, FLIPS, 10):
        system.pipe_file(path, changed)
        assert_refused(refusal(folder, kind), store.join(folder, store.part_name(0, COUNT)), kind)
    system.pipe_file(path, content)
    assert refusal(folder, kind) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [0, 1, 3, 4, 7, 8, 9, 12, 0.25, 0.5, 0.9, -1, -4, -8, -9])
def test_a_part_that_was_cut_short_is_refused(tmp_path, kind, cut):
    folder = tmp_path / kind
    write(folder, kind)
    path = folder / store.part_name(0, COUNT)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content)) if isinstance(cut, float) else cut])
    assert_refused(refusal(folder, kind), path, kind)


@pytest.mark.parametrize("more", [b"\0", b"PAR1", b"\0" * 4096])
def test_a_part_with_more_at_its_end_or_in_its_middle_is_refused(tmp_path, more):
    write(tmp_path / "targets", "targets")
    path = tmp_path / "targets" / store.part_name(0, COUNT)
    content = path.read_bytes()
    for changed in (
        content + more,
        content[:40] + more + content[40:],
        content[:40] + more + content[40 + len(more) :],
    ):
        path.write_bytes(changed)
        assert_refused(refusal(tmp_path / "targets", "targets"), path, "targets")


@pytest.mark.parametrize("kind", KINDS)
def test_exchanged_parts_are_refused(tmp_path, kind):
    folder = tmp_path / kind
    write(folder, kind)
    first, second = (folder / store.part_name(index, COUNT) for index in range(2))
    first.rename(tmp_path / "aside")
    shutil.copy(second, first)
    line = refusal(folder, kind)
    assert_refused(line, first, kind)
    assert "it was written as part-00001-of-00002.parquet" in line
    (tmp_path / "aside").rename(second)
    assert_refused(refusal(folder, kind), first, kind)


def test_a_part_of_another_run_is_refused(tmp_path):
    for run in ("one", "other"):
        write(tmp_path / run / "targets", "targets", made_with=f"settings of {run}")
    ours, theirs = (tmp_path / run / "targets" / store.part_name(1, COUNT) for run in ("one", "other"))
    shutil.copy(theirs, ours)
    line = refusal(tmp_path / "one" / "targets", "targets", 1)
    assert "made_with is 'settings of one' in part-00000" in line
    assert "'settings of other' in part-00001" in line


def test_the_seal_names_the_bytes(tmp_path):
    write(tmp_path / "a" / "targets", "targets", made_with="x", made_of="y")
    write(tmp_path / "b" / "targets", "targets", made_with="x", made_of="z")
    one, other = (store.part_seal(tmp_path / name / "targets", 0, COUNT) for name in "ab")
    assert (one.part, one.made_with, one.made_of) == ("part-00000-of-00002.parquet", "x", "y")
    assert other.made_of == "z"
    assert len(one.digest) == 64
    assert one.digest != other.digest
    assert one.digest == store.part_seal(tmp_path / "a" / "targets", 0, COUNT).digest


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_an_earlier_version_are_read_with_a_warning(tmp_path, kind, caplog):
    without_seal(tmp_path / kind, kind)
    assert refusal(tmp_path / kind, kind) is None
    assert caplog.text.count("without checksums") == 1
    assert store.part_seal(tmp_path / kind, 0, COUNT).digest == ""
    # Such a part may stand next to those that are made now.
    store.write_part(tmp_path / kind, 1, COUNT, records(kind, 1), KINDS[kind][0], {"digest": "abc"}, made_with="new")
    assert refusal(tmp_path / kind, kind, 0) is None
    assert refusal(tmp_path / kind, kind, 1) is None


@pytest.mark.parametrize("kind", KINDS)
def test_damage_in_parts_of_an_earlier_version_gives_no_traceback(tmp_path, kind):
    """They may be read wrongly, for nothing tells; but what cannot be read is one line."""
    folder = tmp_path / kind
    without_seal(folder, kind)
    path = folder / store.part_name(0, COUNT)
    lines = []
    for changed in flips(path.read_bytes(), seed=2):
        path.write_bytes(changed)
        try:
            store.inspect_parts(folder)
            list(store.read_part(folder, 0, COUNT, KINDS[kind][0]))
        except InputError as error:
            lines.append(str(error))
    assert len(lines) > FLIPS // 4
    assert all(str(folder) in line and "\n" not in line for line in lines)


def test_a_part_that_may_not_be_read_is_one_line(tmp_path):
    write(tmp_path / "targets", "targets")
    path = tmp_path / "targets" / store.part_name(0, COUNT)
    path.unlink()
    path.mkdir()
    line = refusal(tmp_path / "targets", "targets")
    assert f"{path}: the part cannot be read" in line


def test_a_named_pipe_in_place_of_a_part_is_not_waited_for(tmp_path):
    write(tmp_path / "targets", "targets")
    path = tmp_path / "targets" / store.part_name(0, COUNT)
    path.unlink()
    os.mkfifo(path)
    assert f"{path}: the part is damaged: it is a named pipe; remove it" in refusal(tmp_path / "targets", "targets")


def test_the_seal_is_in_the_footer_alone(tmp_path):
    """Others see the columns and metadata that they did before, and one more pair."""
    write(tmp_path / "targets", "targets")
    file = pq.ParquetFile(tmp_path / "targets" / store.part_name(0, COUNT), page_checksum_verification=True)
    assert file.read().num_rows == IMAGES
    assert set(file.metadata.metadata) == {b"ARROW:schema", b"digest", seal.KEY.encode()}
    assert store.part_metadata(tmp_path / "targets") == {"digest": "abc"}


def test_a_checksum_next_to_a_file(tmp_path):
    path = tmp_path / "targets.json"
    check_checksum(path, stage="select")  # none was written
    path.write_text('[{"id": "a"}]\n')
    write_checksum(path)
    check_checksum(path, stage="select")
    content = path.read_bytes()
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"targets\.json: expected SHA-256 .* run the stage select"):
            check_checksum(path, stage="select")
    path.write_bytes(content)
    for damaged in (b"", b"\xff", b"0" * 64):
        (tmp_path / "targets.json.sha256").write_bytes(damaged)
        with pytest.raises(InputError, match=r"targets\.json: expected SHA-256"):
            check_checksum(path, stage="select")
