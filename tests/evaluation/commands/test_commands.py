"""The commands that need a judge or reference captions, from files to `metrics.json`, as a user runs them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.benchmarks.test_mmhal import template
from tests.evaluation.benchmarks.test_mmvet import VET
from tests.evaluation.benchmarks.test_questions import seed_file
from tests.evaluation.judge.chat_server import ChatServer, Say
from tests.evaluation.spoken import write
from vigor_jax.errors import InputError
from vigor_jax.evaluate import main


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def run(*arguments: object) -> dict[str, Any]:
    texts = [str(argument) for argument in arguments]
    main(texts)
    return json.loads((Path(texts[texts.index("--out") + 1]) / "metrics.json").read_text())


def lines(path: Path, records: list[dict[str, Any]]) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def test_mmhal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Replies are kept: the second run asks nothing, and one that cannot be read is shown."""
    questions = template()
    answers = [{**question, "model_answer": f"answer <{i}>"} for i, question in enumerate(questions)]
    ratings = [6, 3, None, 2, 0, 5, *[4] * len(questions)][: len(questions)]

    def respond(text: str, before: int) -> Say:
        number = next(i for i in range(len(questions)) if f"answer <{i}>" in text)
        return Say("no idea" if ratings[number] is None else f"Rating: {ratings[number]}")

    with ChatServer(respond) as server:
        arguments = [
            "mmhal", "--questions", write(tmp_path / "q.json", questions),
            "--answers", write(tmp_path / "a.json", answers),
            "--judge.base_url", server.url, "--judge.model", "gpt-4", "--judge.price_per_million_prompt_tokens", 30,
            "--judge.price_per_million_completion_tokens", 60, "--out", tmp_path / "out",
        ]  # fmt: skip
        found = run(*arguments)
        asked = server.counts.total()
        again = run(*arguments)
        assert server.counts.total() <= asked + 3  # what could not be read may be asked for again
    given = [rating for rating in ratings if rating is not None]
    for metrics in (found, again):
        assert metrics["score"] == pytest.approx(np.mean(given), abs=1e-9)
        assert metrics["hallucination_rate"] == pytest.approx(np.mean([rating < 3 for rating in given]), abs=1e-9)
        assert len(metrics["malformed"]) == ratings.count(None)
        assert metrics["judge"]["model"] == "gpt-4"
    assert found["spending"]["asked"]["cost"] == pytest.approx(asked * (100 * 30 + 10 * 60) / 1e6, abs=1e-12)
    assert f"{np.mean(given):.2f}" in capsys.readouterr().out


def test_mmvet_in_words_of_ones_own(tmp_path: Path) -> None:
    answers = write(tmp_path / "answers.json", {name: f"answer <{name}>" for name in VET})

    def respond(text: str, before: int) -> Say:
        assert text.startswith("Mark it.")
        return Say("Correctness: 0.5")

    with ChatServer(respond) as server:
        arguments = [
            "questions", "--layout", "mmvet", "--questions", write(tmp_path / "mm-vet.json", VET), "--answers", answers,
            "--judge.base_url", server.url, "--judge.model", "gpt-4", "--out", tmp_path / "out",
            "--prompt", write(tmp_path / "prompt.txt", "Mark it.\n{question} | {answer} | {prediction} |"),
        ]  # fmt: skip
        metrics = run(*arguments)
    assert metrics["score"] == 0.5
    assert metrics["judged"] == len(VET)
    assert metrics["prompt"].endswith("prompt.txt")
    assert metrics["intervals"]["score"] == [0.5, 0.5]


def test_preference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A judge that likes one system best everywhere, whatever the order it is shown in."""
    for i in range(4):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    files = [
        lines(tmp_path / f"{system}.jsonl", [{"image": f"{i}.png", "text": f"<{system}> {i}"} for i in range(4)])
        for system in ("base", "rm", "all")
    ]

    def respond(text: str, before: int) -> Say:
        order = sorted(("base", "rm", "all"), key=lambda system: text.index(f"<{system}>"))
        place = {"all": 1, "rm": 2, "base": 3}
        ranks = [place[system] for system in order]
        return Say(json.dumps(dict.fromkeys(("HL", "CA", "AA", "RA", "RL", "RS", "DL"), ranks)))

    with ChatServer(respond) as server:
        arguments = ["--images", tmp_path, "--judge.base_url", server.url, "--judge.model", "gpt-4o", "--repeats", 2]
        metrics = run("preference", "--captions", *files, *arguments, "--out", tmp_path / "out")
        assert server.counts.total() == 8
        assert all(isinstance(body["messages"][0]["content"], list) for body in server.bodies)  # with the image
    assert {name: ranks["average"] for name, ranks in metrics["ranks"].items()} == {"base": 3, "rm": 2, "all": 1}
    assert metrics["rankings"] == 8
    assert "mean rank of all" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.main
def test_captions(tmp_path: Path) -> None:
    references = {"a.jpg": ["a dog runs on grass", "the dog is running"], "b.jpg": ["a red car in a street"]}
    said = [{"image": "a.jpg", "text": "a dog runs on grass"}, {"image": "b.jpg", "text": "two cats"}]
    arguments = ["--references", write(tmp_path / "references.json", references), "--out", tmp_path / "out"]
    metrics = run("captions", "--captions", lines(tmp_path / "captions.jsonl", said), *arguments)
    assert 0 < metrics["bleu_1"] < 1
    assert metrics["cider"] > 0
    assert set(metrics["intervals"]) <= set(metrics)


def test_questions(tmp_path: Path) -> None:
    content = seed_file()
    records = [record for record in content["questions"] if record["data_type"] == "image"]
    wrong = {"A": "B", "B": "C", "C": "D", "D": "A"}
    said = [
        {"question_id": r["question_id"], "answer": r["answer"] if i % 4 else wrong[r["answer"]]}
        for i, r in enumerate(records)
    ]
    arguments = ["--layout", "seed", "--questions", write(tmp_path / "SEED-Bench.json", content)]
    metrics = run("questions", *arguments, "--answers", lines(tmp_path / "a.jsonl", said), "--out", tmp_path / "out")
    assert metrics["accuracy"] == pytest.approx(np.mean([i % 4 > 0 for i in range(len(records))]), abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mmhal", "--questions", "Q", "--out", "O"], "judge"),
        (["questions", "--layout", "sead", "--questions", "Q", "--out", "O"], "seed"),
        (["preference", "--captions", "a/x.jsonl", "b/x.jsonl", "--images", "I", "--judge.model", "m", "--out", "O"],
         "two files have the same name"),
        (["captions", "--references", "R", "--out", "O"], "R"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        main(arguments)
    assert "\n" not in str(error.value)
