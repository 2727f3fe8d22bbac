"""What two detectors say together, against a table written by hand, and what becomes of what they do not agree on."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.records import PhraseScore, Signal, Span, Verdict
from vigor_jax.rewards.agreement import agree
from vigor_jax.rewards.refine import refine
from vigor_jax.rewards.token_rewards import TokenRewardConfig, token_rewards

TEXT = "A dog sits by a lamp. There is no cat. The dog sleeps."
DOG, CAT, LAMP = Span(2, 5), Span(34, 37), Span(16, 20)
BOX = (0.1, 0.2, 0.5, 0.6)
# Status of a statement: found, and so right; not found, and so wrong; and what two of them make.
RIGHT, WRONG, UNKNOWN = (0.0, 1.0, False), (1.0, 0.0, True), (0.0, 0.0, False)


def status(signal):
    return signal.negative, signal.positive, signal.absent


def stated(label, found, spans=(DOG,), score=0.5):
    negative, positive, absent = RIGHT if found else WRONG
    return Signal(label, spans, negative, positive, score, absent, (BOX,) if found else ())


def denied(label="cat", span=CAT):
    """A detector finds what is denied; if it does not, it has no signal."""
    return Signal(label, (span,), 1.0, 0.0, 0.9, True, (BOX,), denied=True)


def verdict(*signals, attributes=(), image="a.png", candidate=0):
    return Verdict(image, candidate, "detector", tuple(signals), tuple(PhraseScore(*each) for each in attributes))


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [(True, True, RIGHT), (False, False, WRONG), (True, False, UNKNOWN), (False, True, UNKNOWN)],
)
def test_a_statement(first, second, wanted):
    one, other = stated("dog", first, score=0.75), stated("dog", second, score=0.25)
    (found,) = agree(verdict(one), verdict(other)).signals
    assert status(found) == wanted
    assert (found.label, found.spans, found.score, found.denied) == ("dog", (DOG,), 0.75, False)
    assert found.boxes_xyxy == ((BOX,) if wanted == RIGHT else ())


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_a_denial_is_wrong_where_both_find_the_thing(first, second):
    sides = [verdict(stated("dog", True), *([denied()] if found else [])) for found in (first, second)]
    signals = agree(*sides).signals
    assert signals[0] == stated("dog", True)
    assert signals[1:] == ((denied(),) if first and second else ())


def test_a_thing_that_is_stated_and_denied_is_two_statements():
    spans = (DOG,), (CAT,)
    one = verdict(stated("dog", True, spans[0]), denied("dog", *spans[1]))
    other = verdict(stated("dog", False, spans[0]))
    (found,) = agree(one, other).signals
    assert (status(found), found.spans, found.denied) == (UNKNOWN, spans[0], False)


def test_attributes_that_both_were_asked_about():
    one = verdict(attributes=[("red car", 0.5), ("blue car", 0.25), ("green car", 0.125)])
    other = verdict(attributes=[("blue car", 0.75), ("red car", 0.25), ("white car", 1.0)])
    assert agree(one, other).attributes == (PhraseScore("red car", 0.375), PhraseScore("blue car", 0.5))
    assert agree(other, one).attributes == (PhraseScore("blue car", 0.5), PhraseScore("red car", 0.375))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (verdict(stated("dog", True), image="b.png"), "two verdicts on one text, got candidate 0 of a.png and"),
        (verdict(stated("dog", True), candidate=1), "candidate 1 of a.png"),
        (verdict(), "one of them has no 'dog'"),
        (verdict(stated("dog", True), stated("cup", True)), "one of them has no 'cup'"),
        (verdict(stated("dog", True, (Span(3, 5),))), "one of them has no 'dog'"),
    ],
)
def test_verdicts_on_something_else_are_a_defect(other, message):
    with pytest.raises(ValueError, match=message):
        agree(verdict(stated("dog", True)), other)


LABELS = ("dog", "lamp", "cat", "cup", "red car")


@st.composite
def pairs(draw, count=2):
    """Verdicts of several detectors on one text: each has a signal of a statement, and of a wrong denial."""
    made = [[] for _ in range(count)]
    for place, label in enumerate(draw(st.lists(st.sampled_from(LABELS), unique=True))):
        is_denied, span = draw(st.booleans()), Span(3 * place, 3 * place + 2)
        for signals in made:
            found, score = draw(st.booleans()), draw(st.floats(0, 1))
            if not is_denied:
                signals.append(stated(label, found, (span,), score))
            elif found:
                signals.append(dataclasses.replace(denied(label, span), score=score))
    attributes = [draw(st.dictionaries(st.sampled_from(LABELS), st.floats(0, 1))) for _ in made]
    return [verdict(*signals, attributes=own.items()) for signals, own in zip(made, attributes, strict=True)]


@given(pairs())
def test_whoever_is_asked_first_decides_on_boxes_and_scores_only(both):
    one, other = agree(*both), agree(*reversed(both))
    assert [(s.label, status(s)) for s in one.signals] == [(s.label, status(s)) for s in other.signals]
    assert sorted(one.attributes) == sorted(other.attributes)
    assert (one.image, one.candidate, one.stream) == ("a.png", 0, "detector")


@given(pairs())
def test_two_never_say_more_than_one_of_them(both):
    found = agree(*both)
    for side in both:
        own = {(signal.label, signal.denied): signal for signal in side.signals}
        for signal in found.signals:
            mine = own[signal.label, signal.denied]
            assert signal.negative <= mine.negative
            assert signal.positive <= mine.positive
            assert signal.absent <= mine.absent
        assert found.negative <= side.negative
        assert found.positive <= side.positive


@given(pairs())
def test_what_both_say_is_said_and_the_rest_is_unknown_or_gone(both):
    """Counted apart from the rule: the statements of the text are those of the first but for denials of one alone."""
    found = agree(*both)
    said = [{(s.label, s.denied, s.absent) for s in side.signals} for side in both]
    assert {(s.label, s.denied, s.absent) for s in found.signals if s.positive or s.negative} == said[0] & said[1]
    unknown = {s.label for s in found.signals if not (s.positive or s.negative)}
    assert unknown == {label for label, is_denied, _ in said[0] ^ said[1] if not is_denied}
    assert [s.spans for s in found.signals] == sorted(s.spans for s in found.signals)


@given(pairs(1))
def test_a_detector_agrees_with_itself(alone):
    assert agree(alone[0], alone[0]) == alone[0]


@given(pairs(3))
def test_a_third_detector_only_adds_doubt(three):
    """What two do not agree on stays unknown, whatever others say."""
    one, two, third = three
    before = agree(one, two)
    after = agree(before, Verdict(third.image, 0, "detector", third.signals))
    known = {(s.label, status(s)) for s in before.signals if status(s) != UNKNOWN}
    assert {(s.label, status(s)) for s in after.signals if status(s) != UNKNOWN} <= known


# What becomes of it


def test_refinement_keeps_what_is_unknown():
    sides = [verdict(stated("dog", True), stated("lamp", found, (LAMP,))) for found in (True, False)]
    assert refine(TEXT, [agree(*sides)]).text == TEXT
    assert refine(TEXT, [sides[1]]).text == "There is no cat. The dog sleeps."


def test_tokens_of_what_is_unknown_are_neither_rewarded_nor_punished():
    offsets = np.array([(start, start + 1) for start in range(len(TEXT))], np.int32)
    sides = [verdict(stated("dog", True), stated("lamp", found, (LAMP,))) for found in (True, False)]
    config = TokenRewardConfig()
    found = token_rewards(agree(*sides), offsets, config)
    assert found[16:20].tolist() == [0, 0, 0, 0]
    assert found[2:5].sum() == pytest.approx(1)
    assert [token_rewards(side, offsets, config)[16:20].sum() for side in sides] == pytest.approx([1, -1])
