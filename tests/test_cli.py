"""How a command ends."""

import asyncio
import errno
import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detector_bridge import command
from detector_bridge.errors import InputError as BridgeError
from tests.test_packaging import commands
from vigor_jax import cli
from vigor_jax.errors import InputError, RunEndedError

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.versions  # of jsonargparse

LOST = """
import gc, os, signal, sys, time
from vigor_jax import cli

def interrupted(*_):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass

class Destroyed:
    __del__ = interrupted

def main():
    if sys.argv[1] == "destructor":
        Destroyed()
    else:
        gc.callbacks.append(lambda phase, _: interrupted() if phase == "stop" and not gc.callbacks.clear() else None)
        gc.collect()
    print("continued", flush=True)
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # those who test in the background may have it ignored
cli.run(main)
"""


@pytest.mark.parametrize("where", ["destructor", "collector"])
def test_control_c_is_not_lost_where_python_drops_exceptions(where: str) -> None:
    begun = time.monotonic()
    run = subprocess.run([sys.executable, "-c", LOST, where], capture_output=True, text=True, timeout=60)
    assert run.stdout == "continued\n"  # it had been dropped
    assert (run.returncode, run.stderr) == (130, "interrupted; the same command continues from here\n")
    assert time.monotonic() - begun < 30


def test_other_exceptions_in_a_destructor_are_told() -> None:
    script = "from vigor_jax import cli\nclass D:\n    def __del__(self): 1 / 0\ncli.run(lambda: D() and None)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0
    assert "ZeroDivisionError" in run.stderr


TOLD = """
import logging
from vigor_jax import cli

cli.show_progress()
own = "vigor_jax.stages.sample", "detector_bridge.client", "__main__", "stream_of_a_user"
for name in (*own, "httpx", "httpcore.connection", "openai._base_client", "absl", "jax._src.xla_bridge"):
    logging.getLogger(name).info("%s tells", name)
    logging.getLogger(name).warning("%s warns", name)
"""


def test_libraries_are_heard_only_when_they_warn() -> None:
    """A line for each request of a judge, or each file of Orbax, would hide what the stages tell."""
    run = subprocess.run([sys.executable, "-c", TOLD], capture_output=True, text=True, timeout=60, check=True)
    own = ("vigor_jax.stages.sample", "detector_bridge.client", "__main__", "stream_of_a_user")
    others = ("httpx", "httpcore.connection", "openai._base_client", "absl", "jax._src.xla_bridge")
    expected = [f"{name} {what}" for name in own for what in ("tells", "warns")] + [f"{name} warns" for name in others]
    assert run.stderr.splitlines() == expected


@pytest.mark.parametrize("name", ["a\\nb.png", "a\\r\\nb.png", "a\\u2028b"])
def test_a_refusal_is_one_line_whatever_name_it_tells(name: str) -> None:
    program = (
        f"from vigor_jax import cli, errors\ndef main(): raise errors.InputError('{name} is missing')\ncli.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "is missing" in done.stderr


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        (lambda: cli.Parser("plan", "Plans."), InputError),
        (lambda: command.Parser(prog="client", description="Asks."), BridgeError),
    ],
    ids=["vigor_jax", "detector_bridge"],
)
@pytest.mark.parametrize("given", [["--topo", "v5e:4x4"], ["--topo=v5e:4x4"]], ids=["apart", "joined"])
def test_an_abbreviated_option_is_refused(make, refusal, given) -> None:
    parser = make()
    parser.add_argument("--topology")
    assert parser.parse_args(["--topology", "v5e:4x4"]).topology == "v5e:4x4"
    with pytest.raises(refusal, match=r"unrecognized arguments: --topo[ =]v5e:4x4 \(--help lists the options\)"):
        parser.parse_args(given)


# One that loads JAX, one with subcommands, and one that loads PyTorch.
MAIN = ("vigor_jax.train", "vigor_jax.evaluate", "detector_bridge.server")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[pytest.mark.main] if name in MAIN else []) for name in commands(ROOT)]
)
def test_every_command_refuses_an_unknown_option_in_one_line(command: str, tmp_path: Path) -> None:
    """Real processes, for what stands behind a module's main decides, too."""
    given = ["pope"] if command == "vigor_jax.evaluate" else []
    # A command with options that it cannot do without may name those instead.
    run = [sys.executable, "-m", command, *given, "--no-such-option", "1"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (2, ""), done.stderr[-2000:]
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "--help lists" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RunEndedError("update 2: loss nan"), "update 2: loss nan"),
        (FloatingPointError("a.jpg: the scores are not finite"), "a.jpg: the scores are not finite"),
        (
            MemoryError("Unable to allocate 8.00 PiB for an array"),
            "the machine's memory is full: Unable to allocate 8.00 PiB for an array; use smaller batches, or more "
            "devices",
        ),
        (MemoryError(), "the machine's memory is full; use smaller batches, or more devices"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.5G of 15.7G.\nTotal hbm:"),
            "a device's memory is full: Ran out of memory in memory space hbm. Used 21.5G of 15.7G; use smaller "
            "batches, or more devices",
        ),
    ],
)
def test_what_cannot_continue_ends_with_one_line(error, said, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 3
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("RESOURCE_EXHAUSTED: too many requests"),
        RuntimeError("INTERNAL: out of memory and of patience"),
        ValueError("RESOURCE_EXHAUSTED: Failed to write: no memory"),
        ZeroDivisionError("division by zero"),
    ],
)
def test_defects_keep_their_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)):
        cli.run(main)


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']"), False),
        (ValueError("a defect"), True),
        (OSError("odd"), True),
    ],
)
def test_a_write_that_was_given_up_is_told_once(error, is_told, capfd):
    """By the command's own line, and not by asyncio once more for each of several writers."""
    cli.show_progress()

    async def give_up():
        future = asyncio.get_running_loop().create_future()
        future.set_exception(error)
        del future
        gc.collect()

    asyncio.run(give_up())
    assert ("never retrieved" in capfd.readouterr().err) is is_told
