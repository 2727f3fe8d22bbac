"""`benchmarks/start.py`: every start once."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_every_start_once():
    command = [sys.executable, "-m", "benchmarks.start", "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    for start, rows in {
        "help": ["train --help"],
        "pope": ["evaluate pope"],
        "caption": ["second start", "first start"],
        "train": ["second start", "first start"],
    }.items():
        for unit in ("CPU seconds", "seconds"):
            table = done.stdout.split(f"| {start}, {unit} |")[1].split("\n\n")[0]
            taken = [float(re.search(rf"\| {row} \| (\S+) \|", table)[1]) for row in rows]
            assert min(taken) > 0
            if unit == "CPU seconds":  # what is compiled is kept for the second
                assert taken[0] <= taken[-1]
