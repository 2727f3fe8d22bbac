"""Repairs of claims: by sentences, by properties, on real captions."""

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rewards.claims.repairing import Repairer, facts
from tests.rewards.claims.test_demo_claims import GRID, TAGGER
from tests.rewards.claims.test_judge import GRID as SIDE
from tests.rewards.claims.test_judge import founds, mirrored
from tests.rewards.taught_tagger import write_tagger
from tests.rewards.test_phrases import CAPTIONS, nltk_tagger  # noqa: F401
from vigor_jax.demo.language import NUMBERS, PLURAL, say
from vigor_jax.demo.scenes import COLORS, PLACES, SHAPES, Statement
from vigor_jax.errors import InputError
from vigor_jax.records import Edit, Span
from vigor_jax.rewards.claims.claim import Attribute
from vigor_jax.rewards.claims.judge import Found, JudgeConfig
from vigor_jax.rewards.claims.repair import Repairs, apply_edits
from vigor_jax.rewards.language.words import TOKEN
from vigor_jax.rewards.phrases import EntityPhrases, NounPhrases
from vigor_jax.rewards.sentences import split_sentences


def cases():
    """Text, facts, the repaired text; and for the tagger all sentences with their tags."""
    tagged = []
    for block in (Path(__file__).parent / "repaired_sentences.txt").read_text(encoding="utf-8").split("\n\n")[1:]:
        text, tags, truth, *repaired = block.strip().split("\n")
        tagged.append((text, tags))
        if repaired:
            tagged.append((repaired[0][2:], repaired[1]))
        yield text, truth, repaired[0][2:] if repaired else text
    yield tagged


*CASES, TAGGED = cases()


@pytest.fixture(scope="session")
def taught_tagger(tmp_path_factory):
    """Taught the sentences, before and after repair."""
    sentences = []
    for text, tags in TAGGED:
        left = tags.split()
        for span in split_sentences(text):
            words = TOKEN.findall(text[slice(*span)])
            words[0] = words[0].lower()
            sentences.append(list(zip(words, left, strict=False)))
            left = left[len(words) :]
        assert not left
    return write_tagger(tmp_path_factory.mktemp("tagger"), sentences, passes=12)


@pytest.fixture(scope="session", params=["taught_tagger", "nltk_tagger"])
def repairer(request):
    return Repairer(NounPhrases(tagger=request.getfixturevalue(request.param)))


@pytest.mark.parametrize(("text", "truth", "expected"), CASES, ids=[text for text, *_ in CASES])
def test_sentences(repairer, text, truth, expected):
    repaired = repairer(text, *facts(truth))
    assert repaired.wrong
    assert repaired.text == expected
    again = repairer(repaired.text, *facts(truth))
    assert again.text == expected
    assert len(again.wrong) == sum(not edits for edits in repaired.edits)


def test_there_are_enough_of_them():
    unrepaired = [text for text, _, expected in CASES if text == expected]
    assert len(CASES) >= 75
    assert len(unrepaired) >= 30


def test_claims_of_what_a_list_names(repairer):
    """Whatever finds the phrases finds them again in what is repaired."""
    phrases = EntityPhrases()
    repairer = Repairer(repairer.nouns, phrases=phrases)
    boxes, scores = facts("dog 2, car blue")
    assert repairer("There are three dogs in the image.", boxes, scores).text == "There are two dogs in the image."
    text = "A red car is parked near a green tree."
    assert repairer(text, boxes, scores).text == text.replace("red", "blue")


def test_a_foreign_claim_is_left_alone(repairer):
    text, (boxes, scores) = "There are three dogs in the image.", facts("dog 2")
    wrong = repairer.wrong(text, boxes, scores)
    other = "There are four horses in the barn."
    assert Repairs(repairer.claims, JudgeConfig())(repairer.read(other), wrong) == [()]
    assert Repairs(repairer.claims, JudgeConfig())(repairer.read(other), []) == []


def test_a_winner_must_be_ahead_of_all(repairer):
    text = "A red car is parked near a green tree."
    near = {"red car": 0.2, "blue car": 0.6, "black car": 0.55}
    assert repairer(text, {}, near).text == text
    weak = {"red car": 0.0, "blue car": 0.2}
    assert repairer(text, {}, weak, JudgeConfig(least_attribute=0.1)).text == text.replace("red", "blue")
    assert repairer(text, {}, weak).text == text


def test_places_in_a_grid(repairer):
    """Where "on the left" is no place in a corner, the words change their form."""
    corner, side = facts("bench right top"), facts("bench right")
    assert repairer("A bench stands on the left.", *corner, GRID).text == "A bench stands at the top right."
    assert repairer("A bench stands on the left.", *side, GRID).text == "A bench stands on the right."
    in_middle = ({"bench": [(0.45, 0.45, 0.55, 0.55)]}, {})
    assert repairer("A bench stands on the left.", *in_middle, GRID).text == "A bench stands in the middle."


def test_things_in_several_places_have_no_place(repairer):
    boxes = {"bench": [(0.8, 0.4, 0.9, 0.5), (0.8, 0.8, 0.9, 0.9)]}
    assert repairer("A bench stands on the left.", boxes).text == "A bench stands on the right."
    assert repairer("A bench stands on the left.", boxes, config=GRID).text == "A bench stands on the left."
    on_the_line = {"bench": [(0.8, 0.4, 0.9, 0.5), (0.5, 0.4, 0.54, 0.5)]}
    assert repairer("A bench stands on the left.", on_the_line).text == "A bench stands on the left."


def test_a_half_is_no_corner(repairer):
    """ "In the middle" is wrong for what is at the right edge and below the middle; that is in no corner yet."""
    boxes = {"bowl": [(0.8, 0.55, 0.9, 0.65)]}
    assert repairer("A bowl is in the center.", boxes).text == "A bowl is on the right."


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            [Edit(Span(0, 3), "a"), Edit(Span(2, 4), "b")],
            r"places that do not overlap, got 2 to 4 for 'b' after one",
        ),
        ([Edit(Span(0, 3), "a"), Edit(Span(0, 3), "b")], "places that do not overlap"),
        ([Edit(Span(4, 9), "a")], r"expected places in a text of 8 characters, got 4 to 9 for 'a'; score the cand"),
        ([Edit(Span(5, 4), "a")], "expected places in a text"),
        ([Edit(Span(-1, 2), "a")], "expected places in a text"),
    ],
)
def test_edits_that_do_not_fit(edits, message):
    with pytest.raises(InputError, match=message):
        apply_edits("one, two", edits)


@given(st.text(max_size=20), st.data())
def test_edits_replace_their_characters(text, data):
    """Against slices of the text, from its end to its start."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8, unique=True)))
    spans = list(map(Span, cuts[::2], cuts[1::2]))
    edits = [Edit(span, data.draw(st.text(max_size=3))) for span in spans]
    expected = text
    for span, new in reversed(edits):
        expected = expected[: span.start] + new + expected[span.end :]
    assert apply_edits(text, [*reversed(edits), *edits[:1]]) == expected


@pytest.fixture(scope="session", params=["sentences", "demo"])
def world(request):
    """A repairer and the sentences that its tagger was taught."""
    if request.param == "demo":
        every = itertools.product(SHAPES, COLORS, range(1, len(NUMBERS)), PLACES, range(len(PLURAL)))
        said = [say(Statement(shape, color, number, place), form) for shape, color, number, place, form in every]
        return Repairer(NounPhrases(tagger=TAGGER)), sorted(set(said))
    tagger = request.getfixturevalue("taught_tagger")
    return Repairer(NounPhrases(tagger=tagger)), [text for text, _ in TAGGED]


@st.composite
def clusters(draw):
    """Some small boxes close to each other, on a grid."""
    number, x, y = draw(st.integers(1, 6)), draw(st.integers(0, 40)), draw(st.integers(0, 60))
    boxes = [(x + 4 * i, y, x + 4 * i + 3, y + 4) for i in range(number)]
    return Found(np.array(boxes) / SIDE, np.array(draw(st.permutations(range(number)))) / 16)


@st.composite
def captions(draw, repairer, sentences):
    """A caption, boxes of what it names, and scores of which one color may be ahead."""
    text = " ".join(draw(st.lists(st.sampled_from(sentences), min_size=1, max_size=4)))
    boxes, scores = {}, {}
    for claim in repairer.find(text):
        phrase = claim.subject.phrase
        if phrase not in boxes:
            boxes[phrase] = draw(clusters() | founds())
            best = draw(st.sampled_from(COLOR_NAMES))
            scores |= {f"{color} {phrase}": 0.8 if color == best else 0.1 for color in COLOR_NAMES}
    return text, boxes, scores


COLOR_NAMES = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black", "brown")
configs = st.sampled_from([JudgeConfig(), GRID, JudgeConfig(narrowed="exactly", count_tolerance=0.0)])


@settings(deadline=None)
@given(data=st.data(), config=configs)
def test_repaired_captions_are_right_and_stay_as_they_are(world, data, config):
    repairer, sentences = world
    text, boxes, scores = data.draw(captions(repairer, sentences))
    repaired = repairer(text, boxes, scores, config)
    again = repairer(repaired.text, boxes, scores, config)
    assert again.text == repaired.text
    left = [each.claim for each, edits in zip(repaired.wrong, repaired.edits, strict=True) if not edits]
    # What is wrong now are the claims that were not repaired, word for word.
    assert [said(repaired.text, each.claim) for each in again.wrong] == [said(text, claim) for claim in left]


def said(text, claim):
    return claim.kind, claim.value, claim.subject.phrase, text[slice(*claim.span)]


@settings(deadline=None)
@given(data=st.data(), config=configs)
def test_edits_are_disjoint_and_stay_in_their_sentence(world, data, config):
    repairer, sentences = world
    text, boxes, scores = data.draw(captions(repairer, sentences))
    repaired = repairer(text, boxes, scores, config)
    edits = sorted({edit for own in repaired.edits for edit in own})
    assert all(one.span.end <= other.span.start for one, other in itertools.pairwise(edits))
    for each, own in zip(repaired.wrong, repaired.edits, strict=True):
        assert list(own) == sorted(own)
        (home,) = [span for span in split_sentences(text) if span.start <= each.claim.span.start < span.end]
        assert all(home.start <= edit.span.start < edit.span.end <= home.end for edit in own)
        assert all(text[slice(*edit.span)] != edit.text for edit in own)


@settings(deadline=None)
@given(data=st.data(), config=configs, rng=st.randoms(use_true_random=False))
def test_the_order_of_boxes_and_claims_does_not_matter(world, data, config, rng):
    repairer, sentences = world
    text, boxes, scores = data.draw(captions(repairer, sentences))
    expected = repairer(text, boxes, scores, config)
    shuffled = {}
    for phrase, found in boxes.items():
        order = list(range(len(found.scores)))
        rng.shuffle(order)
        shuffled[phrase] = Found(found.boxes_xyxy[order], found.scores[order])
    assert repairer(text, shuffled, scores, config).text == expected.text
    order = list(range(len(expected.wrong)))
    rng.shuffle(order)
    wrong = [expected.wrong[place] for place in order]
    edits = Repairs(repairer.claims, config)(repairer.read(text), wrong)
    assert edits == [expected.edits[place] for place in order]


@pytest.fixture(scope="session")
def listed(tmp_path_factory):
    """The demo's sentences, where things are found by a list that has words which repairs write, as COCO's has one."""
    path = tmp_path_factory.mktemp("list") / "entities.txt"
    path.write_text("\n".join((*SHAPES, "orange", "top", "middle")))
    every = itertools.product(SHAPES, ("red", "orange"), range(1, 4), PLACES, range(len(PLURAL)))
    said = [say(Statement(shape, color, number, place), form) for shape, color, number, place, form in every]
    return Repairer(NounPhrases(tagger=TAGGER), phrases=EntityPhrases(path)), sorted(set(said))


@settings(deadline=None)
@given(data=st.data(), config=configs)
def test_a_repaired_caption_names_the_same_things(listed, data, config):
    """A detector that was asked for one would be asked for the other: nothing new is named, denied or supposed."""
    repairer, sentences = listed
    text, boxes, scores = data.draw(captions(repairer, sentences))
    assert named(repairer, repairer(text, boxes, scores, config).text) == named(repairer, text)


def named(repairer, text):
    found = repairer.phrases(text, split_sentences(text))
    return [(each.text, len(each.mentions), len(each.denied), len(each.supposed)) for each in found]


@pytest.mark.parametrize(
    ("y", "expected"), [(0.8, "A star in red is at the bottom."), (0.1, "A star in red is on the left.")]
)
def test_a_word_that_names_a_thing_is_not_written(listed, y, expected):
    """A top may be a toy, and this list has it."""
    repairer, _ = listed
    boxes = {"star": [(0.45, y, 0.55, y + 0.1)]}
    assert repairer("A star in red is on the left.", boxes, {"red star": 0.8}, GRID).text == expected


def swapped(text):
    """Left for right."""
    sides = {"left": "right", "right": "left"}
    return re.sub("left|right", lambda found: sides[found.group()], text)


@settings(deadline=None)
@given(data=st.data(), config=configs)
def test_a_mirrored_image_swaps_left_and_right(world, data, config):
    repairer, sentences = world
    known = set(sentences)
    text, boxes, scores = data.draw(captions(repairer, [text for text in sentences if swapped(text) in known]))
    expected = swapped(repairer(text, boxes, scores, config).text)
    turned = {phrase: mirrored(found) for phrase, found in boxes.items()}
    assert repairer(swapped(text), turned, scores, config).text == expected


# Articles, nouns and verbs that do not agree.
NOT_ENGLISH = re.compile(
    r"\ban (?!orange)(?:{colors})\b|\ba orange\b|\b(?:are|were) one\b|\bthere(?: is|'s| was) (?:{several})\b|"
    r"\b(?:{several}) \w+ (?:is|was|has)\b".format(colors="|".join(COLOR_NAMES), several="|".join(NUMBERS[2:])),
    re.IGNORECASE,
)


@pytest.mark.skipif(not CAPTIONS.exists(), reason="needs the shared captions")
def test_real_captions_stay_good_english(nltk_tagger):  # noqa: F811
    """With made-up boxes; a tagger changes its mind on few words when others next to them change."""
    repairer = Repairer(NounPhrases(tagger=nltk_tagger))
    kinds: Counter[str] = Counter()
    sentences = same = 0
    for number, line in enumerate(CAPTIONS.read_text(encoding="utf-8").splitlines()[::4]):
        text = json.loads(line)["text"]
        boxes, scores = made_up(random.Random(number), repairer.find(text))
        repaired = repairer(text, boxes, scores)
        edits = sorted({edit for own in repaired.edits for edit in own})
        kinds.update(each.claim.kind for each, own in zip(repaired.wrong, repaired.edits, strict=True) if own)
        assert repairer(repaired.text, boxes, scores).text == repaired.text
        for start, end in split_sentences(text):
            own = [Edit(Span(*span), new) for span, new in edits if start <= span.start < end]
            if own:
                before, after = tags_around(repairer, text, Span(start, end), own)
                assert not NOT_ENGLISH.search(after.text), after.text
                sentences += 1
                same += before.tags == after.tags
    assert min(kinds[kind] for kind in ("number", "place", "attribute")) >= 15, kinds
    assert sentences >= 150
    assert same / sentences >= 0.9


class Tagged(NamedTuple):
    text: str
    tags: list


def tags_around(repairer, text, home, edits):
    """A sentence before and after edits, with the tags of the words that stay."""
    edits = [Edit(Span(span.start - home.start, span.end - home.start), new) for span, new in edits]
    old = text[slice(*home)]
    places, moved = [], 0
    for span, new in edits:
        places.append(Span(span.start + moved, span.start + moved + len(new)))
        moved += len(new) - (span.end - span.start)
    return (
        Tagged(old, tags_outside(repairer, old, [span for span, _ in edits])),
        Tagged(apply_edits(old, edits), tags_outside(repairer, apply_edits(old, edits), places)),
    )


def tags_outside(repairer, text, places):
    read = repairer.nouns.read(text, Span(0, len(text)))
    return [
        tag
        for token, tag in zip(read.tokens, read.tags, strict=True)
        if not any(start <= token.start() < end for start, end in places)
    ]


def made_up(rng, claims):
    """Up to four boxes of each thing, in one corner of the image or in a row, and one color that is ahead."""
    boxes, scores = {}, {}
    for claim in claims:
        phrase, number = claim.subject.phrase, rng.randint(1, 4)
        if phrase in boxes:
            continue
        x, y, step = (0.1, 0.4, 0.2) if rng.random() < 0.3 else (rng.choice([0.1, 0.75]), rng.choice([0.1, 0.8]), 0.03)
        boxes[phrase] = [(x + step * i, y, x + step * i + 0.02, y + 0.1) for i in range(number)]
        if isinstance(claim.value, Attribute):
            best = rng.choice(COLOR_NAMES)
            scores |= {f"{color} {phrase}": 0.8 if color == best else 0.1 for color in COLOR_NAMES}
    return boxes, scores
