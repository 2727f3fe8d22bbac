"""Sentences that repeat an earlier one, against a look at all of them; and what counts as the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.rewards.repetitions import repetitions
from vigor_jax.rewards.sentences import split_sentences


def repeated(text):
    return [text[slice(*span)] for span in repetitions(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog runs. A cat sits. A dog runs.", ["A dog runs."]),
        ("A dog runs. A dog runs. A dog runs.", ["A dog runs.", "A dog runs."]),
        ("A dog runs. A DOG  runs!", ["A DOG  runs!"]),
        ("A dog runs.\n\nA dog\truns", ["A dog\truns"]),
        ("1. A dog runs.\n2. A dog runs.\n3. A cat sits.", ["2. A dog runs."]),
        ("- A dog runs.\n- A dog runs.", ["- A dog runs."]),
        ("A dog runs. (A dog runs.)", ["(A dog runs.)"]),
        ('A dog runs. "A dog runs."', ['"A dog runs."']),
        ("A dog runs… A dog runs.", ["A dog runs."]),
        ("It costs 1.5 dollars. It costs 1.5 dollars.", ["It costs 1.5 dollars."]),
        ("Mr. Lee waves. Mr. Lee waves.", ["Mr. Lee waves."]),
        ("Ein Hund läuft. EIN HUND LÄUFT.", ["EIN HUND LÄUFT."]),
        ("A dog runs. A dog ran.", []),
        ("A dog runs. The dog runs.", []),
        ("It costs 1.5 dollars. It costs 15 dollars.", []),
        ("Is it red? It is red.", []),
        ("A dog runs", []),
        ("... ... ...", []),
        ("", []),
        (" ", []),
    ],
)
def test_what_is_the_same(text, expected):
    assert repeated(text) == expected


PIECES = st.sampled_from(
    ["A dog runs.", "1. a dog runs!", "2) A dog  runs", "- A dog runs...", '"A dog runs."', "(A dog runs.)",
     "Mr. Lee waves!", "e.g. this one", "Really?! Yes… No", "etc. and so on.", "U.S. Army", "… he said", "5.", "a.",
     "1.5 m.", "**A dog runs.**"]
)  # fmt: skip


@given(st.lists(st.tuples(PIECES, st.sampled_from([" ", "  ", "\n", "\n\n"])), max_size=6))
def test_the_quick_look_misses_nothing(pieces):
    text = "".join(map("".join, pieces))
    assert repetitions(text) == repetitions(text, split_sentences(text))


def test_of_some_sentences():
    text = "A dog runs. A dog runs. A cat sits. A dog runs."
    first, second, third, fourth = split_sentences(text)
    assert repetitions(text, [first, third, fourth]) == [fourth]
    assert repetitions(text, [second, third]) == []
