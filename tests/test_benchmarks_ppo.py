"""`benchmarks/ppo.py`: what it gives its sides, and all of it at tiny sizes."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ppo_work import Given, Settings, Words, rewards_of
from benchmarks.sft import CAPTION_LENGTHS
from vigor_jax.records import ScoreItem
from vigor_jax.rewards.token_rewards import TokenRewardConfig, batch_token_rewards, token_offsets

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("images", "candidates"), [(1, 5), (3, 4)])
def test_responses_are_as_long_as_real_ones(images, candidates):
    settings = Settings(images=images, candidates=candidates, minibatch=1, at_once=1)
    assert settings.lengths.shape == (images, candidates)
    assert settings.lengths.mean() == pytest.approx(np.mean(CAPTION_LENGTHS), rel=0.05)
    assert Settings(images=1, candidates=5, minibatch=1, at_once=1, most_tokens=100).lengths.max() == 100
    for separate in (True, False):  # the same work, as rows of one response and of all
        config = settings.config(separate=separate)
        assert config.batch_size * config.sampling.num_candidates == settings.lengths.size
        assert config.minibatch * config.sampling.num_candidates == candidates


def test_the_stream_says_the_given_rewards():
    tokenizer, ids = Words(), list(range(1000, 1045))
    text = tokenizer.decode(ids).strip()
    (verdicts,) = Given().judge([ScoreItem("image", Path("image"), "prompt", (text,))])
    offsets = token_offsets(tokenizer, ids, text)
    config, credits = TokenRewardConfig(), {Given.name: "words"}
    found = batch_token_rewards([{Given.name: verdicts[0]}], [offsets], config, credits=credits)
    np.testing.assert_array_equal(found.rewards[0], rewards_of(len(ids)))
    assert set(rewards_of(len(ids))) == {-1, 0, 1}


@pytest.mark.slow
def test_all_of_it_at_tiny_sizes(tmp_path):
    """The script ends with an error if its sides do not do the same work."""
    sizes = ("--size", "tiny", "--image-size", "28", "--most-tokens", "9", "--bucket", "32", "--rank", "4")
    options = ("--images", "2", "--candidates", "3", "--repeats", "2", "--epochs", "3", "--peer-cache", "dynamic")
    command = [sys.executable, "-m", "benchmarks.ppo", *sizes, *options, "--json", str(tmp_path / "r.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "r.json").read_text())
    same = found["same_work"]
    assert same["tokens"] == 2 * 3 * 9
    assert len(same["losses"]) == 3
    assert all(len(losses) == 2 for losses in same["losses"].values())
    assert len({round(losses[1], 4) for losses in same["losses"].values()}) == 1
    assert found["compile_seconds"] > 0
    for kind in ("wall", "cpu"):
        assert set(found[kind]) == {"iteration", "rollout", "score", "update"}
        speeds = found[kind]["iteration"]["tokens_per_second"]
        for name, ratio in found[kind]["iteration"]["ratios"].items():
            runs = zip(speeds["vigor_jax"], speeds[name], strict=True)
            assert ratio == statistics.median(ours / other for ours, other in runs)
            assert len(speeds[name]) == 2
    assert "| vigor_jax / transformers + PEFT |" in done.stdout
