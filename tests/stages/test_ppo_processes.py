"""PPO on several devices and processes, and in processes that are killed.

As in `test_sft_processes`, eps = 1e-3 makes an update a smooth function of the gradient, so that the other order of
sums on several devices stays what it is: rounding. Responses are drawn from probabilities that differ by rounding, so
nearly all of them are the same; these tests ask that all are.
"""

import json
import random
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from tests.stages.ppo_world import make_world
from tests.stages.sft_world import finish, spawn_python
from tests.stages.test_ppo import curve, parts, weights
from vigor_jax.data.records.store import read_parts
from vigor_jax.records import Rollout

SETTINGS = {"batch_size": 16, "minibatch": 8, "learning_rate": 3e-4}
KILLED = {"batch_size": 4, "minibatch": 4, "learning_rate": 1e-3, "epochs": 4, "keep": 1}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def world(tmp_path_factory, request):
    family = getattr(request, "param", "llava")
    return make_world(tmp_path_factory.mktemp("world") / "w", images=32, family=family)


def spawn(world, runs, *, devices, cache, **distributed):
    job = {"world": str(world), "runs": runs, "distributed": distributed}
    return spawn_python(["-m", "tests.stages.run_ppo", json.dumps(job)], devices=devices, cache=cache)


@pytest.fixture(scope="module")
def one_device(world, cache, tmp_path_factory):
    """The run that all others are compared with."""
    run_dir = tmp_path_factory.mktemp("one")
    finish(spawn(world, [{"run_dir": str(run_dir), "ppo": SETTINGS}], devices=1, cache=cache))
    assert len(curve(run_dir)) == 2
    return run_dir


def assert_close(run_dir: Path, reference: Path) -> None:
    for got, expected in zip(read_parts(run_dir / "ppo", Rollout), read_parts(reference / "ppo", Rollout), strict=True):
        assert (got.image, got.candidate, got.token_ids) == (expected.image, expected.candidate, expected.token_ids)
        assert got.rewards == expected.rewards
        for name in ("logprobs", "ref_logprobs", "values", "advantages"):
            np.testing.assert_allclose(getattr(got, name), getattr(expected, name), atol=1e-4, err_msg=name)
    for got, expected in zip(curve(run_dir), curve(reference), strict=True):
        for name in ("loss", "grad_norm", "policy_loss", "value_loss"):
            assert got[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), (got["step"], name)
    final = weights(reference)
    for path, value in weights(run_dir).items():
        np.testing.assert_allclose(value, final[path], atol=1e-5, rtol=0, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "mesh", "inference", "changes"),
    [
        ("llava", (1, 8, 1), (8, 1, 1), {}),  # the two processes below split weights and rows so, too
        pytest.param("llava", (2, 2, 2), (4, 1, 2), {"accumulate": 2}, marks=pytest.mark.main),
        ("instructblip", (2, 2, 2), (4, 1, 2), {"accumulate": 2}),
    ],
    ids=["one way", "every way", "instructblip"],
    indirect=["world"],
    scope="module",
)
def test_eight_devices_equal_one(world, cache, one_device, tmp_path, mesh, inference, changes):
    """Sampling on another mesh than training; each way to split weights and rows."""
    run = {"run_dir": str(tmp_path), "mesh": mesh, "inference": inference, "ppo": SETTINGS | changes}
    finish(spawn(world, [run], devices=8, cache=cache))
    assert_close(tmp_path, one_device)


@pytest.mark.slow
@pytest.mark.main
def test_two_processes_equal_one(world, cache, one_device, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    run = {"run_dir": str(tmp_path / "run"), "mesh": (2, 2, 1), "inference": (4, 1, 1), "ppo": SETTINGS}
    told = {"coordinator": coordinator, "num_processes": 2}
    finish(
        *(spawn(world, [run], devices=2, cache=cache / f"of-{i}", **told, process_id=i) for i in range(2))
    )  # fmt: skip
    assert_close(tmp_path / "run", one_device)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "changes"),
    [(3, {}), (10, {"epochs": 8, "lora": {"rank": 4, "alpha": 8}})],
    ids=["weights", "adapter"],
)
def test_killed_at_random_moments(world, cache, tmp_path, kills, changes):
    """Records, curve and weights are those of a run that was not killed, to the last bit."""
    whole, killed, settings = tmp_path / "whole", tmp_path / "killed", KILLED | changes
    finish(spawn(world, [{"run_dir": str(whole), "ppo": settings}], devices=1, cache=cache))
    moments, startup = random.Random(0), 5.0
    for _ in range(kills):
        process = spawn(world, [{"run_dir": str(killed), "ppo": settings}], devices=1, cache=cache)
        begun, before = time.monotonic(), len(_lines(killed))
        if iterations := moments.randrange(4):  # that many are done, and part of the next one
            while process.poll() is None and len(_lines(killed)) < before + iterations:
                assert time.monotonic() - begun < 300
                time.sleep(0.02)
            startup = time.monotonic() - begun
            time.sleep(moments.uniform(0, 0.5))
        else:
            time.sleep(moments.uniform(0, startup))
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(_lines(killed)) < len(_lines(whole))
    finish(spawn(world, [{"run_dir": str(killed), "ppo": settings}], devices=1, cache=cache))
    assert parts(killed) == parts(whole)
    assert curve(killed) == curve(whole)
    final = weights(whole)
    assert any("lora" in path for path in final) == ("lora" in settings)
    for path, value in weights(killed).items():
        np.testing.assert_array_equal(value, final[path], err_msg=path)
    shutil.rmtree(killed)


def _lines(run_dir: Path) -> list[str]:
    path = run_dir / "metrics" / "ppo.jsonl"
    return path.read_text().splitlines() if path.exists() else []
