"""Whoever reads captions reads the same in one with boxes as in one without them."""

import json
import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rewards.test_phrases import CAPTIONS, nltk_tagger  # noqa: F401
from vigor_jax.data.records.blocks import num_words
from vigor_jax.data.text.box_text import strip_boxes, write_boxes
from vigor_jax.demo.language import parse
from vigor_jax.evaluation.benchmarks import chair, pope
from vigor_jax.evaluation.benchmarks.synonyms import Synonyms
from vigor_jax.records import Signal, Span, Verdict
from vigor_jax.rewards.claims.claim import Relation
from vigor_jax.rewards.claims.find import Claims
from vigor_jax.rewards.content import has_words
from vigor_jax.rewards.continuations import continuations
from vigor_jax.rewards.phrases import EntityPhrases, NounPhrases
from vigor_jax.rewards.refine import refine
from vigor_jax.rewards.repetitions import repetitions
from vigor_jax.rewards.sentences import split_sentences

PIECES = st.sampled_from(
    ["A dog", "Two cats", "dogs", " runs.", " sits", " and", ". ", "!", "\n", "\n\n", " It", "1. ", "Mr. Lee",
     '"Stop."', " No", ",", "…", " a sign that says ", "(a bus)", " in front of", "Another dog", " etc.", " 0.5"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=14).map("".join)
BOX = (0.25, 0.3, 0.58, 1.0)
ENTITIES = EntityPhrases()
REFERENCE = chair.Reference({"a.jpg": frozenset(("dog",))}, Synonyms.identity(("dog", "cat", "bus")))


@st.composite
def captions(draw):
    """A caption, and the same with boxes behind some of its words."""
    text = draw(TEXTS)
    ends = [end for end in range(1, len(text) + 1) if text[end - 1].isalpha() and not text[end : end + 1].isalnum()]
    chosen = sorted(draw(st.sets(st.sampled_from(ends), max_size=4))) if ends else []
    return text, write_boxes(text, [(Span(end, end), BOX) for end in chosen])


def words_of(text, spans):
    return [strip_boxes(text[slice(*span)]).text for span in spans]


@given(captions())
def test_sentences(given):
    plain, boxed = given
    assert words_of(boxed, split_sentences(boxed)) == words_of(plain, split_sentences(plain))


@given(TEXTS, st.data())
def test_nothing_but_white_space_is_between_sentences(text, data):
    """Wherever boxes stand."""
    ends = data.draw(st.lists(st.integers(0, len(text)), max_size=4))
    boxed = write_boxes(text, [(Span(end, end), BOX) for end in ends])
    spans = split_sentences(boxed)
    assert len(spans) == len(split_sentences(text))
    if spans:
        edges = [0, *(place for span in spans for place in span), len(boxed)]
        assert edges == sorted(edges)
        assert not any(boxed[start:end].strip() for start, end in zip(edges[::2], edges[1::2], strict=True))
        assert all(boxed[slice(*span)] == boxed[slice(*span)].strip() != "" for span in spans)


@given(captions())
def test_repetitions(given):
    plain, boxed = given
    assert words_of(boxed, repetitions(boxed)) == words_of(plain, repetitions(plain))


@given(captions(), st.data())
def test_continuations(given, data):
    plain, boxed = given
    sentences = split_sentences(plain)
    left_out = data.draw(st.lists(st.booleans(), min_size=len(sentences), max_size=len(sentences)))
    with_boxes = [boxed[slice(*span)] for span in split_sentences(boxed)]
    assert continuations(with_boxes, left_out) == continuations([plain[slice(*span)] for span in sentences], left_out)


@given(captions(), st.integers(0, 8))
@settings(deadline=None)  # the first call loads what the others use
def test_words(given, least):
    plain, boxed = given
    assert has_words(boxed, least) == has_words(plain, least)
    # Other rows of the array have no bracket, or none at all.
    assert (
        num_words(pa.array([boxed, "a b", None])).tolist()[:2] == num_words(pa.array([plain, "a b", None])).tolist()[:2]
    )


def test_a_box_is_no_word():
    assert not has_words("[0.1, 0.2, 0.3, 0.4]", 1)
    assert not split_sentences("[0.1, 0.2, 0.3, 0.4]")
    assert num_words(pa.array(["[0.1, 0.2, 0.3, 0.4]", "[0.1, 0.2]"])).tolist() == [0, 2]


@given(captions())
@settings(deadline=None)  # the first call loads what the others use
def test_entities(given):
    plain, boxed = given
    found = [ENTITIES(text, split_sentences(text)) for text in (plain, boxed)]
    assert said(boxed, found[1]) == said(plain, found[0])


@given(captions())
@settings(deadline=None)  # the first call loads what the others use
def test_chair(given):
    plain, boxed = given
    assert chair.check_caption("a.jpg", boxed, REFERENCE) == chair.check_caption("a.jpg", plain, REFERENCE)


@given(captions())
def test_pope(given):
    plain, boxed = given
    assert pope.parse_answer(boxed) == pope.parse_answer(plain)
    assert pope.parse_answer_strict(boxed) == pope.parse_answer_strict(plain)


@pytest.mark.parametrize(
    ("answer", "lenient", "strict"),
    [("Yes [0.1, 0.2, 0.3, 0.4]", "yes", "yes"), ("There is [0.1, 0.2, 0.3, 0.4] no dog.", "no", None)],
)
def test_answers_with_boxes(answer, lenient, strict):
    assert (pope.parse_answer(answer), pope.parse_answer_strict(answer)) == (lenient, strict)


@given(captions())
def test_the_demo(given):
    plain, boxed = given
    assert parse(boxed) == parse(plain)


def test_refinement_drops_the_same_sentences():
    text = "A dog [0.1, 0.2, 0.3, 0.4] runs. A cat sits [0.5, 0.5, 1.0, 1.0]. It is red. A bus [0.0, 0.0, 0.5, 0.5]"
    cat = Signal("cat", (Span(text.index("cat"), text.index("cat") + 3),), 1, 0, 0.1, absent=True)
    refined = refine(text, [Verdict("a.jpg", 0, "detector", (cat,))], drop_continuations=True)
    assert refined.text == "A dog [0.1, 0.2, 0.3, 0.4] runs. A bus [0.0, 0.0, 0.5, 0.5]"
    assert [text[slice(*each.span)] for each in refined.dropped] == ["A cat sits [0.5, 0.5, 1.0, 1.0].", "It is red."]


def said(text, phrases):
    """The phrases with the words at their places."""
    return [
        (phrase.text, *(words_of(text, spans) for spans in (phrase.mentions, phrase.denied, phrase.supposed)))
        for phrase in phrases
    ]


def claimed(text, claims):
    things = [
        (claim.subject, claim.value.object) if isinstance(claim.value, Relation) else (claim.subject,)
        for claim in claims
    ]
    return [
        (claim.kind, words_of(text, [claim.span]), [(thing.phrase, *words_of(text, [thing.span])) for thing in each])
        for claim, each in zip(claims, things, strict=True)
    ]


@pytest.mark.skipif(not CAPTIONS.exists(), reason="no real captions here")
def test_real_captions(nltk_tagger):  # noqa: F811
    """Boxes behind a third of the mentions of 300 captions, some of them behind every one."""
    nouns = NounPhrases(tagger=nltk_tagger)
    claims, rng = Claims(nouns), random.Random(0)
    written = 0
    for line in CAPTIONS.read_text(encoding="utf-8").splitlines()[:300]:
        text = json.loads(line)["text"]
        phrases = nouns(text, split_sentences(text))
        share = rng.choice((0.2, 0.4, 1))
        places = [(span, BOX) for phrase in phrases for span in phrase.mentions if rng.random() < share]
        boxed = write_boxes(text, places)
        written += len(places)
        found = nouns(boxed, split_sentences(boxed))
        assert said(boxed, found) == said(text, phrases)
        assert claimed(boxed, claims(boxed, split_sentences(boxed), found)) == claimed(
            text, claims(text, split_sentences(text), phrases)
        )
    assert written > 1000
