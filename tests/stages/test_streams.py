"""Streams of users: where they are, what they are given, in which order they judge."""

import dataclasses
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from vigor_jax.data.records import store
from vigor_jax.errors import InputError
from vigor_jax.hf.options import ModelConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.records import Candidate, Verdict
from vigor_jax.rewards.detector_config import DetectionConfig
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.stages.score import ScoreStage
from vigor_jax.stages.score_config import ScoreConfig, StreamConfig, as_config
from vigor_jax.stages.stage import RunContext
from vigor_jax.stages.streams import in_order, make_stream, stream_class

MODULE = '''"""Two streams; the second reads what the first says."""

from vigor_jax.records import Signal, Span, Verdict


def verdict(item, candidate, name, negative):
    return Verdict(item.image, candidate, name, (Signal("x", (Span(0, 1),), float(negative), 0.0, 0.0),))


class Letters:
    name = "letters"

    def __init__(self, letter="a", *, times=1):
        self.letter, self.times = letter, times
        self.digest = f"{letter} {times}"

    def judge(self, items):
        for item in items:
            counts = [self.times * text.count(self.letter) for text in item.texts]
            yield [verdict(item, i, self.name, count) for i, count in enumerate(counts)]


class Doubled:
    name = "doubled"
    digest = "d"
    needs = ("letters",)

    def judge(self, items):
        for item in items:
            read = item.verdicts["letters"]
            assert [each.candidate for each in read] == list(range(len(item.texts)))
            yield [verdict(item, i, self.name, 2 * each.signals[0].negative) for i, each in enumerate(read)]


class Summed:
    name = "summed"
    digest = "s"
    needs = ("doubled", "letters")

    def judge(self, items):
        for item in items:
            pairs = zip(item.verdicts["doubled"], item.verdicts["letters"])
            sums = [one.negative + other.negative for one, other in pairs]
            yield [verdict(item, i, self.name, each) for i, each in enumerate(sums)]


class OnDevices:
    name = "on_devices"
    uses_devices = True

    def __init__(self, mesh, scale=1):
        self.mesh, self.scale, self.digest = mesh, scale, str(scale)

    def judge(self, items):
        for item in items:
            yield [verdict(item, i, self.name, self.scale * self.mesh.size) for i in range(len(item.texts))]
'''
TEXTS = ("banana", "a", "tree")


@pytest.fixture
def streams(tmp_path):
    path = tmp_path / "streams.py"
    path.write_text(MODULE)
    return path


@pytest.fixture
def context(tmp_path):
    """Of a run whose candidates are in two parts."""
    folder = tmp_path / "run"
    (tmp_path / "images").mkdir()
    for part in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{part}.png")
        found = [Candidate(f"{part}.png", "?", i, text, (1,), -1.0, "eos") for i, text in enumerate(TEXTS)]
        store.write_part(folder / "candidates", part, 2, found, Candidate)
    checkpoint: Any = SimpleNamespace()
    return RunContext(folder, str(folder), ModelConfig(tmp_path), checkpoint, MeshConfig(), MeshConfig(data=-1, fsdp=1))


class Told:
    """A run that notes what a stage tells it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.barriers: list[str] = []

    def begin(self, result: str) -> None:
        self.begun.append(result)

    def mark(self, result: str) -> str:
        return f"settings of {result}"

    def make_again(self, result: str, what: str) -> None:
        raise InputError(f"{result}: {what}")

    def barrier(self, name: str) -> None:
        self.barriers.append(name)


def stage(context: RunContext, *streams: str | StreamConfig) -> ScoreStage:
    images = str(context.dir.parent / "images")
    return ScoreStage(ScoreConfig(streams), DetectionConfig(), RewardModelConfig(), images)


def negatives(context: RunContext, name: str) -> list[float]:
    return [each.signals[0].negative for each in store.read_parts(context.dir / "verdicts" / name, Verdict)]


def test_options_and_verdicts_of_others(streams, context):
    letters = StreamConfig(f"{streams}:Letters", {"letter": "e", "times": 3})
    doubled = f"{streams}:Doubled"
    judging, told = stage(context, doubled, letters), Told()  # in the order of the config the wrong way round
    found = {result.name: result for result in judging.results(context)}
    assert found[f"score.{doubled}"].after == ("sample", f"score.{streams}:Letters")
    assert found[f"score.{streams}:Letters"].settings == {
        f"score.streams.{streams}:Letters.letter": "e",
        f"score.streams.{streams}:Letters.times": 3,
    }
    assert list(judging.streams) == ["doubled", "letters"]  # as configured: the order of selection's columns
    judging.run(context, told)
    assert told.begun == [f"score.{streams}:Letters", f"score.{doubled}"]
    assert negatives(context, "letters") == 2 * [0, 0, 6]
    assert negatives(context, "doubled") == 2 * [0, 0, 12]


def test_processes_meet_at_the_same_barriers_whatever_is_left_to_do(streams, context):
    names = [f"{streams}:{name}" for name in ("Letters", "Doubled")]
    first, again = Told(), Told()
    stage(context, *names).run(context, first)
    stage(context, *names).run(context, again)  # another process, for which nothing is left
    assert (first.barriers, again.begun) == (again.barriers, [])
    assert len(set(first.barriers)) == 2


def test_a_stream_with_the_name_of_ours_is_not_taken_for_it(streams, context):
    streams.write_text(MODULE.replace('"letters"', '"detector"').replace('"on_devices"', '"reward_model"'))
    for name in ("Letters", "OnDevices"):
        for _ in range(2):  # the second finds all verdicts, and does not ask a sidecar whether it made them
            judging = stage(context, f"{streams}:{name}")
            judging.run(context, Told())
            assert not judging.has_reward_model
            assert [result.after for result in judging.results(context)] == [("sample",)]
            assert list(judging.programs(None)) == []


def test_options_are_compared_as_json(streams, context):
    judging = stage(context, StreamConfig(f"{streams}:Letters", {"letter": {1: (2, 3)}}))
    (result,) = judging.results(context)
    assert result.settings == {f"score.streams.{streams}:Letters.letter": {"1": [2, 3]}}
    with pytest.raises(InputError, match="its options are no plain values"):
        stage(context, StreamConfig(f"{streams}:Letters", {"letter": object()}))


def test_verdicts_of_other_candidates_are_not_read(streams, context):
    stage(context, f"{streams}:Letters").run(context, Told())
    shutil.rmtree(context.dir / "candidates")
    for part in range(2):
        found = [Candidate(f"{part}.png", "?", i, text, (2,), -2.0, "eos") for i, text in enumerate(reversed(TEXTS))]
        store.write_part(context.dir / "candidates", part, 2, found, Candidate)
    with pytest.raises(InputError, match=r"part-00000-of-00002.* is of other candidates .* run the stage score again"):
        stage(context, f"{streams}:Letters", f"{streams}:Doubled").run(context, Told())


def test_all_that_need_no_devices_judge_ahead(streams, context):
    """Also those that need others, after these have judged a part; the verdicts are those of judging afterwards."""
    names = [f"{streams}:{name}" for name in ("Summed", "Doubled", "Letters", "OnDevices")]
    told = Told()
    with stage(context, *names).ahead(context, told) as on_part:
        on_part(0, 2)
        on_part(1, 2)
    assert sorted(told.begun) == [f"score.{streams}:{name}" for name in ("Doubled", "Letters", "Summed")]
    verdicts = context.dir / "verdicts"
    ahead = {path.relative_to(verdicts): path.read_bytes() for path in verdicts.rglob("*.parquet")}
    assert sorted({path.parts[0] for path in ahead}) == ["doubled", "letters", "summed"]
    assert negatives(context, "summed") == [9.0, 3.0, 0.0] * 2
    shutil.rmtree(verdicts)
    stage(context, *names).run(context, Told())
    assert {path: (verdicts / path).read_bytes() for path in ahead} == ahead


def test_ahead_of_parts_that_are_there(streams, context):
    """What a stream has judged in an earlier run it tells all the same; what is complete needs nobody to be told."""
    letters, doubled = f"{streams}:Letters", f"{streams}:Doubled"
    stage(context, letters).run(context, Told())
    (last, *_) = sorted((context.dir / "verdicts" / "letters").iterdir(), reverse=True)
    last.unlink()
    with stage(context, letters, doubled).ahead(context, Told()) as on_part:
        on_part(0, 2)
    assert [path.name for path in (context.dir / "verdicts" / "doubled").iterdir()] == ["part-00000-of-00002.parquet"]
    stage(context, letters, doubled).run(context, Told())
    assert negatives(context, "doubled") == [6.0, 2.0, 0.0] * 2


def test_who_needs_a_stream_that_fails_judges_nothing(streams, context):
    (context.dir.parent / "images" / "1.png").unlink()
    names = [f"{streams}:{name}" for name in ("Letters", "Doubled")]
    ahead = stage(context, *names).ahead(context, Told())
    on_part = ahead.__enter__()
    on_part(0, 2)
    on_part(1, 2)
    with pytest.raises(InputError, match=r"1\.png has candidates and is gone"):
        ahead.__exit__(None, None, None)
    for name in ("letters", "doubled"):
        assert [path.name for path in (context.dir / "verdicts" / name).iterdir()] == ["part-00000-of-00002.parquet"]


def test_a_stream_on_devices_is_given_the_mesh(streams, context):
    stage(context, StreamConfig(f"{streams}:OnDevices", {"scale": 7})).run(context, Told())
    assert negatives(context, "on_devices") == [7.0 * context.inference_mesh.size] * 6


def test_other_options_are_refused_and_not_mixed(streams, context):
    stage(context, f"{streams}:Letters").run(context, Told())
    other = stage(context, StreamConfig(f"{streams}:Letters", {"times": 2}))
    (store_part, *_) = sorted((context.dir / "verdicts" / "letters").iterdir())
    store_part.unlink()
    with pytest.raises(InputError, match="was made with another letters"):
        other.run(context, Told())


def test_stream_class(streams):
    assert stream_class(StreamConfig("detector")).name == "detector"
    assert stream_class(StreamConfig(f"{__name__}:Named")) is Named
    assert stream_class(StreamConfig(f"{streams}:Letters")) is stream_class(StreamConfig(f"{streams}:Letters"))
    (streams.parent / "broken.py").write_text("class X(:")
    for path, message in {
        f"{__name__}:Namedd": "cannot be imported .*is its folder on PYTHONPATH",
        "no.such.module:X": "cannot be imported",
        "no/such/file.py:X": "cannot be imported",
        f"{streams.parent}/broken.py:X": "cannot be imported",
        f"{streams}:verdict": "is no reward stream",
        "json:loads": "is no reward stream",
    }.items():
        with pytest.raises(InputError, match=message):
            stream_class(StreamConfig(path))


class Named:
    name = "named"
    digest = ""

    def judge(self, items):
        yield from ()


@dataclasses.dataclass
class Needing:
    """A stream that needs others, made on the spot."""

    name: str
    needs: tuple[str, ...]

    def judge(self, items):
        yield from ()


A, B = Needing("a", ("b",)), Needing("b", ("a",))
C, D = Needing("c", ("detector",)), Needing("d", ("c",))
AGAIN = Needing("c", ())


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (("D", "C", "detector"), ["detector", "c", "d"]),
        (("detector", "reward_model"), ["detector", "reward_model"]),
        (("A", "B"), "a, b need each other"),
        (("C",), "c needs the verdicts of detector; add that stream"),
        (("detector", "C", "AGAIN"), "are both called 'c'"),
    ],
)
def test_order(given, wanted):
    paths = [StreamConfig(name if name.islower() else f"{__name__}:{name}") for name in given]
    if isinstance(wanted, list):
        assert list(in_order(paths)) == wanted
    else:
        with pytest.raises(InputError, match=wanted):
            in_order(paths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leter": "b"}, "unexpected keyword argument 'leter' in its options; .*letter"),
        ({"letter": "b", "times": 1, "more": 2}, "'more' in its options"),
    ],
)
def test_wrong_options_are_one_line(streams, options, message):
    with pytest.raises(InputError, match=message) as error:
        make_stream(StreamConfig(f"{streams}:Letters", options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong", ["detectr", "a.py:", ":X", "[{pth: my.py:Stream}]", StreamConfig("detector", {"model": "x"})]
)
def test_no_stream(wrong):
    with pytest.raises(InputError, match=r"score\.streams: (expected detector|detector takes no options)"):
        as_config(wrong)
