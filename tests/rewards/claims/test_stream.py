"""The stream of claims: signals from the detector's verdicts, and the demo's detector asked in a sidecar."""

import dataclasses
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import vigor_jax.demo
from detector_bridge.local import LocalConfig, LocalDetector
from vigor_jax.data.text.box_text import strip_boxes, write_boxes
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.language import errors, parse, say
from vigor_jax.demo.scenes import COLORS, PLACES, Statement, make_scene
from vigor_jax.errors import InputError
from vigor_jax.records import Edit, PhraseScore, ScoreItem, Signal, Span, Verdict
from vigor_jax.rewards.claims.find import ClaimWordsConfig
from vigor_jax.rewards.claims.judge import JudgeConfig
from vigor_jax.rewards.claims.stream import ClaimReader, ClaimsConfig, ClaimStream
from vigor_jax.rewards.detection import DetectorStream
from vigor_jax.rewards.detector_config import DetectionConfig
from vigor_jax.rewards.phrases import PhrasesConfig
from vigor_jax.stages.score_config import as_config
from vigor_jax.stages.streams import in_order

CHECKPOINTS = Path(vigor_jax.demo.__file__).parent / "checkpoints"
PHRASES = PhrasesConfig(tagger=CHECKPOINTS / "tagger")
GRID = ClaimsConfig(judge=JudgeConfig(side_width=1 / 3, unnamed_direction="center", narrowed="exactly"))
STAR = "There is a star in red at the top left."
TEXT = f"{STAR} We see moons in blue, two in all. {STAR}"
LEFT, RIGHT = (0.05, 0.05, 0.25, 0.25), (0.7, 0.7, 0.95, 0.95)
MIDDLE = (0.4, 0.4, 0.6, 0.6)


def detected(*found, attributes=()):
    """The detector's verdict: (phrase, its boxes); the places in the text do not matter."""
    signals = tuple(
        Signal(phrase, (Span(0, 1),), float(not boxes), float(bool(boxes)), 0.9 * bool(boxes), not boxes, boxes)
        for phrase, boxes in found
    )
    return Verdict("a.png", 0, "detector", signals, tuple(PhraseScore(*each) for each in attributes))


def said(signals):
    return {(signal.kind, signal.label, signal.absent) for signal in signals}


def test_signals_of_a_caption():
    stream = ClaimStream(GRID, PHRASES)
    colors = [("red star", 0.1), ("blue star", 0.8), ("blue moon", 0.7), ("red moon", 0.1)]
    found = stream.signals(TEXT, detected(("star", (RIGHT,)), ("moon", (LEFT, RIGHT)), attributes=colors))
    assert said(found) == {
        ("place", "star: at the top left", True),
        ("attribute", "star: red", True),
        ("attribute", "moon: blue", False),
        ("number", "moon: two", False),
    }
    assert [signal.spans[0] for signal in found] == sorted(signal.spans[0] for signal in found)
    for signal in found:
        phrase, words = signal.label.split(": ")
        assert (signal.negative, signal.positive, signal.score) == ((1, 0, 0) if signal.absent else (0, 1, 1))
        assert {TEXT[slice(*span)] for span in signal.spans} == {words}
        assert len(signal.spans) == (2 if phrase == "star" else 1)  # said twice, wrong once
        assert signal.boxes_xyxy == ((RIGHT,) if phrase == "star" else (LEFT, RIGHT))


@pytest.mark.parametrize(
    "verdict",
    [
        detected(),
        detected(("star", ()), ("moon", ()), attributes=[("red star", 0.9), ("blue star", 0.1)]),
        detected(("house", (LEFT,))),
    ],
    ids=["nothing was asked", "nothing was found", "something else was found"],
)
def test_of_what_is_not_there_no_claim_is_judged(verdict):
    assert ClaimStream(GRID, PHRASES).signals(TEXT, verdict) == ()


def test_boxes_in_a_caption_change_nothing():
    """Signals and repairs are those of the caption without boxes, at the same words."""
    stream = ClaimStream(GRID, PHRASES)
    colors = [("red star", 0.1), ("blue star", 0.8), ("blue moon", 0.7), ("red moon", 0.1)]
    verdict = detected(("star", (RIGHT,)), ("moon", (LEFT, RIGHT, MIDDLE)), attributes=colors)
    ends = [found.end() for found in re.finditer(r"stars?|moons?|left", TEXT)]
    boxed = write_boxes(TEXT, [(Span(end, end), LEFT) for end in ends])
    plain = strip_boxes(boxed)
    places = list(map(plain.origin, range(len(TEXT))))
    found, expected = stream.signals(boxed, verdict), stream.signals(TEXT, verdict)
    assert sum(bool(signal.edits) for signal in expected) == 3

    def back(span):
        return Span(places.index(span.start), places.index(span.end - 1) + 1)

    moved = [
        dataclasses.replace(
            signal,
            spans=tuple(map(back, signal.spans)),
            edits=tuple(Edit(back(edit.span), edit.text) for edit in signal.edits),
        )
        for signal in found
    ]
    assert moved == list(expected)


def test_what_boxes_do_not_tell_gives_no_signal():
    border = (0.24, 0.24, 0.42, 0.42)  # its center is on the line between two parts, within the margin
    colors = [("red star", 0.5), ("blue star", 0.45)]
    assert ClaimStream(GRID, PHRASES).signals(TEXT, detected(("star", (border,)), attributes=colors)) == ()


@pytest.mark.parametrize("kinds", [("number",), ("place",), ("attribute", "number")])
def test_only_the_kinds_that_are_asked_for(kinds):
    config = dataclasses.replace(GRID, kinds=kinds)
    verdict = detected(("star", (RIGHT,)), ("moon", (LEFT,)), attributes=[("red star", 0.1), ("blue star", 0.8)])
    assert {signal.kind for signal in ClaimStream(config, PHRASES).signals(TEXT, verdict)} == set(kinds)
    reader = ClaimReader(config, PHRASES)
    asked = reader.questions(TEXT, [Span(0, len(TEXT))], reader.phrases(TEXT, [Span(0, len(TEXT))]))
    assert bool(asked) is ("attribute" in kinds)
    assert ("red star" in asked) is ("attribute" in kinds)


@pytest.mark.parametrize("kinds", [(), ("place", "place")])
def test_kinds_that_make_no_sense_are_refused(kinds):
    with pytest.raises(InputError, match=r"^claims\.kinds: expected some of number, place, relation, attribute, each"):
        ClaimsConfig(kinds=kinds)


def test_the_digest_names_all_that_the_verdicts_depend_on(tmp_path):
    words = tmp_path / "numbers.txt"
    words.write_bytes((CHECKPOINTS.parents[1] / "rewards" / "language" / "claim_numbers.txt").read_bytes())
    plain = ClaimStream(GRID, PHRASES).digest
    same = dataclasses.replace(GRID, kinds=GRID.kinds[::-1])
    assert ClaimStream(same, PHRASES).digest == plain
    changes = [
        {"kinds": ("number",)},
        {"judge": dataclasses.replace(GRID.judge, place_margin=0.04)},
        {"words": ClaimWordsConfig(numbers=words)},
    ]
    digests = {ClaimStream(dataclasses.replace(GRID, **change), PHRASES).digest for change in changes}
    words.write_bytes(words.read_bytes() + b"# a remark\n")
    digests.add(ClaimStream(dataclasses.replace(GRID, words=ClaimWordsConfig(numbers=words)), PHRASES).digest)
    digests.add(ClaimStream(GRID, dataclasses.replace(PHRASES, negated="ask")).digest)
    assert len(digests | {plain}) == 6


def test_it_needs_the_detector():
    assert list(in_order([as_config("claims"), as_config("detector")])) == ["detector", "claims"]
    with pytest.raises(InputError, match=r"^score\.streams: claims needs the verdicts of detector; add that stream$"):
        in_order([as_config("claims"), as_config("reward_model")])
    with pytest.raises(InputError, match=r"claims takes no options here; its settings are claims\.\*$"):
        as_config(dataclasses.replace(as_config("claims"), options={"kinds": ["number"]}))


@pytest.mark.slow
@pytest.mark.main
def test_the_demos_detector_knows_what_is_wrong(tmp_path):
    """Scenes are drawn, captions say what is true and what is not, and a real sidecar is asked; the truth is known."""
    rng = np.random.default_rng(1)
    items, scenes = [], {}
    for number in range(24):
        scene = make_scene(rng)
        path = tmp_path / f"{number}.png"
        file = io.BytesIO()
        draw(scene).save(file, "PNG")
        path.write_bytes(file.getvalue())
        scenes[path.name] = scene
        texts = []
        for _ in range(3):
            made = []
            for true in scene.statements:
                count = int(rng.integers(1, 4))
                place = str(rng.choice(PLACES)) if count == 1 else None
                made.append(Statement(true.shape, str(rng.choice([true.color, rng.choice(COLORS)])), count, place))
            texts.append(" ".join(say(statement, int(rng.integers(12))) for statement in made))
        items.append(ScoreItem(path.name, path, "Describe it.", tuple(texts)))
    (tmp_path / "colors.txt").write_text("[color]\n" + "\n".join(COLORS))  # as `demo.dataset.prepare` writes it
    grid = dataclasses.replace(GRID, words=ClaimWordsConfig(attributes=tmp_path / "colors.txt"))
    reader, seen = ClaimReader(grid, PHRASES), Counter[tuple[str, bool]]()
    with LocalDetector(LocalConfig(CHECKPOINTS / "detector", options=("--batch-size", "16"))) as sidecar:
        config = DetectionConfig(addresses=(sidecar.address,), phrases=PHRASES)
        with DetectorStream(config) as without, DetectorStream(config, reader) as stream:
            assert without.digest != stream.digest
            plain, found = list(without.judge(items)), list(stream.judge(items))
    for item, alone, verdicts in zip(items, plain, found, strict=True):
        for one, other in zip(alone, verdicts, strict=True):
            assert one.attributes == ()
            assert [(s.label, s.absent) for s in one.signals] == [(s.label, s.absent) for s in other.signals]
        (judged,) = ClaimStream(grid, PHRASES).judge([item._replace(verdicts={"detector": tuple(verdicts)})])
        for text, verdict in zip(item.texts, judged, strict=True):
            wrong = {"color": "attribute", "count": "number", "place": "place"}
            start = 0
            for sentence in parse(text):
                start = text.index(sentence.text, start)
                end = start + len(sentence.text)
                found_wrong = {s.kind for s in verdict.signals if s.absent and start <= s.spans[0].start < end}
                assert sentence.statement is not None
                assert found_wrong == {wrong[kind] for kind in errors(sentence.statement, scenes[item.image])}
                seen.update((kind, kind in found_wrong) for kind in wrong.values())
                start = end
    assert min(seen[kind, is_wrong] for kind in ("attribute", "number", "place") for is_wrong in (True, False)) > 20
