"""Scenes and their pictures."""

from collections import Counter

import numpy as np
import pytest

from vigor_jax.demo import drawing
from vigor_jax.demo.drawing import box_xyxy, draw, outline
from vigor_jax.demo.scenes import (
    COLORS,
    IMAGE_SIZE,
    MAX_OBJECTS,
    PARTNER,
    PLACES,
    SHAPES,
    THEMES,
    USUAL_COLOR,
    Object,
    Scene,
    Statement,
    make_scene,
)

CELL = IMAGE_SIZE / 3


def scenes(count: int) -> list[Scene]:
    return [make_scene(np.random.default_rng([5, number])) for number in range(count)]


def test_a_seed_gives_one_scene_and_picture() -> None:
    first, second, other = (make_scene(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == second != other
    assert draw(first).tobytes() == draw(second).tobytes() != draw(other).tobytes()


def test_scenes_cover_everything() -> None:
    many = scenes(600)
    objects = [item for scene in many for item in scene.objects]
    assert {len(scene.statements) for scene in many} == {2, 3, 4}
    assert {len(scene.objects) for scene in many} == set(range(2, MAX_OBJECTS + 1))
    assert {item.shape for item in objects} == set(SHAPES)
    assert {item.color for item in objects} == set(COLORS)
    assert {item.place for item in objects} == set(PLACES)


def test_statements_are_the_whole_truth() -> None:
    for scene in scenes(200):
        counts = Counter(item.shape for item in scene.objects)
        assert {statement.shape: statement.number for statement in scene.statements} == counts
        for statement in scene.statements:
            own = [item for item in scene.objects if item.shape == statement.shape]
            assert {item.color for item in own} == {statement.color}
            assert statement.place == (own[0].place if len(own) == 1 else None)
            assert scene.places(statement.shape) == {item.place for item in own}


def test_some_things_go_together() -> None:
    """Partners mostly, others of a theme more often than the rest, usual colors more often than by chance."""
    shapes = [{item.shape for item in scene.objects} for scene in scenes(3000)]
    with_partner = [PARTNER[shape] in own for own in shapes for shape in own]
    assert 0.55 < np.mean(with_partner) < 0.7
    theme = {shape: index for index, names in enumerate(THEMES) for shape in names}
    pairs = Counter(theme[a] == theme[b] for own in shapes for a in own for b in own if a != b and PARTNER[a] != b)
    assert pairs[True] / 2 > pairs[False] / 8  # 2 others of the theme, 8 of the others
    usual = [s.color == USUAL_COLOR[s.shape] for scene in scenes(1500) for s in scene.statements]
    assert 0.37 < np.mean(usual) < 0.47  # 0.3 and a sixth of the rest
    assert all(PARTNER[PARTNER[shape]] == shape for shape in SHAPES)


def test_objects_stand_in_reading_order_each_in_its_own_cell() -> None:
    for scene in scenes(200):
        indices = [PLACES.index(item.place) for item in scene.objects]
        assert indices == sorted(set(indices))
        for index, item in zip(indices, scene.objects, strict=True):
            row, column = divmod(index, 3)
            left, top, right, bottom = box_xyxy(item)
            assert column * CELL <= left < right <= (column + 1) * CELL
            assert row * CELL <= top < bottom <= (row + 1) * CELL


def test_boxes_are_where_the_color_is() -> None:
    """Against the drawn pixels: objects are saturated, paper and shadows are not."""
    for scene in scenes(150):
        is_object = np.asarray(draw(scene).convert("HSV"))[..., 1] > 40
        for item in scene.objects:
            row, column = divmod(PLACES.index(item.place), 3)
            y, x = np.nonzero(is_object)
            mine = (y // CELL == row) & (x // CELL == column)
            drawn = (x[mine].min(), y[mine].min(), x[mine].max() + 1, y[mine].max() + 1)
            # Whole pixels, the outermost perhaps too pale to count where a shape ends in a point.
            np.testing.assert_allclose(drawn, box_xyxy(item), atol=1.3)
            is_object[y[mine], x[mine]] = False
        assert not is_object.any()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_as_large_as_one_another(shape: str) -> None:
    item = Object(shape, "red", "in the middle", 36, 36, 8, 0)
    left, top, right, bottom = box_xyxy(item)
    assert (left + right) / 2 == pytest.approx(36)
    assert (top + bottom) / 2 == pytest.approx(36)
    x, y = outline(item).T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert 85 < area < 215


def test_no_two_shapes_look_alike() -> None:
    """Each against each, of one color and size: many pixels differ."""
    pictures = {
        shape: np.asarray(draw(Scene((Object(shape, "blue", "in the middle", 36, 36, 8.5, 0),), 0)), float)
        for shape in SHAPES
    }
    for one in SHAPES:
        for other in SHAPES:
            if one != other:
                assert (np.abs(pictures[one] - pictures[other]).max(-1) > 60).sum() > 35, (one, other)


def test_colors_are_the_named_ones() -> None:
    for color, rgb in drawing.COLORS.items():
        item = Object("square", color, "in the middle", 36, 36, 8, 0)
        pixels = np.asarray(draw(Scene((item,), 4)), float)
        np.testing.assert_allclose(pixels[34:38, 34:38].mean((0, 1)), rgb, atol=8)
    assert set(drawing.COLORS) == set(COLORS)


def test_pictures_are_small_rgb() -> None:
    picture = draw(scenes(1)[0])
    assert (picture.size, picture.mode) == ((IMAGE_SIZE, IMAGE_SIZE), "RGB")


def test_a_statement_has_a_place_or_is_of_several() -> None:
    for scene in scenes(100):
        for statement in scene.statements:
            assert isinstance(statement, Statement)
            assert (statement.place is None) == (statement.number > 1)
