"""Learning from preferences on several devices and processes, and in processes that are killed.

As in `test_sft_processes`, eps = 1e-3 makes an update a smooth function of the gradient, so that the other order of
sums on several devices stays what it is: rounding.
"""

import json
import random
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from tests.stages.dpo_world import curve, folders, make_world, references, weights
from tests.stages.sft_world import finish, of_each_family, spawn_python

SETTINGS = {"epochs": 2, "image_factor": 0.5}  # with two images, so that both are split
KILLED = {"epochs": 4, "batch_size": 4, "learning_rate": 1e-3, "eps": 1e-8, "save_every": 3, "keep": 1}
PART = 2  # rows of a part of the references: ten parts of 20 rows
MEASURES = ("loss", "grad_norm", "accuracy", "margin", "better_reward", "worse_reward", "better_logps", "image_loss")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def world(tmp_path_factory, request):
    family = getattr(request, "param", "llava")
    return make_world(tmp_path_factory.mktemp("world") / "w", rows=20, family=family)


def spawn(world, runs, *, devices, cache, distributed=None, **more):
    job = {"world": str(world), "runs": runs, "distributed": distributed or {}, **more}
    return spawn_python(["-m", "tests.stages.run_dpo", json.dumps(job)], devices=devices, cache=cache)


def in_two(world, run, cache, **more):
    """The same run in two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told = {"coordinator": f"127.0.0.1:{free.getsockname()[1]}", "num_processes": 2}
    return [
        spawn(world, [run], devices=2, cache=cache / f"of-{i}", distributed=told | {"process_id": i}, **more)
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def one_device(world, cache, tmp_path_factory):
    """The run that all others are compared with."""
    run_dir = tmp_path_factory.mktemp("one")
    finish(spawn(world, [{"run_dir": str(run_dir), "dpo": SETTINGS}], devices=1, cache=cache))
    found = curve(run_dir)
    assert len(found) == 5
    assert found[0]["loss"] == pytest.approx(1.5 * np.log(2), rel=1e-5)
    assert found[-1]["loss"] < 0.99 * found[0]["loss"]  # it learns, so there is something to compare
    return run_dir


def assert_close(run_dir: Path, expected_dir: Path) -> None:
    said, expected = references(run_dir), references(expected_dir)
    assert said.keys() == expected.keys()
    for digest, each in said.items():
        np.testing.assert_allclose(each.own, expected[digest].own, atol=1e-4)
        np.testing.assert_allclose(each.unseen, expected[digest].unseen, atol=1e-4)
    for got, known in zip(curve(run_dir), curve(expected_dir), strict=True):
        assert (got["step"], got["tokens"]) == (known["step"], known["tokens"])
        for name in MEASURES:
            if got["step"] > 1 or name != "accuracy":  # in the first update all margins are rounding
                assert got[name] == pytest.approx(known[name], rel=1e-4, abs=1e-4), (got["step"], name)
    final = weights(expected_dir)
    for path, value in weights(run_dir).items():
        np.testing.assert_allclose(value, final[path], atol=1e-5, rtol=0, err_msg=path)


def assert_same_bits(run_dir: Path, expected_dir: Path) -> None:
    assert references(run_dir) == references(expected_dir)
    assert curve(run_dir) == curve(expected_dir)
    final, ours = weights(expected_dir), weights(run_dir)
    assert ours.keys() == final.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(value, final[path], err_msg=path)


@pytest.mark.slow
@of_each_family
def test_eight_devices_equal_one(world, cache, one_device, tmp_path):
    """Each way to split weights and rows, and a batch in parts."""
    runs = [
        {"run_dir": str(tmp_path / "data"), "mesh": (8, 1, 1), "dpo": SETTINGS},
        {"run_dir": str(tmp_path / "fsdp"), "mesh": (1, 8, 1), "dpo": SETTINGS},
        {"run_dir": str(tmp_path / "tensor"), "mesh": (2, 2, 2), "dpo": SETTINGS | {"accumulate": 2}},
    ]
    finish(spawn(world, runs, devices=8, cache=cache))
    for run in runs:
        assert_close(Path(run["run_dir"]), one_device)


@pytest.mark.slow
@pytest.mark.main
def test_two_processes_equal_one(world, cache, one_device, tmp_path):
    """Rows and weights are split between the two, weights within each, too; and a batch is in parts."""
    settings = SETTINGS | {"accumulate": 2}
    finish(*in_two(world, {"run_dir": str(tmp_path / "run"), "mesh": (1, 2, 2), "dpo": settings}, cache))
    assert_close(tmp_path / "run", one_device)


@pytest.mark.slow
def test_another_number_of_processes_continues_with_what_is_kept(world, cache, one_device, tmp_path):
    """One process computes some parts of the references, two the rest and all updates."""
    run = {"run_dir": str(tmp_path / "run"), "mesh": (2, 2, 1), "dpo": SETTINGS}
    process = spawn(world, [{**run, "mesh": (1, 1, 1)}], devices=1, cache=cache, part=8)
    wait_for(lambda: parts_of(tmp_path / "run") >= 1, process)
    kill(process)
    kept = parts_of(tmp_path / "run")
    finish(*in_two(world, run, cache, part=8))
    assert parts_of(tmp_path / "run") == 3
    assert kept >= 1
    assert_close(tmp_path / "run", one_device)


@pytest.mark.slow
@pytest.mark.main
def test_kills_change_no_bit(world, cache, tmp_path):
    """SIGKILL between parts of the references, or within one, and twice while it trains."""
    whole, killed, more = tmp_path / "whole", tmp_path / "killed", {"devices": 1, "cache": cache, "part": PART}
    finish(spawn(world, [{"run_dir": str(whole), "dpo": KILLED}], **more))
    assert len(curve(whole)) == 20
    moments = random.Random(0)

    def kill_when(reached, most: float) -> None:
        """After this time at the latest, in seconds."""
        process = spawn(world, [{"run_dir": str(killed), "dpo": KILLED}], **more)
        wait_for(reached, process)
        time.sleep(moments.uniform(0, most))
        kill(process)

    kill_when(lambda: parts_of(killed) >= 1, 0.01)
    assert parts_of(killed) < 10, "it did not fall into the reference's pass"
    for updates in (2, 8):  # before the first checkpoint, and after the second
        kill_when(lambda updates=updates: lines_of(killed) >= updates, 0.05)
    assert 8 <= lines_of(killed) < 20
    finish(spawn(world, [{"run_dir": str(killed), "dpo": KILLED}], **more))
    assert_same_bits(killed, whole)


@pytest.mark.slow
def test_the_references_weights_are_gone_before_training(world, cache, tmp_path):
    """At most one copy of the weights is on the devices at any time but for what is trained."""
    file, settings = tmp_path / "bytes", {"lora": {"rank": 4, "alpha": 8}}
    finish(spawn(world, [{"run_dir": str(tmp_path / "run"), "dpo": settings}], devices=1, cache=cache, watch=str(file)))
    size = sum(path.stat().st_size for path in (world / "model").glob("*.safetensors"))
    (left,) = map(int, file.read_text().split())
    assert left < 0.01 * size, f"{left} bytes of arrays next to a model of {size}"


def wait_for(reached, process) -> None:
    """Until something is so; fails if the process ends first."""
    deadline = time.monotonic() + 300
    while not reached():
        assert time.monotonic() < deadline, "took too long"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


def kill(process) -> None:
    assert process.poll() is None, "it was to be killed, not to finish"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def parts_of(run_dir: Path) -> int:
    return sum(len(list(folder.glob("part-*.parquet"))) for folder in folders(run_dir))


def lines_of(run_dir: Path) -> int:
    path = run_dir / "metrics" / "dpo.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
