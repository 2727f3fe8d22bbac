"""`benchmarks/claims.py`: all of it at tiny sizes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(("kinds", "asks_more"), [((), True), (("--kinds", "number,place,relation"), False)])
def test_all_of_it_at_tiny_sizes(kinds, asks_more):
    command = [sys.executable, "-m", "benchmarks.claims", "--images", "2", "--repeats", "2", *kinds]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    named, attributed = map(float, re.search(r"an image: ([\d.]+), and ([\d.]+) with", done.stdout).groups())
    assert named > 0
    assert (attributed > 0) == asks_more
    for part in ("wall", "cpu", "ours", "sidecar"):
        table = done.stdout.split(f"the stage score, seconds, {part} |")[1].split("\n\n")[0]
        with_, without, ratio = (
            float(re.search(rf"\| {name} \| (\S+) \|", table)[1])
            for name in ("with claims", "without claims", "with claims / without claims")
        )
        assert with_ > 0
        assert without > 0
        assert ratio > 0
    assert len(re.findall(r"\| (?:the stream `claims`|sentences and phrases) \| \d", done.stdout)) == 2
