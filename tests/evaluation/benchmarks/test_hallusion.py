"""HallusionBench against its definition, by yes and no, and by a judge on a server."""

import itertools
import json
import random

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.judge.chat_server import ChatServer, Say
from tests.evaluation.spoken import write
from vigor_jax.errors import InputError
from vigor_jax.evaluate import main
from vigor_jax.evaluation.benchmarks import hallusion
from vigor_jax.evaluation.commands.judged import HallusionCommand
from vigor_jax.evaluation.hallusion_metrics import hallusion_metrics
from vigor_jax.evaluation.judge.judge import MalformedReplyError

OUTCOMES = ("right", "wrong", "unclear")


def make_records(rng, sets=10):
    """Questions as the benchmark has them: some figures of a set are asked less than the original one."""
    records = []
    for number in range(sets):
        category, subcategory = rng.choice([("VD", "illusion"), ("VD", "math"), ("VS", "chart"), ("VS", "map")])
        for figure, question in itertools.product(range(rng.randint(2, 3)), range(rng.randint(1, 4))):
            if figure and rng.random() < 0.2:
                continue
            visual = "0" if category == "VS" and figure == 0 else "1" if figure == (category == "VS") else "2"
            name = f"./{category}/{subcategory}/{number}_{figure}.png"
            records.append({
                "category": category, "subcategory": subcategory, "visual_input": visual, "set_id": str(number),
                "figure_id": str(figure), "sample_note": "", "question_id": str(question),
                "question": f"Is {question} so in {subcategory} {number}?", "gt_answer_details": f"It is {question}.",
                "gt_answer": rng.choice("01"), "filename": None if visual == "0" else name,
            })  # fmt: skip
    return records


def figures_by_definition(records, outcomes):
    frame = pd.DataFrame(records)
    unclear_counts = (frame["category"] == "VS") & (frame["figure_id"] == "0")
    said = pd.Series(outcomes)
    frame["right"] = (said == "right") | ((said == "unclear") & unclear_counts)
    frame["yes"] = frame["gt_answer"] == "1"
    figure = frame[~unclear_counts].groupby(["category", "subcategory", "set_id", "figure_id"])["right"].mean()
    pair = ["category", "subcategory", "set_id", "question_id"]
    edited = frame["visual_input"] == "2"
    said_yes = frame["yes"] == frame["right"]
    return {
        "a_acc": frame["right"].mean(),
        "f_acc": (figure == 1).mean(),
        "f_inconsistent": ((figure > 0) & (figure < 1)).mean(),
        "f_wrong": (figure == 0).mean(),
        "q_acc": frame.groupby(pair)["right"].all().mean(),
        "easy": frame[~edited].groupby(pair)["right"].all().mean(),
        "hard": frame[edited].groupby(pair)["right"].all().mean(),
        "yes_diff": said_yes.mean() - frame["yes"].mean(),
        "yes_wrong": said_yes[~frame["right"]].mean(),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_figures_by_definition(tmp_path, seed):
    """500 questions and more in all."""
    rng = random.Random(seed)
    records = make_records(rng)
    outcomes = rng.choices(OUTCOMES, weights=(4, 2, 1), k=len(records))
    questions = hallusion.read_questions(write(tmp_path / "q.json", records))
    found = hallusion_metrics(questions, outcomes)
    expected = figures_by_definition(records, outcomes)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    for category in {record["category"] for record in records}:
        own = [(r, o) for r, o in zip(records, outcomes, strict=True) if r["category"] == category]
        expected = figures_by_definition(*map(list, zip(*own, strict=True)))
        assert found[category]["q_acc"] == pytest.approx(expected["q_acc"], abs=1e-9)
        assert found[category]["f_acc"] == pytest.approx(expected["f_acc"], abs=1e-9)
    assert set(found["intervals"]) == set(hallusion.rates(np.zeros(len(hallusion.COUNTS))))
    assert found["unclear"] == outcomes.count("unclear")


@pytest.mark.parametrize(
    ("truth", "answer", "outcome"),
    [
        ("1", "Yes, it is.", "right"), ("1", "No", "wrong"), ("0", "no.", "right"), ("0", "Yes", "wrong"),
        ("1", "", "unclear"), ("0", "I cannot tell, no", "unclear"), ("0", "Not so", "unclear"),
    ],
)  # fmt: skip
def test_the_first_word_of_an_answer(tmp_path, truth, answer, outcome):
    record = {**make_records(random.Random(0))[0], "gt_answer": truth}
    (question,) = hallusion.read_questions(write(tmp_path / "q.json", [record]))
    assert hallusion.read_outcome(question, answer) == outcome


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("correct", "right"), ("Incorrect.", "wrong"), ("**unclear**", "unclear"), ("“correct”", "right"),
        ("It is correct; I repeat: correct", "right"), ("", None), ("correct or incorrect", None), ("right", None),
    ],
)  # fmt: skip
def test_a_judges_word(reply, outcome):
    if outcome is None:
        with pytest.raises(MalformedReplyError, match="correct, incorrect and unclear"):
            hallusion.parse_reply(reply)
    else:
        assert hallusion.parse_reply(reply) == outcome


def run(*arguments):
    main([str(each) for each in arguments])
    return json.loads((arguments[arguments.index("--out") + 1] / "metrics.json").read_text())


def test_results_and_saved_answers_are_the_same(tmp_path):
    """The official file of results, and answers that are named, in another order, or known by image and words."""
    rng = random.Random(3)
    records = make_records(rng)
    said = [rng.choice(["Yes.", "No, it is not.", "Perhaps"]) for _ in records]
    results = [{**record, "model_prediction": text} for record, text in zip(records, said, strict=True)]
    keys = ("category", "subcategory", "set_id", "figure_id", "question_id")
    named = [{"id": "_".join(r[key] for key in keys), "text": text} for r, text in zip(records, said, strict=True)]
    found = run("hallusion", "--results", write(tmp_path / "r.json", results), "--out", tmp_path / "a")
    rng.shuffle(named)
    arguments = ["--questions", write(tmp_path / "q.json", records), "--answers", write(tmp_path / "n.json", named)]
    assert run("hallusion", *arguments, "--out", tmp_path / "b") == found
    words = {"Yes.": True, "No, it is not.": False}
    outcomes = [
        "unclear" if text not in words else "right" if words[text] == (record["gt_answer"] == "1") else "wrong"
        for record, text in zip(records, said, strict=True)
    ]
    assert found["q_acc"] == pytest.approx(figures_by_definition(records, outcomes)["q_acc"], abs=1e-9)
    assert found["read"] == "first word"


def test_a_judge_is_asked_once_and_what_it_says_is_kept(tmp_path, monkeypatch, capsys):
    """Malformed replies are asked for again, then shown and left out; the second run asks for nothing else."""
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rng = random.Random(4)
    records = make_records(rng, sets=4)
    verdicts = rng.choices(["correct", "incorrect", "unclear"], k=len(records))
    verdicts[1] = "what?"
    results = [{**record, "model_prediction": f"answer <{i}>"} for i, record in enumerate(records)]

    def respond(text, before):
        number = next(i for i in range(len(records)) if f"answer <{i}>" in text)
        assert records[number]["question"] in text
        assert records[number]["gt_answer_details"] in text
        return Say(verdicts[number])

    with ChatServer(respond) as server:
        arguments = ["hallusion", "--results", write(tmp_path / "r.json", results), "--out", tmp_path / "out"]
        arguments += ["--judge.base_url", server.url, "--judge.model", "gpt-4"]
        first, asked = run(*arguments), server.counts.total()
        again = run(*arguments)
        assert asked >= len(records)
        assert server.counts.total() - asked <= asked - len(records) + 1
    kept = [i for i in range(len(records)) if i != 1]
    names = {"correct": "right", "incorrect": "wrong", "unclear": "unclear"}
    expected = figures_by_definition([records[i] for i in kept], [names[verdicts[i]] for i in kept])
    for found in (first, again):
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
        assert [one["replies"][-1] for one in found["malformed"]] == ["what?"]
        assert found["questions"] == len(kept)
    assert "HallusionBench qAcc" in capsys.readouterr().out


def test_a_model_is_shown_the_figures_and_asked_without_them(tmp_path):
    records = make_records(random.Random(6))
    shown = {}

    class Model:
        def __init__(self):
            names = [record["filename"][2:] for record in records if record["filename"]]
            self.images = {f"hallusion_bench/{name}": f"file of {name}" for name in names}

        def answer(self, name, asked, paths=None, *, protocol=""):
            shown.update({words + image: paths.get(image) for image, words in asked})
            return ["Yes"] * len(asked)

    found = HallusionCommand(tmp_path, write(tmp_path / "q.json", records)).metrics(Model())
    for record in records:
        image = (record["filename"] or "")[2:]
        assert shown[record["question"] + image] == (f"file of {image}" if image else None)
    yes = np.mean([record["gt_answer"] == "1" for record in records])
    assert found["a_acc"] == pytest.approx(yes, abs=1e-9)
    assert found["yes_diff"] == pytest.approx(1 - yes, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[2].pop("set_id"), r"r\.json, item 3: expected a string under 'set_id', got None"),
        (lambda c: c[2].update(gt_answer="yes"), r"item 3: expected '0' or '1' under 'gt_answer', got 'yes'"),
        (lambda c: c[2].update(category="AB"), r"item 3: expected VD or VS as 'category' .* got 'AB'"),
        (lambda c: c[2].update(visual_input="3"), r"item 3: expected .* 0, 1 or 2 as 'visual_input', got .*'3'"),
        (lambda c: c.append(dict(c[0])), r"question V._\w+_0_0_0 is there twice"),
        (lambda c: c[2].pop("model_prediction"), r"answer under 'model_prediction' everywhere, 1 questions have none"),
        (lambda c: c.clear(), r"expected HallusionBench's questions, got an empty file"),
    ],
)
def test_what_is_refused(tmp_path, change, message):
    records = [{**record, "model_prediction": "Yes"} for record in make_records(random.Random(0))]
    change(records)
    with pytest.raises(InputError, match=message) as caught:
        main(["hallusion", "--results", str(write(tmp_path / "r.json", records)), "--out", str(tmp_path / "out")])
    assert "\n" not in str(caught.value)
