"""Each benchmark by a tiny model, by its command: the answers that it keeps are read back to the same figures."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.benchmarks.test_mmbench import mmbench_rows, write_tsv
from tests.evaluation.benchmarks.test_mmhal import template
from tests.evaluation.benchmarks.test_mmvet import VET
from tests.evaluation.benchmarks.test_questions import gqa_file, scienceqa_files, seed_file
from tests.evaluation.judge.chat_server import ChatServer, Say
from tests.evaluation.spoken import write
from tests.test_evaluate import OBJECTS, run, world
from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.evaluation.protocol import read_protocol
from vigor_jax.evaluation.wording import CHOICE, SHORT

__all__ = ["world"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("kept") / "model", Tiny())


@pytest.fixture(scope="module")
def files(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every benchmark's files, and under `images` all images by the names that they go by."""
    files = tmp_path_factory.mktemp("files")
    shutil.copytree(world, files, dirs_exist_ok=True)
    images = files / "images"
    write(files / "seed.json", seed_file(12))
    scienceqa_files(files)
    write(files / "gqa.json", dict(list(gqa_file().items())[:8]))
    write_tsv(files / "mmbench.tsv", mmbench_rows(6))
    write(files / "mm-vet.json", VET)
    write(files / "mmhal.json", template())
    write(files / "references.json", {name: [f"a {' and a '.join(things)}"] for name, things in OBJECTS.items()})
    names = [f"SEED-Bench-image/1454426_{i}" for i in range(6)] + [f"SEED-Bench-video-image/v{i}.png" for i in (4, 9)]
    names += ["10/choice.png", "1/image.png", "2/image.png", *(f"n{i}.jpg" for i in range(3))]
    names += [*(f"v1_{i}.png" for i in range(4)), *(f"image{i}_o.jpg" for i in range(6))]
    rng = np.random.default_rng(1)
    for name in names:
        (images / name).parent.mkdir(exist_ok=True)
        suffix = Path(name).suffix or ".png"
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(
            images / f"{name}{'' if '.' in name else suffix}"
        )
    return files


CHINESE = "请直接回答选项字母。"
LLAVA = ["--protocol", "llava-1.5"]
QUESTIONS = ["questions", "--layout"]
COMMANDS: dict[str, tuple[list[str], str, list[str]]] = {
    "pope": (["pope", "--questions", "random.json"], "--answers", ["pope-random.jsonl"]),
    "pope, two": (
        ["pope", "--questions", "random.json", "adversarial.json"],
        "--answers",
        ["pope-random.jsonl", "pope-adversarial.jsonl"],
    ),
    "pope, llava": (["pope", *LLAVA, "--questions", "random.json"], "--answers", ["pope-random.jsonl"]),
    "chair": (["chair", "--objects", "objects.json"], "--captions", ["captions.jsonl"]),
    "mme": (["mme", "--data", "mme"], "--answers", ["mme-existence.jsonl", "mme-color.jsonl"]),
    "mme, llava": (["mme", *LLAVA, "--data", "mme"], "--answers", ["mme-color.jsonl", "mme-existence.jsonl"]),
    "captions": (["captions", "--references", "references.json"], "--captions", ["captions.jsonl"]),
    "seed": ([*QUESTIONS, "seed", "--questions", "seed.json", "--part", "all"], "--answers", ["seed.jsonl"]),
    "seed, paper": (
        [*QUESTIONS, "seed", "--questions", "seed.json", "--protocol", "paper"], "--answers", ["seed.jsonl"],
    ),
    "mmbench": ([*QUESTIONS, "mmbench", "--questions", "mmbench.tsv"], "--answers", ["mmbench.jsonl"]),
    "mmbench, once, own words": (
        [*QUESTIONS, "mmbench", "--questions", "mmbench.tsv", "--circular", "false", "--prompt_suffix", CHINESE],
        "--answers",
        ["mmbench.jsonl"],
    ),
    "scienceqa": (
        [*QUESTIONS, "scienceqa", "--questions", "problems.json", "--splits", "pid_splits.json", "--part", "all"],
        "--answers",
        ["scienceqa.jsonl"],
    ),
    "gqa": ([*QUESTIONS, "gqa", "--questions", "gqa.json"], "--answers", ["gqa.jsonl"]),
    "mmvet": ([*QUESTIONS, "mmvet", "--questions", "mm-vet.json", "--system", "tiny"], "--answers", ["mmvet.jsonl"]),
    "mmhal": (["mmhal", "--questions", "mmhal.json", "--system", "tiny"], "--answers", ["mmhal.jsonl"]),
}  # fmt: skip
SUFFIXES = {
    "seed": CHOICE,
    "mmbench": CHOICE,
    "scienceqa": CHOICE,
    "gqa": SHORT,
    "pope, llava": SHORT,
    "mme, llava": SHORT,
}


def comparable(metrics: dict[str, Any]) -> dict[str, Any]:
    """Without what only a model that is asked has, and what is only counted once."""
    return {name: value for name, value in metrics.items() if name not in ("policy", "spending")}


@pytest.mark.parametrize("name", COMMANDS)
def test_kept_answers_are_read_back(
    name: str, model: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, option, kept = COMMANDS[name]
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    if "captions" in command:
        pytest.importorskip("pycocoevalcap")
    arguments: list[Any] = [command[0], *(files / one if (files / one).exists() else one for one in command[1:])]
    with ChatServer(lambda text, before: Say("Rating: 4" if "mmhal" in name else "Correctness: 0.5")) as server:
        if "mmhal" in name or "mmvet" in name:
            pytest.importorskip("openai")
            arguments += ["--judge.model", "gpt", "--judge.base_url", server.url]
        asked = ["--model", model, "--images", files / "images", "--sampling.max_new_tokens", 6]
        metrics = run(*arguments, *asked, "--out", tmp_path / "asked")
        saved = [tmp_path / "asked" / one for one in kept]
        assert all(path.stat().st_size for path in saved)
        again = run(*arguments, option, *saved, "--out", tmp_path / "read")
    assert comparable(again) == comparable(metrics)
    if suffix := SUFFIXES.get(name):
        assert metrics["protocol"]["name"] == "llava-1.5"
        assert metrics["protocol"]["suffix"] == suffix
        settings = json.loads((saved[0].with_name(f"{saved[0].name}.settings.json")).read_text())
        assert settings["protocol"] == "llava-1.5"
        for path in saved:
            prompts = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
            assert all(prompt.endswith(f"\n{suffix}") for prompt in prompts)
            assert not any("Please answer yes or no." in prompt for prompt in prompts)
    if name == "seed, paper":
        assert metrics["protocol"] == read_protocol("paper", "seed").stored()
        assert all(json.loads(line)["prompt"].endswith("d") for line in saved[0].read_text().splitlines())
    if name == "mmbench, once, own words":
        assert (metrics["protocol"]["name"], metrics["protocol"]["suffix"]) == ("own", CHINESE)
        assert (metrics["questions"], "once" in metrics) == (6, False)
    if name == "seed":
        assert metrics["categories"]["data"].keys() == {"image", "video"}
        assert metrics["strict"]["questions"] == metrics["questions"] == 12
    if name == "scienceqa":
        assert metrics["questions"] == 4


def test_answers_are_bound_to_what_a_protocol_asks(model: Path, files: Path, tmp_path: Path) -> None:
    """A protocol sets the prompt and the length; with either of them changed, or without it, nothing is used again."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("benchmark: chair\nprompt: Say what you see.\nmax_new_tokens: 4\n")
    command = ["chair", "--objects", files / "objects.json", "--model", model, "--images", files / "images"]
    metrics = run(*command, "--protocol", mine, "--out", tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    assert {line["prompt"] for line in lines} == {"Say what you see."}
    assert max(line["num_tokens"] for line in lines) <= 4
    assert metrics["protocol"]["name"] == "mine"
    assert run(*command, "--protocol", mine, "--out", tmp_path / "out") == metrics
    with pytest.raises(
        ValueError, match=r"sampling\.max_new_tokens: protocol mine of chair has 4, got 5; leave it out"
    ):
        run(*command, "--protocol", mine, "--sampling.max_new_tokens", 5, "--out", tmp_path / "new")
    with pytest.raises(
        ValueError, match=r"protocol mine of chair asks 'Say what you see\.', got 'Else\.'; leave it out"
    ):
        run(*command, "--protocol", mine, "--prompt", "Else.", "--out", tmp_path / "new")
    for change, told in (
        ("prompt: Tell.\nmax_new_tokens: 4\n", r'prompt "Say what you see\.", which is now "Tell\."'),
        ("prompt: Say what you see.\nmax_new_tokens: 5\n", r"sampling\.max_new_tokens 4, which is now 5"),
    ):
        mine.write_text(f"benchmark: chair\n{change}")
        with pytest.raises(ValueError, match=told):
            run(*command, "--protocol", mine, "--out", tmp_path / "out")
    with pytest.raises(ValueError, match=r'protocol "mine", which is now "own"'):
        run(*command, "--out", tmp_path / "out")


def test_another_protocol_in_the_same_folder_is_refused(model: Path, files: Path, tmp_path: Path) -> None:
    asked = ["--model", model, "--images", files / "images", "--sampling.max_new_tokens", 4, "--out", tmp_path]
    run("pope", "--questions", files / "random.json", *asked)
    with pytest.raises(ValueError, match=r'protocol "paper", which is now "llava-1\.5"; choose another --out'):
        run("pope", "--questions", files / "random.json", *LLAVA, *asked)
