"""Parts: exact round trips, completeness, refusal of what does not fit, and files that others can read."""

import dataclasses
import uuid

import duckdb
import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vigor_jax.data.records import store
from vigor_jax.data.records.schemas import schema_of
from vigor_jax.errors import InputError
from vigor_jax.records import (
    AnnotatedSentence,
    Annotation,
    Candidate,
    Dropped,
    Selection,
    Signal,
    Span,
    Target,
    Verdict,
)

INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SPANS = st.builds(Span, INTS, INTS)
BOXES = st.tuples(FLOATS, FLOATS, FLOATS, FLOATS)


def tuples(elements):
    return st.lists(elements, max_size=3).map(tuple)


SIGNALS = st.builds(Signal, TEXTS, tuples(SPANS), FLOATS, FLOATS, FLOATS, st.booleans(), tuples(BOXES), st.booleans())
RECORDS = {
    Candidate: st.builds(Candidate, TEXTS, TEXTS, INTS, TEXTS, tuples(INTS), FLOATS, TEXTS),
    Verdict: st.builds(Verdict, TEXTS, INTS, TEXTS, tuples(SIGNALS)),
    Selection: st.builds(
        Selection,
        *(TEXTS, TEXTS, INTS, st.sampled_from(["penalty", "only"]), tuples(FLOATS), tuples(tuples(FLOATS)), TEXTS),
        *(tuples(st.builds(Dropped, SPANS, TEXTS)), TEXTS, TEXTS, TEXTS, tuples(INTS), tuples(tuples(INTS))),
        tuples(INTS),
    ),
    Target: st.builds(Target, TEXTS, TEXTS, TEXTS),
    Annotation: st.builds(
        Annotation,
        *(TEXTS, TEXTS),
        tuples(
            st.builds(AnnotatedSentence, SPANS, tuples(st.sampled_from(["object"])), TEXTS, st.booleans()),
        ),
        st.none() | INTS,
        tuples(TEXTS),
    ),
}
VERDICT = Verdict(
    "a.jpg", 1, "detector", (Signal("cup", (Span(2, 5),), 1.0, 0.0, 0.1, True, ((0.0, 0.25, 0.5, 1.0),)),)
)


def targets(count, start=0):
    return [Target(f"{i}.jpg", "Describe it.", f"Text {i}.") for i in range(start, start + count)]


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    if request.param == "local":
        return tmp_path / "run" / "targets"
    return f"memory://{uuid.uuid4().hex}/targets"


@pytest.mark.parametrize("record_type", RECORDS, ids=lambda record_type: record_type.__name__)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_records_come_back_exactly(record_type, data):
    records = data.draw(st.lists(RECORDS[record_type], max_size=4))
    store.write_part("memory://exact", 0, 1, records, record_type)
    found = list(store.read_part("memory://exact", 0, 1, record_type))
    assert found == records
    assert repr(found) == repr(records)  # tells 1 from 1.0 and a Span from a tuple


def test_parts_in_order_in_row_groups(folder, monkeypatch):
    monkeypatch.setattr(store, "ROWS_PER_GROUP", 4)
    expected = targets(10), [], targets(4, start=10)
    for index in (2, 0, 1):
        store.write_part(folder, index, 3, iter(expected[index]), Target, {"digest": "abc"})
        assert store.has_part(folder, index, 3)
    assert store.parts_done(folder, 3) == {0, 1, 2}
    assert store.count_parts(folder) == store.part_count(folder) == 3
    assert [batch.num_rows for batch in store.read_batches(folder, 0, 3)] == [4, 4, 2]
    assert list(store.read_parts(folder, Target)) == [*expected[0], *expected[2]]
    assert store.part_metadata(folder) == {"digest": "abc"}


def test_a_part_is_read_as_far_as_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROWS_PER_GROUP", 4)
    store.write_part(tmp_path, 0, 1, targets(40), Target)
    groups = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **options: groups.append(i) or read(self, i, **options)
    )
    records = store.read_part(tmp_path, 0, 1, Target)
    assert [next(records) for _ in range(6)] == targets(6)
    assert groups == [0, 1]


def test_other_counts_are_refused(folder):
    store.write_part(folder, 0, 4, targets(1), Target)
    with pytest.raises(InputError, match=r"expected parts of 2, got parts of 4"):
        store.write_part(folder, 0, 2, targets(1), Target)
    with pytest.raises(InputError, match=r"expected parts of 8, got parts of 4"):
        store.has_part(folder, 0, 8)
    with pytest.raises(InputError, match=r"expected parts of 1, got parts of 4"):
        next(store.read_part(folder, 0, 1, Target))


def test_parts_of_two_counts_are_refused(tmp_path):
    store.write_part(tmp_path, 0, 2, targets(1), Target)
    (tmp_path / store.part_name(0, 3)).write_bytes((tmp_path / store.part_name(0, 2)).read_bytes())
    with pytest.raises(InputError, match="parts of 2 and of 3"):
        store.part_count(tmp_path)


def test_missing_parts_are_named(folder):
    assert store.part_count(folder) is None
    with pytest.raises(InputError, match=r"expected parts such as part-00000-of-00001\.parquet, got none"):
        next(store.read_parts(folder, Target))
    store.write_part(folder, 1, 3, targets(1), Target)
    with pytest.raises(InputError, match=r"2 of 3 parts are missing \(part-00000-of-00003\S+, part-00002-of-00003"):
        next(store.read_parts(folder, Target))
    with pytest.raises(InputError, match=r"part-00000-of-00003\.parquet: no such part"):
        next(store.read_part(folder, 0, 3, Target))


def test_other_records_and_damage_are_refused(tmp_path):
    store.write_part(tmp_path, 0, 1, [VERDICT], Verdict)
    with pytest.raises(InputError, match="expected column prompt of type string, got none"):
        list(store.read_part(tmp_path, 0, 1, Target))
    (tmp_path / store.part_name(0, 1)).write_bytes(b"half a file")
    with pytest.raises(InputError, match="not a Parquet file"):
        list(store.read_part(tmp_path, 0, 1, Verdict))


def write_without_denied(folder, records):
    """A part of verdicts as it was written before signals had `denied`."""
    store.write_part(folder, 0, 1, records, Verdict)
    path = folder / store.part_name(0, 1)
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows:
        for signal in row["signals"]:
            del signal["denied"]
    kept = pa.struct([field for field in table.schema.field("signals").type.value_type if field.name != "denied"])
    schema = table.schema.set(3, pa.field("signals", pa.list_(pa.field("element", kept))))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=2)


def test_verdicts_from_before_there_were_denials_are_read(tmp_path):
    records = [VERDICT, dataclasses.replace(VERDICT, signals=()), VERDICT]
    write_without_denied(tmp_path, records)
    assert list(store.read_part(tmp_path, 0, 1, Verdict)) == records
    for names in (["label", "denied"], ["absent"]):
        columns = ["image", *(f"signals.list.element.{name}" for name in names)]
        batches = store.read_batches(tmp_path, 0, 1, columns=columns, schema=schema_of(Verdict))
        found = [signal for batch in batches for row in batch.to_pylist() for signal in row["signals"]]
        expected = {name: getattr(VERDICT.signals[0], name) for name in names}
        assert found == [expected] * 2


def test_selections_from_before_contents_were_recorded_are_read(tmp_path):
    selection = Selection("a.jpg", "?", 0, "only", (0.0,), ((),), "A cat.", (), "A cat.", "", "", (2,), ((),), ())
    store.write_part(tmp_path, 0, 1, [dataclasses.replace(selection, has_content=(True,), repeats=(0,))] * 3, Selection)
    path = tmp_path / store.part_name(0, 1)
    pq.write_table(pq.read_table(path).drop_columns(["has_content", "repeats"]), path, row_group_size=2)
    assert list(store.read_part(tmp_path, 0, 1, Selection)) == [selection] * 3
    columns = ["repeats", "image"]
    (first, _) = store.read_batches(tmp_path, 0, 1, columns=columns, schema=schema_of(Selection))
    assert first.to_pylist() == [{"image": "a.jpg", "repeats": []}] * 2
    pq.write_table(pq.read_table(path).drop_columns(["words"]), path)
    with pytest.raises(InputError, match="expected column words"):
        list(store.read_part(tmp_path, 0, 1, Selection))


@pytest.mark.parametrize("lost", ["absent", "label", "spans"])
def test_a_field_that_was_always_written_is_not_made_up(tmp_path, lost):
    store.write_part(tmp_path, 0, 1, [VERDICT], Verdict)
    path = tmp_path / store.part_name(0, 1)
    rows = pq.read_table(path).to_pylist()
    del rows[0]["signals"][0][lost]
    pq.write_table(pa.Table.from_pylist(rows), path)
    refusal = r"expected column signals of type .* remove it and run the stage that writes it again"
    with pytest.raises(InputError, match=refusal) as caught:
        list(store.read_part(tmp_path, 0, 1, Verdict))
    assert "\n" not in str(caught.value)


def test_different_metadata_is_refused(folder):
    store.write_part(folder, 0, 2, [], Target, {"digest": "a"})
    store.write_part(folder, 1, 2, [], Target, {"digest": "b"})
    with pytest.raises(InputError, match=r"digest is 'a' in part-00000-of-00002\.parquet and 'b' in part-00001"):
        store.part_metadata(folder)


def test_a_writer_that_fails_leaves_no_part(folder):
    def failing():
        yield from targets(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write_part(folder, 0, 1, failing(), Target)
    assert not store.has_part(folder, 0, 1)
    system, path = fsspec.core.url_to_fs(str(folder))
    assert system.ls(path) == []


def test_a_hidden_part_is_no_part(tmp_path):
    (tmp_path / ".part-00000-of-00002.parquet.tmp").write_bytes(b"what a kill left")
    assert store.part_count(tmp_path) is None
    store.write_part(tmp_path, 0, 2, targets(1), Target)
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000-of-00002.parquet"]


def test_equal_records_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        store.write_part(tmp_path / name, 0, 1, [VERDICT] * 100, Verdict, {"digest": "abc"})
    first, second = ((tmp_path / name / store.part_name(0, 1)).read_bytes() for name in ("a", "b"))
    assert first == second


def test_pandas_reads_a_folder(tmp_path):
    for index in range(2):
        store.write_part(tmp_path, index, 2, [VERDICT], Verdict, {"digest": "abc"})
    frame = pd.read_parquet(tmp_path)
    assert list(frame.columns) == ["image", "candidate", "stream", "signals", "attributes"]
    assert len(frame) == 2
    (signal,) = frame["signals"][0]
    assert (signal["label"], signal["absent"], signal["spans"][0]) == ("cup", True, {"start": 2, "end": 5})


def test_duckdb_reads_a_folder(tmp_path):
    for index in range(2):
        store.write_part(tmp_path, index, 2, [VERDICT], Verdict)
    query = f"select image, unnest(signals, recursive := true) from '{tmp_path}/*.parquet'"
    columns = [name for name, *_ in duckdb.sql(f"describe {query}").fetchall()]
    row, _ = duckdb.sql(query).fetchall()
    assert dict(zip(columns, row, strict=True))["label"] == "cup"
    total = duckdb.sql(f"select sum(list_sum([s.negative for s in signals])) from '{tmp_path}/*.parquet'").fetchall()
    assert total == [(2.0,)]
