"""The automatic reward against a real sidecar asked by hand."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from detector_bridge.client import BlockingClient, ClientConfig
from detector_bridge.messages import Detection, Request
from tests.detector_bridge.sidecar import picture
from vigor_jax import demo
from vigor_jax.errors import InputError
from vigor_jax.records import ScoreItem, Span
from vigor_jax.rewards.detection import DetectorStream
from vigor_jax.rewards.detector_config import DetectionConfig
from vigor_jax.rewards.phrases import PhrasesConfig
from vigor_jax.rewards.refine import refine

TEXTS = (
    ("A dog and two cats sit by a bench.", "There is a traffic light. A dog! The dog sleeps."),
    ("Nothing of note.", ""),
    ("A car, a car and a bus.", "A dog on a car."),
)


def make_items(folder, captions):
    """Pictures with their captions."""
    made = []
    for number, texts in enumerate(captions):
        path = folder / f"{number}.png"
        picture(number).save(path)
        made.append(ScoreItem(path.name, path, "Describe it.", texts))
    return made


@pytest.fixture
def items(tmp_path):
    return make_items(tmp_path, TEXTS)


def config(served=None, **changes) -> DetectionConfig:
    addresses = (served.address,) if served else ()
    return DetectionConfig(addresses=addresses, phrases=PhrasesConfig(extractor="entities"), **changes)


def ask(served, path: Path, phrases: tuple[str, ...], threshold: float = 0.25):
    with BlockingClient(ClientConfig((served.address,))) as client:
        return client.submit(Request(path, phrases, threshold, threshold)).result().detections


def test_verdicts_are_what_the_detector_says(served, items):
    with DetectorStream(config(served, box_threshold=0.45, text_threshold=0.45)) as stream:
        found = list(stream.judge(items))
    assert [len(verdicts) for verdicts in found] == [2, 2, 2]
    assert [[v.image, v.candidate] for verdicts in found for v in verdicts] == [
        [item.image, i] for item in items for i in range(2)
    ]
    phrases = ("dog", "cat", "bench", "traffic light")
    expected = {d.phrase: d for d in ask(served, items[0].path, phrases, 0.45)}
    first, second = found[0]
    assert [signal.label for signal in first.signals] == ["dog", "cat", "bench"]
    assert [signal.label for signal in second.signals] == ["traffic light", "dog"]
    for signal in (*first.signals, *second.signals):
        theirs = expected[signal.label]
        assert signal.score == pytest.approx(theirs.score, abs=1e-4)
        assert signal.absent is not theirs.present
        assert (signal.negative, signal.positive) == ((0, 1) if theirs.present else (1, 0))
        np.testing.assert_allclose(np.reshape(signal.boxes_xyxy, (-1, 4)), theirs.boxes_xyxy, atol=1e-4)
    assert {signal.absent for verdicts in found for v in verdicts for signal in v.signals} == {True, False}
    assert second.signals[1].spans == (Span(28, 31), Span(37, 40))  # every mention, counted once


def test_candidates_share_a_verdict(served, items):
    with DetectorStream(config(served)) as stream:
        first, second = next(iter(stream.judge(items[:1])))
    assert first.signals[0].score == second.signals[1].score


def test_captions_without_nouns_have_no_signals(served, items):
    with DetectorStream(config(served)) as stream:
        ((first, second),) = stream.judge(items[1:2])
    assert first.signals == second.signals == ()
    assert first.negative == first.positive == 0


def test_in_flight_does_not_change_the_order(served, items):
    with DetectorStream(config(served, in_flight=1)) as one, DetectorStream(config(served)) as many:
        assert list(one.judge(items)) == list(many.judge(items))


@pytest.mark.slow
def test_an_own_sidecar_says_the_same(served, model, items):
    with DetectorStream(config(model=model)) as own, DetectorStream(config(served)) as theirs:
        assert list(own.judge(items)) == list(theirs.judge(items))
        assert own.digest == theirs.digest


@pytest.mark.slow
def test_digest_names_model_and_settings(served, another, tmp_path, monkeypatch):
    def digest(given: DetectionConfig) -> str:
        with DetectorStream(given) as stream:
            return stream.digest

    plain = digest(config(served))
    assert digest(config(served, in_flight=3, timeout=9.0)) == plain
    assert digest(config(served, text_threshold=0.3)) != plain
    (tmp_path / "list.txt").write_text("dog\n")
    other = DetectionConfig((served.address,), phrases=PhrasesConfig("entities", entities=tmp_path / "list.txt"))
    assert digest(other) != plain
    tagger = Path(demo.__file__).parent / "checkpoints" / "tagger"
    lists = {given: PhrasesConfig("entities", entities=given, tagger=tagger) for given in (None, "coco", "lvis")}
    digests = {given: digest(DetectionConfig((served.address,), phrases=phrases)) for given, phrases in lists.items()}
    assert digests[None] == digests["coco"] != digests["lvis"]
    for option in ({"negated": "skip"}, {"negated": "ask"}, {"hypothetical": "ask"}):
        changed = DetectionConfig((served.address,), phrases=PhrasesConfig("entities", **option))
        assert digest(changed) != plain
    with monkeypatch.context() as patch:
        patch.setattr("vigor_jax.rewards.phrases.RULES", 1)
        assert digest(config(served)) != plain
    assert digest(config(another)) != plain


DENYING = (
    "There is no dog. A cat sits there.",
    "A dog sleeps. There is no dog. Possibly there is a car.",
    "There are no other dogs, and a cup without a spoon.",
)


class Found:
    """A client whose detector finds what it is told to."""

    def __init__(self, names: str) -> None:
        self.names, self.asked = names.split(), set()

    def submit(self, request):
        self.asked.update(request.phrases)
        answer = Future()
        boxes = np.zeros((0, 4), np.float32)
        detections = [Detection(name, name in self.names, 0.5, boxes, boxes[:, 0]) for name in request.phrases]
        answer.set_result(SimpleNamespace(detections=detections))
        return answer


def judged(found: str, tmp_path, **options):
    """label, spans' texts, negative, positive, absent, denied of each signal; and what was asked."""
    path = tmp_path / "0.png"
    picture(0).save(path)
    stream = DetectorStream(DetectionConfig(("a:1",), phrases=PhrasesConfig("entities", **options)))
    client = stream._client = Found(found)
    (verdicts,) = stream.judge([ScoreItem("0.png", path, "Describe it.", DENYING)])
    return [
        [
            (s.label, *(text[slice(*span)] for span in s.spans), s.negative, s.positive, s.absent, s.denied)
            for s in verdict.signals
        ]
        for text, verdict in zip(DENYING, verdicts, strict=True)
    ], client.asked


def test_what_is_denied_and_found_is_wrong(tmp_path):
    (first, second, third), asked = judged("dog cat spoon", tmp_path)
    assert first == [("dog", "dog", 1, 0, True, True), ("cat", "cat", 0, 1, False, False)]
    assert second == [("dog", "dog", 0, 1, False, False), ("dog", "dog", 1, 0, True, True)]
    assert third == [("cup", "cup", 1, 0, True, False), ("spoon", "spoon", 1, 0, True, True)]
    assert asked == {"dog", "cat", "cup", "spoon"}  # the car is only supposed


def test_what_is_denied_and_not_found_earns_nothing(tmp_path):
    (first, second, third), _ = judged("cup cat", tmp_path)
    assert first == [("cat", "cat", 0, 1, False, False)]
    assert second == [("dog", "dog", 1, 0, True, False)]
    assert third == [("cup", "cup", 0, 1, False, False)]


def test_denials_can_be_skipped(tmp_path):
    (first, second, third), asked = judged("dog cat spoon", tmp_path, negated="skip")
    assert [[signal[0] for signal in each] for each in (first, second, third)] == [["cat"], ["dog"], ["cup"]]
    assert not any(signal[-1] for signal in (*first, *second, *third))
    assert asked == {"dog", "cat", "cup"}


def test_everything_can_be_asked_as_in_the_paper(tmp_path):
    (first, second, third), asked = judged("dog", tmp_path, negated="ask", hypothetical="ask")
    assert first == [("dog", "dog", 0, 1, False, False), ("cat", "cat", 1, 0, True, False)]
    assert second == [("dog", "dog", "dog", 0, 1, False, False), ("car", "car", 1, 0, True, False)]
    assert [signal[0] for signal in third] == ["dog", "cup", "spoon"]
    assert asked == {"dog", "cat", "car", "cup", "spoon"}


def test_refinement_drops_the_sentence_of_a_wrong_denial(tmp_path):
    path = tmp_path / "0.png"
    picture(0).save(path)
    stream = DetectorStream(DetectionConfig(("a:1",), phrases=PhrasesConfig("entities")))
    stream._client = Found("dog cat")
    (verdicts,) = stream.judge([ScoreItem("0.png", path, "Describe it.", DENYING)])
    assert refine(DENYING[0], [verdicts[0]]).text == "A cat sits there."


def test_an_unreadable_image_is_named(served, items):
    items[2].path.write_bytes(b"no image")
    with DetectorStream(config(served)) as stream, pytest.raises(InputError, match=r"^detection: 2\.png: ") as caught:
        list(stream.judge(items))
    assert str(caught.value).count("2.png") == 1


def test_sidecars_of_different_models_are_refused(served, another):
    both = DetectionConfig((served.address, another.address), phrases=PhrasesConfig("entities"))
    with pytest.raises(InputError, match="serve different models"), DetectorStream(both):
        pass


@pytest.mark.parametrize("which", ["neither", "both"])
def test_one_detector_is_needed(which, tmp_path):
    given = {"addresses": ("a:1",), "model": tmp_path} if which == "both" else {}
    with pytest.raises(InputError, match=f"got {which}"):
        DetectorStream(DetectionConfig(phrases=PhrasesConfig("entities"), **given))


def test_more_phrases_than_a_request_takes(served, items, monkeypatch):
    monkeypatch.setattr("vigor_jax.rewards.detection.PHRASES_A_REQUEST", 2)
    with DetectorStream(config(served)) as stream:
        split = next(iter(stream.judge(items[:1])))
    assert [signal.label for signal in split[0].signals] == ["dog", "cat", "bench"]
