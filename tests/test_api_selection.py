"""Choosing and refining from Python: fusion, choice, refinement, claims, and which of the responses were judged."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

import vigor_jax as vj
from vigor_jax.records import PhraseScore, Span, Verdict

TAGGED = vj.PhrasesConfig(tagger=Path(__file__).resolve().parents[1] / "vigor_jax" / "demo" / "checkpoints" / "tagger")


def judgment(response, stream, negative, positive=0.0, *signals):
    place = response.index, response.image, response.candidate, response.text
    return vj.Judgment(*place, stream, negative, positive, signals or (vj.Signal("x", (), negative, positive, 0.5),))


def made(index, candidate, text, logprob=-1.0):
    return vj.Response(index, f"{index}.jpg", "Describe.", candidate, text, (2,), (logprob,), logprob, "stop")


def test_fusion_is_the_papers_formula():
    texts = [
        made(0, 0, "A dog runs. It is red."),
        made(0, 1, "A cat sits."),
        made(1, 0, "A bus."),
        made(1, 1, "A car."),
    ]
    bad, good = {"a": [3, 1, 0, 2], "b": [0.2, 0.6, 0.1, 0.9]}, {"a": [1, 2, 2, 5], "b": [0.8, 0.4, 0.9, 0.1]}
    judgments = [
        [judgment(text, name, bad[name][row], good[name][row]) for row, text in enumerate(texts)] for name in "ab"
    ]
    fused = vj.fuse(texts, *judgments, rule="balanced", weights={"b": 2}, gamma=0.5)
    weights = {"a": 1, "b": 2}
    for row, found in enumerate(fused):
        terms = {
            name: weights[name] * (bad[name][row] / np.var(bad[name]) - 0.5 * good[name][row] / np.var(good[name]))
            for name in "ab"
        }
        assert found.terms == pytest.approx(terms)
        assert found.penalty == pytest.approx(sum(terms.values()))
        assert (found.index, found.candidate) == (texts[row].index, texts[row].candidate)
    chosen = vj.choose(texts, *judgments, rule="balanced", weights={"b": 2}, gamma=0.5)
    penalties = np.array([found.penalty for found in fused]).reshape(2, 2)
    assert [choice.candidate for choice in chosen] == penalties.argmin(1).tolist()
    assert [choice.penalty for choice in chosen] == pytest.approx(penalties.min(1))
    assert [choice.text for choice in chosen] == [texts[i].text for i in penalties.argmin(1) + np.array([0, 2])]
    assert {choice.decided_by for choice in chosen} == {"penalty"}
    assert pandas.DataFrame(chosen)["decisive_stream"].isin(["a", "b"]).all()


def test_a_response_without_words_is_not_chosen_and_ties_go_to_the_likelier():
    texts = [made(0, 0, "", -0.1), made(0, 1, "A dog.", -2.0), made(1, 0, "A cat.", -2.0), made(1, 1, "A bus.", -1.0)]
    judgments = [judgment(text, "a", bad) for text, bad in zip(texts, [0, 3, 1, 1], strict=True)]
    chosen = vj.choose(texts, judgments)
    assert [(choice.candidate, choice.decided_by) for choice in chosen] == [(1, "content"), (1, "logprob")]


def test_refining_takes_out_what_is_not_there():
    text = "A dog runs. It is red. A cat sits."
    response = made(0, 0, text)
    absent, bus = (vj.Signal(label, (Span(2, 5),), 1, 0, 0.1, absent=True) for label in ("dog", "bus"))
    judgments = [judgment(response, "a", 1, 0, absent), judgment(made(0, 1, "A bus."), "a", 1, 0, bus)]
    refined = vj.refine(response, judgments)
    assert refined.text == "It is red. A cat sits."
    assert [dropped.reason for dropped in refined.dropped] == ['mentions "dog", which is not there (0.10)']
    assert vj.refine(response, judgments, drop_continuations=True).text == "A cat sits."
    assert vj.refine(text, judgments[:1]).text == refined.text
    (chosen,) = vj.choose([response], judgments[:1])
    assert vj.refine(chosen, judgments).text == refined.text
    with pytest.raises(vj.InputError, match=r"refine: a judgment is of the text 'A bus\.', expected 'A dog runs"):
        vj.refine(text, judgments)


CLAIMS = "There is a star in red on the left. We see moons in blue, two in all."


def found_in_claims(**changes):
    """What a detector says of CLAIMS: the star is blue and on the right, and there are three moons, in blue."""
    star, moons = (0.7, 0.4, 0.9, 0.6), ((0.1, 0.1, 0.2, 0.2), (0.4, 0.1, 0.5, 0.2), (0.1, 0.7, 0.2, 0.8))
    signals = (
        vj.Signal("star", (Span(11, 15),), 0, 1, 0.9, boxes_xyxy=(star,)),
        vj.Signal("moon", (Span(43, 48),), 0, 1, 0.9, boxes_xyxy=moons),
    )
    scores = {"red star": 0.1, "blue star": 0.8, "blue moon": 0.8, "red moon": 0.1}
    attributes = tuple(PhraseScore(*each) for each in scores.items())
    return dataclasses.replace(judgment(made(0, 0, CLAIMS), "detector", 0, 2, *signals), attributes=attributes)


def test_claims_are_judged_and_repaired():
    found = found_in_claims()
    claims = vj.Claims(phrases=TAGGED, judge={"side_width": 1 / 3, "narrowed": "exactly"})
    (said,) = claims.judge([found])
    assert (said.index, said.candidate, said.text, said.stream) == (0, 0, CLAIMS, "claims")
    assert {(signal.kind, signal.absent) for signal in said.signals} == {
        ("place", True), ("attribute", True), ("number", True), ("attribute", False)
    }  # fmt: skip
    assert (said.negative, said.positive) == (3, 1)
    assert vj.refine(CLAIMS, [found, said]).text == ""
    assert vj.refine(CLAIMS, [found, said], claims=["place"]).text == "We see moons in blue, two in all."
    repaired = vj.refine(CLAIMS, [found, said], repair=True)
    assert repaired.text == "There is a star in blue on the right. We see moons in blue, three in all."
    assert [(each.old, each.new) for each in repaired.repaired] == [
        ("red", "blue"),
        ("left", "right"),
        ("two", "three"),
    ]
    numbers_alone = vj.refine(CLAIMS, [found, said], repair=True, claims="number").text
    assert numbers_alone == "There is a star in red on the left. We see moons in blue, three in all."
    (numbers,) = vj.Claims(phrases=TAGGED, kinds=["number"], judge={"narrowed": "exactly"}).judge([found])
    assert [signal.kind for signal in numbers.signals] == ["number"]


@pytest.mark.parametrize("size", [(60, 40), (40, 40), (30, 90)])
def test_boxes_are_written_behind_things(size):
    image = Image.new("RGB", size)
    side, (width, height) = max(size), size
    left, top = (side - width) / 2, (side - height) / 2
    box = [(left + 0.7 * width) / side, (top + 0.4 * height) / side]
    text = vj.refine(CLAIMS, [found_in_claims()], boxes=image).text
    first = re.search(r"a star \[([\d.]+), ([\d.]+), [\d.]+, [\d.]+\] in red", text)
    assert first is not None
    assert [float(each) for each in first.groups()] == pytest.approx(box, abs=0.0051)
    assert re.search(r"moons \[[\d., ]+\] in blue, two in all\.$", text)
    assert vj.refine(text, [], boxes=image).text == CLAIMS  # of which nothing is known to be there


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: vj.Claims(phrases=TAGGED, judge={"iou": 2}), "Claims: .*iou: expected a fraction in .0, 1., got 2"),
        (lambda f: vj.Claims(phrases=TAGGED, kind=["number"]), "Claims: unknown option 'kind'; the nearest option is"),
        (
            lambda f: vj.Claims(phrases=TAGGED).judge([dataclasses.replace(f, stream="reward_model")]),
            r"Claims: judgments\[0\]: expected one of a Detector, got one of reward_model",
        ),
        (lambda f: vj.refine(CLAIMS, [f], claims="color"), "refine: claims: expected some of number, .* got 'color'"),
        (lambda f: vj.refine(CLAIMS, [f], boxes="no.png"), "no.png"),
    ],
)
def test_claims_that_cannot_be_judged(call, message):
    with pytest.raises(vj.InputError, match=message) as caught:
        call(found_in_claims())
    assert "\n" not in str(caught.value)


@pytest.fixture
def images(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    return paths


class WrongFrom:
    """A stream that finds the first word of every text wrong."""

    def judge(self, items):
        absent = vj.Signal("it", (Span(0, 1),), 1, 0, 0.1, absent=True)
        for item in items:
            yield [Verdict(item.image, number, "a", (absent,)) for number in range(len(item.texts))]


@pytest.mark.parametrize("left", [[0, 2], [1], [2, 1], [1, 2, 4, 5], [5], [0, 1, 2, 3, 4, 5]])
def test_some_of_the_responses_are_judged_and_refined_as_all_of_them(images, left):
    """Whichever candidates are left out before they are judged."""
    texts = [dataclasses.replace(made(i, k, f"A {k}. It is {i}."), image=images[i]) for i in range(2) for k in range(3)]
    some = [texts[number] for number in left]
    found = vj.RewardModel(WrongFrom()).judge(images, iter(some))
    assert [(j.index, j.candidate, j.text) for j in found] == [(r.index, r.candidate, r.text) for r in some]
    for response in some:
        assert vj.refine(response, found).text == f"It is {response.index}."
    assert [vj.refine(best, found).text for best in vj.choose(some, found)] == [
        f"It is {index}." for index in sorted({response.index for response in some})
    ]
    for response in texts:
        if response not in some:
            with pytest.raises(vj.InputError, match=f"none of the judgments is of candidate {response.candidate} of"):
                vj.refine(response, found)
    assert vj.refine(texts[0], []).text == texts[0].text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, j: vj.fuse([], j), "responses: expected what generate returned"),
        (lambda r, j: vj.fuse(["a"], j), "responses: expected what generate returned"),
        (lambda r, j: vj.choose(r), "judgments: expected the list of at least one stream"),
        (lambda r, j: vj.choose(r, j[:-1]), r"judgments\[0\]: expected one of each response, in their order"),
        (lambda r, j: vj.choose(r, j, j[::-1]), r"judgments\[1\]: expected one of each response"),
        (lambda r, j: vj.choose(r, j, j), "expected lists of different streams, got a, a"),
        (lambda r, j: vj.fuse(r, j, weights={"detektor": 1}), "there is no stream 'detektor'"),
        (lambda r, j: vj.fuse(r, j, gamma=-1), "fusion.gamma: expected a finite number of 0 or more"),
        (lambda r, j: vj.fuse(r, j, rule="papre"), "fusion.rule: expected one of paper, balanced, got 'papre'"),
        (lambda r, j: vj.fuse(r, j, normalize=2), "fusion.normalize: expected one of variance, std, got 2"),
        (lambda r, j: vj.choose(r, j, normalize="deviation"), "fusion.normalize: .* is now called 'std'"),
        (lambda r, j: vj.choose(r, j, per="word"), "fusion.per: expected one of caption, sentence, got 'word'"),
    ],
)
def test_what_selection_refuses(call, message):
    texts = [made(0, 0, "A dog."), made(0, 1, "A cat.")]
    with pytest.raises(vj.InputError, match=message):
        call(texts, [judgment(text, "a", 1) for text in texts])
