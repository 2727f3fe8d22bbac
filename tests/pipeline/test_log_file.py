"""What `log.txt` gets, whatever the program around a run has set up for its own logs."""

import subprocess
import sys

import pytest

from tests.stages.sft_world import ROOT

PROGRAM = """
import logging, sys
from pathlib import Path
from vigor_jax import cli
from vigor_jax.pipeline.run import _log_file
logging.getLogger().handlers.clear()  # a library that is imported makes one
{setup}
ours, theirs = logging.getLogger("vigor_jax.pipeline.run"), logging.getLogger("another")
levels = [logging.getLogger(name).level for name in ("", "vigor_jax")]
for _ in range(2):
    ours.info("before")
    with _log_file(Path(sys.argv[1])):
        ours.debug("detail"), ours.info("stage sft"), theirs.info("file written")
        ours.warning("is made again"), theirs.warning("is slow")
    ours.info("after")
assert levels == [logging.getLogger(name).level for name in ("", "vigor_jax")]
assert not [handler.filters for handler in logging.getLogger().handlers if handler.filters]
"""
WARNINGS = ["is made again", "is slow"]
SETUPS = {
    "none": ("", []),
    "a handler": ("logging.basicConfig(format='%(message)s')", WARNINGS),
    "a handler of ours": ("logging.getLogger('vigor_jax').addHandler(logging.StreamHandler())", WARNINGS[:1]),
    "errors only": ("logging.basicConfig(level='ERROR', format='%(message)s')", []),
    "as a command": ("cli.show_progress()", ["before", "stage sft", "file written", *WARNINGS, "after"]),
}


@pytest.mark.parametrize(
    "setup",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "as a command")) for name in SETUPS],
)
def test_the_file_gets_what_a_run_tells_and_stderr_no_more_than_before(setup, tmp_path):
    program, printed = SETUPS[setup]
    command = [sys.executable, "-c", PROGRAM.format(setup=program), tmp_path / "log.txt"]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    assert run.stderr.splitlines() == printed * 2
    told = [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    ours = ["vigor_jax.pipeline.run stage sft", "vigor_jax.pipeline.run is made again"]
    assert [line for line in told if line.startswith("vigor_jax")] == ours * 2
    assert ("another is slow" in told) == (setup != "errors only")
