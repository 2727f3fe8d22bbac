"""Boxes behind the first mentions of what is left of a text, whatever else refinement does to it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.data.text.box_text import find_boxes, in_image, strip_boxes, write_boxes
from vigor_jax.errors import InputError
from vigor_jax.records import Edit, Signal, Span, Verdict
from vigor_jax.rewards.boxed_phrases import BoxedPhrase, boxed_phrases
from vigor_jax.rewards.refine import refine
from vigor_jax.rewards.sentences import split_sentences

DOG, CAT, CAR = (0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 0.75, 1.0), (0.0, 0.0, 1.0, 0.5)
TEXT = "Two dogs run. A cat sits by the dogs. A car is red. The cat sleeps."


def spans(text, word):
    places, start = [], text.find(word)
    while start >= 0:
        places.append(Span(start, start + len(word)))
        start = text.find(word, start + 1)
    return tuple(places)


def found(text, word, *boxes, stream="detector", **more):
    return Verdict("a.png", 0, stream, (Signal(word, spans(text, word), 0, 1, 0.9, boxes_xyxy=boxes, **more),))


def absent(text, word):
    return Verdict("a.png", 0, "detector", (Signal(word, spans(text, word), 1, 0, 0.1, absent=True),))


def phrases(text, size=(100, 100), **boxes):
    return boxed_phrases([found(text, word, box) for word, box in boxes.items()], size)


def test_each_thing_once_behind_its_first_mention():
    refined = refine(TEXT, [], boxes=phrases(TEXT, dogs=DOG, cat=CAT, car=CAR))
    assert refined.text == (
        "Two dogs [0.1, 0.2, 0.3, 0.4] run. A cat [0.5, 0.5, 0.75, 1.0] sits by the dogs. "
        "A car [0.0, 0.0, 1.0, 0.5] is red. The cat sleeps."
    )
    assert not refined.dropped


def test_boxes_follow_to_the_first_mention_that_is_left():
    refined = refine(TEXT, [absent(TEXT, "sits")], boxes=phrases(TEXT, dogs=DOG, cat=CAT, car=CAR))
    assert refined.text == (
        "Two dogs [0.1, 0.2, 0.3, 0.4] run. A car [0.0, 0.0, 1.0, 0.5] is red. The cat [0.5, 0.5, 0.75, 1.0] sleeps."
    )
    gone = refine(TEXT, [absent(TEXT, "cat")], boxes=phrases(TEXT, cat=CAT))
    assert not find_boxes(gone.text)


def test_boxes_follow_repaired_words():
    edits = (Edit(Span(0, 3), "One"), Edit(Span(4, 8), "dog"), Edit(Span(9, 12), "runs"))
    claim = Signal("dog: two", (Span(0, 3),), 1, 0, 0, True, boxes_xyxy=(CAR,), kind="number", edits=edits)
    wrong = Verdict("a.png", 0, "claims", (claim,))
    refined = refine(TEXT, [wrong], repair=True, boxes=phrases(TEXT, dogs=DOG))
    assert refined.text.startswith("One dog [0.1, 0.2, 0.3, 0.4] runs. A cat sits")
    assert [(each.old, each.new) for each in refined.repaired] == [("Two", "One"), ("dogs", "dog"), ("run", "runs")]
    # Of words that are replaced as a whole the box stands behind the new ones.
    whole = Verdict("a.png", 0, "claims", (Signal("x", (Span(0, 3),), 1, 0, 0, True, kind="number",
                                                  edits=(Edit(Span(0, 12), "One dog runs"),)),))  # fmt: skip
    refined = refine(TEXT, [whole], repair=True, boxes=phrases(TEXT, dogs=DOG))
    assert refined.text.startswith("One dog runs [0.1, 0.2, 0.3, 0.4]. A cat")


def test_the_response_s_own_boxes_go():
    said = "A dog [0.0, 0.0, 0.1, 0.1] runs by a tree [0.2, 0.2, 0.3, 0.3]. A cat [0.4, 0.4, 0.5, 0.5]"
    refined = refine(said, [], boxes=phrases(said, dog=DOG, cat=CAT))
    assert refined.text == "A dog [0.1, 0.2, 0.3, 0.4] runs by a tree. A cat [0.5, 0.5, 0.75, 1.0]"
    assert refine(said, []).text == said
    assert refine(said, [], boxes=[]).text == "A dog runs by a tree. A cat"


def test_what_gets_a_box():
    size = (100, 100)
    assert [each.box for each in boxed_phrases([found(TEXT, "cat", CAT, DOG)], size)] == [CAT]  # the best
    assert not boxed_phrases([absent(TEXT, "cat"), found(TEXT, "dogs"), found(TEXT, "tree", CAR)], size)
    assert not boxed_phrases([found(TEXT, "cat", CAT, denied=True), found(TEXT, "car", CAR, kind="number")], size)
    both = [found(TEXT, "cat", CAT), found(TEXT, "cat", CAR, stream="second"), found(TEXT, "car", CAR, stream="second")]
    assert [each.box for each in boxed_phrases(both, size)] == [CAT, CAR]


def test_phrases_within_others_get_none():
    text = "A dog house burns. A dog runs."
    house, dog = found(text, "dog house", CAT), found(text, "dog", DOG)
    assert refine(text, [], boxes=boxed_phrases([house, dog], (1, 1))).text == (
        "A dog house [0.5, 0.5, 0.75, 1.0] burns. A dog runs."
    )
    puppy = Verdict("a.png", 0, "second", (Signal("puppy", spans(text, "dog house"), 0, 1, 1.0, boxes_xyxy=(CAR,)),))
    assert len(find_boxes(refine(text, [], boxes=boxed_phrases([house, puppy], (1, 1))).text)) == 1


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (101, 50)])
def test_boxes_are_relative_to_the_square(size):
    refined = refine(TEXT, [], boxes=phrases(TEXT, size, cat=CAT))
    (box,) = (each.box for each in find_boxes(refined.text))
    assert np.allclose(in_image(box, size), CAT, atol=0.005 * max(size) / min(size) + 1e-9)


def test_a_box_that_is_none_is_refused():
    message = r"verdict of detector on a.png, candidate 0: 'cat' has the box \[0.9, 0.1, 0.2, 0.3\], expected left, top"
    with pytest.raises(InputError, match=message) as error:
        phrases(TEXT, cat=(0.9, 0.1, 0.2, 0.3))
    assert "\n" not in str(error.value)
    assert phrases(TEXT, cat=(-0.01, 0.1, 1.01, 0.3))[0].box == (0, 0.1, 1, 0.3)


WORDS = st.sampled_from(["dog", "cat", "a bus", "It is red", "runs", "by"])
SENTENCES = st.lists(st.lists(WORDS, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=5)
ENDS = st.sampled_from([". ", ".\n", "! ", ".\n\n", ". "])


@given(st.data())
def test_without_boxes_it_is_what_refinement_leaves(data):
    """And each box stands behind the first mention of its thing, whatever is dropped."""
    sentences = data.draw(SENTENCES)
    text = "".join(f"{sentence.capitalize()}{data.draw(ENDS)}" for sentence in sentences).strip()
    if data.draw(st.booleans()):  # a response with boxes
        ends = data.draw(st.lists(st.sampled_from([span.end for span in spans(text, "dog")] or [0]), max_size=2))
        text = write_boxes(text, [(Span(end, end), CAR) for end in sorted(ends)])
    named = [word for word in ("dog", "cat", "bus") if spans(text, word)]
    boxes = boxed_phrases([found(text, word, box) for word, box in zip(named, (DOG, CAT, CAR), strict=False)], (9, 9))
    gone = data.draw(st.lists(st.sampled_from(split_sentences(text)), max_size=2))
    signal = Signal("x", tuple(gone), 1, 0, 0, absent=True)
    verdicts = [Verdict("a.png", 0, "detector", (signal,))]
    with_boxes = refine(text, verdicts, boxes=boxes)
    plain = refine(text, verdicts)
    assert with_boxes.dropped == plain.dropped
    stripped = strip_boxes(with_boxes.text)
    assert stripped.text == strip_boxes(plain.text).text
    expected = {}
    for word, box in zip(named, (DOG, CAT, CAR), strict=False):
        if (first := stripped.text.find(word)) >= 0:
            expected[first + len(word)] = box
    assert {place.end: box for place, box in stripped.places} == expected
    # Doing it again changes nothing.
    again = boxed_phrases(
        [found(with_boxes.text, word, box) for word, box in zip(named, (DOG, CAT, CAR), strict=False)], (9, 9)
    )
    assert refine(with_boxes.text, [], boxes=again).text == with_boxes.text


def test_a_phrase_without_a_place_is_left_alone():
    assert refine("A dog.", [], boxes=[BoxedPhrase((Span(2, 5),), DOG)]).text == "A dog [0.1, 0.2, 0.3, 0.4]."
    assert not boxed_phrases([Verdict("a.png", 0, "s", (Signal("dog", (), 0, 1, 1, boxes_xyxy=(DOG,)),))], (9, 9))
