"""The evaluation command as a user runs it: from saved answers, and by asking a model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.errors import InputError
from vigor_jax.evaluate import COMMANDS, WITHOUT_A_MODEL, main
from vigor_jax.evaluation.benchmarks.pope import read_questions, write_questions
from vigor_jax.evaluation.benchmarks.pope_build import build_questions

THINGS = ("dog", "cat", "bench", "car", "kite")
OBJECTS = {f"{i:02}.png": sorted({THINGS[i % 5], THINGS[(i + 1) % 5]}) for i in range(8)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, what is in them, and questions about them."""
    world = tmp_path_factory.mktemp("evaluate")
    (world / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in OBJECTS:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(world / "images" / name)
    (world / "objects.json").write_text(json.dumps(OBJECTS))
    for split in ("random", "adversarial"):
        write_questions(world / f"{split}.json", build_questions(OBJECTS, split, per_image=4, seed=0))
    for subtask in ("existence", "color"):
        (world / "mme" / subtask).mkdir(parents=True)
        for name in list(OBJECTS)[:3]:
            (world / "mme" / subtask / f"{name[:2]}.txt").write_text("Is there a dog?\tYes\nIs there a cat?\tNo\n")
            (world / "mme" / subtask / name).write_bytes((world / "images" / name).read_bytes())
    return world


def run(*arguments: object) -> dict:
    texts = [str(argument) for argument in arguments]
    main(texts)
    return json.loads((Path(texts[texts.index("--out") + 1]) / "metrics.json").read_text())


def write_answers(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"question_id": i, "answer": t}) + "\n" for i, t in enumerate(texts, 1)))
    return path


def test_pope_from_answers(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files, accuracies = [], []
    for split, shift in (("random", 0), ("adversarial", 3)):
        questions = read_questions(world / f"{split}.json")
        texts = ["No, there is not" if (i + shift) % 3 else "Yes." for i in range(len(questions))]
        files.append(write_answers(tmp_path / f"{split}.jsonl", texts))
        right = [(text == "Yes.") == (question.label == "yes") for text, question in zip(texts, questions, strict=True)]
        accuracies.append(sum(right) / len(right))
    questions = [world / "random.json", world / "adversarial.json"]
    metrics = run("pope", "--questions", *questions, "--answers", *files, "--out", tmp_path / "out")
    assert [metrics[split]["accuracy"] for split in ("random", "adversarial")] == accuracies
    assert metrics["mean"]["accuracy"] == pytest.approx(sum(accuracies) / 2, abs=1e-12)
    low, high = metrics["mean"]["intervals"]["accuracy"]
    assert low <= metrics["mean"]["accuracy"] <= high
    assert metrics["strict"]["random"]["unparsed"] > 0
    assert f"{accuracies[0]:.1%}" in capsys.readouterr().out


def test_pope_questions_from_annotations(world: Path, tmp_path: Path) -> None:
    arguments = ["--objects", world / "objects.json", "--at_least", 2, "--per_image", 4]
    metrics = run("pope-questions", *arguments, "--limit", 5, "--out", tmp_path)
    for split in ("random", "popular", "adversarial"):
        questions = read_questions(tmp_path / f"{split}.json")
        assert {"questions": len(questions), "yes": len(questions) // 2} == metrics[split]
        assert len({question.image for question in questions}) == metrics["images"] == 5
        for question in questions:
            (thing,) = (thing for thing in THINGS if f" {thing} " in question.text)
            assert (question.label == "yes") == (thing in OBJECTS[question.image])
    with pytest.raises(InputError, match="none of 8 images has 4 objects"):
        run("pope-questions", *arguments[:2], "--out", tmp_path)


def test_chair_from_captions(world: Path, tmp_path: Path) -> None:
    lines = [{"image": name, "text": f"A {THINGS[0]} and two {THINGS[1]}s."} for name in OBJECTS]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = run(
        "chair", "--captions", tmp_path / "captions.jsonl", "--objects", world / "objects.json", "--out", tmp_path
    )
    wrong = [thing not in OBJECTS[name] for name in OBJECTS for thing in THINGS[:2]]
    assert metrics["chair_i"] == pytest.approx(sum(wrong) / len(wrong), abs=1e-12)
    found = json.loads((tmp_path / "captions.json").read_text())
    assert [len(each["hallucinated"]) for each in found] == [
        sum(pair) for pair in zip(wrong[::2], wrong[1::2], strict=True)
    ]


def test_a_limit_takes_the_first_images_by_name(world: Path, tmp_path: Path) -> None:
    lines = [{"image": name, "text": f"A {OBJECTS[name][0]}."} for name in reversed(OBJECTS)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "captions_of.json").write_text(json.dumps({name: ["A dog."] for name in OBJECTS}))
    captions = ["--captions", tmp_path / "captions.jsonl"]
    objects = [*captions, "--objects", world / "objects.json"]
    run("chair", *objects, "--out", tmp_path / "out", "--limit", 3)
    found = json.loads((tmp_path / "out" / "captions.json").read_text())
    assert sorted(each["image"] for each in found) == sorted(OBJECTS)[:3]
    for arguments in (
        ["chair", *objects],
        ["captions", *captions, "--references", tmp_path / "captions_of.json"],
        ["pope-questions", "--objects", world / "objects.json"],
    ):
        with pytest.raises(InputError, match="limit: expected 0 for all images, or how many, got -1"):
            run(*arguments, "--out", tmp_path / "out", "--limit", -1)


def test_answers_need_no_jax(world: Path, tmp_path: Path) -> None:
    questions = world / "random.json"
    answers = write_answers(tmp_path / "a.jsonl", ["Yes"] * len(read_questions(questions)))
    program = (
        "import sys; from vigor_jax.evaluate import COMMANDS, WITHOUT_A_MODEL, main; main(sys.argv[1:]);"
        "print({name.split('.')[0] for name in sys.modules} & {'jax', 'torch'})"
    )
    arguments = ["pope", "--questions", questions, "--answers", answers, "--out", tmp_path / "out"]
    command = [sys.executable, "-c", program, *map(str, arguments)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["popes"], "expected pope, pope-questions, chair"),
        (["pope", "--questions", "Q", "--out", "O"], r"--answers: expected a file for each of 1 files"),
        (["pope", "--questions", "none.json", "--answers", "a", "--out", "O"], "none.json"),
        (["chair", "--objects", "Q", "--out", "O"], "give either --captions, or --model"),
        (["mme", "--out", "O"], "give either --results, or --data and --model"),
        (["pope", "--questionz", "Q", "--out", "O"], "nearest known one is questions"),
        (["pope", "--questions", "Q", "--out", "O", "--modell", "M"], "nearest known one is model"),
        (["pope", "--questions", "Q"], "out is missing; give --out"),
        (
            ["chair", "--objects", "Q", "--out", "O", "--sampling.num_candidates", "5"],
            "unknown key sampling.num_candid",
        ),
        (["pope-questions", "--objects", "Q", "--out", "O", "--model", "M"], "unknown key model"),
        (["preference", "--captions", "c", "--images", "I", "--out", "O", "--model", "M"], "unknown key model"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        main(arguments)
    assert "\n" not in str(error.value)


GIVEN = {
    "pope": ("questions", ["random.json"], "answers", ["a.jsonl"]),
    "chair": ("objects", ["objects.json"], "captions", "c.jsonl"),
    "mme": ("data", "mme", "answers", ["a.jsonl"]),
    "amber": ("data", "AMBER/data", "answers", ["a.json"]),
    "hallusion": ("questions", "HallusionBench.json", "results", "r.json"),
    "llava-bench": ("questions", "q.jsonl", "answers", ["a.jsonl"]),
    "captions": ("references", "r.json", "captions", "c.jsonl"),
    "object-halbench": ("questions", "q.jsonl", "answers", ["a.jsonl"]),
    "detailcaps": ("references", "r.json", "captions", "c.jsonl"),
    "mmhal": ("questions", "q.json", "answers", "a.jsonl"),
    "questions": ("questions", "q.json", "answers", "a.jsonl"),
    "grounding": ("objects", ["instances.json"], "captions", "c.jsonl"),
}
JUDGE = {"judge": {"base_url": "http://localhost:1/v1", "model": "j"}}
MORE = {
    "mmhal": JUDGE,
    "llava-bench": {**JUDGE, "context": "c.jsonl", "references": "g.jsonl"},
    "questions": {"layout": "gqa"},
    "object-halbench": {"objects": ["instances.json"], "synonyms": "synonyms.txt"},
}
ASKING = [name for name in COMMANDS if name not in WITHOUT_A_MODEL]


@pytest.mark.parametrize("benchmark", ASKING)
@pytest.mark.parametrize("given", ["in a file", "with =", "apart"])
def test_a_model_is_asked_wherever_it_is_named(world: Path, tmp_path: Path, benchmark: str, given: str) -> None:
    """In a config file as on the command line: all come as far as opening the model, which is not there."""
    key, value, saved, answers = GIVEN[benchmark]
    model, config = tmp_path / "model", tmp_path / "config.yaml"
    settings = {key: value, "out": str(tmp_path / "out"), **MORE.get(benchmark, {}), "images": str(world / "images")}
    config.write_text(json.dumps(settings | ({"model": str(model)} if given == "in a file" else {})))
    arguments = [benchmark, "--config", str(config)]
    arguments += {"with =": [f"--model={model}"], "apart": ["--model", str(model)], "in a file": []}[given]
    with pytest.raises(InputError, match=re.escape(str(model))):
        main(arguments)
    config.write_text(json.dumps({**json.loads(config.read_text()), saved: answers}))
    with pytest.raises(InputError, match=f"{benchmark}: --{saved} has saved answers, and --model is asked"):
        main(arguments)


@pytest.mark.parametrize("benchmark", ASKING)
def test_options_for_asking_need_a_model(tmp_path: Path, benchmark: str) -> None:
    key, value, saved, answers = GIVEN[benchmark]
    config = tmp_path / "config.yaml"
    settings = {key: value, saved: answers, "out": str(tmp_path / "out"), **MORE.get(benchmark, {})}
    config.write_text(json.dumps(settings | {"sampling": {"max_new_tokens": 8}}))
    with pytest.raises(InputError, match=f"{benchmark}: --sampling is for asking a model, and none is given"):
        main([benchmark, "--config", str(config)])


@pytest.mark.parametrize("benchmark", COMMANDS)
def test_help_lists_a_model_where_one_can_be_asked(benchmark: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main([benchmark, "--help"])
    assert ("--model " in capsys.readouterr().out) == (benchmark in ASKING)


@pytest.mark.slow
def test_a_model_is_asked_and_its_answers_kept(world: Path, tmp_path: Path) -> None:
    """All three benchmarks; what was answered is scored like saved answers, and a second run asks nothing."""
    build_checkpoint(tmp_path / "model", Tiny())
    asked = ["--model", tmp_path / "model", "--images", world / "images", "--sampling.max_new_tokens", "8"]
    files = [world / "random.json", world / "adversarial.json"]
    metrics = run("pope", "--questions", *files, *asked, "--out", tmp_path / "pope")
    saved = []
    for path in files:
        lines = [json.loads(line) for line in (tmp_path / "pope" / f"pope-{path.stem}.jsonl").open()]
        texts = {(line["image"], line["prompt"]): line["text"] for line in lines}
        answers = [texts[question.image, question.text] for question in read_questions(path)]
        saved.append(write_answers(tmp_path / f"{path.stem}.jsonl", answers))
    assert run("pope", "--questions", *files, "--answers", *saved, "--out", tmp_path / "again") == metrics

    chair = run("chair", "--objects", world / "objects.json", *asked, "--out", tmp_path / "chair")
    assert chair["captions"] == len(OBJECTS)
    mme = run("mme", "--data", world / "mme", *asked, "--out", tmp_path / "mme")
    assert set(mme["subtasks"]) == {"existence", "color"}
    assert run("mme", "--results", tmp_path / "mme" / "results", "--out", tmp_path / "mme2") == mme

    written = {"model": str(tmp_path / "model"), "images": str(world / "images"), "sampling": {"max_new_tokens": 8}}
    (tmp_path / "config.yaml").write_text(json.dumps(written))
    from_file = ["--config", tmp_path / "config.yaml", "--out", tmp_path / "chair2"]
    assert run("chair", "--objects", world / "objects.json", *from_file) == chair

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pope").glob("*.jsonl")}
    run("pope", "--questions", *files, *asked, "--out", tmp_path / "pope")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(InputError, match=r"sampling\.max_new_tokens 8, which is now 9"):
        run("pope", "--questions", *files, *asked, "--sampling.max_new_tokens", "9", "--out", tmp_path / "pope")


def test_help(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vigor_jax.evaluate", "--help"], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0
    assert "python -m vigor_jax.evaluate pope" in done.stdout
