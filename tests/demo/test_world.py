"""Scenes, their pictures and their captions, and the scores of captions."""

import numpy as np
import pytest
from PIL import Image

from vigor_jax.demo import world
from vigor_jax.demo.scoring import mark, score
from vigor_jax.demo.world import Statement, describe, draw, make_scene, parse


def scenes(count: int) -> list[world.Scene]:
    return [make_scene(np.random.default_rng([5, number])) for number in range(count)]


def test_a_seed_gives_one_scene_picture_and_caption() -> None:
    first, second, other = (make_scene(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == second != other
    assert draw(first).tobytes() == draw(second).tobytes() != draw(other).tobytes()
    assert describe(first, np.random.default_rng(1)) == describe(second, np.random.default_rng(1))


def test_scenes_cover_the_world() -> None:
    objects = [item for scene in scenes(600) for item in scene.objects]
    assert {len(scene.objects) for scene in scenes(600)} == {1, 2, 3}
    for seen, known in (
        ({item.shape for item in objects}, world.SHAPES),
        ({item.colour for item in objects}, world.COLOURS),
        ({item.place for item in objects}, world.PLACES),
    ):
        assert seen == set(known)


def test_objects_stand_in_reading_order_each_in_its_own_cell() -> None:
    for scene in scenes(200):
        indices = [world.PLACES.index(item.place) for item in scene.objects]
        assert indices == sorted(set(indices))
        for index, item in zip(indices, scene.objects, strict=True):
            row, column = divmod(index, 3)
            left, top, right, bottom = item.box_xyxy
            cell = world.IMAGE_SIZE / 3
            assert column * cell <= left < right <= (column + 1) * cell
            assert row * cell <= top < bottom <= (row + 1) * cell


def test_boxes_are_where_the_colour_is() -> None:
    """Against the drawn pixels: objects are saturated, paper and shadows are not."""
    for scene in scenes(150):
        is_object = np.asarray(draw(scene).convert("HSV"))[..., 1] > 40
        for item in scene.objects:
            row, column = divmod(world.PLACES.index(item.place), 3)
            cell = world.IMAGE_SIZE / 3
            y, x = np.nonzero(is_object)
            mine = (y // cell == row) & (x // cell == column)
            drawn = (x[mine].min(), y[mine].min(), x[mine].max() + 1, y[mine].max() + 1)
            # Whole pixels, the outermost perhaps too pale to count where a shape ends in a point.
            np.testing.assert_allclose(drawn, item.box_xyxy, atol=1.3)
            is_object[y[mine], x[mine]] = False
        assert not is_object.any()


@pytest.mark.parametrize("shape", world.SHAPES)
def test_shapes_are_as_large_as_one_another(shape: str) -> None:
    item = world.Object(shape, "red", "in the middle", 36, 36, 8, 0)
    left, top, right, bottom = item.box_xyxy
    assert (left + right) / 2 == pytest.approx(36)
    assert (top + bottom) / 2 == pytest.approx(36)
    x, y = item.outline.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert 85 < area < 215


def test_colours_are_the_named_ones() -> None:
    for colour, rgb in world.COLOURS.items():
        item = world.Object("square", colour, "in the middle", 36, 36, 8, 0)
        pixels = np.asarray(draw(world.Scene((item,), (232, 232, 232))), float)
        np.testing.assert_allclose(pixels[34:38, 34:38].mean((0, 1)), rgb, atol=8)


def test_pictures_are_small_rgb() -> None:
    picture = draw(scenes(1)[0])
    assert (picture.size, picture.mode) == ((72, 72), "RGB")
    assert isinstance(picture, Image.Image)


def test_captions_say_the_truth_in_every_form() -> None:
    seen = set()
    for number, scene in enumerate(scenes(300)):
        caption = describe(scene, np.random.default_rng(number))
        assert parse(caption) == [item.statement for item in scene.objects]
        seen |= {text.split()[0] for text in caption.split(". ")}
    assert seen == {"At", "On", "In", "There", "A", "An", "We"}


def test_every_sentence_is_read_back() -> None:
    for shape in world.SHAPES:
        for colour in world.COLOURS:
            for place in world.PLACES:
                for form in world.SENTENCES:
                    statement = Statement(shape, colour, place)
                    assert parse(world.sentence(statement, form)) == [statement]


def test_english() -> None:
    statement = Statement("star", "orange", "at the top left")
    assert [world.sentence(statement, form) for form in world.SENTENCES] == [
        "At the top left there is an orange star.",
        "There is an orange star at the top left.",
        "An orange star is at the top left.",
        "We see an orange star at the top left.",
    ]


def test_what_is_no_sentence_of_the_world_says_nothing() -> None:
    assert parse("") == []
    assert parse("A red star is at the top") == [None]  # cut off
    assert parse("A red dog is at the top. A red star is at the top. Star.") == [
        None,
        Statement("star", "red", "at the top"),
        None,
    ]


STAR, HEART = Statement("star", "red", "at the top left"), Statement("heart", "blue", "in the middle")
TRUE = "At the top left there is a red star. A blue heart is in the middle."


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (TRUE, {"sentences_right": 1, "recall": 1, "captions_right": 1, "hallucinated_objects": 0, "words": 16}),
        # Half the truth: right as far as it goes.
        ("A red star is at the top left.", {"sentences_right": 1, "recall": 0.5, "captions_right": 0}),
        # Each sentence has one thing wrong: place, then colour.
        (
            "A red star is at the top. We see a green heart in the middle.",
            {"sentences_right": 0, "objects_right": 1, "colours_right": 0.5, "places_right": 0.5, "recall": 0},
        ),
        # Said twice counts once.
        (f"{TRUE} A red star is at the top left.", {"sentences_right": 2 / 3, "recall": 1, "captions_right": 0}),
        # An object that is not there, in a sentence and outside of one.
        (
            "A red circle is at the top left. cross star",
            {"objects_right": 0, "places_right": 0, "hallucinated_objects": 2},
        ),
        ("the the ###", {"sentences_right": 0, "recall": 0, "hallucinated_objects": 0, "words": 3}),
        ("", {"sentences_right": 0, "recall": 0, "captions_right": 0, "words": 0}),
    ],
)
def test_scores_of_captions(caption: str, expected: dict[str, float]) -> None:
    scores = score([caption], [[STAR, HEART]])
    for name, value in expected.items():
        assert getattr(scores, name) == pytest.approx(value), name


def test_scores_are_means_over_sentences_objects_and_captions() -> None:
    scores = score([TRUE, "A red circle is in the middle."], [[STAR, HEART], [HEART]])
    assert scores.sentences_right == pytest.approx(2 / 3)
    assert scores.recall == pytest.approx(2 / 3)
    assert (scores.captions_right, scores.hallucinated_objects) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        (TRUE, ""),
        ("A green star is at the top left. A blue heart is on the left.", "green on the left."),
        # Held against the star, since the heart is described rightly.
        ("A blue cross is in the middle. We see a blue heart in the middle.", "blue cross in the middle."),
        ("A red star is at the top left. A red star is at the top left.", "A red star is at the top left."),
        ("Red the ### star", "Red the ### star"),
    ],
)
def test_wrong_words_are_marked(caption: str, wrong: str) -> None:
    marked = mark(caption, [STAR, HEART])
    assert [word for word, _ in marked] == caption.split()
    assert " ".join(word for word, is_wrong in marked if is_wrong) == wrong
