"""`benchmarks/dpo.py`: what it gives its sides, and all of it at tiny sizes."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.dpo_work import Settings, make_preferences
from benchmarks.sft import CAPTION_LENGTHS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("images", "responses"), [(2, 2), (3, 4)])
def test_responses_are_as_long_as_real_ones_and_all_ranked(images, responses):
    settings = Settings(images, responses, rank=4, learning_rate=1e-4, most_tokens=198, bucket=64, remat="none")
    assert settings.lengths.mean() == pytest.approx(np.mean(CAPTION_LENGTHS), rel=0.05)
    rows = make_preferences(settings, 28)
    assert sum(len(row.preference.pairs()) for row in rows) == settings.pairs
    lengths = [[len(text.split()) for text in row.preference.responses] for row in rows]
    assert lengths == settings.lengths.tolist()
    assert Settings(2, 2, 4, 1e-4, most_tokens=100, bucket=64, remat="none").lengths.max() == 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "sides"), [("4", ("separate", "peer", "trl")), ("0", ("separate", "peer"))], ids=["adapter", "in full"]
)
def test_all_of_it_at_tiny_sizes(tmp_path, rank, sides):
    """The script ends with an error if its sides do not do the same work."""
    sizes = ("--size", "tiny", "--image-size", "28", "--most-tokens", "9", "--bucket", "32", "--rank", rank)
    options = ("--images", "2", "--responses", "3", "--repeats", "2", "--learning-rate", "1e-2", "--sides", *sides)
    command = [sys.executable, "-m", "benchmarks.dpo", *sizes, *options, "--json", str(tmp_path / "r.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "r.json").read_text())
    losses = found["same_work"]["losses"]
    assert len(losses) == 1 + len(sides)
    first, second = losses["vigor_jax"]
    assert first == pytest.approx(np.log(2), rel=1e-4)
    assert abs(second - first) > 1e-3  # the update has done something
    assert np.ptp([each[1] for each in losses.values()]) < 1e-4
    tokens = {name: each["tokens"] for name, each in found["tokens"].items()}
    assert tokens["vigor_jax"] < tokens["one response a row"] < tokens["transformers + PEFT"]
    assert all(each["tokens"] <= each["padded"] for each in found["tokens"].values())
    for kind in ("wall", "cpu"):
        speeds = found[kind]["pairs_per_second"]
        for name, ratio in found[kind]["ratios"].items():
            assert ratio == statistics.median(a / b for a, b in zip(speeds["vigor_jax"], speeds[name], strict=True))
            assert len(speeds[name]) == 2
    assert "| vigor_jax / transformers + PEFT |" in done.stdout
