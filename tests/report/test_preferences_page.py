"""What a page shows of a run that learned from preferences."""

import json
import re

import pytest

from tests.report.synthetic import draw_demo
from tests.report.test_build import HOSTILE, Page
from vigor_jax.data.preferences.write import write_preferences
from vigor_jax.errors import InputError
from vigor_jax.records import Preference
from vigor_jax.report import build_report, preferences


def make_run(run, *, updates=6, pairs=20):
    demo = draw_demo(run / "images", pairs)
    made = [
        Preference(
            name,
            "Describe the image.",
            (f"A red circle, {HOSTILE}.", f"A red circle and a dog {number}.", "A blue circle."),
            (2.0, 0.0, 1.0),
            context="There is a table." if number % 2 else "",
            whole=not number % 2,
        )
        for number, name in enumerate(demo.scenes)
    ]
    write_preferences(str(run / "preferences.parquet"), made)
    (run / "metrics").mkdir()
    lines = [
        {"step": step, "loss": 0.7 - 0.1 * step, "accuracy": 0.15 * step, "margin": 0.2 * step, "tokens": 8.0,
         "better_reward": 0.1 * step, "worse_reward": -0.1 * step, "better_logps": -50.0 + step}
        for step in range(1, updates + 1)
    ]  # fmt: skip
    (run / "metrics" / "dpo.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"sample": {"images": str(run / "images")}, "run": {"stages": ["pair", "dpo"]},
              "dpo": {"beta": 0.1, "loss": "sigmoid", "lora": {"rank": 16}}, "pair": {"chosen": "refined"}}  # fmt: skip
    (run / "config.yaml").write_text(json.dumps(config))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "one")


def cards(page):
    return sum(attributes.get("class") == "card is-chosen" for _, attributes in page.tags)


def test_curves_settings_and_pairs(run, tmp_path):
    page = Page(build_report([run], tmp_path / "page.html"))
    text = page.text
    for title in ("Pairs whose better response scores higher", "Margin of a pair", "Reward of a response"):
        assert title in text
    assert "15.0% → 90.0%" in text
    assert "0.1 → 0.6" in text  # the better responses' reward
    assert "beta: 0.1" in text
    assert "rank: 16" in text
    assert cards(page) == preferences.MAX_PAIRS
    assert "Loss with another image" not in text  # there was none


def test_each_of_two_runs_has_its_own(run, tmp_path):
    other = make_run(tmp_path / "other", updates=2, pairs=1)
    (other / "preferences.parquet").unlink()
    page = Page(build_report([run, other], tmp_path / "page.html"))
    assert cards(page) == preferences.MAX_PAIRS // 2
    assert "15.0% → 30.0%" in page.text
    assert "15.0% → 90.0%" in page.text


@pytest.mark.parametrize(
    ("one", "other"),
    [("A red circle.", "A blue circle."), ("", " A cat."), ("a  b\n c ", "a b"), ("same", "same"), ("x y", "p q r")],
)
def test_pieces_are_the_whole_text(one, other):
    for text, pieces in zip((one, other), preferences.difference(one, other), strict=True):
        assert "".join(piece for piece, _ in pieces) == text
    words = [[piece for piece, differs in side if not differs] for side in preferences.difference(one, other)]
    assert words[0] == words[1]


def test_the_best_and_the_worst_of_several_are_shown(run):
    first, *_, last = preferences.read_pairs(str(run), 5)
    assert first.image != last.image
    assert "".join(text for text, _ in first.worse) == "A red circle and a dog 0."
    assert ("A red", False) in first.better


def test_a_damaged_file_is_named(run, tmp_path):
    (tmp_path / "preferences.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"preferences\.parquet: damaged .*; run the stage pair again"):
        preferences.read_pairs(str(tmp_path), 2)
    assert preferences.read_pairs(str(tmp_path / "nothing"), 2) == []


def test_in_a_browser(run, tmp_path, open_page):
    """Pictures are in their frames, and a caption is text, whatever it looks like."""
    page = open_page(build_report([run], tmp_path / "page.html"))
    assert page.locator("#preferences .pairs img").count() == preferences.MAX_PAIRS
    first = page.locator("#preferences .pairs .card .caption")
    said = first.first.inner_text()
    assert re.sub(r"\s+", " ", f"A red circle, {HOSTILE}.") == re.sub(r"\s+", " ", said)
    assert first.nth(1).locator("mark").count() >= 1
    assert page.locator("nav a[href='#preferences']").count() == 1
