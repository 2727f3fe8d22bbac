"""A detector and a second one: real sidecars, each asked alone and both together, and what happens when one fails."""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import signal
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import vigor_jax as vj
from detector_bridge.client import BlockingClient, ClientConfig
from detector_bridge.messages import Detection, Request
from tests.detector_bridge.sidecar import is_alive, picture, sidecar, wait_until
from tests.detector_bridge.tiny_families import write_owl
from tests.rewards.test_detection import make_items
from vigor_jax import cli, demo, fingerprint
from vigor_jax.config import TrainConfig, with_pinned_models
from vigor_jax.errors import InputError
from vigor_jax.records import ScoreItem
from vigor_jax.rewards.detection import DetectorStream
from vigor_jax.rewards.detector_config import DetectionConfig, SecondDetectorConfig
from vigor_jax.rewards.entities import entities_file
from vigor_jax.rewards.phrases import RULES, PhrasesConfig

TEXTS = (
    ("A dog and two cats sit by a bench.", "There is a traffic light. A dog! There is no cup."),
    ("Nothing of note.", ""),
    ("A car, a car and a bus.", "A dog on a car, without a chair or a table."),
)
HIGH = {"box_threshold": 0.5, "text_threshold": 0.5}


@pytest.fixture
def items(tmp_path):
    return make_items(tmp_path, TEXTS)


def config(first, second=None, **changes):
    """Of sidecars that serve; changes are of the second one."""
    phrases = PhrasesConfig(extractor="entities")
    asked = SecondDetectorConfig((second.address,), **changes) if second else None
    return DetectionConfig((first.address,), phrases=phrases, second=asked)


def judge(given, items):
    """The verdicts on all texts, in order."""
    with DetectorStream(given) as stream:
        return list(itertools.chain(*stream.judge(items)))


def by_phrase(verdict):
    return {(signal.label, signal.denied): signal for signal in verdict.signals}


def alone(given, section):
    """The same config with one of its detectors only."""
    if section == "first":
        return dataclasses.replace(given, second=None)
    place = {field.name: getattr(given.second, field.name) for field in dataclasses.fields(given.second)}
    return DetectionConfig(**place, phrases=given.phrases)


@pytest.mark.parametrize("other", ["another", "itself, stricter"])
def test_two_say_what_each_alone_agrees_on(served, another, items, other):
    given = config(served, another) if other == "another" else config(served, served, **HIGH)
    together, first, second = (judge(each, items) for each in (given, alone(given, "first"), alone(given, "second")))
    seen = set()
    for merged, one, two in zip(together, first, second, strict=True):
        assert (merged.image, merged.candidate, merged.stream) == (one.image, one.candidate, "detector")
        ones, twos = by_phrase(one), by_phrase(two)
        for key, found in by_phrase(merged).items():
            mine, theirs = ones[key], twos[key]
            alike = mine.absent == theirs.absent
            wanted = (mine.negative, mine.positive, mine.absent, mine.boxes_xyxy) if alike else (0, 0, False, ())
            assert (found.negative, found.positive, found.absent, found.boxes_xyxy) == wanted
            assert (found.score, found.spans) == (mine.score, mine.spans)
            seen.add((found.negative, found.positive))
        assert by_phrase(merged).keys() == {key for key in ones if not key[1]} | (ones.keys() & twos.keys())
    assert seen == {(0, 0), (0, 1), (1, 0)} if other == "another" else {(0, 0)} < seen


@pytest.mark.slow
def test_the_demos_detector_and_another_kind_of_model(items, tmp_path):
    """An OWLv2 whose weights are random; both sidecars are ours."""
    demos = Path(demo.__file__).parent / "checkpoints" / "detector"
    second = SecondDetectorConfig(model=write_owl(tmp_path / "owlv2"), box_threshold=0.2, text_threshold=1.0)
    given = DetectionConfig(model=demos, phrases=PhrasesConfig("entities"), second=second)
    together, first, other = (judge(each, items) for each in (given, alone(given, "first"), alone(given, "second")))
    found = {signal.positive for verdict in other for signal in verdict.signals}
    assert found == {0, 1}  # although no score is above a text threshold of 1, which this model has no use for
    for merged, one, two in zip(together, first, other, strict=True):
        for key, judged in by_phrase(merged).items():
            alike = by_phrase(one)[key].absent == by_phrase(two)[key].absent
            assert judged.positive + judged.negative == alike


def test_how_often_they_differ_is_told(served, items, caplog):
    given = config(served, served, **HIGH)
    one, two = (judge(alone(given, which), items) for which in ("first", "second"))
    caplog.set_level(logging.INFO)
    judge(given, items)
    phrases = ("dog", "cat", "bench", "traffic light", "cup"), (), ("car", "bus", "dog", "chair", "table")
    with BlockingClient(ClientConfig(given.addresses)) as client:
        scores = [
            found.score
            for item, wanted in zip(items, phrases, strict=True)
            if wanted
            for found in client.submit(Request(item.path, wanted)).result().detections
        ]
    differ = sum(0.25 < score <= 0.5 for score in scores)
    assert one != two
    assert 0 < differ < len(scores) == 10
    assert caplog.messages[-1] == (
        f"detection: the two detectors differ on {differ} of 10 phrases ({differ}0.0%); "
        "these are neither right nor wrong"
    )
    caplog.clear()
    judge(dataclasses.replace(given, second=None), items)
    assert not [line for line in caplog.messages if "differ" in line]


def test_the_digest_is_of_both(served, another):
    def digest(given):
        with DetectorStream(given) as stream:
            return stream.digest

    first = digest(config(served))
    both = digest(config(served, another))
    others = {digest(given) for given in (config(another), config(another, served), config(served, served))}
    assert len({first, both} | others) == 5
    assert digest(config(served, another, in_flight=3, timeout=9.0, connect_timeout=8.0)) == both
    for change in ({"text_threshold": 0.3}, {"box_threshold": 0.3}, {"options": ("--short-side", "64")}):
        assert digest(config(served, another, **change)) != both
    # Without a second one it is what it was before there could be one, so verdicts on disk stay valid.
    with BlockingClient(ClientConfig((served.address,))) as client:
        weights = client.info()[0].digest
    settings = [weights, 0.25, 0.25, RULES, "entities", "check", "skip", *_contents(PhrasesConfig("entities"))]
    assert first == hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _contents(phrases):
    paths = (phrases.non_visual, entities_file(phrases.entities), phrases.tagger)
    return [hashlib.sha256(path.read_bytes()).hexdigest() if path else "" for path in paths]


# Reading ahead


class Slow:
    """A detector that answers when it is told to."""

    def __init__(self, present):
        self.present, self.waiting, self.asked = present, [], 0

    def submit(self, request):
        self.asked += 1
        self.waiting.append((Future(), request))
        return self.waiting[-1][0]

    def answer(self):
        future, request = self.waiting.pop(0)
        boxes = np.zeros((0, 4), np.float32)
        found = [Detection(name, self.present, 0.5, boxes, boxes[:, 0]) for name in request.phrases]
        future.set_result(SimpleNamespace(detections=found))


@pytest.mark.parametrize(("first", "second", "most"), [(3, 64, 3), (64, 2, 2), (64, 64, 20)])
def test_both_are_busy_at_once_and_no_image_is_asked_too_early(tmp_path, first, second, most):
    picture(0).save(tmp_path / "0.png")
    items = [ScoreItem("0.png", tmp_path / "0.png", "?", ("A dog.",)) for _ in range(20)]
    given = DetectionConfig(("a:1",), in_flight=first, phrases=PhrasesConfig("entities"))
    stream = DetectorStream(dataclasses.replace(given, second=SecondDetectorConfig(("b:1",), in_flight=second)))
    clients = stream._client, stream._second = Slow(True), Slow(False)
    found = []
    worker = threading.Thread(target=lambda: found.extend(stream.judge(iter(items))))
    worker.start()
    for done in range(20):
        ahead = min(done + most, 20)
        wait_until(lambda: {client.asked for client in clients} == {ahead})  # noqa: B023
        assert len(found) <= done
        for client in clients if done % 2 else reversed(clients):
            client.answer()
    worker.join(30)
    assert len(found) == 20
    assert {(s.negative, s.positive) for (verdict,) in found for s in verdict.signals} == {(0, 0)}


# Failures


def refused(given):
    with pytest.raises(InputError) as caught, DetectorStream(given):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def children():
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@pytest.mark.slow
@pytest.mark.main
def test_a_second_that_cannot_be_reached_is_named_and_the_first_is_closed(model):
    second = SecondDetectorConfig(("127.0.0.1:1",), connect_timeout=1.0)
    before = children()
    message = refused(DetectionConfig(model=model, phrases=PhrasesConfig("entities"), second=second))
    assert message.startswith("detection.second: 127.0.0.1:1")
    assert children() == before


def test_a_second_that_cannot_be_started_is_named(served, tmp_path):
    second = SecondDetectorConfig(model=tmp_path / "nothing")
    message = refused(dataclasses.replace(config(served), second=second))
    assert message.startswith("detection.second: sidecar: --model ")
    assert "does not exist" in message


def test_a_first_that_cannot_be_reached_is_named(another):
    given = config(SimpleNamespace(address="127.0.0.1:1"), another)
    assert refused(dataclasses.replace(given, connect_timeout=1.0)).startswith("detection: 127.0.0.1:1")


@pytest.mark.parametrize("which", ["neither", "both"])
def test_one_place_of_the_second_is_needed(tmp_path, which):
    second = SecondDetectorConfig(**({"addresses": ("a:1",), "model": tmp_path} if which == "both" else {}))
    with pytest.raises(InputError, match=rf"^detection\.second: give either addresses.*got {which}$"):
        DetectorStream(DetectionConfig(("a:1",), second=second))


def test_addresses_of_the_second_that_serve_different_models(served, another):
    second = SecondDetectorConfig((served.address, another.address))
    message = refused(dataclasses.replace(config(served), second=second))
    assert message == (
        f"detection.second: {served.address} and {another.address} serve different models; give one model's"
    )


@pytest.mark.slow
@pytest.mark.main
def test_a_second_that_is_killed_is_named_with_the_image(served, model, items):
    with sidecar(model) as mortal, DetectorStream(config(served, mortal, timeout=3.0)) as stream:
        judged = stream.judge(iter(items))
        mortal.process.kill()
        mortal.process.wait()
        with pytest.raises(InputError, match=r"^detection\.second: 0\.png: no detections within 3 s") as caught:
            list(judged)
    assert str(caught.value).count("0.png") == 1


@pytest.mark.slow  # of the first, `test_client.py` tests it at each gate
def test_a_second_sidecar_of_ours_that_is_killed_is_started_again(served, model, items):
    """And both end with the stream."""
    second = SecondDetectorConfig(model=model, **HIGH)
    given = dataclasses.replace(config(served), second=second)
    wanted = judge(given, items)
    before = children()
    with DetectorStream(given) as stream:
        (pid,) = map(int, children() - before)
        judged = stream.judge(iter([*items, *items]))
        first = next(judged)
        os.kill(pid, signal.SIGKILL)
        assert list(itertools.chain(first, *judged)) == [*wanted, *wanted]
        (again,) = map(int, children() - before)
        assert again != pid
    wait_until(lambda: not is_alive(again))
    assert children() == before


# Options


def options(*given):
    return cli.parse(TrainConfig, ["--run.dir", "r", "--model.path", "m", *given], description="").detection


def test_options_of_a_run():
    assert options("--detection.model", "one").second is None
    found = options(
        *("--detection.model", "one", "--detection.second.model", "two"),
        *("--detection.second.options", '["--threads", "1"]'),
    )
    assert found.model == "one"
    assert found.second == SecondDetectorConfig(model="two", options=("--threads", "1"))
    several = options("--detection.second.addresses", "a:1,b:2", "--detection.second.box_threshold", "0.1")
    assert several.second == SecondDetectorConfig(("a:1", "b:2"), box_threshold=0.1)
    nearest = r"detection\.second\.box_treshold; the nearest known one is detection\.second\.box_threshold"
    with pytest.raises(InputError, match=nearest):
        options("--detection.second.box_treshold", "0.1")


def test_a_fingerprint_has_the_second_where_it_is_given():
    plain = fingerprint.of(options("--detection.model", "one"), "detection")
    assert not [key for key in plain if "second" in key]
    given = options("--detection.model", "one", "--detection.second.addresses", "a:1")
    both = fingerprint.of(given, "detection")
    assert both == plain | {
        "detection.second.options": [],
        "detection.second.box_threshold": 0.25,
        "detection.second.text_threshold": 0.25,
    }
    assert fingerprint.of(options("--detection.model", "x", "--detection.second.model", "y"), "detection") == both


def test_a_greeting_has_less_time_for_both():
    given = DetectionConfig(("a:1",), second=SecondDetectorConfig(("b:1",))).greeted_within(3.0)
    assert (given.connect_timeout, given.second.connect_timeout) == (3.0, 3.0)
    assert DetectionConfig(("a:1",)).greeted_within(3.0) == DetectionConfig(("a:1",), connect_timeout=3.0)


def test_models_on_the_hub_are_pinned(monkeypatch):
    monkeypatch.setattr("vigor_jax.config.pinned", lambda name: f"{name}@commit")

    def pinned(*given):
        given = ["--run.dir", "r", "--model.path", "m", "--detection.second.model", "o/b", *given]
        found = with_pinned_models(cli.parse(TrainConfig, given, description="")).detection
        return found.model, found.second.model

    assert pinned("--run.stages", "score", "--detection.model", "o/a") == ("o/a@commit", "o/b@commit")
    assert pinned("--run.stages", "score", "--detection.addresses", "a:1") == (None, "o/b@commit")
    assert pinned("--run.stages", "sft", "--detection.model", "o/a") == ("o/a", "o/b")
    by_another = ("--run.stages", "score", "--detection.second.backend", "groundingdino")
    assert pinned(*by_another, "--detection.model", "o/a") == ("o/a@commit", "o/b")


def test_from_python(served, another, items):
    wanted = [
        (verdict.negative, verdict.positive, verdict.signals) for verdict in judge(config(served, another), items)
    ]
    phrases = PhrasesConfig("entities")
    for second in ({"addresses": [another.address]}, SecondDetectorConfig((another.address,))):
        with vj.Detector(served.address, phrases=phrases, second=second) as detector:
            found = detector.judge([item.path for item in items], [list(texts) for texts in TEXTS])
        assert [(each.negative, each.positive, each.signals) for each in found] == wanted
