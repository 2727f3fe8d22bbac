"""The card as Markdown, rendered as the Hub does; its metadata, read by huggingface_hub."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from tests.evaluation.card.saved import chair, pope, write_result
from vigor_jax.evaluation.card.card import Card, Row
from vigor_jax.evaluation.card.compare import make_card
from vigor_jax.evaluation.card.markdown import difference, p_value, to_markdown, written
from vigor_jax.evaluation.card.results import Skipped, read_systems
from vigor_jax.evaluation.card.write import write_card

HOSTILE = "a|b <b>*x*</b> `c` [d](e) $f$ &lt;i&gt;"


@pytest.fixture
def card(tmp_path: Path) -> Card:
    for name, truth in (("first", 0.6), ("second", 0.9)):
        write_result(tmp_path / name / "pope", "pope", pope(truth))
        write_result(tmp_path / name / "chair", "chair", chair(truth))
    systems, skipped = read_systems([tmp_path / "first", tmp_path / "second"])
    return make_card(systems, [*skipped, Skipped(HOSTILE, "line one\nline two")])


def test_tables_have_all_their_cells(card: Card) -> None:
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(to_markdown(card))
    assert sum(token.type == "table_open" for token in tokens) == len(card.sections)
    rows = [index for index, token in enumerate(tokens) if token.type == "tr_open"]
    for start in rows:
        kinds = [token.type for token in tokens[start : start + 14]]
        assert kinds[: kinds.index("tr_close")].count("inline") == 4
    assert len(rows) == sum(len(section.rows) + 1 for section in card.sections)
    inline = [child for token in tokens for child in token.children or []]
    assert not [token for token in (*tokens, *inline) if "html" in token.type]
    texts = ["".join(child.content for child in token.children or []) for token in tokens if token.type == "inline"]
    assert "CHAIR_i (%) ↓" in texts
    assert f"{HOSTILE}: line one line two" in texts


def test_the_hub_reads_the_metadata(card: Card, tmp_path: Path) -> None:
    write_card(card, tmp_path / "out")
    read = ModelCard.load(tmp_path / "out" / "card.md")
    assert read.data.model_name == "second"
    results = {(each.dataset_type, each.dataset_split, each.metric_type): each for each in read.data.eval_results}
    accuracy = results["pope", "random", "accuracy"]
    section = next(section for section in card.sections if section.name == "pope")
    value = next(row for row in section.rows if (row.part, row.key) == ("random", "accuracy")).values[1]
    assert accuracy.metric_value == round(100 * value.value, 2)
    assert accuracy.dataset_name == "POPE, random"
    assert accuracy.dataset_config == section.protocol.partition(";")[0]
    assert accuracy.task_type == "image-text-to-text"
    assert len(results) == sum(len(section.rows) for section in card.sections)
    assert read.text.startswith("\n# second\n")


@pytest.mark.parametrize(
    ("value", "unit", "sign", "text"),
    [
        (0.1234, "percent", False, "12.3"),
        (-0.1234, "percent", True, "−12.3"),
        (0.00049, "percent", True, "+0.05"),
        (-1e-9, "percent", True, "−<0.001"),
        (0.0, "percent", True, "0.0"),
        (3.14159, "score", False, "3.142"),
        (-0.00001, "score", False, "0.000"),
        (1309.25, "number", False, "1309.2"),
    ],
)
def test_figures_are_written_with_a_true_minus(value: float, unit: str, sign: bool, text: str) -> None:
    assert written(value, unit, sign=sign) == text


def test_a_p_value_is_never_zero() -> None:
    assert p_value(2 / 1001) == "p < 0.002"
    assert p_value(4 / 1001) == "p = 0.004"
    assert p_value(1.0) == "p = 1.000"
    assert difference(Row("", "k", "k", "percent", "lower", (None, None), None, 0)) == ""
