from fractions import Fraction

import numpy as np
import pytest

from tests.evaluation.judge.chat_server import ChatServer, Say
from tests.evaluation.spoken import write
from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks import mmvet
from vigor_jax.evaluation.bootstrap import bootstrap
from vigor_jax.evaluation.judge.judge import Judge, JudgeConfig, MalformedReplyError
from vigor_jax.evaluation.judge.prompt import read_prompt


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Correctness: 0.5", 0.5), ("correctness: 1", 1.0), ("**Correctness:** 0.3", 0.3),
        ("Correctness: **0.3**.", 0.3),
        ("It lacks a part.\nCorrectness: 0.0\n", 0.0), ("0.4", 0.4), ("1.0", 1.0), ("0.7 | because", 0.7),
        ("0.7, as it lacks a part", 0.7), ("Correctness: 0,5", 0.5), ("The correctness score is 0.9", 0.9),
        ("Correctness: 0.8/1.0", 0.8), ("Correctness: 0.8 out of 1", 0.8),
        ("Correctness = 0.2 ... correctness: 0.2", 0.2),
        ("Correctness：0.6", 0.6),
    ],
)  # fmt: skip
def test_correctness_is_read(text, value):
    assert mmvet.parse_correctness(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "N", "good", "Correctness: N", "Correctness: 1.5", "Correctness: -0.5", "Correctness: 5", "5",
        "Correctness (0.0-1.0): 0.8", "Correctness: 1/10", "Correctness: 1 out of 10", "Correctness: 50%",
        "Correctness: 0.5 or 0.6", "Correctness: 0.2\nCorrectness: 0.9", "Score 0.5", "Correctness: 0.5.1", "1/10",
    ],
)  # fmt: skip
def test_what_is_no_clear_correctness_is_malformed(text):
    with pytest.raises(MalformedReplyError):
        mmvet.parse_correctness(text)


VET = {
    f"v1_{i}": {
        "imagename": f"v1_{i // 2}.png",
        "imagesource": "https://example.org",
        "question": f"What is {{x}}, {i}?",
        "answer": "-1<AND>-5" if i % 2 else "a dog<OR>a cat",
        "capability": [["ocr", "math"], ["rec"], ["math", "ocr"], ["rec", "know", "gen"]][i % 4],
    }
    for i in range(8)
}


def test_mmvet_with_a_judge(tmp_path, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = mmvet.read_mmvet(write(tmp_path / "mm-vet.json", VET))
    assert found[0].prompt == "What is {x}, 0?"
    assert found[0].image == "v1_0.png"
    values = ["0.5", "1.0", "0.0", None, "0.3", "0.7", "1", "0.9"]

    def respond(text, before):
        number = next(i for i in range(8) if f"answer <{i}>" in text)
        assert f"What is {{x}}, {number}?" in text
        assert ("-1 <AND> -5" if number % 2 else "a dog <OR> a cat") in text
        return Say(
            "about half" if values[number] is None or (number == 1 and not before) else f"Correctness: {values[number]}"
        )

    with ChatServer(respond) as server:
        judge = Judge(JudgeConfig(server.url, "gpt"), tmp_path / "cache.jsonl")
        metrics = mmvet.score_mmvet(found, [f"answer <{i}> {{question}}" for i in range(8)], judge)
        assert server.counts.total() == 8 + 1 + 2
        with pytest.raises(InputError, match="each of 8 questions, got 1"):
            mmvet.score_mmvet(found, ["x"], judge)
    kept = {f"v1_{i}": Fraction(value) for i, value in enumerate(values) if value is not None}
    assert metrics.score == pytest.approx(float(sum(kept.values()) / 7), abs=1e-9)
    for name in ("ocr", "math", "rec", "know", "gen"):
        part = [value for key, value in kept.items() if name in VET[key]["capability"]]
        assert metrics.capabilities[name] == pytest.approx(float(sum(part) / len(part)), abs=1e-9)
    assert set(metrics.integrations) == {"math_ocr", "rec", "gen_know_rec"}
    assert metrics.integrations["math_ocr"] == pytest.approx((0.5 + 0.0 + 0.3 + 1) / 4, abs=1e-9)
    assert metrics.judged == 7
    assert [result.request.question_id for result in metrics.malformed] == ["v1_3"]
    counts = mmvet.count(found, [result.value for result in metrics.results])
    assert list(counts) == [f"v1_{i}.png" for i in range(4)]
    array = np.array(list(counts.values()))
    assert mmvet.rates(array.sum(0))["score"] == pytest.approx(metrics.score, abs=1e-12)
    low, high = bootstrap(array, mmvet.rates, num=50)["score"]
    assert 0 <= low <= high <= 1


def test_mmvet_prompts(tmp_path):
    prompt = read_prompt(write(tmp_path / "p.txt", "{question} | {answer} | {prediction} | {0.0}"), mmvet.PLACES)
    assert prompt.endswith("{0.0}")
    with pytest.raises(InputError, match=r"\{prediction\} is missing"):
        read_prompt(write(tmp_path / "p.txt", "{question} | {answer} |"), mmvet.PLACES)
