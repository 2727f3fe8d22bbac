"""Thresholds from annotations: geometry whose best ones are known, any cases against a plain count, unclear ones."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rewards.claims.test_stream import GRID, LEFT, PHRASES, RIGHT, detected
from vigor_jax.errors import InputError
from vigor_jax.records import CLAIM_KINDS, AnnotatedSentence, Annotation, Span
from vigor_jax.rewards.claims.calibrate import (
    FEWEST_CASES,
    THRESHOLDS,
    ThresholdGrid,
    calibrate,
    calibrate_crops,
    choices,
)
from vigor_jax.rewards.claims.cases import Case, Cases, says_wrong
from vigor_jax.rewards.claims.claim import Attribute, Claim, Number, Place, Relation, Thing
from vigor_jax.rewards.claims.crops import ClipAttributesConfig, CropEvidence, JudgedCrops
from vigor_jax.rewards.claims.evidence import Evidence
from vigor_jax.rewards.claims.judge import JudgeConfig, Truth
from vigor_jax.rewards.claims.stream import ClaimReader

DOG, CAT = Thing("dog", Span(4, 7), "dog"), Thing("cat", Span(20, 23), "cat")
NONE = {kind: [] for kind in CLAIM_KINDS}


def about(value, *boxes, target=(), asked=None, rivals=()):
    return Evidence(Claim(DOG, Span(8, 12), value), boxes, target, asked, rivals)


def cases(judged) -> list[Case]:
    """One for each (evidence, is wrong), each of another image."""
    return [Case(f"{number}.png", (evidence,), is_wrong) for number, (evidence, is_wrong) in enumerate(judged)]


def around(x, y, size=0.1):
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def rows_of(count, shift=0.0):
    return tuple((0.05 * i + shift, 0.1, 0.05 * i + 0.03 + shift, 0.2) for i in range(count))


def suggested(kind, own, given=None, precision=1.0, grid=None):
    found = calibrate(NONE | {kind: own}, given or JudgeConfig(), grid or ThresholdGrid(), precision)
    table = next(table for table in found.tables if table.kind == kind)
    return table, found.judge


def places() -> Iterator[tuple[Evidence, bool]]:
    """People call it the left up to 0.6 of the width."""
    for center in (0.025 + 0.05 * step for step in range(20)):
        yield about(Place("left", None), around(center, 0.5)), center > 0.6
        yield about(Place("right", None), around(1 - center, 0.5)), center > 0.6


def test_places_are_judged_where_people_draw_the_line():
    table, judge = suggested("place", cases([*places()] * 6))
    assert (judge.place_margin, judge.side_width) == (0.1, 0.5)
    assert judge == dataclasses.replace(JudgeConfig(), place_margin=0.1)
    assert table.suggested is not None
    assert (table.suggested.counts.precision, table.suggested.counts.recall) == (1.0, 1.0)
    assert (table.given.counts.precision, table.given.counts.recall) == (16 / 18, 1.0)
    assert table.held_out is not None
    assert (table.held_out.cases, table.held_out.precision, table.held_out.recall) == (240, 1.0, 1.0)


def test_less_precision_gives_more_recall():
    """Of things between 0.5 and 0.55 people call half wrong: those are found only where half is precise enough."""
    near = [(about(Place("left", None), around(0.525, 0.5)), number % 2 == 0) for number in range(20)]
    own = cases([*places(), *near])
    strict, judge = suggested("place", own)
    assert (judge.place_margin, strict.suggested.counts.recall) == (0.1, 16 / 26)
    mild, judge = suggested("place", own, precision=0.6)
    assert (judge.place_margin, mild.suggested.counts.recall) == (0.025, 1.0)
    assert mild.suggested.counts.precision == 26 / 40


def test_numbers_are_as_tolerant_as_people():
    """Of ten things people let two more or fewer pass, and they count beyond twelve."""
    own = cases((about(Number(10, 10), *rows_of(count)), abs(count - 10) > 2) for count in range(4, 18))
    own += cases((about(Number(2, 2), *rows_of(count)), count != 2) for count in range(1, 6))
    table, judge = suggested("number", own, JudgeConfig(count_tolerance=0.0))
    assert judge == dataclasses.replace(JudgeConfig(), count_tolerance=0.2, most_counted=20)
    assert table.suggested.counts.recall == 1.0
    assert table.given.counts.precision < 1


def test_the_overlap_that_numbers_are_best_with_is_that_of_all_kinds():
    """Each thing has two boxes, which share 0.6 of what they cover; people see one."""

    def doubled(count):
        shift = 0.03 * (1 - 0.6) / (1 + 0.6)
        return (*rows_of(count), *rows_of(count, shift))

    own = cases((about(Number(2, 2), *doubled(count)), count != 2) for count in (1, 2, 3) * 8)
    found = calibrate(NONE | {"number": own, "place": cases(places())}, JudgeConfig(iou=0.7), ThresholdGrid(), 1.0)
    assert found.judge.iou == 0.5
    number, place, *_ = found.tables
    assert number.suggested.counts.recall == number.suggested.counts.precision == 1.0
    assert number.given.counts.precision < 1
    assert {row.config.iou for row in place.rows} == {found.judge.iou}


def test_relations_need_the_distance_that_people_need():
    """People say that a dog is not on the left of a cat if it is right of it by half of their size."""
    moved = [0.1 * (step + 0.5) for step in range(-10, 10)]
    own = cases(
        (about(Relation("left", CAT), around(0.5 + 0.1 * ahead, 0.5), target=(around(0.5, 0.5),)), ahead > 0.5)
        for ahead in moved * 3
    )
    table, judge = suggested("relation", own)
    assert judge == dataclasses.replace(JudgeConfig(), relation_margin=0.5)
    assert table.suggested.counts.recall == 1.0


def test_things_on_others_may_be_as_far_from_them_as_people_say():
    """A cup is on a table up to a distance of 0.7 of its height."""
    table_box = (0.1, 0.5, 0.9, 0.9)
    gaps = [0.1 * (step + 0.5) for step in range(14)] * 3
    own = cases(
        (about(Relation("on", CAT), (0.4, 0.4 - 0.1 * gap, 0.5, 0.5 - 0.1 * gap), target=(table_box,)), gap > 0.7)
        for gap in gaps
    )
    _, judge = suggested("relation", own, grid=ThresholdGrid(most_gap=(0.1, 0.5, 0.7, 1.0)))
    assert judge.most_gap == 0.7


def test_attributes_need_the_lead_and_the_score_that_people_need():
    """A rival is right from a lead of 0.2 on; below a score of 0.4 the detector guesses."""
    judged = [
        (about(Attribute("color", "red"), around(0.5, 0.5), asked=asked, rivals=(rival, 0.0)), wrong)
        for rival in (0.33, 0.43, 0.53, 0.73, 0.93)
        for lead in (-0.3, -0.1, 0.03, 0.13, 0.17, 0.21, 0.27, 0.32)
        for asked in [rival - lead]
        for wrong in [lead > 0.2 and rival > 0.4]
    ]
    _, judge = suggested("attribute", cases(judged))
    assert judge == dataclasses.replace(JudgeConfig(), attribute_margin=0.2, least_attribute=0.4)


def test_a_sentence_is_wrong_if_one_of_its_claims_is():
    right, wrong = (about(Place("left", None), around(x, 0.5)) for x in (0.1, 0.9))
    unknown = about(Place("left", None))
    config = JudgeConfig()
    assert Case("a", (right, wrong), True).judged(config) is Truth.WRONG
    assert Case("a", (wrong, unknown), True).judged(config) is Truth.WRONG
    assert Case("a", (right, unknown), True).judged(config) is Truth.UNKNOWN
    assert Case("a", (right, right), True).judged(config) is Truth.RIGHT
    own = [Case(f"{number}", (right, wrong), True) for number in range(12)] + cases(places())
    table, _ = suggested("place", own)
    assert (table.clean, table.given.counts.cases) == (40, 52)


@pytest.mark.parametrize("wrong", [FEWEST_CASES - 1, FEWEST_CASES])
def test_few_cases_suggest_nothing(wrong):
    own = cases((about(Place("left", None), around(0.9, 0.5)), number < wrong) for number in range(FEWEST_CASES))
    table, judge = suggested("place", own, precision=0.5)
    assert table.is_too_few is (table.suggested is None) is (wrong < FEWEST_CASES)
    assert judge == JudgeConfig()


def test_a_precision_that_nothing_reaches_suggests_nothing():
    own = cases((about(Place("left", None), around(0.9, 0.5)), number % 2 == 0) for number in range(40))
    table, judge = suggested("place", own)
    assert not table.is_too_few
    assert table.suggested is None
    assert judge == JudgeConfig()


def test_a_judge_that_finds_nothing_is_no_suggestion():
    own = cases((about(Place("left", None), around(0.1, 0.5)), True) for _ in range(40))
    table, _ = suggested("place", own, precision=0.01)
    assert table.suggested is None
    assert (table.given.counts.precision, table.given.counts.recall) == (None, 0.0)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from(["left", "right", "center"]), st.floats(0, 1)), min_size=1, max_size=3),
            st.booleans(),
        ),
        min_size=20,
        max_size=40,
    ),
    st.sampled_from([0.3, 0.6, 0.9]),
)
def test_rows_are_plain_counts_and_no_choice_is_better(sentences, precision):
    own = [
        Case(f"{number}.png", tuple(about(Place(side, None), around(x, 0.5)) for side, x in said), wrong)
        for number, (said, wrong) in enumerate(sentences)
    ]
    grid = ThresholdGrid(place_margin=(0.0, 0.1), side_width=(1 / 3, 0.5), center_width=(0.3,))
    table, judge = suggested("place", own, precision=precision, grid=grid)
    assert [row.config for row in table.rows] == choices("place", JudgeConfig(), grid)
    for row in table.rows:
        judged = [any(each.truth(row.config) is Truth.WRONG for each in case.evidence) for case in own]
        assert row.counts.said == sum(judged)
        assert row.counts.agreed == sum(says and case.is_wrong for says, case in zip(judged, own, strict=True))
        assert row.counts.wrong == sum(case.is_wrong for case in own)
    enough = [row.counts.agreed for row in table.rows if row.counts.said * precision <= row.counts.agreed]
    best = max(enough, default=0)
    if table.is_too_few or not best:
        assert judge == JudgeConfig()
    else:
        assert table.suggested.counts.agreed == best
        assert judge == table.suggested.config
    frontier = [(row.counts.recall or 0, row.counts.precision or 0) for row in table.frontier()]
    assert frontier == sorted(frontier, key=lambda each: (-each[0], each[1]))
    for row in table.rows:
        ours = (row.counts.recall or 0, row.counts.precision or 0)
        assert any(recall >= ours[0] and exact >= ours[1] for recall, exact in frontier)


def test_the_given_thresholds_are_tried_first():
    given = JudgeConfig(place_margin=0.07)
    every = choices("place", given, ThresholdGrid())
    assert every[0] == given
    assert len(every) == len(set(every)) == 7 * 3 * 3
    assert {row.place_margin for row in every} == {0.07, *ThresholdGrid().place_margin}


def test_the_grid_has_every_threshold_once():
    names = [name for own in THRESHOLDS.values() for name in own]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(ThresholdGrid))
    for kind, own in THRESHOLDS.items():
        judge = ClipAttributesConfig if kind == "clip_attributes" else JudgeConfig
        assert set(own) <= {field.name for field in dataclasses.fields(judge)}


def test_a_grid_with_what_is_no_threshold():
    with pytest.raises(InputError, match=r"^grid: place_margin: expected a fraction in \[0, 1\], got 1.5$"):
        choices("place", JudgeConfig(), ThresholdGrid(place_margin=(1.5,)))


@pytest.mark.parametrize(
    ("kind", "errors", "attribute", "expected"),
    [
        ("number", (), "", False),
        ("number", ("attribute",), "count", True),
        ("number", ("attribute",), "color", None),  # an annotation names one attribute
        ("number", ("attribute",), "", None),
        ("number", ("object",), "", None),
        ("number", ("object", "attribute"), "count", True),
        ("number", ("location", "conjecture"), "", False),
        ("attribute", (), "", False),
        ("attribute", ("attribute",), "color", True),
        ("attribute", ("attribute",), "", True),
        ("attribute", ("attribute",), "count", None),
        ("attribute", ("attribute",), "material", None),
        ("place", ("location",), "", True),
        ("place", ("object",), "", None),
        ("place", ("relationship", "attribute"), "color", False),
        ("relation", ("relationship",), "", True),
        ("relation", ("location",), "", None),
        ("relation", ("attribute",), "count", False),
    ],
)
def test_what_people_say_of_a_kind(kind, errors, attribute, expected):
    values = {
        "number": Number(2, 2),
        "place": Place("left", None),
        "relation": Relation("on", CAT),
        "attribute": Attribute("color", "red"),
    }
    claim = Claim(DOG, Span(8, 12), values[kind])
    assert says_wrong(AnnotatedSentence(Span(0, 20), errors, attribute), [claim]) is expected


def test_cases_of_an_annotation():
    texts = ("There is a star in red at the top left.", "We see moons in blue, two in all.", "A circle is there.")
    text = " ".join(texts)
    spans = [Span(text.index(each), text.index(each) + len(each)) for each in texts]
    annotation = Annotation(
        "a.png",
        text,
        (
            AnnotatedSentence(spans[0], ("location",)),
            AnnotatedSentence(spans[1], ("attribute",), "count"),
            AnnotatedSentence(spans[2], ("object",)),
        ),
    )
    verdict = detected(("star", (RIGHT,)), ("moon", (LEFT, RIGHT)), attributes=[("red star", 0.9), ("blue star", 0.1)])
    found = Cases()
    found.add(annotation, verdict, ClaimReader(GRID, PHRASES))
    assert found.unclear == {"number": 0, "place": 0, "relation": 0, "attribute": 1}  # of the moons
    (number,), (place,), (attribute,) = (found.by_kind[kind] for kind in ("number", "place", "attribute"))
    assert (number.is_wrong, number.judged(GRID.judge)) == (True, Truth.RIGHT)
    assert (place.is_wrong, place.judged(GRID.judge)) == (True, Truth.WRONG)
    assert (attribute.is_wrong, attribute.judged(GRID.judge)) == (False, Truth.RIGHT)
    assert found.by_kind["relation"] == []
    (evidence,) = number.evidence
    assert evidence.subject == (LEFT, RIGHT)


def test_a_clip_is_believed_as_far_as_people_agree():
    """People call wrong what has at most 0.1, whose rival has at least 0.7."""
    judged = [
        (np.array([[claimed, rival, 1 - claimed - rival]]), claimed <= 0.1 and rival >= 0.7)
        for claimed in (0.003, 0.03, 0.09, 0.15, 0.25)
        for rival in (0.45, 0.55, 0.65, 0.72)
    ]
    own = [Case(f"{number}.png", (CropEvidence(each),), wrong) for number, (each, wrong) in enumerate(judged * 5)]
    table = calibrate_crops(own, ClipAttributesConfig(), ThresholdGrid(), 1.0)
    assert table.suggested is not None
    assert table.thresholds(table.suggested) == {"most_wrong": 0.1, "least_rival": 0.7}
    assert (table.suggested.counts.precision, table.suggested.counts.recall) == (1.0, 1.0)
    assert table.given.config == ClipAttributesConfig()
    assert table.given.counts.precision < 1


def test_crops_of_a_sentence_are_a_case():
    """What was not found is unknown; an annotation of another kind of attribute does not tell."""
    color = Claim(DOG, Span(8, 12), Attribute("color", "red"))
    other = Claim(CAT, Span(24, 28), Attribute("color", "blue"))
    wrong, none = CropEvidence(np.array([[0.01, 0.99]])), CropEvidence(np.zeros((0, 1)))
    judged = [JudgedCrops(color, (LEFT,), wrong, {}), JudgedCrops(other, (), none, {})]
    for attribute, said in (("color", True), ("material", None), ("", True)):
        found = Cases()
        sentences = (AnnotatedSentence(Span(0, 18), ("attribute",), attribute), AnnotatedSentence(Span(18, 30), ()))
        found.add_crops(Annotation("a.png", "x" * 30, sentences), judged)
        assert found.unclear_crops == (said is None)
        truths = [(case.judged(ClipAttributesConfig()), case.is_wrong) for case in found.crops]
        assert truths == [(Truth.WRONG, said)] * (said is not None) + [(Truth.UNKNOWN, False)]
