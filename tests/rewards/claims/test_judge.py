"""Judgments of claims by boxes: by cases, by properties, and suppression against a plain loop."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.errors import InputError
from vigor_jax.records import Span
from vigor_jax.rewards.claims.boxes import overlaps, suppress
from vigor_jax.rewards.claims.claim import Attribute, Claim, Number, Place, Relation, Thing
from vigor_jax.rewards.claims.judge import Found, JudgeConfig, Truth, counted_boxes, judge, judge_attribute

RIGHT, WRONG, UNKNOWN = Truth.RIGHT, Truth.WRONG, Truth.UNKNOWN
DOG, CAT = Thing("dog", Span(4, 7), "dog"), Thing("cat", Span(20, 23), "cat")
GRID = 64  # corners on a grid of this size are exact, mirrored or not


def claim(value):
    return Claim(DOG, Span(8, 12), value)


def apart(count):
    """Boxes that do not touch."""
    return [(0.05 * i, 0.1, 0.05 * i + 0.03, 0.2) for i in range(count)]


@pytest.mark.parametrize(
    ("value", "count", "expected"),
    [
        (Number(2, 2), 2, RIGHT),
        (Number(2, 2), 1, WRONG),
        (Number(2, 2), 3, WRONG),
        (Number(2, 2), 0, UNKNOWN),  # that none is there is said already
        (Number(1, 1), 2, WRONG),
        (Number(3, None), 2, WRONG),
        (Number(3, None), 3, RIGHT),
        (Number(3, None), 17, RIGHT),
        (Number(2, 3), 3, RIGHT),
        (Number(2, 3), 4, WRONG),
        (Number(4, 4), 5, WRONG),
        (Number(5, 5), 6, UNKNOWN),  # may be one box too many
        (Number(5, 5), 4, UNKNOWN),
        (Number(5, 5), 7, WRONG),
        (Number(10, 10), 12, UNKNOWN),
        (Number(10, 10), 7, WRONG),
        (Number(8, 8), 13, UNKNOWN),  # too many to be sure of
        (Number(13, 13), 13, RIGHT),
        (Number(20, None), 5, WRONG),
        (Number(2, 2, narrowed=True), 2, RIGHT),
        (Number(2, 2, narrowed=True), 5, UNKNOWN),
        (Number(2, 2, narrowed=True), 1, WRONG),
        (Number(2, 3, narrowed=True), 3, RIGHT),
    ],
)
def test_numbers(value, count, expected):
    assert judge(claim(value), Found(apart(count))) is expected


def test_numbers_as_if_there_were_no_others():
    value = claim(Number(2, 2, narrowed=True))
    assert judge(value, Found(apart(5)), config=JudgeConfig(narrowed="exactly")) is WRONG


def test_what_is_boxed_twice_counts_once():
    boxes = [*apart(2), (0.0, 0.1, 0.031, 0.2)]
    assert judge(claim(Number(2, 2)), Found(boxes)) is RIGHT
    assert judge(claim(Number(3, 3)), Found(boxes), config=JudgeConfig(iou=1.0)) is RIGHT
    weak = Found(apart(3), [0.9, 0.8, 0.2])
    assert judge(claim(Number(2, 2)), weak, config=JudgeConfig(least_score=0.5)) is RIGHT


def around(x, y, size=0.1):
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


@pytest.mark.parametrize(
    ("value", "centers", "expected"),
    [
        (Place("left", None), [(0.2, 0.9)], RIGHT),
        (Place("left", None), [(0.8, 0.1)], WRONG),
        (Place("left", None), [(0.5, 0.5)], UNKNOWN),
        (Place("left", None), [(0.47, 0.5)], UNKNOWN),
        (Place("left", None), [(0.8, 0.1), (0.2, 0.1)], RIGHT),  # one dog on the left is enough
        (Place("left", None), [(0.8, 0.1), (0.5, 0.1)], UNKNOWN),
        (Place("left", "top"), [(0.2, 0.2)], RIGHT),
        (Place("left", "top"), [(0.2, 0.8)], WRONG),
        (Place("left", "top"), [(0.2, 0.8), (0.8, 0.2)], WRONG),
        (Place("left", "top"), [(0.2, 0.5)], UNKNOWN),
        (Place(None, "bottom"), [(0.2, 0.9)], RIGHT),
        (Place(None, "top"), [(0.2, 0.9)], WRONG),
        (Place("center", "center"), [(0.5, 0.55)], RIGHT),
        (Place("center", "center"), [(0.5, 0.95)], WRONG),
        (Place("center", "center"), [(0.5, 0.66)], UNKNOWN),
        (Place("left", "center"), [(0.1, 0.5)], RIGHT),
    ],
)
def test_places(value, centers, expected):
    assert judge(claim(value), Found([around(*center) for center in centers])) is expected


def test_places_in_a_grid():
    grid = JudgeConfig(side_width=1 / 3, unnamed_direction="center")
    middles = {"left": 1 / 6, "center": 0.5, "right": 5 / 6}
    rows = {"top": 1 / 6, "center": 0.5, "bottom": 5 / 6}
    for (x_name, x), (y_name, y) in itertools.product(middles.items(), rows.items()):
        for horizontal, vertical in itertools.product((None, *middles), (None, *rows)):
            if horizontal or vertical:
                same = (horizontal or "center", vertical or "center") == (x_name, y_name)
                found = judge(claim(Place(horizontal, vertical)), Found([around(x, y)]), config=grid)
                assert found is (RIGHT if same else WRONG)


@pytest.mark.parametrize(
    ("name", "one", "other", "expected"),
    [
        ("left", around(0.2, 0.5), around(0.6, 0.5), RIGHT),
        ("left", around(0.6, 0.5), around(0.2, 0.5), WRONG),
        ("left", around(0.5, 0.2), around(0.5, 0.8), UNKNOWN),
        ("right", around(0.6, 0.5), around(0.2, 0.5), RIGHT),
        ("above", around(0.5, 0.2), around(0.5, 0.8), RIGHT),
        ("below", around(0.5, 0.2), around(0.5, 0.8), WRONG),
        ("below", (0.4, 0.6, 0.6, 1.0), (0.1, 0.2, 0.9, 1.0), RIGHT),  # a cat under a table
        ("above", (0.4, 0.4, 0.6, 0.8), (0.4, 0.4, 0.6, 0.9), UNKNOWN),
        ("on", (0.4, 0.3, 0.6, 0.5), (0.1, 0.5, 0.9, 0.9), RIGHT),
        ("on", (0.4, 0.1, 0.6, 0.2), (0.1, 0.5, 0.9, 0.9), WRONG),  # above, and far from it
        ("on", (0.4, 0.7, 0.6, 0.85), (0.1, 0.3, 0.9, 0.9), UNKNOWN),  # a plate on the near end of a table
        ("on", (0.4, 0.9, 0.6, 1.0), (0.1, 0.3, 0.9, 0.9), WRONG),
        ("on", (0.0, 0.4, 0.2, 0.6), (0.7, 0.5, 0.9, 0.9), WRONG),
        ("inside", (0.4, 0.4, 0.5, 0.5), (0.3, 0.3, 0.6, 0.6), RIGHT),
        ("inside", (0.3, 0.3, 0.6, 0.6), (0.7, 0.7, 0.9, 0.9), WRONG),
        ("inside", (0.3, 0.1, 0.5, 0.5), (0.3, 0.3, 0.6, 0.6), UNKNOWN),
    ],
)
def test_relations(name, one, other, expected):
    value = claim(Relation(name, CAT))
    assert judge(value, Found([one]), Found([other])) is expected
    assert judge(value, Found([one]), Found([])) is UNKNOWN
    assert judge(value, Found([one])) is UNKNOWN
    assert judge(value, Found([]), Found([other])) is UNKNOWN


@pytest.mark.parametrize(
    ("asked", "rivals", "expected"),
    [
        (0.6, [0.3, 0.2], RIGHT),
        (0.3, [0.6, 0.2], WRONG),
        (0.5, [0.45], UNKNOWN),
        (0.45, [0.5], UNKNOWN),
        (0.2, [0.01], UNKNOWN),  # the detector knows neither
        (0.9, [], UNKNOWN),
    ],
)
def test_attributes(asked, rivals, expected):
    assert judge_attribute(asked, rivals) is expected


def test_attributes_are_not_judged_by_boxes_alone():
    with pytest.raises(ValueError, match="judge_attribute"):
        judge(claim(Attribute("color", "red")), Found(apart(1)))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Found([[0.1, 0.2, 0.3]]), r"boxes: expected finite numbers of shape \[N, 4\], got \(1, 3\)"),
        (Found([[0.1, 0.2, 0.3, float("nan")]]), "boxes: expected finite numbers"),
        (Found(apart(2), [0.5]), r"scores: expected one for each of 2 boxes, got \(1,\)"),
    ],
)
def test_malformed_boxes(found, message):
    with pytest.raises(ValueError, match=message):
        judge(claim(Number(2, 2)), found)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"iou": 1.5}, r"iou: expected a fraction in \[0, 1\], got 1.5"),
        ({"place_margin": -0.1}, "place_margin: expected a fraction"),
        ({"place_margin": float("nan")}, "place_margin: expected a fraction"),
        ({"most_counted": -1}, "most_counted: expected a number from 0, got -1"),
        ({"most_outside": 0.8}, "most_outside: expected less than least_inside, 0.7, got 0.8"),
    ],
)
def test_thresholds_that_are_none(setting, message):
    with pytest.raises(InputError, match=message):
        JudgeConfig(**setting)


numbers = st.integers(1, 14).flatmap(
    lambda least: st.builds(Number, st.just(least), st.none() | st.integers(least, 16), st.booleans())
)
places = st.builds(
    Place, st.sampled_from([None, "left", "center", "right"]), st.sampled_from([None, "top", "center", "bottom"])
).filter(lambda place: place.horizontal or place.vertical)
relations = st.builds(Relation, st.sampled_from(["left", "right", "above", "below", "on", "inside"]), st.just(CAT))


@st.composite
def founds(draw, least=0):
    """Boxes on a grid, with scores that differ."""
    corners = st.tuples(st.integers(0, GRID - 1), st.integers(0, GRID - 1), st.integers(1, 40), st.integers(1, 40))
    cells = draw(st.lists(corners, min_size=least, max_size=8))
    boxes = [(x, y, min(x + w, GRID), min(y + h, GRID)) for x, y, w, h in cells]
    scores = draw(st.permutations(range(len(boxes))))
    return Found(np.array(boxes).reshape(-1, 4) / GRID, np.array(scores) / 16)


configs = st.sampled_from(
    [JudgeConfig(), JudgeConfig(side_width=1 / 3, unnamed_direction="center", narrowed="exactly", count_tolerance=0.4)]
)


@given(founds(), configs, st.sampled_from([0.3, 0.5, 0.9]))
def test_boxes_of_a_signal_count_as_arrays_do(found, config, iou):
    """In any form, asked again or not, and nobody can change what the next one is told."""
    config, boxes = dataclasses.replace(config, iou=iou), np.asarray(found.boxes_xyxy)
    expected = counted_boxes(Found(boxes), config)
    as_tuples = tuple(map(tuple, boxes.tolist()))
    for form in (as_tuples, as_tuples, boxes.tolist(), tuple(boxes.tolist()), tuple(boxes)):
        np.testing.assert_array_equal(counted_boxes(Found(form), config), expected)
    with pytest.raises(ValueError, match="read-only"):
        counted_boxes(Found(as_tuples), config)[...] = 0


def mirrored(found):
    return Found(
        np.stack([1 - found.boxes_xyxy[:, i] if i in (0, 2) else found.boxes_xyxy[:, i] for i in (2, 1, 0, 3)], 1),
        found.scores,
    )


def mirrored_value(value):
    swap = {"left": "right", "right": "left"}
    if isinstance(value, Place):
        return dataclasses.replace(value, horizontal=swap.get(value.horizontal, value.horizontal))
    return dataclasses.replace(value, name=swap.get(value.name, value.name)) if isinstance(value, Relation) else value


@given(numbers | places | relations, founds(), founds(), configs)
def test_mirrored_images_swap_left_and_right(value, subject, target, config):
    before = judge(claim(value), subject, target, config)
    assert judge(claim(mirrored_value(value)), mirrored(subject), mirrored(target), config) is before


@given(st.sampled_from(["left", "right"]), founds(1), founds(1))
def test_left_is_never_right(side, subject, target):
    other = {"left": "right", "right": "left"}[side]
    for one, opposite in (
        (Place(side, None), Place(other, None)),
        (Relation(side, CAT), Relation(other, CAT)),
    ):
        subject = Found(subject.boxes_xyxy[:1], subject.scores[:1])
        target = Found(target.boxes_xyxy[:1], target.scores[:1])
        flipped = {RIGHT: WRONG, WRONG: RIGHT, UNKNOWN: UNKNOWN}
        found = judge(claim(one), subject, target)
        assert judge(claim(opposite), subject, target) is flipped[found]


@given(numbers | places | relations, founds(), founds(), configs, st.sampled_from([(32, 96), (640, 480), (1, 1)]))
def test_scaled_images_change_nothing(value, subject, target, config, size):
    """Pixels of an image of any size and shape, relative to it again."""

    def rescaled(found):
        pixels = found.boxes_xyxy * np.array([*size, *size])
        return Found((pixels / np.array([*size, *size])).astype(np.float32), found.scores)

    assert judge(claim(value), rescaled(subject), rescaled(target), config) is judge(
        claim(value), subject, target, config
    )


@given(numbers | places | relations, founds(), founds(), configs, st.randoms(use_true_random=False))
def test_permuted_boxes_change_nothing(value, subject, target, config, random):
    def permuted(found):
        order = list(range(len(found.scores)))
        random.shuffle(order)
        return Found(found.boxes_xyxy[order], found.scores[order])

    assert judge(claim(value), permuted(subject), permuted(target), config) is judge(
        claim(value), subject, target, config
    )


@given(founds(), st.floats(0, 1))
def test_suppression_keeps_what_a_plain_loop_keeps(found, iou):
    boxes, scores = found.boxes_xyxy, found.scores
    kept = []
    for place in sorted(range(len(boxes)), key=lambda place: -scores[place]):
        if all(plain_overlap(boxes[place], boxes[other]) <= iou for other in kept):
            kept.append(place)
    assert np.flatnonzero(suppress(boxes, scores, iou)).tolist() == sorted(kept)


def plain_overlap(one, other):
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - width * height
    return width * height / union


@given(founds())
def test_boxes_overlap_themselves_wholly(found):
    shared = overlaps(found.boxes_xyxy, found.boxes_xyxy)
    assert np.array_equal(np.diag(shared), np.ones(len(shared)))
    assert np.array_equal(shared, shared.T)


def test_equal_scores_do_not_make_the_order_of_boxes_matter():
    boxes = np.array([(0.0, 0.0, 0.5, 0.5), (0.05, 0.0, 0.55, 0.5), (0.1, 0.0, 0.6, 0.5), (0.15, 0.0, 0.65, 0.5)])
    kept = {
        tuple(sorted(map(tuple, counted_boxes(Found(boxes[list(order)], [0.5] * 4), JudgeConfig(iou=0.7)).tolist())))
        for order in itertools.permutations(range(4))
    }
    assert len(kept) == 1


@given(numbers, st.integers(1, 14))
def test_more_tolerance_makes_no_claim_wrong(value, count):
    found = Found(apart(count))
    strict = judge(claim(value), found, config=JudgeConfig(count_tolerance=0.0))
    mild = judge(claim(value), found, config=JudgeConfig(count_tolerance=0.5))
    assert mild is strict or (strict, mild) == (WRONG, UNKNOWN)
