"""Hints about unknown names: the known one that is meant, and no guess where none is."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.errors import nearest

KINDS = ("object", "attribute", "relationship", "location", "conjecture")
KEYS = ("sft.epochs", "sft.learning_rate", "sft.batch.size", "evaluate.pope", "evaluate.limit", "out", "seed")


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("objekt", KINDS, "object"),
        ("attribut", KINDS, "attribute"),
        ("Relationships", KINDS, "relationship"),
        ("conjectural", KINDS, "conjecture"),
        ("sft.epochz", KEYS, "sft.epochs"),
        ("sfft.epochs", KEYS, "sft.epochs"),
        ("sft.learning_rte", KEYS, "sft.learning_rate"),
        ("epochs", KEYS, "sft.epochs"),
        ("evaluate.limits", KEYS, "evaluate.limit"),
        ("sead", KEYS, "seed"),
    ],
)
def test_what_is_alike_is_named(name: str, known: tuple[str, ...], found: str) -> None:
    assert nearest(name, known) == f"the nearest known one is {found}"
    assert nearest(name, known, noun="name", quoted=True) == f"the nearest name is {found!r}"


@pytest.mark.parametrize("name", ["color", "shade", "count", "wrong", "hue", "", "x", "犬", "number", "text"])
def test_what_is_unlike_gets_the_list(name: str) -> None:
    assert nearest(name, KINDS) == "known ones are object, attribute, relationship, location, conjecture"


@pytest.mark.parametrize(
    ("name", "known"), [("color", "score"), ("model", "mode.x"), ("image", "stage"), ("data", "out")]
)
def test_a_few_letters_in_common_are_no_likeness(name: str, known: str) -> None:
    assert nearest(name, [known]) == f"known ones are {known}"


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("evaluate.color", "evaluate.pope, evaluate.limit"),
        ("sft.warmth", "sft.epochs, sft.learning_rate"),
        ("zzz", "out, seed"),
        ("other.zzz", ", ".join(KEYS)),
    ],
)
def test_of_dotted_keys_those_of_the_section_are_listed(name: str, listed: str) -> None:
    assert nearest(name, KEYS) == f"known ones are {listed}"


def test_a_long_list_is_cut_and_none_is_no_error() -> None:
    text = nearest("犬", [f"name{i}" for i in range(100)])
    assert text.endswith("name23 and 76 more")
    assert nearest("a", []) == "known ones are "


@given(st.text(string.ascii_lowercase + ".", max_size=12), st.lists(st.text(string.ascii_lowercase, min_size=1)))
def test_only_known_names_are_named(name: str, known: list[str]) -> None:
    text = nearest(name, known)
    assert "\n" not in text
    if text.startswith("the nearest known one is "):
        assert text.removeprefix("the nearest known one is ") in known
