"""A card in a README.md: what people wrote stays to the byte, and the next card takes the place of the last."""

import logging
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.evaluation.card.saved import chair, write_result
from vigor_jax.evaluation.card.card import Card
from vigor_jax.evaluation.card.compare import make_card
from vigor_jax.evaluation.card.readme import new_readme, with_card, without_card, write_readme
from vigor_jax.evaluation.card.results import read_systems

OTHERS = """---
license: mit  # as the base
tags:
- "mine"
model-index:
- name: mine
  results:
  - task: {type: text-generation}
    dataset: {type: other, name: Other}
    metrics: [{type: accuracy, value: 5}]
language: en
---
# Mine

Text with `---` and | pipes.
---
The end"""


def card_of(folder: Path, truth: float) -> Card:
    return make_card(*read_systems([write_result(folder / f"{truth}", "chair", chair(truth))]))


@pytest.fixture
def cards(tmp_path: Path) -> list[Card]:
    return [card_of(tmp_path, 0.6), card_of(tmp_path, 0.9)]


def index(text: str) -> list[dict]:
    return yaml.safe_load(text.split("---\n")[1]).get("model-index", [])


def test_a_new_file_has_what_the_hub_wants(cards: list[Card], tmp_path: Path) -> None:
    path = write_readme(tmp_path, cards[0], "name", {"library_name": "peft", "base_model": "org/base"})
    read = ModelCard.load(path)
    assert (read.data.library_name, read.data.base_model, read.data.model_name) == ("peft", "org/base", "name")
    assert "| CHAIR_i (%) ↓ |" in read.text
    first = path.read_bytes()
    write_readme(tmp_path, cards[0], "name", {})
    assert path.read_bytes() == first


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_people_wrote_stays(cards: list[Card], newline: str) -> None:
    before = OTHERS.replace("\n", newline)
    text = with_card(before, cards[0], "name")
    assert ("\r\n" in text) == (newline == "\r\n")
    assert text.replace("\r\n", "").count("\r") == 0
    plain = text.replace("\r\n", "\n")
    for kept in (
        "license: mit  # as the base\n",
        'tags:\n- "mine"\n',
        "language: en\n",
        OTHERS.partition("---\n# ")[2],
    ):
        assert kept in plain
    theirs, *ours = index(plain)[0]["results"]
    assert theirs["dataset"]["type"] == "other"
    assert [each["dataset"]["type"] for each in ours] == ["chair"]
    assert index(plain)[0]["name"] == "mine"

    again = with_card(text, cards[1], "name")
    assert again.count("vigor_jax.card: end") == 1
    assert len(index(again.replace("\r\n", "\n"))[0]["results"]) == 2
    assert with_card(again, cards[0], "name") == text
    assert with_card(text, cards[0], "name") == text
    removed = without_card(text).replace("\r\n", "\n")
    assert yaml.safe_load(removed.split("---\n")[1]) == yaml.safe_load(OTHERS.split("---\n")[1])
    assert OTHERS.partition("---\n# ")[2] in removed
    assert "vigor_jax.card" not in removed


def test_text_after_the_card_stays_there(cards: list[Card]) -> None:
    text = with_card(new_readme("name", {}), cards[0], "name") + "\nMy own section.\n"
    again = with_card(text, cards[1], "name")
    assert again.endswith("-->\n\nMy own section.\n")
    assert with_card(again, cards[0], "name") == text


def test_a_file_without_metadata_gets_some(cards: list[Card]) -> None:
    text = with_card("# Mine\n", cards[0], "name")
    assert index(text)[0]["name"] == "name"
    assert "\n# Mine\n" in text
    assert without_card("# Mine\n") == "# Mine\n"


@pytest.mark.parametrize(
    "front", ["a: [", "- a list", "date: 2024-13-01", "model-index: 3", "model-index: [{name: x}]"]
)
def test_metadata_that_cannot_be_read_stays_as_it_is(
    cards: list[Card], front: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vigor_jax"):
        text = with_card(f"---\n{front}\n---\n# Mine\n", cards[0], "name")
    assert text.startswith(f"---\n{front}\n---\n# Mine\n")
    assert "| CHAIR_i" in text
    assert "gets no figures" in caplog.text


def test_metadata_behind_a_byte_order_mark_are_found(cards: list[Card]) -> None:
    text = with_card(f"\ufeff{OTHERS}", cards[0], "name")
    assert text.startswith("\ufeff---\nlicense: mit")
    assert index(text)[0]["name"] == "mine"


def test_bytes_that_are_no_utf8_stay(cards: list[Card], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"# caf\xe9\n")
    write_readme(tmp_path, cards[0], "name", {})
    assert b"# caf\xe9\n" in (tmp_path / "README.md").read_bytes()
