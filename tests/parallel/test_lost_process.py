"""A process that dies ends the others of its run: with one line, in about a minute."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_train import arguments, environment, world  # noqa: F401 (a fixture)
from vigor_jax.parallel.lost_process import HEARTBEAT_TIMEOUT, Filter, is_sign_of_loss
from vigor_jax.run_lock import NAME, RunLock

ROOT = Path(__file__).resolve().parents[2]

# Abridged, but with the words that jaxlib 0.10 writes.
HEAD = b"E1129 16:11:20.520496   24169 coordination_service_agent.cc:289] Polled an error from coordination service.\n"
COORDINATOR = (
    b"W1129 16:10:43.121257   23616 preemption_sync_manager.cc:147] Failed to retrieve: UNAVAILABLE: Socket closed\n"
    b"Additional GRPC error information from remote target coordination_service:\n" + HEAD + b"F1129 16:10:43.121367   "
    b"23616 client.h:80] Terminating process because the JAX distributed service detected fatal errors. absl::Status: "
    b"UNAVAILABLE: Failed to send RPC to coordination service.\n:UNKNOWN:Error {grpc_status:14}\n"
    b"*** Check failure stack trace: ***\n    @     0x7f1ed0e40634  absl::lts_20260107::LogMessage::SendToLog()\n"
)
HEARTBEAT = (
    b"E1129 16:08:26.538190   17943 coordination_service.cc:1549] [10991447838796771623] UNAVAILABLE: The following "
    b"tasks are unhealthy (stopped sending heartbeats):\n1\n3\nThe tasks have crashed. Check the task logs.\n"
    b"F1129 16:08:26.538006   17856 client.h:80] Terminating process because the JAX distributed service detected "
    b"fatal errors. 12 dogs\n*** Check failure stack trace: ***\n"
)
BARRIER = (
    b"F1129 16:08:26.538006   17856 client.h:80] Terminating process because the JAX distributed service detected "
    b"fatal errors. Barrier result: 'INTERNAL: Barrier failed because: UNAVAILABLE: Task 2 heartbeat timeout.'\n"
)


def through(*pieces: bytes) -> bytes:
    output = Filter()
    return b"".join([*map(output.feed, pieces), output.end()])


@pytest.mark.parametrize(
    ("message", "who"),
    [
        (COORDINATOR, "process 0 of this run has"),
        (HEARTBEAT, "processes 1, 3 of this run have"),
        (BARRIER, "process 2 of this run has"),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_the_message_becomes_one_line(message, who, size):
    message = b"a line\nand one more\n" + message
    shown = through(*(message[start : start + size] for start in range(0, len(message), size)))
    before, line = shown.decode().split("\n\n")
    assert before == "a line\nand one more"
    assert line.startswith(f"error: {who} ended or cannot be reached, so this one ends too; ")
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"a line without its end",
        b"sample:  10%|#  | 1/6\rsample:  50%|###| 3/6\r",
        b"W1129 16:10:43.121257   23616 gpu_timer.cc:114] Skipping the delay kernel\nwhich is more of it\n",
        HEAD,  # no fatal one comes
        HEAD + b"I1129 16:10:43.121257   23616 se_gpu_pjrt_client.cc:1] Using BFC\nplain\n",
    ],
)
@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_all_else_is_passed_on(text, size):
    assert through(*(text[start : start + size] for start in range(0, len(text), size))) == text


def test_what_waits_is_shown_when_nothing_more_comes():
    output = Filter()
    assert output.feed(b"Is that right? ") == b""
    assert output.release() == b"Is that right? "
    assert output.feed(HEAD) == b""
    assert output.release() == HEAD
    assert output.feed(b"a line\n") == b"a line\n"


def test_what_hints_at_a_loss():
    gloo = "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"
    assert is_sign_of_loss(ValueError(gloo))
    assert not is_sign_of_loss(ValueError("shapes (3,) and (4,) do not match"))


def start_two(world, run_dir, modules=("train", "train"), **changes):  # noqa: F811
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    place = {"distributed__coordinator": coordinator, "distributed__num_processes": 2, "mesh__fsdp": 2, **changes}
    processes = []
    for index in range(2):
        given = arguments(world, run__dir=run_dir, distributed__process_id=index, **place)
        command = [sys.executable, "-m", "vigor_jax.train", *given]
        files = {name: (world / f"{name}-{index}").open("w") for name in ("stdout", "stderr")}
        processes.append(subprocess.Popen(command, env=environment(world), cwd=ROOT, **files))
    return processes


def said(world, index):  # noqa: F811
    return (world / f"stderr-{index}").read_text()


def wait_for_updates(run_dir: Path, count: int, process) -> None:
    path, deadline = run_dir / "metrics" / "sft.jsonl", time.monotonic() + 300
    while not (path.exists() and path.read_bytes().count(b"\n") >= count):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_other_with_one_line(world, lost):  # noqa: F811
    """While it trains: the other one is in the next update, which needs both."""
    processes = start_two(world, world / "run", sft__epochs=400)
    try:
        wait_for_updates(world / "run", 3, processes[0])
        processes[lost].send_signal(signal.SIGKILL)
        begun = time.monotonic()
        left = processes[1 - lost]
        assert left.wait(timeout=HEARTBEAT_TIMEOUT + 30) != 0
        print(f"process {lost} was lost; the other one ended after {time.monotonic() - begun:.1f} s")
    finally:
        for process in processes:
            process.kill()
    text = said(world, 1 - lost)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert errors == [line for line in errors if f"process {lost} of this run has ended" in line]
    assert len(errors) == 1
    for word in ("Traceback", "absl", "coordination", "Check failure"):
        assert word not in text, text[-3000:]


@pytest.mark.slow
def test_two_processes_are_refused_where_another_run_is(world):  # noqa: F811
    """By the lock that the first of them finds; both say so and end with 2."""
    with RunLock(world / "run"):
        processes = start_two(world, world / "run")
        assert [process.wait(timeout=300) for process in processes] == [2, 2]
    for index in range(2):
        (line,) = (line for line in said(world, index).splitlines() if line.startswith("error: "))
        assert f"{world}/run is in use by process {os.getpid()} on {socket.gethostname()}" in line
    assert not (world / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_of_two_trainers_one_is_refused_and_the_other_ends_as_ever(world):  # noqa: F811
    command = [sys.executable, "-m", "vigor_jax.train", *arguments(world, sft__epochs=2)]
    options = {"stderr": subprocess.PIPE, "text": True, "env": environment(world), "cwd": ROOT}
    processes = [subprocess.Popen(command, **options) for _ in range(2)]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2], errors
    refused = errors[[process.returncode for process in processes].index(2)]
    assert "Traceback" not in "".join(errors)
    assert f"error: {world}/run is in use by process" in refused
    assert len((world / "run" / "metrics" / "sft.jsonl").read_text().splitlines()) == 6
    assert not (world / "run" / NAME).exists()


@pytest.mark.slow
def test_a_killed_trainer_and_one_that_got_sigterm_are_followed_at_once(world):  # noqa: F811
    command = [sys.executable, "-m", "vigor_jax.train", *arguments(world, sft__epochs=40)]
    for number, code in (signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143):
        with subprocess.Popen(command, env=environment(world), cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            path = world / "run" / "metrics" / "sft.jsonl"
            count = path.read_bytes().count(b"\n") if path.exists() else 0
            deadline = time.monotonic() + 300
            while not path.exists() or path.read_bytes().count(b"\n") < count + 2:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert json.loads((world / "run" / NAME).read_bytes())["pid"] == process.pid
            process.send_signal(number)
            assert process.wait(timeout=120) == code
        assert (world / "run" / NAME).exists() == (number == signal.SIGKILL)
    done = subprocess.run([*command, "--run.stages", "sft"], env=environment(world), cwd=ROOT, timeout=600)
    assert done.returncode == 0
