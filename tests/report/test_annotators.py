"""What a page shows of the people behind a run's annotations, and of a reward model that learned from several files."""

import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

from tests.feedback.annotations import annotation, judgments
from tests.report.conftest import SIZES, is_dark
from tests.report.test_build import HOSTILE, Page
from vigor_jax.feedback.agreement import measure
from vigor_jax.feedback.agreement_text import text
from vigor_jax.feedback.judgments import write_judgments
from vigor_jax.report import annotators, build_report
from vigor_jax.stages.reward_evaluation import evaluate_sources

TEXT = "A red car waits. Two dogs sleep. It may rain."


def write_people(path: Path, names=("1", "2", "3"), images=30) -> str:
    """Judgments in which the last person says something else now and then; the summary of the terminal."""
    rng, said = random.Random(0), []
    for number in range(images):
        truth = [["object"] if rng.random() < 0.4 else [], ["attribute:count"] if rng.random() < 0.3 else [], []]
        for who in names:
            own = [["location"] if who == names[-1] and rng.random() < 0.5 else each for each in truth]
            said.append((who, annotation(TEXT, *own, image=f"{number}.jpg")))
    made = judgments(*said)
    write_judgments(path, made)
    return text(measure(made))


def make_run(folder: Path, section: dict) -> Path:
    (folder / "metrics").mkdir(parents=True)
    rng = random.Random(1)
    errors = {"people": [("object",), ()] * 20, "bought": [("location",), (), ()] * 10}
    p_good = [rng.random() for own in errors.values() for _ in own]

    line = {"step": 4, "epoch": 1.0, "trained": {"good": 9, "bad": 8}, **evaluate_sources(np.array(p_good), errors)}
    for name, own in line["sources"].items():
        own |= {"weight": 1.0 if name == "people" else 0.25, "trained": {"good": 5, "bad": 4}}
    (folder / "metrics" / "reward_eval.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "config.yaml").write_text(json.dumps({"train_reward": section}))
    return folder


SOURCES = {
    "sources": [
        {"name": "people", "annotations": "people.jsonl", "weight": 1.0},
        {"name": "bought", "annotations": "bought.jsonl", "weight": 0.25},
    ]
}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", SOURCES)


def test_people_are_shown_where_their_judgments_are_next_to_the_annotations(run, tmp_path):
    told = write_people(tmp_path / "people.judgments.jsonl", ("1", HOSTILE, "3"))
    page = Page(build_report([run], tmp_path / "page.html"))
    assert "annotators" in page.ids
    shown = " ".join(page.text.split())
    for line in told.splitlines():
        for cell in filter(None, line.split("  ")):
            written = {"-": "–"}.get(cell.strip()) or re.sub(r"^-(?=\d)", "−", " ".join(cell.split()))
            assert written in shown, line
    assert "people" in shown
    assert not [tag for tag, attributes in page.tags if tag == "img" and attributes.get("src") == "x"]


def test_without_judgments_there_is_no_such_section(run, tmp_path):
    page = Page(build_report([run], tmp_path / "page.html"))
    assert "annotators" not in page.ids
    assert "#annotators" not in [attributes.get("href") for _, attributes in page.tags]


def test_judgments_that_cannot_be_read_are_told_and_left_out(run, tmp_path, caplog):
    (tmp_path / "people.judgments.jsonl").write_text("{}\n")
    write_people(tmp_path / "bought.judgments.jsonl")
    page = Page(build_report([run], tmp_path / "page.html"))
    assert "annotators" in page.ids
    assert "the report says nothing of annotators" in caplog.text
    assert "people.judgments.jsonl, line 1" in caplog.text


def test_two_runs_of_one_file_show_it_once(run, tmp_path):
    write_people(tmp_path / "people.judgments.jsonl")
    other = make_run(tmp_path / "other", {"annotations": "people.jsonl"})
    page = Page(build_report([run, other], tmp_path / "page.html"))
    assert page.text.count("Krippendorff's alpha") == 1
    assert "run: people, other" in page.text


def test_long_tables_are_named_only(run, tmp_path):
    write_people(tmp_path / "people.judgments.jsonl", tuple(map(str, range(10))), images=4)  # 45 pairs of people
    page = Page(build_report([run], tmp_path / "page.html"))
    assert "Too long for this page: Kappa of two people;" in page.text
    assert "1 and 2" not in page.text


def test_a_reward_model_has_figures_of_each_source(run, tmp_path):
    page = Page(build_report([run], tmp_path / "page.html"))
    shown = " ".join(page.text.split())
    line = json.loads((run / "metrics" / "reward_eval.jsonl").read_text())
    at = shown.index("All 70")
    for name, weight in (("people", "1"), ("bought", "0.25")):
        own = line["sources"][name]
        at = shown.index(f"{name} weight {weight} {own['count']}{own['auc']:.3f}", at)
        (kind,) = own["errors"]
        at = shown.index(f"{kind.capitalize()} {own['errors'][kind]['count']}{own['errors'][kind]['auc']:.3f}", at)


def test_the_files_that_a_config_names():
    assert list(annotators.annotation_files(SOURCES["sources"])) == []
    assert list(annotators.annotation_files(None)) == []
    assert list(annotators.annotation_files(SOURCES)) == [("people", "people.jsonl"), ("bought", "bought.jsonl")]
    assert list(annotators.annotation_files({"annotations": "a.jsonl", "sources": None})) == [("", "a.jsonl")]
    assert annotators.judgments_of("x/a.jsonl") == "x/a.judgments.jsonl"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_looks(run, tmp_path, open_page, size, scheme):
    write_people(tmp_path / "people.judgments.jsonl", ("1", "2", "3", "17"))
    write_people(tmp_path / "bought.judgments.jsonl")
    page = open_page(build_report([run], tmp_path / "page.html"), size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert is_dark(page) == (scheme == "dark")
    assert page.locator("#annotators table").count() == 10
    folder = Path(os.environ.get("REPORT_SCREENSHOTS", tmp_path))  # to look at
    page.screenshot(path=folder / f"annotators-{size}-{scheme}.png", full_page=True)
