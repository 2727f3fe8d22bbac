"""Annotations: what a file says, what is refused and where, and that writing is the inverse of reading."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.data.records.annotations import read_annotations, write_annotations
from vigor_jax.errors import InputError
from vigor_jax.records import AnnotatedSentence, Annotation, Span

LINE = {
    "image": "kitchen/1.jpg",
    "description": "A red kettle boils.  Two cats watch.\n\nThe cats are hungry.",
    "sentences": [
        {"text": "A red kettle boils.", "errors": ["attribute:color"]},
        {"text": "Two cats watch.", "errors": ["object", "location"], "creative": False},
        {"text": "The cats are hungry.", "errors": [], "creative": True},
    ],
    "detail": 3,
    "missing": ["the window"],
}
PLACE = r"a\.jsonl:2"


def write(folder, *lines):
    path = folder / "a.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_reads_spans_and_errors(tmp_path):
    (annotation,) = read_annotations(write(tmp_path, LINE, ""))
    assert annotation == Annotation(
        "kitchen/1.jpg",
        LINE["description"],
        (
            AnnotatedSentence(Span(0, 19), ("attribute",), "color"),
            AnnotatedSentence(Span(21, 36), ("object", "location")),
            AnnotatedSentence(Span(38, 58), (), creative=True),
        ),
        3,
        ("the window",),
    )


def test_optional_keys(tmp_path):
    line = {key: LINE[key] for key in ("image", "description", "sentences")}
    first, second = read_annotations(write(tmp_path, line, {**line, "detail": None, "missing": None}))
    assert first == second
    assert (first.detail, first.missing) == (None, ())


def test_sentences_that_repeat_are_found_in_turn(tmp_path):
    sentences = [{"text": "A cat.", "errors": []}] * 2
    (annotation,) = read_annotations(write(tmp_path, {**LINE, "description": "A cat. A cat.", "sentences": sentences}))
    assert [sentence.span for sentence in annotation.sentences] == [(0, 6), (7, 13)]


def changed(**changes):
    return {**LINE, **changes}


def with_first(**changes):
    first, *others = LINE["sentences"]
    return changed(sentences=[{**first, **changes}, *others])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": ', rf"{PLACE}: malformed JSON at column 10"),
        ("[1]", rf"{PLACE}: expected an object with image, description, sentences, got \[1\]"),
        ({"image": "a.jpg", "description": "A."}, rf"{PLACE}: expected the keys .*, got none called 'sentences'"),
        (changed(detial=3), rf"{PLACE}: unknown key 'detial'; the nearest known one is 'detail'"),
        (changed(detail="3"), rf"{PLACE}: expected an integer under 'detail', got '3'"),
        (changed(detail=True), rf"{PLACE}: expected an integer under 'detail', got True"),
        (changed(image=None), rf"{PLACE}: expected a string under 'image', got None"),
        (changed(missing=[1]), rf"{PLACE}: expected strings in 'missing', got 1"),
        (changed(description=" \n"), rf"{PLACE}: expected a description, got an empty one"),
        (changed(sentences=[]), rf"{PLACE}: no sentence covers 'A red kettle"),
        (changed(sentences=LINE["sentences"][:2]), rf"{PLACE}: no sentence covers 'The cats are hungry\.' at the end"),
        (changed(sentences=LINE["sentences"][1:]), rf"{PLACE}, sentence 1: no sentence covers 'A red kettle boils\.'"),
        (changed(sentences=LINE["sentences"][:1] * 2), rf"{PLACE}, sentence 2: .* is before the sentence before it"),
        (with_first(text="A red kettle"), rf"{PLACE}, sentence 2: no sentence covers 'boils\.' before"),
        (with_first(text="A blue kettle."), rf"{PLACE}, sentence 1: 'A blue kettle\.' is not in the description"),
        (with_first(text=""), rf"{PLACE}, sentence 1: expected a sentence under 'text', got an empty one"),
        (
            with_first(errors=["color"]),
            rf"{PLACE}, sentence 1: unknown error type 'color'; known ones are 'object', 'attribute', 'relationship',",
        ),
        (changed(hue=3), rf"{PLACE}: unknown key 'hue'; known ones are 'image', "),
        (with_first(errors=["objekt"]), rf"{PLACE}, sentence 1: unknown error type 'objekt'; the nearest .* 'object'"),
        (with_first(errors=[3]), rf"{PLACE}, sentence 1: unknown error type 3"),
        (with_first(errors=["object:cup"]), rf"{PLACE}, sentence 1: expected 'attribute:WHICH' or one of"),
        (with_first(errors=["attribute:"]), rf"{PLACE}, sentence 1: expected 'attribute:WHICH'"),
        (with_first(errors=["object", "object"]), rf"{PLACE}, sentence 1: expected each error type once, got 'object'"),
        (with_first(creative=1), rf"{PLACE}, sentence 1: expected true or false under 'creative', got 1"),
    ],
)
def test_what_is_refused(tmp_path, line, message):
    annotations = read_annotations(write(tmp_path, LINE, line))
    next(annotations)
    with pytest.raises(InputError, match=message) as caught:
        next(annotations)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: cannot read the annotations"):
        next(read_annotations(tmp_path / "none.jsonl"))
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"image": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"latin\.jsonl:1: expected UTF-8"):
        next(read_annotations(path))


WORDS = st.text(st.sampled_from('aé猫\u2028\\" .\t'), min_size=1, max_size=8).map(str.strip).filter(bool)


@st.composite
def annotations(draw):
    description = draw(st.sampled_from(["", " ", "\n"]))
    sentences = []
    for text in draw(st.lists(WORDS, min_size=1, max_size=4)):
        start = len(description)
        description += text
        errors = tuple(draw(st.lists(st.sampled_from(["object", "attribute", "conjecture"]), unique=True)))
        attribute = draw(st.sampled_from(["", "count: of cats"])) if "attribute" in errors else ""
        creative = draw(st.booleans())
        sentences.append(AnnotatedSentence(Span(start, len(description)), errors, attribute, creative))
        description += draw(st.sampled_from(["", " ", "\n\n", "\u2028"]))
    detail = draw(st.none() | st.integers())
    return Annotation(draw(WORDS), description, tuple(sentences), detail, tuple(draw(st.lists(WORDS))))


@given(st.lists(annotations(), max_size=3))
def test_written_annotations_come_back(written):
    path = "memory://annotations.jsonl"
    write_annotations(path, written)
    assert list(read_annotations(path)) == written
