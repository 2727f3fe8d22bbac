"""Sentences, what is wrong with them, and the careless teacher."""

import re

import numpy as np
import pytest

from vigor_jax.demo.build import build_tagger
from vigor_jax.demo.language import PLURAL, SINGULAR, article, errors, inventory, parse, plural, question, say
from vigor_jax.demo.metrics import compute_metrics, mark
from vigor_jax.demo.scenes import COLORS, PARTNER, PLACES, SHAPES, Object, Scene, Statement, make_scene
from vigor_jax.demo.teaching import CAREFUL, CARELESS, choose_absent, describe, pose, quiz
from vigor_jax.rewards.phrases import NounPhrases
from vigor_jax.rewards.sentences import split_sentences

FORMS = range(len(SINGULAR) * len(PLURAL))


def scene_of(number: int) -> Scene:
    return make_scene(np.random.default_rng([6, number]))


def place(shape: str, color: str, where: str) -> Object:
    return Object(shape, color, where, 0, 0, 8, 0)


# A star in red, two hearts in blue.
SCENE = Scene(
    (
        place("star", "red", "at the top left"),
        place("heart", "blue", "in the middle"),
        place("heart", "blue", "at the bottom"),
    ),
    0,
)
TRUE = "There is a star in red at the top left. We see hearts in blue, two in all."


def test_every_sentence_is_read_back() -> None:
    statements = [Statement(shape, color, 1, where) for shape in SHAPES for color in COLORS for where in PLACES]
    statements += [Statement(shape, color, count, None) for shape in SHAPES for color in COLORS for count in (2, 3)]
    for statement in statements:
        for form in FORMS:
            text = say(statement, form)
            assert [(found.text, found.statement) for found in parse(text)] == [(text, statement)]


def test_english() -> None:
    one, several = Statement("star", "orange", 1, "at the top left"), Statement("cross", "red", 3, None)
    assert [say(one, form) for form in range(3)] == [
        "There is a star in orange at the top left.",
        "We see a star in orange at the top left.",
        "A star in orange is at the top left.",
    ]
    assert [say(several, form) for form in range(3)] == [
        "There are crosses in red, three of them.",
        "We see crosses in red, three in all.",
        "Crosses in red can be seen, three of them.",
    ]
    assert [plural(word) for word in ("cross", "house", "moon")] == ["crosses", "houses", "moons"]
    assert (article("arrow"), article("star")) == ("an", "a")
    assert question("existence", one) == "Is there a star in the image?"
    assert question("existence", one._replace(shape="arrow")) == "Is there an arrow in the image?"
    assert question("count", several) == "Are there three crosses in the image?"
    assert question("count", one) == "Is there one star in the image?"
    assert question("position", one) == "Is there a star at the top left?"
    assert question("color", one) == "Is there a star in orange?"


def test_what_is_no_sentence_of_the_demo_says_nothing() -> None:
    assert parse("") == []
    said = [
        sentence.statement
        for sentence in parse("A dog in red is at the top. A star in red is at the top. Star. A star")
    ]
    assert said == [None, Statement("star", "red", 1, "at the top"), None, None]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("A star in red is at the top left.", ()),
        ("Hearts in blue can be seen, two of them.", ()),
        ("A heart in blue is at the bottom.", ()),  # one of two
        ("A circle in red is at the top left.", ("object",)),
        ("There are circles in green, three of them.", ("object",)),
        ("A star in green is at the top left.", ("color",)),
        ("A star in red is on the left.", ("place",)),
        ("We see hearts in blue, three in all.", ("count",)),
        ("We see stars in red, two in all.", ("count",)),
        ("A star in green is at the top.", ("color", "place")),
        ("We see hearts in green, three in all.", ("color", "count")),
    ],
)
def test_errors(sentence: str, expected: tuple[str, ...]) -> None:
    ((_, statement),) = parse(sentence)
    assert statement is not None
    assert errors(statement, SCENE) == expected


def test_careful_captions_say_the_whole_truth_and_nothing_else() -> None:
    for number in range(200):
        scene = scene_of(number)
        said = [sentence.statement for sentence in parse(describe(scene, np.random.default_rng(number), CAREFUL))]
        assert said == list(scene.statements)


def test_careless_captions_are_wrong_as_often_as_they_should_be() -> None:
    """Each share against its setting, on 4,000 captions; absent things are partners, and come late."""
    mentioned, absent, places, partners, wrong = 0, 0, [], [], []
    for number in range(4000):
        scene = scene_of(number)
        sentences = parse(describe(scene, np.random.default_rng([1, number])))
        found = [errors(sentence.statement, scene) for sentence in sentences if sentence.statement]
        assert len(found) == len(sentences)
        mentioned += sum("object" not in kinds for kinds in found)
        present = {item.shape for item in scene.objects}
        for index, (sentence, kinds) in enumerate(zip(sentences, found, strict=True)):
            if "object" in kinds and sentence.statement:
                absent += 1
                places.append((index + 0.5) / len(found))
                partners.append(PARTNER[sentence.statement.shape] in present)
        wrong += [
            (sentence.statement.number > 1, kinds)
            for sentence, kinds in zip(sentences, found, strict=True)
            if sentence.statement and "object" not in kinds
        ]
    assert absent / 4000 == pytest.approx(1.0, abs=0.05)
    assert np.mean(places) > 0.65
    assert np.mean(partners) > 0.4  # of some nine absent shapes, about one has its partner there
    truths = sum(len(scene_of(number).statements) for number in range(4000))
    assert mentioned / truths == pytest.approx(1 - CARELESS.omitted, abs=0.01)
    assert np.mean(["color" in kinds for _, kinds in wrong]) == pytest.approx(CARELESS.color, abs=0.015)
    several = [kinds for is_several, kinds in wrong if is_several]
    assert np.mean(["count" in kinds for kinds in several]) == pytest.approx(CARELESS.count, abs=0.02)
    one = [kinds for is_several, kinds in wrong if not is_several]
    assert np.mean(["place" in kinds for kinds in one]) == pytest.approx(CARELESS.place, abs=0.02)


def test_absent_things_are_absent() -> None:
    for number in range(200):
        scene, rng = scene_of(number), np.random.default_rng(number)
        present = {item.shape for item in scene.objects}
        assert choose_absent(scene, rng) not in present
        asked = [
            (re.fullmatch(r"Is there an? (\w+) in the image\?", words), answer)
            for words, answer in quiz(scene, rng, CAREFUL)
        ]
        whether = [(found[1], answer) for found, answer in asked if found]
        assert len(whether) == 4
        for shape, answer in whether:
            assert answer == ("Yes." if shape in present else "No.")


def test_an_inventory_is_the_whole_truth_in_any_order() -> None:
    order = ("heart", "moon", "star")
    assert inventory(SCENE, order) == "heart two blue. moon no. star one red at the top left."


def test_questions_have_the_answers_that_are_asked_for() -> None:
    for number in range(200):
        scene = scene_of(number)
        for kind in ("existence", "count", "position", "color"):
            for label in ("yes", "no"):
                statement, found = pose(kind, scene, np.random.default_rng(number), label)
                assert found == label
                asked = statement._replace(place=statement.place if kind == "position" else None)
                kinds = {"existence": "object", "count": "count", "position": "place", "color": "color"}
                wrong = set(errors(asked, scene)) & {kinds[kind], "object"}
                if kind == "count":  # one of several counts as true in a caption; a question asks for the number
                    own = [item for item in scene.objects if item.shape == statement.shape]
                    wrong = {"count"} if statement.number != len(own) else set()
                assert bool(wrong) == (label == "no"), (kind, statement)


def test_the_tagger_finds_the_demos_nouns(tmp_path) -> None:
    build_tagger(tmp_path)
    phrases = NounPhrases(tagger=tmp_path)
    for number in range(100):
        text = describe(scene_of(number), np.random.default_rng(number))
        found = phrases(text, split_sentences(text))
        assert {phrase.text for phrase in found} == {s.statement.shape for s in parse(text) if s.statement}
        mentions = [text[slice(*span)].lower() for phrase in found for span in phrase.mentions]
        assert sorted(mentions) == sorted(
            s.statement.shape if s.statement.number == 1 else plural(s.statement.shape)
            for s in parse(text)
            if s.statement
        )


def test_scores() -> None:
    scores = compute_metrics(
        [(TRUE, SCENE), ("A star in green is at the top. A circle in red is at the top. Hearts in blue, three", SCENE)]
    )
    # Of five sentences, two right, one about a circle, one without an end; of the three about what is there, one wrong,
    # in two ways.
    assert (scores.bad, scores.absent) == (3 / 5, 1 / 5)
    assert (scores.unseen, scores.color) == (1 / 3, 1 / 3)
    assert (scores.count, scores.place) == (0, 1 / 2)
    assert scores.repeats == 0
    nothing = compute_metrics([("", SCENE)])
    assert np.isnan([nothing.bad, nothing.color, nothing.repeats]).all()


def test_repeats_are_sentences_that_the_same_caption_has_said() -> None:
    first, second = (sentence.text for sentence in parse(TRUE)[:2])
    assert (
        compute_metrics([(f"{first} {second} {first} {first.upper()}", SCENE), (f"{second} {first}", SCENE)]).repeats
        == 2 / 6
    )


def test_named_again_is_of_a_shape_in_whatever_words() -> None:
    again = (
        "A star in green is at the bottom. A circle in red is at the top. A circle in blue is on the left. No shape."
    )
    # Of six sentences about shapes, a second one about the star and a second one about the circle, which is not there.
    scores = compute_metrics([(f"{TRUE} {again}", SCENE), ("There is a star in red at the top left.", SCENE)])
    assert scores.again == 2 / 6
    assert scores.repeats == 0
    assert np.isnan(compute_metrics([("No shape.", SCENE)]).again)


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        (TRUE, ""),
        ("A star in green is on the left. Hearts in blue can be seen, three of them.", "green on the left. three"),
        ("A circle in red is on the left. A star in red is at the top left.", "A circle in red is on the left."),
        ("Red the ### star", "Red the ### star"),
    ],
)
def test_wrong_words_are_marked(caption: str, wrong: str) -> None:
    marked = mark(caption, SCENE)
    assert [word for word, _ in marked] == caption.split()
    assert " ".join(word for word, is_wrong in marked if is_wrong) == wrong
