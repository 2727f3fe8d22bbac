"""The demo's captions: claims against its own parser, and judgments against its scenes."""

from pathlib import Path

import numpy as np
import pytest

import vigor_jax.demo
from tests.rewards.claims.written import value
from tests.rewards.test_phrases import nltk_tagger  # noqa: F401
from vigor_jax.demo.language import NUMBERS, PLURAL, errors, parse, say
from vigor_jax.demo.scenes import COLORS, IMAGE_SIZE, PLACES, SHAPES, Statement, make_scene
from vigor_jax.rewards.claims.claim import Number, Place
from vigor_jax.rewards.claims.find import Claims
from vigor_jax.rewards.claims.judge import Found, JudgeConfig, Truth, judge
from vigor_jax.rewards.phrases import NounPhrases
from vigor_jax.rewards.sentences import split_sentences

TAGGER = Path(vigor_jax.demo.__file__).parent / "checkpoints" / "tagger"
# A grid of three by three; all things of a shape have one color, so "circles in red" are all circles.
GRID = JudgeConfig(side_width=1 / 3, unnamed_direction="center", narrowed="exactly")
IN_THIRDS = {
    place: (
        next((side for side in ("left", "right") if side in place), "center" if "middle" in place else ""),
        next((side for side in ("top", "bottom") if side in place), "center" if "middle" in place else ""),
    )
    for place in PLACES
}


@pytest.fixture(scope="module", params=["demo", "nltk"])
def tagger(request):
    return TAGGER if request.param == "demo" else request.getfixturevalue("nltk_tagger")


def statements():
    """All that a sentence of the demo can say, but for colors, which take turns."""
    for shape in SHAPES:
        for number in range(1, len(NUMBERS)):
            for turn, place in enumerate(PLACES if number == 1 else (None,)):
                for color in (COLORS[(turn + number) % len(COLORS)], COLORS[(turn + number + 3) % len(COLORS)]):
                    yield Statement(shape, color, number, place)


def stated(text):
    """By the demo's parser: (start of the sentence, shape, what is said)."""
    place = 0
    for sentence in parse(text):
        start = text.index(sentence.text, place)
        place = start + len(sentence.text)
        statement = sentence.statement
        yield start, statement.shape, f"color:{statement.color}"
        if statement.number > 1:
            yield start, statement.shape, f"{statement.number}-{statement.number}"
        if statement.place:
            yield start, statement.shape, " ".join(filter(None, IN_THIRDS[statement.place]))


def test_claims_are_those_of_the_parser(tagger):
    nouns = NounPhrases(tagger=tagger)
    find = Claims(nouns)
    right = found = wanted = 0
    every = list(statements())
    for form in range(len(PLURAL)):
        for first in range(0, len(every), 4):
            text = " ".join(say(statement, form) for statement in every[first : first + 4])
            sentences = split_sentences(text)
            claims = {
                (next(s.start for s in sentences if s.end > claim.span.start), claim.subject.phrase, value(claim))
                for claim in find(text, sentences, nouns(text, sentences))
            }
            claims = {(start, phrase, said.rstrip("~")) for start, phrase, said in claims}
            expected = set(stated(text))
            right += len(claims & expected)
            found += len(claims)
            wanted += len(expected)
    assert wanted > 1500
    assert right / found == 1
    assert right / wanted == 1


def test_judgments_are_those_of_the_scenes():
    rng = np.random.default_rng(0)
    nouns = NounPhrases(tagger=TAGGER)
    find = Claims(nouns)
    seen = {kind: {Truth.RIGHT: 0, Truth.WRONG: 0} for kind in (Number, Place)}
    for _ in range(400):
        scene = make_scene(rng)
        shape = str(rng.choice([item.shape for item in scene.objects]))
        own = [item for item in scene.objects if item.shape == shape]
        boxes = [(o.x - o.radius, o.y - o.radius, o.x + o.radius, o.y + o.radius) for o in own]
        number = int(rng.integers(1, 5))
        statement = Statement(shape, own[0].color, number, str(rng.choice(PLACES)) if number == 1 else None)
        text = say(statement, int(rng.integers(12)))
        sentences = split_sentences(text)
        wrong = {"count": Number, "place": Place}
        wrong_kinds = {wrong[kind] for kind in errors(statement, scene)}
        for claim in find(text, sentences, nouns(text, sentences)):
            if (kind := type(claim.value)) in seen:
                expected = Truth.WRONG if kind in wrong_kinds else Truth.RIGHT
                assert judge(claim, Found(np.array(boxes) / IMAGE_SIZE), config=GRID) is expected
                seen[kind][expected] += 1
    assert min(count for counts in seen.values() for count in counts.values()) > 10
