"""One trainer in a run directory: in real processes, which are killed, stopped and started again."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vigor_jax import run_lock
from vigor_jax.errors import InputError
from vigor_jax.run_lock import NAME, RunLock

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import sys, time
from pathlib import Path
from vigor_jax import cli
from vigor_jax.run_lock import RunLock

def main():
    with RunLock(Path(sys.argv[1]), beat=0.1, stale=float(sys.argv[2])):
        print("has it", flush=True)
        time.sleep(float(sys.argv[3]))

cli.run(main)
"""


def start(directory, *, stale=2.0, seconds=60.0):
    command = [sys.executable, "-c", HOLDER, str(directory), str(stale), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.fixture
def holder(tmp_path):
    process = start(tmp_path)
    assert process.stdout.readline() == "has it\n"
    yield process
    process.kill()
    process.communicate()


def of_another_host(directory, **changes):
    """Turns the existing lock into one of a process elsewhere."""
    path = directory / NAME
    values = json.loads(path.read_bytes()) | {"host": "elsewhere", "id": "0" * 32, "machine": "other"} | changes
    path.write_text(json.dumps(values))


def make_foreign_lock(directory, *, age=0.0, **changes):
    with RunLock(directory):
        content = (directory / NAME).read_bytes()
    (directory / NAME).write_bytes(content)
    of_another_host(directory, **changes)
    os.utime(directory / NAME, (time.time() - age,) * 2)


def test_the_lock_is_there_and_goes(tmp_path):
    with RunLock(tmp_path / "new" / "run") as lock:
        assert lock is not None
        values = json.loads((tmp_path / "new" / "run" / NAME).read_bytes())
        assert (values["host"], values["pid"]) == (socket.gethostname(), os.getpid())
        assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == [NAME]
    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_it_goes_with_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), RunLock(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_refused_at_once_and_the_first_continues(tmp_path, holder):
    begun = time.monotonic()
    second = start(tmp_path)
    output, errors = second.communicate(timeout=60)
    assert (second.returncode, output) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith(f"error: {tmp_path} is in use by process {holder.pid} on {socket.gethostname()} (since 2")
    assert "choose another run.dir" in line
    assert time.monotonic() - begun < 30
    assert holder.poll() is None
    assert json.loads((tmp_path / NAME).read_bytes())["pid"] == holder.pid
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_killed_process_is_taken_at_once(tmp_path, holder, number):
    holder.send_signal(number)
    holder.wait()
    assert (tmp_path / NAME).exists()
    begun = time.monotonic()
    with RunLock(tmp_path, stale=600):
        assert json.loads((tmp_path / NAME).read_bytes())["pid"] == os.getpid()
    assert time.monotonic() - begun < 5


def test_what_is_left_of_a_process_does_not_hold_the_lock(tmp_path, holder):
    """A zombie: its parent has not asked for its exit code."""
    holder.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with RunLock(tmp_path, stale=600):
        pass


def test_another_process_with_the_same_number_does_not_hold_the_lock(tmp_path):
    """This one: it started at another time than the owner did."""
    with RunLock(tmp_path):
        content = json.loads((tmp_path / NAME).read_bytes())
    (tmp_path / NAME).write_text(json.dumps(content | {"started": "1"}))
    with RunLock(tmp_path, stale=600):
        pass
    (tmp_path / NAME).write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"in use by process {os.getpid()} on"), RunLock(tmp_path, stale=600):
        pass


def test_the_lock_of_another_host_that_beats_is_refused(tmp_path):
    make_foreign_lock(tmp_path)
    path, stop = tmp_path / NAME, threading.Event()

    def beat():
        for beats in range(1000):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"beats": beats + 1}))
            if stop.wait(0.2):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match=r"in use by process \d+ on elsewhere"), RunLock(tmp_path, stale=60):
            pass
    finally:
        stop.set()
        thread.join()
    assert json.loads(path.read_text())["host"] == "elsewhere"


@pytest.mark.parametrize(("age", "least", "most"), [(0.0, 1.5, 15), (3600.0, 0.0, 1.5)])
def test_the_lock_of_another_host_without_a_beat_is_taken(tmp_path, caplog, age, least, most):
    make_foreign_lock(tmp_path, age=age)
    begun = time.monotonic()
    with caplog.at_level("INFO"), RunLock(tmp_path, stale=2.0):
        assert least <= time.monotonic() - begun < most
        assert json.loads((tmp_path / NAME).read_bytes())["host"] == socket.gethostname()
    assert ("waiting 2 s at most" in caplog.text) == (age == 0)
    assert "elsewhere" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"id": 1}'])
def test_a_lock_that_says_nothing_is_taken_when_it_is_old(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    begun = time.monotonic()
    with RunLock(tmp_path, stale=1.0):
        assert time.monotonic() - begun > 0.5
    (tmp_path / NAME).write_bytes(content)
    os.utime(tmp_path / NAME, (1, 1))
    with RunLock(tmp_path, stale=600):
        pass


def test_containers_of_one_machine_are_told_apart(tmp_path):
    """There the same number is another process: the beats decide."""
    with RunLock(tmp_path):
        content = json.loads((tmp_path / NAME).read_bytes())
    boot = content["machine"].split()[0]
    changed = content | {"machine": f"{boot} pid:[1]", "pid": 2**22 + 1, "id": "1"}
    (tmp_path / NAME).write_text(json.dumps(changed))
    begun = time.monotonic()
    with RunLock(tmp_path, stale=1.0):
        assert time.monotonic() - begun > 0.5


@pytest.mark.slow
@pytest.mark.main
def test_of_many_who_find_a_stale_lock_one_has_it(tmp_path):
    make_foreign_lock(tmp_path, age=3600)
    processes = [start(tmp_path, seconds=3) for _ in range(6)]
    outputs = [process.communicate(timeout=60) for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes == [0, 2, 2, 2, 2, 2], outputs
    assert [path.name for path in tmp_path.iterdir()] == []


def test_who_was_stopped_and_lost_the_lock_ends(tmp_path, holder):
    """Its beats stayed away, and another host took the run over."""
    holder.send_signal(signal.SIGSTOP)
    content = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).write_bytes(content)
    of_another_host(tmp_path)
    taken = (tmp_path / NAME).read_bytes()
    holder.send_signal(signal.SIGCONT)
    _, errors = holder.communicate(timeout=30)
    assert holder.returncode == 2
    (line,) = errors.splitlines()
    assert "on elsewhere (since" in line
    assert "has taken this run over; this process ends" in line
    assert (tmp_path / NAME).read_bytes() == taken


def test_a_live_lock_that_is_taken_away_by_mistake_is_put_back(tmp_path, holder):
    """By a process that took its predecessor to be stale, a moment too late."""
    late = RunLock(tmp_path)
    late._take_away(b"the lock of the predecessor")
    assert json.loads((tmp_path / NAME).read_bytes())["pid"] == holder.pid
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / NAME).read_bytes())["pid"] == os.getpid()
        with pytest.raises(InputError, match="is in use"), RunLock(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_long_command_lines_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", '"\\ü' * 3000])
    with RunLock(tmp_path):
        owner = run_lock._Owner.of((tmp_path / NAME).read_bytes())
        assert owner is not None
        assert owner == dataclasses.replace(owner, pid=os.getpid())


def test_a_folder_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), RunLock(tmp_path / "file" / "run"):
        pass
