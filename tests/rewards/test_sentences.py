"""Sentences against what a reader marks by hand, and the promise that no character is lost."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.records import Span
from vigor_jax.rewards.sentences import split_sentences

CAPTIONS = Path(__file__).resolve().parents[3] / "shared" / "data" / "captions" / "llava13b_coco_captions.jsonl"

# Sentences are divided by "|", which is not part of the caption.
MARKED = (
    "",
    "A man",
    "A man sits.| A dog runs.",
    "Mr. Smith and Dr. Jones wave.| St. Paul's is behind them.",
    "The rope is 3.5 ft. long, i.e. short.| It costs 2.50 dollars.",
    "Fruits, e.g. apples, lie there.| Is it a pear?| Yes!",
    "A red vs. a blue team.| They play.",
    "Waves... and more waves.| The sky fades...| A boat drifts.",
    'A sign says "Stop."| A car waits.',
    "“No parking.”| A truck stands there anyway.",
    "(A bird sits on it.)| A cat watches.",
    "What a view!?| A hill.",
    "A first line\n|a second one without a dot\n\n|A new paragraph.| Its end",
    "1. A man with a hat\n|2. A dog",
    "1. A man with a hat.| He smiles.",
    "- plates\n|- cups\r\n|* forks",
    "Plates, cups, etc. stand there.| Also forks, knives, etc.| A man eats.",
    "At 5 p.m. the man sleeps.| The clock shows 6 p.m.| A dog barks.",
    "The U.S. flag flies.| J. Smith salutes.",
    "Ein Café.| Ünder the tree sits a man.| 木の下に猫。",
    "A cat 😀.| 🐶 A dog.",
    "  leading and trailing  ",
    "one\u2028|two\u2029|three",
)


@pytest.mark.parametrize("marked", MARKED)
def test_sentences_are_where_a_reader_puts_them(marked):
    pieces = marked.split("|")
    text = "".join(pieces)
    assert [text[slice(*span)] for span in split_sentences(text)] == [piece.strip() for piece in pieces if piece]


def test_spans_are_offsets_into_the_text():
    assert split_sentences(" A man.  A dog.\n") == [Span(1, 7), Span(9, 15)]


def check(text: str) -> None:
    spans = split_sentences(text)
    end = 0
    for span in spans:
        assert end <= span.start < span.end
        assert not text[end : span.start].strip()
        assert text[slice(*span)] == text[slice(*span)].strip()
        assert len(text[slice(*span)].splitlines()) == 1
        end = span.end
    assert not text[end:].strip()


@given(st.text(st.sampled_from(list("aB1 .!?…\"'“”()-\n\t\r\u2028\x85\x1c:;,é😀")), max_size=60) | st.text(max_size=60))
def test_nothing_but_white_space_lies_between_sentences(text):
    check(text)


@pytest.mark.skipif(not CAPTIONS.exists(), reason="needs ../shared")
def test_real_captions_are_covered():
    texts = [json.loads(line)["text"] for line in CAPTIONS.read_text().splitlines()[::10]]
    for text in texts:
        check(text)
        assert len(split_sentences(text)) > 1
