"""The whole loop by its command, in real processes, with a real sidecar: killed, divided, changed, repeated."""

import json
import random
import re
import runpy
import shutil
import signal
import socket
import time
from datetime import datetime
from pathlib import Path

import duckdb
import PIL.Image
import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.detector_bridge.sidecar import sidecar
from tests.detector_bridge.tiny_detector import write_transformers
from tests.pipeline.loop_world import ROOT, finish, loop, start
from vigor_jax import cli, train
from vigor_jax.data.records.store import read_parts
from vigor_jax.records import Candidate, Selection, Verdict
from vigor_jax.rewards.sentences import split_sentences

pytestmark = pytest.mark.slow

STAGES = ("train_reward", "sample", "score", "select", "sft", "export")


@pytest.fixture(scope="module")
def world(taught_world):
    return taught_world


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """A run from begin to end, which also fills the cache of compilations."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    finish(start(world, loop(world, run_dir)))
    return run_dir


@pytest.fixture
def copy(undisturbed, tmp_path):
    """A complete run to change something about."""
    return shutil.copytree(undisturbed, tmp_path / "run")


def artifacts(run_dir: Path) -> dict[str, bytes]:
    """What a run is for, as bytes by name: all records, targets, and the weights of both models."""
    names = ["targets.json", "summary.json", "export/model.safetensors", "reward_model/model.safetensors"]
    files = [*run_dir.rglob("*.parquet"), *(run_dir / name for name in names)]
    return {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in files}


def assert_same_artifacts(found: Path, expected: Path) -> None:
    ours, theirs = artifacts(found), artifacts(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []


def refusal(world: Path, arguments: list[str]) -> str:
    """The one line that a command is refused with."""
    errors = finish(start(world, arguments), code=2)
    (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
    assert "Traceback" not in errors
    return line


def test_artifacts(world, undisturbed):
    candidates, selections = (
        list(read_parts(undisturbed / folder, kind))
        for folder, kind in (("candidates", Candidate), ("selections", Selection))
    )
    images = sorted(path.name for path in (world / "images").iterdir())
    assert [candidate.image for candidate in candidates] == [image for image in images for _ in range(3)]
    for stream in ("detector", "reward_model"):
        verdicts = list(read_parts(undisturbed / "verdicts" / stream, Verdict))
        assert [(v.image, v.candidate) for v in verdicts] == [(c.image, c.candidate) for c in candidates]
        assert len({signal.score for verdict in verdicts for signal in verdict.signals}) > 10
        for candidate, verdict in zip(candidates, verdicts, strict=True):
            for each in verdict.signals:
                for start_, end in each.spans:
                    if stream == "detector":
                        assert candidate.text[start_:end].lower() == each.label
                    else:
                        assert (start_, end) in split_sentences(candidate.text)
    claims = list(read_parts(undisturbed / "verdicts" / "claims", Verdict))
    assert [(v.image, v.candidate) for v in claims] == [(c.image, c.candidate) for c in candidates]
    assert {(s.kind, s.label) for v in claims for s in v.signals} == {("attribute", "triangle: red")}
    targets = json.loads((undisturbed / "targets.json").read_text())
    kept = [(selection.image, selection.refined) for selection in selections if not selection.reason]
    assert [(t["image"], t["conversations"][1]["value"]) for t in targets] == kept
    assert any(selection.dropped for selection in selections)
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert (summary["images"], summary["candidates"], summary["targets"]) == (12, 36, len(targets))
    evaluations = [json.loads(line) for line in (undisturbed / "metrics" / "reward_eval.jsonl").open()]
    assert evaluations[-1]["errors"]["object"]["count"] > 0
    number = duckdb.sql(f"select count(*) from '{undisturbed}/verdicts/*/*.parquet'").fetchall()[0][0]
    assert number == 3 * len(candidates)


def test_transformers_loads_both_models(world, undisturbed):
    for name in ("export", "reward_model"):
        model, report = transformers.LlavaForConditionalGeneration.from_pretrained(
            undisturbed / name, dtype=torch.float32, output_loading_info=True
        )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        processor = transformers.AutoProcessor.from_pretrained(undisturbed / name)
        image = PIL.Image.open(world / "images" / "000.png")
        inputs = processor(images=image, text="USER: <image>\nDescribe the image. ASSISTANT:", return_tensors="pt")
        assert model.generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]
        before, after = (load_file(d / "model.safetensors") for d in (world / "model", undisturbed / name))
        assert before.keys() == after.keys()
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert any("language_model" in key for key in changed)
        assert not any("vision_tower" in key for key in changed)


def stage_times(run_dir: Path) -> dict[str, float]:
    """Seconds that each stage took, from the log."""
    found = re.findall(
        r"^(\S+ \S+),(\d+) vigor_jax.pipeline.run stage (\w+)$", (run_dir / "log.txt").read_text(), re.MULTILINE
    )
    starts = [(name, datetime.fromisoformat(f"{second}.{ms}")) for second, ms, name in found]
    ends = [*(begin for _, begin in starts[1:]), starts[-1][1]]
    return {name: (end - begin).total_seconds() for (name, begin), end in zip(starts, ends, strict=True)}


def wait_for_stage(run_dir: Path, stage: str, process) -> None:
    log, deadline = run_dir / "log.txt", time.monotonic() + 300
    seen = log.stat().st_size if log.exists() else 0
    while not (log.exists() and f"vigor_jax.pipeline.run stage {stage}\n" in log.read_text()[seen:]):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def sidecars(process) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "detector_bridge.server" in " ".join(child.cmdline())]


@pytest.mark.parametrize(
    "stages",
    [
        # Fine-tuning is killed in `test_train.py`.
        pytest.param(("train_reward", "score"), marks=pytest.mark.main),
        STAGES,
        ("train_reward", "train_reward", "sample", "sample", "score", "select", "sft", "sft", "export"),
    ],
    ids=["two stages", "each once", "some twice"],
)
def test_kills_change_no_byte(world, undisturbed, tmp_path, stages):
    """`kill -9` at random moments of one run's life, at least one in every stage that is named."""
    moments, times, killed = random.Random(0), stage_times(undisturbed), []
    run_dir = tmp_path / "killed"
    for stage in stages:
        longest = 0.4 * times[stage]  # it had to compile what is now in the cache
        for _ in range(5):  # where the stage was over before the kill came, again and sooner
            process = start(world, loop(world, run_dir))
            wait_for_stage(run_dir, stage, process)
            time.sleep(moments.uniform(0, longest))
            process.kill()
            process.communicate()
            if process.returncode == -signal.SIGKILL:
                killed.append(re.findall(r"run stage (\w+)", (run_dir / "log.txt").read_text())[-1])
            if stage in killed:
                break
            longest /= 4
    assert set(killed) >= set(stages)
    finish(start(world, loop(world, run_dir)))
    assert_same_artifacts(run_dir, undisturbed)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(world / "detector") in (p.info["cmdline"] or [])]


def test_the_sidecar_may_die(world, undisturbed, copy):
    """Twice while it scores; the trainer does not notice."""
    verdicts = copy / "verdicts" / "detector"
    shutil.rmtree(verdicts)
    process = start(world, loop(world, copy))
    deaths, deadline = 0, time.monotonic() + 300
    while deaths < 2:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        if len(list(verdicts.glob("part-*"))) > deaths:
            for child in sidecars(process):
                child.kill()
                deaths += 1
        time.sleep(0.005)
    finish(process)
    assert_same_artifacts(copy, undisturbed)


def assert_same_but_for_rounding(found: Path, expected: Path) -> None:
    """The same candidates, detections, choices and targets; scores and weights to the last bits of float32."""
    for name in ("targets.json", *(path.relative_to(expected) for path in expected.rglob("candidates/*.parquet"))):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    for stream, tolerance in ("detector", 0.0), ("reward_model", 1e-5):
        ours, theirs = (list(read_parts(run / "verdicts" / stream, Verdict)) for run in (found, expected))
        for one, other in zip(ours, theirs, strict=True):
            assert [(s.label, s.spans) for s in one.signals] == [(s.label, s.spans) for s in other.signals]
            scores = [s.score for s in other.signals]
            assert [s.score for s in one.signals] == pytest.approx(scores, rel=0, abs=tolerance)
    selections = (read_parts(run / "selections", Selection) for run in (found, expected))
    for one, other in zip(*selections, strict=True):
        # Equal texts are equally good but for rounding, so that it may be either's index.
        assert (one.image, one.text, one.refined, one.reason) == (other.image, other.text, other.refined, other.reason)
    for name in ("export", "reward_model"):
        ours, theirs = (load_file(run / name / "model.safetensors") for run in (found, expected))
        assert ours.keys() == theirs.keys()
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("processes", "devices", "mesh", "assert_same"),
    [
        (2, 1, {"mesh__fsdp": 2}, assert_same_artifacts),
        # Sums over more than two devices are added up in another order.
        (4, 2, {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}, assert_same_but_for_rounding),
    ],
    ids=["2 x 1", "4 x 2"],
)
def test_several_processes_make_what_one_does(world, tmp_path, processes, devices, mesh, assert_same):
    """The same devices, all in one process and in several."""
    finish(start(world, loop(world, tmp_path / "one", **mesh), devices=processes * devices))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    place = {"distributed__coordinator": coordinator, "distributed__num_processes": processes}
    started = [
        start(world, loop(world, tmp_path / "many", distributed__process_id=index, **mesh, **place), devices=devices)
        for index in range(processes)
    ]
    for process in started:
        finish(process)
    assert_same(tmp_path / "many", tmp_path / "one")


def test_one_device_makes_the_same_records(undisturbed, world, tmp_path):
    """Two devices and one: the same texts, choices and targets; numbers within rounding."""
    finish(start(world, loop(world, tmp_path, mesh__fsdp=2, run__stages="sample"), devices=2))
    for ours, theirs in zip(
        read_parts(tmp_path / "candidates", Candidate), read_parts(undisturbed / "candidates", Candidate), strict=True
    ):
        assert (ours.image, ours.text, ours.token_ids) == (theirs.image, theirs.text, theirs.token_ids)
        assert ours.mean_logprob == pytest.approx(theirs.mean_logprob, abs=1e-5)


def test_a_finished_run_does_nothing(world, copy):
    before = artifacts(copy)
    said = finish(start(world, loop(world, copy)))
    for text in ("all 4 parts are there", "all verdicts of detector", "updates are done", "holds step 6 already"):
        assert text in said
    assert artifacts(copy) == before


def test_changed_settings_name_what_they_make_stale(world, copy):
    line = refusal(world, loop(world, copy, select__fusion__gamma=2.0))
    assert "select.fusion.gamma 1.0, which is now 2.0; this makes select, sft, export stale" in line
    assert "--run.overwrite true" in line
    line = refusal(world, loop(world, copy, sample__sampling__seed=1))
    assert "sample.sampling.seed 0, which is now 1" in line
    assert "makes sample, score.detector, score.reward_model, score.claims, select, sft, export stale" in line
    line = refusal(world, loop(world, copy, claims__judge__iou=0.6))
    assert "claims.judge.iou 0.5, which is now 0.6; this makes score.claims, select, sft, export stale" in line
    line = refusal(world, loop(world, copy, detection__text_threshold=0.5))
    assert "this makes score.detector, score.claims, select, sft, export stale" in line
    line = refusal(world, loop(world, copy, claims__kinds="number,place"))  # another question for the detector, too
    assert "this makes score.detector, score.claims, select, sft, export stale" in line
    line = refusal(world, loop(world, copy, select__fusion__gamma=2.0, run__overwrite="true", run__stages="select,sft"))
    assert "add export to run.stages" in line
    # How fast something goes, and where it runs, may change.
    finish(start(world, loop(world, copy, sample__sampling__batch_size=2, detection__in_flight=3)))


def test_overwrite_makes_again_what_is_stale_and_nothing_else(world, copy):
    before = artifacts(copy)
    finish(start(world, loop(world, copy, select__strategy="random", run__overwrite="true")))
    after = artifacts(copy)
    changed = {name.split("/")[0] for name in after if after[name] != before[name]}
    assert changed == {"selections", "targets", "targets.json", "summary.json", "export"}
    assert {selection.decided_by for selection in read_parts(copy / "selections", Selection)} == {"random"}


def test_a_part_of_the_stages(world, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    finish(start(world, loop(world, run_dir, run__stages="sample,score", score__streams="detector")))
    assert not (run_dir / "selections").exists()
    changes = {"run__stages": "select,sft", "score__streams": "detector", "select__fusion__rule": "balanced"}
    finish(start(world, loop(world, run_dir, **changes)))
    assert (run_dir / "checkpoints" / "sft").exists()
    assert not (run_dir / "export").exists()


def flip(path: Path, place: float = 0.4) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def test_damaged_parts_are_named_and_made_again(world, undisturbed, copy):
    """One after the other, from the last stage to the first: removed and made again, all is as it was."""
    for name, stage in (
        ("targets", "select"),
        ("selections", "select"),
        ("verdicts/detector", "score"),
        ("candidates", "sample"),
    ):
        for later in ("selections", "targets"):  # else nobody would read what is damaged
            shutil.rmtree(copy / later)
            if later == name:
                shutil.copytree(undisturbed / later, copy / later)
        path = copy / name / "part-00001-of-00004.parquet"
        flip(path)
        line = refusal(world, loop(world, copy))
        assert f"{path}: the part is damaged" in line
        assert f"remove it and run the stage {stage} again" in line
        path.unlink()
        finish(start(world, loop(world, copy)))
        assert_same_artifacts(copy, undisturbed)


def test_parts_of_another_run_are_refused(world, undisturbed, copy, tmp_path):
    """Of the same images, sampled with another seed: one of them, and all of them."""
    other = tmp_path / "other"
    changes = {"run__stages": "sample", "score__streams": "detector"}
    finish(start(world, loop(world, other, sample__sampling__seed=1, **changes)))
    shutil.copy(other / "candidates" / "part-00002-of-00004.parquet", copy / "candidates")
    assert "parts were written with different settings: made_with" in refusal(world, loop(world, copy))
    shutil.rmtree(copy / "candidates")
    shutil.copytree(other / "candidates", copy / "candidates")
    line = refusal(world, loop(world, copy))
    assert f"{copy}/candidates/part-00000-of-00004.parquet is from a run with other settings" in line
    assert "--run.overwrite true" in line


def test_changed_targets_are_refused(world, undisturbed, copy):
    targets = copy / "targets.json"
    flip(targets)
    line = refusal(world, loop(world, copy, run__stages="sft"))
    assert f"{targets}: expected SHA-256" in line
    assert "run the stage select" in line
    finish(start(world, loop(world, copy)))
    assert_same_artifacts(copy, undisturbed)


def test_another_detector_is_refused(world, undisturbed, copy, tmp_path):
    """By digest, whether it is asked for more verdicts or they are all there."""
    write_transformers(tmp_path / "another", seed=1)
    with sidecar(tmp_path / "another") as served:
        arguments = loop(world, copy, detection__addresses=served.address)
        where = arguments.index("--detection.model")
        del arguments[where : where + 2]
        assert "was made with another detector: its digest was" in refusal(world, arguments)
        next((copy / "verdicts" / "detector").iterdir()).unlink()
        assert "was made with another detector: its digest was" in refusal(world, arguments)
        finish(start(world, [*arguments, "--run.overwrite", "true"]))
    after = list(read_parts(copy / "verdicts" / "detector", Verdict))
    assert len(after) == 36
    assert after != list(read_parts(undisturbed / "verdicts" / "detector", Verdict))


def test_a_vanished_image_is_named(world, copy, tmp_path):
    images = shutil.copytree(world / "images", tmp_path / "images")
    (images / "003.png").unlink()
    line = refusal(world, loop(world, copy, sample__images=images))
    assert "003.png has candidates in" in line
    assert "is gone" in line
    shutil.rmtree(copy / "verdicts")
    line = refusal(world, loop(world, copy, sample__images=images, run__stages="score"))
    assert "003.png has candidates and is gone" in line


def test_rounds_start_from_the_model_before(world, tmp_path):
    changes = {"run__rounds": 2, "score__streams": "detector", "run__stages": "sample,score,select,sft,export"}
    finish(start(world, loop(world, tmp_path, **changes)))
    first, second = tmp_path / "round-1", tmp_path / "round-2"
    one, two = (list(read_parts(each / "candidates", Candidate)) for each in (first, second))
    assert [candidate.image for candidate in one] == [candidate.image for candidate in two]
    assert [candidate.text for candidate in one] != [candidate.text for candidate in two]
    weights = [load_file(each / "export" / "model.safetensors") for each in (first, second)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    provenance = json.loads((second / "export" / "vigor_jax.json").read_text())
    assert provenance["base"] == str(first / "export")
    said = finish(start(world, loop(world, tmp_path, **changes)))
    assert said.count("already") == 2


def test_the_documented_stream_works(world, tmp_path, monkeypatch):
    """The file in docs/rewards.md, word by word."""
    page = (ROOT / "docs" / "rewards.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    name = re.search(r"`(\w+)\.py`", page).group(1)
    spec = re.search(rf"{name}:\w+", page).group(0)
    (tmp_path / f"{name}.py").write_text(code)
    assert len(code.splitlines()) <= 25
    changes = {"run__stages": "sample,score,select,sft", "score__streams": f"detector,{spec}"}
    finish(start(world, loop(world, tmp_path / "run", **changes), PYTHONPATH=str(tmp_path)))
    (stream,) = {path.name for path in (tmp_path / "run" / "verdicts").iterdir()} - {"detector"}
    verdicts = list(read_parts(tmp_path / "run" / "verdicts" / stream, Verdict))
    assert len(verdicts) == 36
    assert any(verdict.signals for verdict in verdicts)
    judge = runpy.run_path(str(tmp_path / f"{name}.py"))[spec.split(":")[1]]()
    guess, fact = judge.signals("It may be a dog. There is a car.")
    assert (guess.negative, guess.positive, fact.negative, fact.positive) == (1, 0, 0, 1)
    (tmp_path / f"{name}.py").write_text("class Nothing: pass\n")
    for wrong, message in ((spec, "cannot be imported"), (f"{name}:Nothing", "is no reward stream")):
        arguments = loop(world, tmp_path / "run2", score__streams=wrong, run__stages="sample,score")
        errors = finish(start(world, arguments, PYTHONPATH=str(tmp_path)), code=2)
        assert message in errors.splitlines()[-1]


BAD = {
    "no detector": ({"detection__model": ""}, "detection"),
    "no such detector": ({"detection__model": "nowhere"}, "nowhere"),
    "both": ({"detection__addresses": "127.0.0.1:1"}, "either addresses"),
    "no image folder": ({"sample__images": "nowhere"}, "nowhere"),
    "unknown stream": ({"score__streams": "detektor"}, "expected detector, reward_model, package.module:Class"),
    "no reward model": ({"run__stages": "sample,score", "score__streams": "reward_model"}, "no reward model in"),
    "reward model of another kind": (
        {"run__stages": "train_reward,sample,score", "reward_model__per": "description"},
        "train_reward has 'sentence'",
    ),
    "no targets": ({"run__stages": "sft"}, "run the stage select, or give sft.data"),
    "weights of no stream": ({"select__fusion__weights": "{detektor: 2}"}, "there is no stream 'detektor'"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_exit_code_2(world, tmp_path, what, capsys):
    """In this process, which saves its start; `refusal` shows others that a separate process ends so, too."""
    changes, message = BAD[what]
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: train.main(loop(world, tmp_path / "run", **changes)))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert end.value.code == 2
    assert message in line


def test_an_unreachable_sidecar_stops_before_sampling(world, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = loop(
        world, tmp_path, run__stages="sample,score", detection__addresses=address, detection__connect_timeout=3
    )
    where = arguments.index("--detection.model")
    del arguments[where : where + 2]
    assert address in refusal(world, arguments)
    assert not (tmp_path / "candidates").exists()


def test_sigterm_while_sampling_leaves_no_sidecar(world, undisturbed, tmp_path):
    process = start(world, loop(world, tmp_path, run__stages="sample,score", score__streams="detector"))
    wait_for_stage(tmp_path, "sample", process)
    deadline = time.monotonic() + 120
    while not (found := sidecars(process)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(found, timeout=10)
    assert not alive
