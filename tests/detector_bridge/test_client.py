"""The client and the local sidecar where things go wrong: dead addresses, kills, slow answers."""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from detector_bridge.client import BlockingClient, ClientConfig, DetectorClient, DetectorError
from detector_bridge.errors import InputError
from detector_bridge.local import LocalConfig, LocalDetector
from detector_bridge.messages import Answer, Request
from detector_bridge.refusal import RefusedError
from tests.detector_bridge.sidecar import ROOT, encode, is_alive, picture, sidecar, wait_until

DEAD = "127.0.0.1:9"  # the discard port: nobody listens


def ask(addresses, requests, **config):
    async def run():
        async with DetectorClient(ClientConfig(tuple(addresses), **config)) as client:
            return [answer async for answer in client.detect(requests)]

    return asyncio.run(run())


def assert_same(one: Answer | RefusedError, other: Answer | RefusedError) -> None:
    if isinstance(one, RefusedError) or isinstance(other, RefusedError):
        assert str(one) == str(other)
        return
    assert (one.width, one.height) == (other.width, other.height)
    for a, b in zip(one.detections, other.detections, strict=True):
        assert (a.phrase, a.present) == (b.phrase, b.present)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
        np.testing.assert_allclose(a.boxes_xyxy, b.boxes_xyxy, atol=1e-4)


def test_the_client_needs_no_torch_no_jax_and_no_pillow():
    program = "import sys, detector_bridge.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert {"grpc", "numpy"} <= loaded
    assert not loaded & {"torch", "jax", "transformers", "PIL", "vigor_jax", "prometheus_client"}


@pytest.mark.slow
@pytest.mark.main
def test_a_dead_address_is_left_out(served):
    requests = [Request(encode(picture(seed)), ("dog", "cat")) for seed in range(30)]
    for answer, alone in zip(
        ask([DEAD, served.address], requests, timeout=30), ask([served.address], requests), strict=True
    ):
        assert_same(answer, alone)


@pytest.mark.slow
def test_requests_are_spread_over_addresses(model, served):
    with sidecar(model, "--log-level", "debug") as other:
        ask([served.address, other.address], [Request(encode(picture(seed)), ("dog",)) for seed in range(20)])
        other.process.terminate()
        log = other.process.communicate(timeout=30)[1]
    assert log.count('"answered"') == 10


def test_nobody_there_ends_with_the_names():
    started = time.monotonic()
    with pytest.raises(DetectorError, match=r"photo 7: no detections within 1 s \(127.0.0.1:9: UNAVAILABLE"):
        ask([DEAD], [Request(encode(picture(0)), ("dog",), name="photo 7")], timeout=1)
    assert time.monotonic() - started < 10


def test_a_server_that_is_too_slow_ends_with_the_names(served):
    os.kill(served.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(DetectorError, match=rf"no detections within 1 s \(({served.address}: no reply|it was)"):
            ask([served.address], [Request(encode(picture(0)), ("dog",))], timeout=1)
    finally:
        os.kill(served.process.pid, signal.SIGCONT)
    assert isinstance(ask([served.address], [Request(encode(picture(0)), ("dog",))])[0], Answer)


def test_a_missing_file_names_itself(served, tmp_path):
    with pytest.raises(InputError, match=r"gone\.jpg cannot be read"):
        ask([served.address], [Request(tmp_path / "gone.jpg", ("dog",))])


@pytest.mark.slow
@pytest.mark.main
def test_a_drained_server_hands_over(model):
    """SIGTERM in the middle: what it had not read is asked of the other one, and nothing is lost."""
    requests = [Request(encode(picture(seed)), ("dog",)) for seed in range(50)]

    async def run(first, second):
        answers = []
        async with DetectorClient(ClientConfig((first.address, second.address), in_flight=40)) as client:
            async for answer in client.detect(requests):
                answers.append(answer)
                if len(answers) == 10:
                    first.process.terminate()
        return answers

    with sidecar(model) as first, sidecar(model) as second:
        answers = asyncio.run(run(first, second))
        assert first.process.wait(30) == 0
        for answer, alone in zip(answers, ask([second.address], requests), strict=True):
            assert_same(answer, alone)


def test_blocking_client(served):
    requests = [Request(encode(picture(seed)), ("dog",)) for seed in range(10)] + [Request(b"", ("dog",))]
    with BlockingClient(ClientConfig((served.address,))) as client:
        assert client.info()[0].backend == "transformers"
        futures = [client.submit(request) for request in requests]
        for future, alone in zip(futures[:-1], ask([served.address], requests[:-1]), strict=True):
            assert_same(future.result(), alone)
        with pytest.raises(RefusedError, match="INVALID_IMAGE"):
            futures[-1].result()


@pytest.mark.slow
@pytest.mark.main
def test_local_sidecar_is_started_again_and_ends_with_its_context(model):
    request = Request(encode(picture(0)), ("dog", "cat"))
    with LocalDetector(LocalConfig(model)) as local:
        (before,) = ask([local.address], [request])
        killed = local.pid
        os.kill(killed, signal.SIGKILL)
        (after,) = ask([local.address], [request], timeout=120)
        assert_same(before, after)
        assert local.pid != killed
        last, directory = local.pid, Path(local.address.removeprefix("unix:")).parent
    assert not is_alive(killed)
    assert not is_alive(last)
    assert not directory.exists()
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.main
def test_local_sidecar_ends_with_a_parent_that_is_killed(model):
    program = f"""
import time
from pathlib import Path
from detector_bridge.local import *
with LocalDetector(LocalConfig(Path({str(model)!r}))) as local:
    print(local.pid, flush=True)
    time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.communicate()
    wait_until(lambda: not is_alive(child), 10)


def test_local_sidecar_says_what_is_wrong(model, tmp_path):
    with pytest.raises(InputError, match=r"sidecar: .*nowhere.* does not exist"):
        LocalDetector(LocalConfig(tmp_path / "nowhere")).__enter__()
    with pytest.raises(InputError, match="no-python cannot be started"):
        LocalDetector(LocalConfig(model, python=tmp_path / "no-python")).__enter__()
    broken = tmp_path / "python"
    broken.write_text(f"#!/bin/sh\nexec {sys.executable} -S -m no_such_module\n")
    broken.chmod(0o755)
    with pytest.raises(DetectorError, match=r"ended with code 1.*No module named"):
        LocalDetector(LocalConfig(model, python=broken)).__enter__()


@pytest.mark.slow
@pytest.mark.main
def test_local_sidecar_that_dies_too_often_is_given_up(model, capfd):
    with LocalDetector(LocalConfig(model, restarts=0)) as local:
        os.kill(local.pid, signal.SIGKILL)
        with pytest.raises(DetectorError, match="no detections within 3 s"):
            ask([local.address], [Request(encode(picture(0)), ("dog",))], timeout=3)
    assert "died too often" in capfd.readouterr().err


def run_clients(address: str, folder: Path, count: int, clients: int = 8) -> list[Answer | RefusedError]:
    """The mixed requests, divided among processes."""
    command = [sys.executable, "-m", "tests.detector_bridge.run_client", address, str(count), str(clients)]
    processes = [subprocess.Popen([*command, str(i), str(folder / f"{i}")], cwd=ROOT) for i in range(clients)]
    assert [process.wait(600) for process in processes] == [0] * clients
    parts = [pickle.loads((folder / f"{i}").read_bytes()) for i in range(clients)]
    return [parts[i % clients][i // clients] for i in range(count)]


@pytest.mark.slow
def test_two_thousand_requests_from_eight_clients_and_five_kills(model, tmp_path):
    """Every request is answered once and as in an undisturbed run; no zombie stays; memory does not grow."""
    with LocalDetector(LocalConfig(model, options=("--short-side", "112"))) as local, ThreadPoolExecutor(1) as thread:
        process, memory = psutil.Process(local.pid), []
        running = thread.submit(run_clients, local.address, tmp_path, 2000)
        while not running.done():
            memory.append(process.memory_info().rss)
            time.sleep(0.1)
        undisturbed = running.result()
        assert local.pid == process.pid
        quarter = len(memory) // 4
        warm, late = np.median(memory[quarter : 2 * quarter]), np.median(memory[-quarter:])
        assert abs(late - warm) <= 0.1 * warm

        pids = []
        running = thread.submit(run_clients, local.address, tmp_path, 2000)
        for _ in range(5):
            time.sleep(3)
            wait_until(lambda: not pids or local.pid != pids[-1], 60)
            assert not running.done()
            pids.append(local.pid)
            os.kill(local.pid, signal.SIGKILL)
        disturbed = running.result()
    assert len(set(pids)) == 5
    assert len(disturbed) == len(undisturbed) == 2000
    assert sum(isinstance(answer, RefusedError) for answer in undisturbed) == 40
    for one, other in zip(disturbed, undisturbed, strict=True):
        assert_same(one, other)
    assert not any(is_alive(pid) for pid in pids)
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]
