"""Records: a verdict's sums, that every record has a Parquet schema, and that docs/artifacts.md tells the truth."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from vigor_jax.data.records.annotations import read_annotations, write_annotations
from vigor_jax.data.records.schemas import reader_of, schema_of
from vigor_jax.data.records.store import read_batches, read_parts, write_part
from vigor_jax.records import (
    Annotation,
    Candidate,
    Dropped,
    Preference,
    Rollout,
    Selection,
    Signal,
    Span,
    Target,
    Verdict,
)
from vigor_jax.stages.pair_records import Pairing, summarize
from vigor_jax.stages.select import select
from vigor_jax.stages.select_config import SelectConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "artifacts.md"
STREAMS = ("detector", "reward_model")


def test_a_verdict_sums_its_signals():
    signals = tuple(
        Signal("cup", (Span(0, 3),), negative, positive, 0.5)
        for negative, positive in ((1.0, 0.0), (0.0, 1.0), (0.25, 2.0))
    )
    verdict = Verdict("a.jpg", 0, "detector", signals)
    assert (verdict.negative, verdict.positive) == (1.25, 3.0)
    assert dataclasses.replace(verdict, signals=()).negative == 0


@pytest.mark.parametrize("record", [Annotation, Candidate, Pairing, Preference, Rollout, Selection, Target, Verdict])
def test_records_are_frozen_and_storable(record):
    assert record.__dataclass_params__.frozen
    assert schema_of(record).names == [field.name for field in dataclasses.fields(record)]


def section(title):
    """What the page says under a heading."""
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return found


def examples(title):
    """The values in each block of JSON of a section."""
    blocks = []
    for text in re.findall(r"```json\n(.*?)```", section(title), re.DOTALL):
        blocks.append([])
        while text := text.lstrip():
            value, end = json.JSONDecoder().raw_decode(text)
            blocks[-1].append(value)
            text = text[end:]
    return blocks


@pytest.mark.parametrize(
    ("title", "record"),
    [
        ("`candidates/`", Candidate),
        ("`verdicts/STREAM/`", Verdict),
        ("`selections/`", Selection),
        ("`targets/`", Target),
        ("`pairing/`", Pairing),
        ("`preferences/`", Preference),
        ("`ppo/`", Rollout),
    ],
)
def test_the_page_has_the_schemas(title, record):
    documented = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section(title), re.MULTILINE)
    assert documented == [(field.name, str(field.type).replace("element: ", "")) for field in schema_of(record)]


def rows(folder):
    return [row for batch in read_batches(folder, 0, 1) for row in batch.to_pylist()]


def in_full(row):
    """A verdict with the fields of claims, which the page's examples leave out."""
    signals = [signal | {"kind": "", "edits": []} for signal in row["signals"]]
    return row | {"signals": signals, "attributes": []}


def verdict(row):
    signals = (
        Signal(
            **signal
            | {
                "spans": tuple(Span(**span) for span in signal["spans"]),
                "boxes_xyxy": tuple(map(tuple, signal["boxes_xyxy"])),
            }
        )
        for signal in row["signals"]
    )
    return Verdict(**row | {"signals": tuple(signals)})


def test_the_page_has_a_run(tmp_path):
    """Selecting among the page's candidates by its verdicts gives its selection, targets and summary."""
    (candidates,) = examples("`candidates/`")
    verdicts = dict(zip(STREAMS, examples("`verdicts/STREAM/`"), strict=True))
    records = [Candidate(**row | {"token_ids": tuple(row["token_ids"])}) for row in candidates]
    write_part(tmp_path / "candidates", 0, 1, records, Candidate)
    assert rows(tmp_path / "candidates") == candidates
    for stream, found in verdicts.items():
        write_part(tmp_path / "verdicts" / stream, 0, 1, map(verdict, found), Verdict)
        assert rows(tmp_path / "verdicts" / stream) == [in_full(row) for row in found]
        assert {row["stream"] for row in found} == {stream}
        for row, record in zip(found, records, strict=True):
            for signal in row["signals"]:
                stated = record.text[slice(*signal["spans"][0].values())]
                assert stated == signal["label"] if stream == "detector" else stated.endswith(".")
    select(SelectConfig(), tmp_path, streams=STREAMS)
    assert [rows(tmp_path / "selections")] == examples("`selections/`")
    assert [rows(tmp_path / "targets")] == examples("`targets/`")
    for name in ("targets.json", "summary.json"):
        assert [[json.loads((tmp_path / name).read_text())]] == examples(f"`{name}`")
    (selection,) = read_parts(tmp_path / "selections", Selection)
    assert selection.dropped == (Dropped(Span(35, 58), 'mentions "person", which is not there (0.11)'),)


def test_the_page_has_pairs(tmp_path):
    """The page's summary is that of its preference and of what became of its image."""
    kinds = {"pairing": Pairing, "preferences": Preference}
    for name, kind in kinds.items():
        (found,) = examples(f"`{name}/`")
        write_part(tmp_path / name, 0, 1, map(reader_of(kind), found), kind)
        assert rows(tmp_path / name) == found
    (pairing,), (preference,) = (list(read_parts(tmp_path / name, kind)) for name, kind in kinds.items())
    assert "".join(pairing.text[slice(*span)] for span in pairing.sentences) == pairing.text
    assert preference.context + preference.responses[0] == pairing.text
    assert [[dataclasses.asdict(summarize([pairing], [preference]))]] == examples("`pairs.json`")


def test_the_page_has_an_annotation(tmp_path):
    ((line,),) = examples("Annotations")
    path = tmp_path / "annotations.jsonl"
    path.write_text(json.dumps(line) + "\n")
    (annotation,) = read_annotations(path)
    assert annotation.sentences[0].attribute == "color"
    write_annotations(path, [annotation])
    assert json.loads(path.read_text()) == line
