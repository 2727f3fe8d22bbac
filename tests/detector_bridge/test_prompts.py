"""Phrases to prompts and back, against the definitions written out."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector_bridge.prompts import CLS, DOT, SEP, find_phrases, make_prompts, normalize
from detector_bridge.refusal import RefusedError


def tokenize(phrase: str) -> list[int]:
    """A number for each letter, apart from the special ones."""
    return [2000 + ord(letter) for word in phrase.split() for letter in word]


def test_one_prompt_and_its_spans():
    (prompt,) = make_prompts(["ab", "c d", "AB.", "c"], tokenize, 256)
    a, b, c, d = (2000 + ord(letter) for letter in "abcd")
    assert prompt.tokens == [CLS, a, b, DOT, c, d, DOT, c, DOT, SEP]
    assert prompt.spans == {"ab": (1, 3), "c d": (4, 6), "c": (7, 8)}


@given(
    st.lists(st.text("abcXY .?[]", min_size=1, max_size=12).filter(lambda text: normalize(text)), min_size=1),
    st.integers(15, 40),
)
def test_any_phrases_are_packed_whole_once_and_closed_by_dots(phrases, max_tokens):
    prompts = make_prompts(phrases, tokenize, max_tokens)
    wanted = list(dict.fromkeys(normalize(phrase) for phrase in phrases))
    assert [phrase for prompt in prompts for phrase in prompt.spans] == wanted
    for prompt in prompts:
        assert len(prompt.tokens) <= max_tokens
        assert (prompt.tokens[0], prompt.tokens[-1]) == (CLS, SEP)
        rebuilt = [CLS]
        for phrase, (start, end) in prompt.spans.items():
            assert prompt.tokens[start:end] == tokenize(phrase)
            assert prompt.tokens[end] == DOT
            rebuilt += [*tokenize(phrase), DOT]
        assert prompt.tokens == [*rebuilt, SEP]
    for before, after in itertools.pairwise(prompts):  # none is split before it is full
        first = next(iter(after.spans))
        assert len(before.tokens) + len(tokenize(first)) + 1 > max_tokens


@pytest.mark.parametrize(
    ("phrases", "code", "named"),
    [
        ([], "NO_PHRASES", "at least one"),
        (["dog", " . "], "EMPTY_PHRASE", "phrase 1 of 2"),
        (["dog", ""], "EMPTY_PHRASE", "phrase 1 of 2"),
        (["x" * 62], "PHRASE_TOO_LONG", "62 tokens, the prompt takes 61"),
        (["x " * 100_000], "PHRASE_TOO_LONG", "letters"),
    ],
)
def test_refusals(phrases, code, named):
    with pytest.raises(RefusedError, match=named) as caught:
        make_prompts(phrases, tokenize, 64)
    assert caught.value.code == code


def test_a_phrase_that_just_fits():
    (prompt,) = make_prompts(["x" * 61], tokenize, 64)
    assert len(prompt.tokens) == 64


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_reading_is_the_definition(seed, box_threshold, text_threshold):
    random = np.random.default_rng(seed)
    tokens, boxes = random.random((7, 9)).astype(np.float32), random.random((7, 4)).astype(np.float32)
    spans = {"a": (1, 2), "b c": (3, 5), "d": (6, 9)}
    found = find_phrases(spans, tokens, boxes, box_threshold, text_threshold)
    for phrase, (start, end) in spans.items():
        scores = [float(np.mean(row[start:end], dtype=np.float32)) for row in tokens]
        kept = [q for q in range(7) if max(tokens[q, start:end]) > box_threshold and scores[q] > text_threshold]
        kept.sort(key=lambda q: -scores[q])
        assert found[phrase].present == bool(kept)
        assert found[phrase].score == pytest.approx(max(scores), rel=1e-6)
        np.testing.assert_array_equal(found[phrase].boxes_xyxy, boxes[kept])
        np.testing.assert_allclose(found[phrase].scores, [scores[q] for q in kept], rtol=1e-6)


def test_overlapping_phrases_keep_apart():
    """A dog and a lamp are seen: neither "hot dog" nor "traffic light" is."""
    spans = {"hot dog": (1, 3), "dog": (4, 5), "traffic light": (6, 8), "light": (9, 10)}
    tokens = np.zeros((3, 12), np.float32)
    tokens[0, 4] = 0.9  # the dog
    tokens[0, 2] = 0.4  # "dog" of "hot dog" fires a little on it
    tokens[1, 9] = 0.7  # the lamp
    tokens[1, 7] = 0.45
    found = find_phrases(spans, tokens, np.zeros((3, 4), np.float32), 0.25, 0.25)
    assert {phrase: answer.present for phrase, answer in found.items()} == {
        "hot dog": False,
        "dog": True,
        "traffic light": False,
        "light": True,
    }
