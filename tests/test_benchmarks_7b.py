"""`benchmarks/7b.py`: its arithmetic, what it says of sides that fail, and all of it at tiny sizes."""

import importlib
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
bench = importlib.import_module("benchmarks.7b")


def run(out: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    # From elsewhere: the script finds its own package.
    command = [sys.executable, str(ROOT / "benchmarks" / "7b.py"), "--out", str(out), "--size", "tiny", *options]
    done = subprocess.run(command, cwd=out.parent, capture_output=True, text=True, timeout=600)
    assert out.is_file(), done.stderr
    return done.returncode, json.loads(out.read_text()), done.stdout


def side(median: float, **about: Any) -> dict[str, Any]:
    return {"median": median, "about": about}


def test_no_benchmark_takes_the_name_of_a_module_of_python() -> None:
    """A script's folder comes first on the path."""
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert "7b" in names
    assert not names & sys.stdlib_module_names


def test_recipe_and_targets_are_what_a_hand_reckons() -> None:
    results: dict[str, Any] = {
        "size": "7b",
        "parts": {
            "sft": {
                "ours": side(12_000.0, tokens_per_example=750.0, flops_per_token=4.5e10, peak_flops=9e14),
                "peer": side(10_000.0),
            },
            "caption": {"ours": side(20_000.0, mean_caption_tokens=120.0), "peer": side(4_000.0)},
            "reward": {"ours": side(299.0), "peer": None},
            "detector": {"ours": side(25.574), "peer": None},
            "ppo": {"ours": side(2.0, candidates=4, mean_response_tokens=119.6), "peer": None},
        },
    }
    bench.finish(results)
    assert results["fisao"]["gpu_hours"] == pytest.approx(8000 / 2 / 3600)
    assert "8,000 images (4 responses of 120 tokens each, 4 PPO epochs) / 2 images/s" in results["fisao"]["formula"]
    seconds = [25_574 * 5 * 120 / 20_000, 1000, 25_574 * 5 * 6 / 299, 25_574 * 2 * 750 / 12_000]
    assert [stage["seconds"] for stage in results["recipe"]["stages"]] == pytest.approx(seconds)
    assert results["recipe"]["total_gpu_hours"] == pytest.approx(sum(seconds) / 3600)
    assert "25,574 images × 5 candidates × 120 tokens a caption" in results["recipe"]["stages"][0]["formula"]
    got = {name: (target["got"], target["met"]) for name, target in results["targets"].items()}
    assert got == {
        "sft_mfu": (pytest.approx(0.6), True),
        "sft_ratio": (pytest.approx(1.2), False),
        "caption_tokens_per_second": (20_000, True),
        "caption_ratio": (5, True),
        "reward_sentences_per_second": (299, False),
        "recipe_gpu_hours": (pytest.approx(sum(seconds) / 3600), True),
    }


def test_a_recipe_without_one_of_its_stages_has_no_total() -> None:
    results: dict[str, Any] = {"size": "7b", "parts": {"reward": {"ours": side(300.0), "peer": None}}}
    bench.finish(results)
    assert results["recipe"]["total_gpu_hours"] is None
    assert len(results["recipe"]["missing"]) == 3
    assert results["fisao"]["gpu_hours"] is None
    assert results["targets"]["recipe_gpu_hours"] == {"wanted": 3.0, "got": None, "met": None}
    assert results["targets"]["reward_sentences_per_second"]["met"] is True


def test_the_fastest_setting_with_all_repeats_counts() -> None:
    tried = {
        "slow": {"runs": [1.0, 3.0, 2.0]},
        "fast": {"runs": [5.0, 4.0, 9.0]},
        "cut off": {"runs": [100.0], "error": "stopped"},
        "too large": {"error": "out of memory"},
    }
    found = bench.summary({"about": {}, "tried": tried}, 3, "ended after its 9 s", ["last words"])
    assert (found["best"], found["median"], found["min"], found["max"]) == ("fast", 5.0, 4.0, 9.0)
    assert "error" not in found
    assert found["tried"]["too large"] == {"error": "out of memory"}

    short = bench.summary({"about": {}, "tried": {"cut off": tried["cut off"]}}, 3, "ended after its 9 s", ["words"])
    assert short["median"] == 100.0
    assert short["error"] == "1 of 3 repeats; ended after its 9 s"
    assert short["log"] == ["words"]

    none = bench.summary({"about": {}, "tried": {"too large": tried["too large"]}}, 3, "", [])
    assert none["best"] is None
    assert "median" not in none
    assert "out of memory" in none["error"]


def test_what_gets_no_time_or_too_little_is_listed(tmp_path: Path) -> None:
    # Three seconds are too few to share, and the last one, which has them all, does not get ready in them.
    code, results, printed = run(tmp_path / "r.json", "--minutes", "0.05", "--parts", "caption", "reward")
    assert code == 1
    assert results["parts"]["caption"]["ours"]["error"].startswith("skipped")
    assert results["parts"]["reward"]["ours"]["error"].startswith("skipped")
    assert "0 of 3 repeats; ended after its 3 s" in results["parts"]["caption"]["peer"]["error"]
    assert "ended after its 3 s" in printed


@pytest.mark.slow
def test_all_of_it_at_tiny_sizes(tmp_path: Path) -> None:
    parts = ("sft", "caption", "reward", "ppo")
    code, results, printed = run(tmp_path / "r.json", "--repeats", "3", "--minutes", "9", "--parts", *parts)
    assert code == 0, printed
    assert set(results) >= {"machine", "commit", "size", "settings", "parts", "recipe", "targets"}
    for part in parts:
        for found in filter(None, (results["parts"][part][name] for name in ("ours", "peer"))):
            runs = found["tried"][found["best"]]["runs"]
            assert len(runs) == 3
            assert found["median"] == statistics.median(runs)
            assert (found["min"], found["max"]) == (min(runs), max(runs))
            assert all(math.isfinite(speed) and speed > 0 for speed in runs)
            assert all(each.get("median", 0) <= found["median"] for each in found["tried"].values())
        both = results["parts"][part]
        if part not in ("reward", "ppo"):
            assert both["ratio"] == both["ours"]["median"] / both["peer"]["median"]
    assert results["recipe"]["missing"] == ["score with the detector"]
    assert all(stage["formula"] in printed for stage in results["recipe"]["stages"])
    assert results["fisao"]["formula"] in printed
    assert results["targets"]["sft_ratio"]["got"] == results["parts"]["sft"]["ratio"]
    assert all(target["met"] is None for target in results["targets"].values())  # they speak of a 7B


@pytest.mark.slow
def test_one_side_that_fails_leaves_the_others(tmp_path: Path) -> None:
    options = ("--skip-peer", "--pack", "3", "--repeats", "1", "--minutes", "9", "--parts", "sft", "caption")
    code, results, printed = run(tmp_path / "r.json", *options)
    assert code == 1
    assert "--pack 3 does not divide a batch of 4" in results["parts"]["sft"]["ours"]["error"]
    assert "does not divide" in printed
    assert results["parts"]["caption"]["ours"]["median"] > 0
