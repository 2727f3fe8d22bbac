"""Results next to each other: what differs, on which images, and what must not stand in one table."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.card.saved import PLAIN, chair, pope, write_result, write_run
from vigor_jax.errors import InputError
from vigor_jax.evaluation.bootstrap import paired_bootstrap
from vigor_jax.evaluation.card.card import Card
from vigor_jax.evaluation.card.compare import make_card
from vigor_jax.evaluation.card.markdown import to_text
from vigor_jax.evaluation.card.results import names_of, read_systems
from vigor_jax.evaluation.image_counts import read_counts, take_counts, write_counts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "evaluation"
    write_run(folder / "base", {"chair": chair(0.6), "pope": pope(0.6, 1)}, text=PLAIN + " A dog.")
    write_run(folder / "tuned", {"chair": chair(0.85, 2), "pope": pope(0.9, 3)})
    return folder


def card_of(*folders: Path) -> Card:
    return make_card(*read_systems(folders))


def row(card: Card, benchmark: str, key: str, part: str = "") -> object:
    rows = (row for section in card.sections if section.name == benchmark for row in section.rows)
    return next(row for row in rows if row.key == key and row.part == part)


def test_a_run_is_the_model_before_and_after(run: Path) -> None:
    card = card_of(run)
    assert card.systems == ("base", "tuned")
    assert [section.name for section in card.sections] == ["chair", "pope"]
    first, last = chair(0.6), chair(0.85, 2)
    found = row(card, "chair", "chair_i")
    assert [value.value for value in found.values] == [first["chair_i"], last["chair_i"]]
    assert [value.low for value in found.values] == [first["intervals"]["chair_i"][0], last["intervals"]["chair_i"][0]]
    counts = [np.array(list(each["counts"][""].values())) for each in (last, first)]
    from vigor_jax.evaluation.benchmarks.chair import rates

    assert found.difference == paired_bootstrap(*counts, rates)["chair_i"]
    assert (found.images, found.verdict) == (40, "better")
    recall = row(card, "chair", "recall")
    assert recall.difference.low <= 0 <= recall.difference.high
    assert recall.verdict == ""
    assert row(card, "chair", "words").verdict == ""


def test_every_hallucination_rate_has_lengths_recall_and_repetition_next_to_it(run: Path) -> None:
    card = card_of(run)
    keys = [found.key for found in card.sections[0].rows]
    assert keys == ["chair_i", "chair_first", "chair_s", "recall", "words", "repeats", "cut"]
    assert [value.value for value in row(card, "chair", "repeats").values] == [1, 0]
    assert row(card, "chair", "repeats").difference.value == -1
    assert {found.part for found in card.sections[1].rows if found.key == "yes_ratio"} == {"random", "popular", "mean"}


def test_the_mean_of_splits_is_tested_over_whole_images(run: Path) -> None:
    found = row(card_of(run), "pope", "accuracy", "mean")
    splits = [row(card_of(run), "pope", "accuracy", split).difference.value for split in ("random", "popular")]
    assert found.difference.value == pytest.approx(np.mean(splits), abs=1e-12)
    assert found.difference.low < found.difference.value < found.difference.high


def test_the_same_results_give_the_same_bytes(run: Path) -> None:
    first = card_of(run).to_json()
    assert card_of(run).to_json() == first
    content = json.loads(first)
    assert "/home" not in first
    assert content["benchmarks"][0]["settings"][0]["model"] == "x/export"
    assert content["bootstrap"] == {"draws": 1000, "level": 0.95, "over": "images", "seed": 0}


def test_results_of_commands_are_found_in_their_folders(run: Path, tmp_path: Path) -> None:
    for name, truth in (("first", 0.6), ("second", 0.9)):
        write_result(tmp_path / name / "a", "pope", pope(truth, 1 if truth == 0.6 else 3))
        write_result(tmp_path / name / "b", "chair", chair(truth))
    card = card_of(tmp_path / "first", tmp_path / "second")
    assert card.systems == ("first", "second")
    assert [section.name for section in card.sections] == ["chair", "pope"]
    assert row(card, "pope", "f1", "random") == row(card_of(run), "pope", "f1", "random")
    alone = card_of(tmp_path / "first" / "a")
    assert [section.name for section in alone.sections] == ["pope"]
    assert "difference" not in to_text(alone)


def test_different_protocols_are_never_in_one_table(tmp_path: Path) -> None:
    for name, protocol in (("one", "paper"), ("two", "llava-1.5")):
        write_result(tmp_path / name / "pope", "pope", pope(0.7, protocol=protocol))
    card = card_of(tmp_path / "one", tmp_path / "two")
    assert len(card.sections) == 2
    for section in card.sections:
        (note,) = section.notes
        assert note.startswith("Evaluated by different protocols, so the figures do not compare: one by paper (")
        assert sum(value is not None for value in section.rows[0].values) == 1
        assert all(found.difference is None for found in section.rows)
    assert {section.protocol.partition(" ")[0] for section in card.sections} == {"paper", "llava-1.5"}


def test_results_without_a_digest_compare_only_if_all_that_they_say_is_the_same(tmp_path: Path) -> None:
    for name, limit in (("one", 0), ("two", 0), ("three", 5)):
        old = {key: value for key, value in chair(0.7).items() if key != "protocol"}
        write_result(tmp_path / name, "chair", {**old, "policy": {"limit": limit, "prompt": "Describe."}})
    (same,) = card_of(tmp_path / "one", tmp_path / "two").sections
    assert same.protocol == "unknown protocol"
    assert same.rows[0].difference is not None
    assert len(card_of(tmp_path / "one", tmp_path / "three").sections) == 2


def test_images_of_one_model_only_are_left_out_and_told(tmp_path: Path) -> None:
    write_result(tmp_path / "one", "chair", chair(0.6, images=range(30)))
    write_result(tmp_path / "two", "chair", chair(0.6, images=range(10, 40)))
    (section,) = card_of(tmp_path / "one", tmp_path / "two").sections
    assert section.rows[0].images == 20
    assert section.notes == (
        "10 images of one and 10 of two are of one model only; the differences are over the other 20.",
    )
    write_result(tmp_path / "three", "chair", chair(0.6, images=range(100, 110)))
    (section,) = card_of(tmp_path / "one", tmp_path / "three").sections
    assert section.rows[0].difference is None


def test_without_counts_there_is_no_test_and_one_line_says_so(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_result(tmp_path / name / "chair", "chair", chair(0.6))
    (tmp_path / "two" / "chair" / "counts.json").unlink()
    (section,) = card_of(tmp_path / "one", tmp_path / "two").sections
    assert section.rows[0].values[1] is not None
    assert section.rows[0].difference is None
    assert section.notes[0].startswith("No test of the difference: two has no counts.json")


def test_what_was_stopped_halfway_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    write_result(tmp_path / "chair", "chair", chair(0.6))
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "pope-random.jsonl.settings.json").write_text("{}")
    card = card_of(tmp_path)
    assert [section.name for section in card.sections] == ["chair"]
    (left,) = card.skipped
    assert left.name.startswith("pope, ")
    assert "has answers, but no metrics.json" in left.reason
    (tmp_path / "chair" / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"has answers, but no metrics\.json"):
        card_of(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.json", "{", r"metrics\.json cannot be read as JSON"),
        ("metrics.json", "[]", r"metrics\.json: expected a JSON object"),
        ("counts.json", '{"chair": 3}', r"counts\.json: expected counts by benchmark"),
        ("counts.json", '{"chair": {"": {"a": ["b"]}}}', r"counts\.json: expected counts by benchmark"),
        ("counts.json", '{"chair": {"": {"a": [1], "b": [1, 2]}}}', r"image \(not as many of each image\)"),
        ("counts.json", '{"chair": {"": {"a": [NaN]}}}', r"image \(a count that is no number\)"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, file: str, content: str, message: str) -> None:
    write_result(tmp_path / "x", "chair", chair(0.6))
    (tmp_path / "x" / file).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        card_of(tmp_path)
    assert "\n" not in str(error.value)


def test_more_than_two_models_are_refused(tmp_path: Path) -> None:
    folders = [write_result(tmp_path / name, "chair", chair(0.6)) for name in ("a", "b", "c")]
    with pytest.raises(InputError, match="results of one model or two, got those of 3; give two"):
        card_of(*folders)


def test_figures_and_intervals_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    path = write_result(tmp_path / "x", "chair", chair(0.6)) / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["chair_i"] = math.nan
    metrics["intervals"]["recall"] = [math.nan, math.inf]
    path.write_text(json.dumps(metrics))
    card = card_of(tmp_path / "x")
    assert row(card, "chair", "chair_i").values == (None,)
    assert row(card, "chair", "recall").values == ((metrics["recall"], None, None),)
    assert "NaN" not in card.to_json()


def test_one_benchmark_twice_by_one_protocol_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_result(tmp_path / name, "chair", chair(0.6))
    with pytest.raises(InputError, match="has two results of chair by one protocol, paper"):
        card_of(tmp_path)


def test_unknown_metrics_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.json").write_text('{"accuracy": 0.5}')
    with pytest.raises(InputError, match=r"expected the metrics of a benchmark, and counts\.json that says of which"):
        card_of(tmp_path)


def test_names_are_as_short_as_they_may_be() -> None:
    assert names_of(["a/b/export", "a/c/export"]) == ["b/export", "c/export"]
    assert names_of(["org/one"]) == ["one"]
    with pytest.raises(InputError, match="two different models"):
        names_of(["a/b", "a/b"])


def test_counts_survive_their_file(tmp_path: Path) -> None:
    counts = {"chair": take_counts(chair(0.5))[1], "pope": take_counts(pope(0.5))[1]}
    write_counts(tmp_path / "counts.json", counts)
    back = read_counts(tmp_path / "counts.json")
    for benchmark, parts in counts.items():
        assert back[benchmark].keys() == parts.keys()
        for part, images in parts.items():
            assert back[benchmark][part].keys() == images.keys()
            assert all(np.array_equal(back[benchmark][part][image], own) for image, own in images.items())
