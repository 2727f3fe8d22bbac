"""The demo's captions: whatever is wrong in them becomes the truth, in the demo's own words."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.rewards.claims.repairing import Repairer
from tests.rewards.claims.test_demo_claims import GRID, TAGGER
from tests.rewards.test_phrases import nltk_tagger  # noqa: F401
from vigor_jax.demo.language import NUMBERS, PLURAL, SINGULAR, errors, parse, say
from vigor_jax.demo.scenes import COLORS, IMAGE_SIZE, PLACES, SHAPES, Object, Scene, Statement, make_scene
from vigor_jax.rewards.claims.find import ClaimWordsConfig
from vigor_jax.rewards.phrases import NounPhrases

CELL = IMAGE_SIZE / 3
# With perfect boxes five are five; with others there may be one more or less.
EXACT = dataclasses.replace(GRID, count_tolerance=0)


@pytest.fixture(scope="module", params=["demo", "nltk"])
def repairer(request, tmp_path_factory):
    """Of the demo's colors none look too much alike."""
    colors = tmp_path_factory.mktemp("words") / "colors.txt"
    colors.write_text("\n".join(("[color]", *COLORS)))
    tagger = TAGGER if request.param == "demo" else request.getfixturevalue("nltk_tagger")
    repairer = Repairer(NounPhrases(tagger=tagger), EXACT, ClaimWordsConfig(attributes=colors))
    # "A star in orange in the middle" is next to a fruit to NLTK's tagger.
    repairer.colors = [color for color in COLORS if color != "orange" or request.param == "demo"]
    return repairer


def scene(shape, color, places):
    objects = [
        Object(shape, color, place, (cell % 3 + 0.5) * CELL, (cell // 3 + 0.5) * CELL, 8.5, 0.0)
        for place in places
        for cell in [PLACES.index(place)]
    ]
    return Scene(tuple(objects), background=0)


def boxes(found):
    """Perfect ones, by shape."""
    by_shape = {}
    for item in found.objects:
        corners = (item.x - item.radius, item.y - item.radius, item.x + item.radius, item.y + item.radius)
        by_shape.setdefault(item.shape, []).append(tuple(corner / IMAGE_SIZE for corner in corners))
    return by_shape


def scores(found):
    """Perfect ones, of all colors."""
    true = {(item.shape, item.color) for item in found.objects}
    return {f"{color} {shape}": 0.9 * ((shape, color) in true) for shape in SHAPES for color in COLORS}


def assert_repaired(repairer, wrong, truth, places, form):
    found = scene(truth.shape, truth.color, places)
    repaired = repairer(say(wrong, form), boxes(found), scores(found)).text
    assert repaired == say(truth, form)
    assert errors(parse(repaired)[0].statement, found) == ()


def test_wrong_places(repairer):
    """Of one thing, in each of its forms; its color is wrong as well where that takes its turn."""
    colors = itertools.cycle(itertools.product(repairer.colors, repeat=2))
    for shape, true_place, place, form in itertools.product(SHAPES, PLACES, PLACES, range(len(SINGULAR))):
        color, true_color = next(colors)
        wrong, truth = Statement(shape, color, 1, place), Statement(shape, true_color, 1, true_place)
        assert_repaired(repairer, wrong, truth, [true_place], form)


def test_wrong_numbers(repairer):
    """Of several things."""
    colors = itertools.cycle(itertools.product(repairer.colors, repeat=2))
    several = range(2, len(NUMBERS))
    for shape, number, true_number, form in itertools.product(SHAPES, several, several, range(len(PLURAL))):
        color, true_color = next(colors)
        wrong, truth = Statement(shape, color, number, None), Statement(shape, true_color, true_number, None)
        assert_repaired(repairer, wrong, truth, PLACES[:true_number], form)


def test_wrong_colors(repairer):
    places = itertools.cycle(PLACES)
    for shape, color, true_color in itertools.product(SHAPES, repairer.colors, repairer.colors):
        for number, form in itertools.product((1, 2), range(len(PLURAL))):
            place = next(places) if number == 1 else None
            wrong, truth = Statement(shape, color, number, place), Statement(shape, true_color, number, place)
            assert_repaired(repairer, wrong, truth, [place] if place else PLACES[:2], form)


def test_one_thing_is_not_several(repairer):
    """The demo's sentences on one thing say where it is, which those on several do not: nothing is put in its place."""
    found = scene("star", "red", PLACES[:1])
    for form in range(len(PLURAL)):
        text = say(Statement("star", "red", 3, None), form)
        repaired = repairer(text, boxes(found), scores(found))
        assert repaired.text == text
        assert [each.claim.kind for each in repaired.wrong] == ["number"]


def test_all_sentences_of_a_caption_at_once(repairer):
    """Whatever is wrong in any of them, but for statements on what does not exist, which say nothing that is judged."""
    rng = np.random.default_rng(0)
    for _ in range(150):
        drawn = make_scene(rng)
        if drawn_colors(drawn) - set(repairer.colors):
            continue
        said, expected = [], []
        for truth in drawn.statements:
            wrong = truth._replace(color=str(rng.choice(repairer.colors)))
            if truth.number == 1:
                wrong = wrong._replace(place=str(rng.choice(PLACES)))
            else:
                wrong = wrong._replace(number=int(rng.integers(2, len(NUMBERS))))
            form = int(rng.integers(len(SINGULAR)))
            said.append(say(wrong, form))
            expected.append(say(truth, form))
        absent = f"There is a {missing(drawn)} in red on the left."
        said.append(absent)
        expected.append(absent)
        repaired = repairer(" ".join(said), boxes(drawn), scores(drawn))
        assert repaired.text == " ".join(expected)


def drawn_colors(drawn):
    return {item.color for item in drawn.objects}


def missing(drawn):
    return next(shape for shape in SHAPES if not shape.startswith("a") and shape not in boxes(drawn))
