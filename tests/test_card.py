"""The card's command as a user runs it: tiny models on small benchmarks, a judge, killed and run again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.judge.chat_server import ChatServer, Say
from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.card import main
from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.pope import write_questions
from vigor_jax.evaluation.benchmarks.pope_build import build_questions
from vigor_jax.inference.predictor import Predictor

THINGS = ("dog", "cat", "bench", "car", "kite")
OBJECTS = {f"{i:02}.png": sorted({THINGS[i % 5], THINGS[(i + 1) % 5]}) for i in range(6)}
SAMPLING = ["--sampling.max_new_tokens", "6", "--sampling.temperature", "0.7"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, and benchmarks in the folders that the card looks for."""
    world = tmp_path_factory.mktemp("card")
    data = world / "data"
    rng = np.random.default_rng(0)
    for folder in ("images", "pope", "chair", "mme/color", "mmhal/images", "hallusion"):
        (data / folder).mkdir(parents=True)
    for name in OBJECTS:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(data / "images" / name)
    (data / "chair" / "objects.json").write_text(json.dumps(OBJECTS))
    for split in ("random", "popular"):
        write_questions(data / "pope" / f"{split}.json", build_questions(OBJECTS, split, per_image=2, seed=0))
    for name in list(OBJECTS)[:3]:
        (data / "mme" / "color" / f"{name[:2]}.txt").write_text("Is there a dog?\tYes\nIs there a cat?\tNo\n")
        (data / "mme" / "color" / name).write_bytes((data / "images" / name).read_bytes())
    questions = []
    for name in list(OBJECTS)[:3]:
        (data / "mmhal" / "images" / name).write_bytes((data / "images" / name).read_bytes())
        keys = {"question_type": "attribute", "image_id": name[:2], "image_content": ["dog"], "gt_answer": "A dog."}
        questions.append({**keys, "question": f"What is in picture {name[:2]}?", "model_answer": ""})
    (data / "mmhal" / "response_template.json").write_text(json.dumps(questions))
    for seed, name in enumerate(("before", "after")):
        build_checkpoint(world / name, Tiny(), seed=seed)
    return world


def arguments(world: Path, out: Path, *more: object) -> list[str]:
    models = ["--model", world / "after", "--against", world / "before"]
    return [*map(str, [*models, "--data", world / "data", "--out", out, *SAMPLING, *more])]


def read(out: Path) -> dict:
    return json.loads((out / "card.json").read_text())


@pytest.mark.main
def test_two_models_a_judge_and_a_second_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    out = tmp_path / "out"
    main(arguments(world, out))
    card = read(out)
    assert card["models"] == ["before", "after"]
    assert [each["name"] for each in card["benchmarks"]] == ["chair", "pope", "mme"]
    chair, pope, mme = card["benchmarks"]
    assert {"chair_i", "recall", "words", "repeats", "cut"} <= {row["key"] for row in chair["rows"]}
    assert {row["part"] for row in pope["rows"]} == {"random", "popular", "mean"}
    assert "yes_ratio" in {row["key"] for row in mme["rows"]}
    for row in chair["rows"]:
        first, last = (value["value"] for value in row["values"])
        assert row["difference"]["value"] == pytest.approx(last - first, abs=2e-6)
        assert row["images"] == len(OBJECTS)
    skipped = {each["name"]: each["reason"] for each in card["skipped"]}
    assert skipped["mmhal, after"].startswith("a judge is needed")
    assert "HallusionBench.json" in skipped["hallusion"]
    assert skipped["amber"] == f"there is no folder {world / 'data' / 'amber'}"
    assert "CHAIR_i" in capsys.readouterr().out

    # Nothing is asked again, and not a byte of the card changes.
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    asked = []
    monkeypatch.setattr(Predictor, "_complete", lambda self, questions, sampling: asked.append(questions))
    main(arguments(world, out))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    assert not asked
    main(["--results", str(out / "against"), str(out / "model"), "--out", str(tmp_path / "again")])
    again = read(tmp_path / "again")
    assert [each["rows"] for each in again["benchmarks"]] == [each["rows"] for each in card["benchmarks"]]
    monkeypatch.undo()

    # A judge: no key, then only what it costs, then asked, then known.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer(lambda text, before: Say("The answer is fine.\n\nRating: 4", usage=(50, 5))) as server:
        judge = ["--judge.model", "j", "--judge.base_url", server.url, "--judge.max_tokens", "64"]
        main(arguments(world, out, *judge))
        skipped = {each["name"]: each["reason"] for each in read(out)["skipped"]}
        assert "expected a key in the environment variable OPENAI_API_KEY" in skipped["mmhal, after"]
        assert "asked 3 requests, about" in skipped["mmhal, after"]
        assert "at most 192 tokens of replies" in skipped["mmhal, after"]
        monkeypatch.setenv("OPENAI_API_KEY", "a key")
        main(arguments(world, out, *judge, "--judge.ask", "false"))
        assert read(out)["skipped"][-1]["reason"].startswith("judge.ask is false; the judge would be asked 3 requests")
        assert not server.bodies
        main(arguments(world, out, *judge))
        assert len(server.bodies) == 6
        judged = read(out)
        mmhal = next(each for each in judged["benchmarks"] if each["name"] == "mmhal")
        assert mmhal["rows"][0]["values"][0]["value"] == 4
        assert any("judged by j, 3 replies, 165 tokens" in note for note in mmhal["notes"])
        main(arguments(world, out, *judge))
        assert len(server.bodies) == 6
        assert read(out) == judged


@pytest.mark.slow
def test_a_killed_run_continues(world: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    more = ["--benchmarks", "chair,pope", "--sampling.batch_size", "1"]
    command = [sys.executable, "-m", "vigor_jax.card", *arguments(world, out, *more)]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    answers, deadline = out / "against" / "pope" / "pope-popular.jsonl", time.monotonic() + 500
    while not (answers.exists() and answers.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "card.json").exists()
    before = (out / "against" / "chair" / "captions.jsonl").stat().st_mtime_ns
    main(arguments(world, out, *more))
    main(arguments(world, whole, *more))
    assert (out / "card.json").read_bytes() == (whole / "card.json").read_bytes()
    assert (out / "against" / "chair" / "captions.jsonl").stat().st_mtime_ns == before


@pytest.mark.slow
def test_what_cannot_be_asked_is_told_and_the_rest_is_shown(world: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "pope").mkdir(parents=True)
    (data / "chair").mkdir()
    os.symlink(world / "data" / "images", data / "images")
    (data / "chair" / "objects.json").write_text(json.dumps(OBJECTS))
    gone = build_questions({**OBJECTS, "gone.png": ["dog", "cat"]}, "random", per_image=2, seed=0)
    write_questions(data / "pope" / "random.json", gone)
    main(["--model", str(world / "after"), "--data", str(data), "--out", str(tmp_path / "out"), *SAMPLING])
    card = read(tmp_path / "out")
    assert [each["name"] for each in card["benchmarks"]] == ["chair"]
    assert card["benchmarks"][0]["rows"][0]["difference"] is None
    reason = next(each["reason"] for each in card["skipped"] if each["name"] == "pope")
    assert reason.startswith("pope-random: image gone.png is not in")
    assert "\n" not in reason
    with pytest.raises(InputError, match=r"got none \(.*pope: pope-random: image gone\.png"):
        main([
            "--model", str(world / "after"), "--data", str(data), "--benchmarks", "pope",
            "--out", str(tmp_path / "none"), *SAMPLING,
        ])  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--out", "O", "--data", "D"], "give --model and --data, or --results"),
        (["--out", "O", "--data", "none", "--model", "M"], "--data none is no directory"),
        (["--out", "O", "--data", ".", "--model", "M", "--benchmarks", "popes"], "expected some of chair, amber"),
        (["--out", "O", "--results", "none"], "none is no directory"),
        (["--out", "O", "--results", "none", "--model", "M"], "unknown key results"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(given: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        main(given)
    assert "\n" not in str(error.value)


def test_a_protocol_that_no_benchmark_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "random.json").write_text("[]")
    with pytest.raises(InputError, match=r"\(llava-1\.5, paper, strict, vcd\), got 'llava-1\.6'$"):
        main(["--out", "O", "--data", str(tmp_path), "--model", "M", "--protocol", "llava-1.6"])


def test_saved_results_need_no_jax(tmp_path: Path) -> None:
    (tmp_path / "pope").mkdir()
    part = {"accuracy": 0.5, "f1": 0.4, "yes_ratio": 0.6, "intervals": {"accuracy": [0.4, 0.6]}}
    (tmp_path / "pope" / "metrics.json").write_text(json.dumps({"random": part}))
    program = (
        "import sys; from vigor_jax.card import main; main(sys.argv[1:]);"
        "print({name.split('.')[0] for name in sys.modules} & {'jax', 'torch', 'nltk', 'matplotlib'})"
    )
    command = [sys.executable, "-c", program, "--results", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert read(tmp_path / "out")["benchmarks"][0]["protocol"] == "unknown protocol"
