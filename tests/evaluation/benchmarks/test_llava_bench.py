"""LLaVA-Bench in both variants, by a judge on a server, against the arithmetic of the published summary."""

import json
import random
from collections import defaultdict

import numpy as np
import pytest

from tests.evaluation.judge.chat_server import ChatServer, Say
from tests.evaluation.spoken import write
from vigor_jax.errors import InputError
from vigor_jax.evaluate import main
from vigor_jax.evaluation.benchmarks import llava_bench
from vigor_jax.evaluation.judge.judge import MalformedReplyError

NAMES = {"conv": "conversation", "detail": "detail", "complex": "reasoning"}


def lines(path, records):
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def make_files(folder, *, coco=False, number=30):
    """The benchmark's four files, and a model's answers, in another order."""
    rng = random.Random(0)
    images = [f"{i:012}.jpg" if coco else f"{i:03}.jpg" for i in range(8)]
    questions = [
        {"question_id": i, "image": images[i % 8], "text": f"What is {i}?", "category": rng.choice(list(NAMES))}
        for i in range(number)
    ]
    contexts = [{"id": image, "image": image, "caption": f"A picture of {image}."} for image in images]
    if coco:
        boxes = [{"category": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]}]
        contexts = [{"image": one["image"], "captions": ["A.", one["caption"]], "instances": boxes} for one in contexts]
    gpt4 = [{"question_id": i, "text": f"reference {i}", "category": "x"} for i in range(number)]
    said = [{"question_id": i, "prompt": f"What is {i}?", "text": f"answer <{i}>"} for i in range(number)]
    rng.shuffle(said)
    files = {"questions": questions, "context": contexts, "references": gpt4, "answers": said}
    return questions, [
        word for name, of in files.items() for word in (f"--{name}", lines(folder / f"{name}.jsonl", of))
    ]


def run(*arguments):
    main([str(each) for each in arguments])
    return json.loads((arguments[arguments.index("--out") + 1] / "metrics.json").read_text())


@pytest.fixture
def _key(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.usefixtures("_key")
@pytest.mark.parametrize("coco", [False, True])
def test_relative_scores(tmp_path, coco, capsys):
    """The judge is told what is in the image, malformed replies are shown and left out, and nothing is asked twice."""
    questions, files = make_files(tmp_path, coco=coco)
    rng = random.Random(1)
    given = [(rng.randint(1, 10), rng.randint(1, 10)) for _ in questions]
    replies = [
        rng.choice(["{} {}", "{}, {}", "{}.0 {}\nAssistant 1 is better.", "\n{} {}\n"]).format(*pair) for pair in given
    ]
    replies[4] = "Both are fine."

    def respond(text, before):
        number = next(i for i in range(len(questions)) if f"answer <{i}>" in text)
        assert f"A picture of {questions[number]['image']}." in text
        assert ("dog: [0.1, 0.2, 0.3, 0.4]" in text) == coco
        assert text.index(f"What is {number}?") < text.index(f"reference {number}") < text.index(f"answer <{number}>")
        return Say(replies[number])

    with ChatServer(respond) as server:
        arguments = ["llava-bench", *files, "--judge.base_url", server.url, "--judge.model", "gpt-4"]
        first = run(*arguments, "--out", tmp_path / "out")
        asked = server.counts.total()
        again = run(*arguments, "--out", tmp_path / "out")
        assert server.counts.total() - asked <= asked - len(questions) + 1
    scores = defaultdict(list)
    for i, (question, pair) in enumerate(zip(questions, given, strict=True)):
        if i != 4:
            scores[NAMES[question["category"]]].append(pair)
            scores["relative"].append(pair)
    for found in (first, again):
        for name, pairs in scores.items():  # the means of both, divided, as LLaVA's summary has it
            reference, answer = np.mean(pairs, axis=0)
            assert found[name] == pytest.approx(answer / reference, abs=1e-9)
            assert found["intervals"][name][0] <= found[name] <= found["intervals"][name][1]
        assert found["mean_reference"] == pytest.approx(np.mean(scores["relative"], axis=0)[0], abs=1e-9)
        assert found["judged"] == len(questions) - 1
        assert [one["question_id"] for one in found["malformed"]] == ["4"]
    assert "LLaVA-Bench, relative score" in capsys.readouterr().out


@pytest.mark.usefixtures("_key")
@pytest.mark.parametrize("coco", [False, True])
def test_the_published_words(tmp_path, coco):
    questions, files = make_files(tmp_path, coco=coco, number=8)
    rules = {
        f"{of}{name}": {"role": "Model", "prompt": f"Rule {of}{name}."} for of in ("", "llava_bench_") for name in NAMES
    }

    def respond(text, before):
        number = next(i for i in range(len(questions)) if f"answer <{i}>" in text)
        name = ("" if coco else "llava_bench_") + questions[number]["category"]
        assert text.endswith(f"[End of Model 2]\n\n[System]\nRule {name}.\n\n")
        return Say("5 5")

    with ChatServer(respond) as server:
        arguments = ["--judge.base_url", server.url, "--judge.model", "gpt-4", "--out", tmp_path / "out"]
        found = run("llava-bench", *files, "--rule", write(tmp_path / "rule.json", rules), *arguments)
    assert found["relative"] == 1
    assert found["prompt"].endswith("rule.json")


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 7", (8, 7)), ("8, 7.5\nBecause", (8, 7.5)), ("\n\n9/10 10/10", (9, 10)), ("**8 7**", (8, 7)),
        ("(8, 7)", (8, 7)), ("8", None), ("8 7 6", None), ("Assistant 1: 8", None), ("0 5", None), ("11 5", None),
        ("", None), ("8\n7", None),
    ],
)  # fmt: skip
def test_a_judges_two_scores(reply, scores):
    if scores is None:
        with pytest.raises(MalformedReplyError, match="two scores from 1 to 10"):
            llava_bench.parse_scores(reply)
    else:
        assert llava_bench.parse_scores(reply) == scores


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "questions",
            lambda c: c[2].update(category="art"),
            r"questions\.jsonl:3: expected one of conv, detail, complex",
        ),
        ("questions", lambda c: c[2].pop("question_id"), r"questions\.jsonl:3: expected a number under 'question_id'"),
        ("questions", lambda c: c[2].update(question_id=1), r"expected different question_ids, got some twice"),
        ("questions", lambda c: c.clear(), r"expected LLaVA-Bench's questions, got an empty file"),
        (
            "context",
            lambda c: c.pop(2),
            r"context\.jsonl: expected a line about image 002\.jpg of question 2, got none",
        ),
        ("context", lambda c: c[2].update(caption=3), r"context\.jsonl:3: expected a text or texts under 'caption'"),
        (
            "context",
            lambda c: c[2].update(instances=[1]),
            r"context\.jsonl:3: expected boxes with 'category' and 'bbox'",
        ),
        ("references", lambda c: c.pop(), r"references\.jsonl: expected 8 answers, 1 are missing, to question 7"),
        ("answers", lambda c: c.pop(), r"answers\.jsonl: expected 8 answers, 1 are missing"),
    ],
)
def test_what_is_refused(tmp_path, name, change, message):
    _, files = make_files(tmp_path, number=8)
    path = tmp_path / f"{name}.jsonl"
    content = [json.loads(line) for line in path.read_text().splitlines()]
    change(content)
    lines(path, content)
    with pytest.raises(InputError, match=message) as caught:
        run("llava-bench", *files, "--judge.model", "gpt-4", "--out", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_rule_that_is_not_there_is_named(tmp_path):
    _, files = make_files(tmp_path, number=8)
    rule = write(tmp_path / "rule.json", {"conv": {"role": "A", "prompt": "B"}})
    with pytest.raises(InputError, match=r"--rule: expected a rule called 'llava_bench_\w+' .* got conv"):
        run("llava-bench", *files, "--rule", rule, "--judge.model", "gpt-4", "--out", tmp_path / "out")
