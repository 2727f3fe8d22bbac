"""`benchmarks/checkpoint.py`: every job at tiny sizes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("peft")
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "parts", "peer"),
    [("load", ("load", "export"), "transformers"), ("round", ("export",), "transformers"),
     ("merge", ("export",), "transformers + PEFT")],
)  # fmt: skip
def test_all_of_it_at_tiny_sizes(job, parts, peer):
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--size", "tiny", "--repeats", "1", "--job", job]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    for part in parts:
        for unit in ("GB/s", "GB a CPU second"):
            table = done.stdout.split(f"| {part}, {unit} |")[1].split("\n\n")[0]
            rates = [re.search(rf"\| {re.escape(side)} \| (\S+) \|", table) for side in ("vigor_jax", peer)]
            assert all(rate and float(rate[1]) > 0 for rate in rates)
