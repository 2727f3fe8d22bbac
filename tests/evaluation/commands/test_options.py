"""Options, figures and warnings of the commands that read saved answers, from files to `metrics.json`."""

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.benchmarks.test_mmbench import mmbench_rows, write_tsv
from tests.evaluation.benchmarks.test_questions import scienceqa_files, seed_file
from tests.evaluation.spoken import SAID, write
from vigor_jax.errors import InputError
from vigor_jax.evaluate import main
from vigor_jax.evaluation.benchmarks import captions, questions
from vigor_jax.evaluation.benchmarks.mmbench import read_mmbench
from vigor_jax.evaluation.protocol import own
from vigor_jax.evaluation.wording import CHOICE, SHORT, choose, seen


def run(*arguments: object) -> dict[str, Any]:
    texts = [str(argument) for argument in arguments]
    main(texts)
    return json.loads((Path(texts[texts.index("--out") + 1]) / "metrics.json").read_text())


def lines(path: Path, records: list[dict[str, Any]]) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


# Letters

FREE = [
    *SAID, "x. The answer is {}.", "{}. because", "The answer is {}. The answer is {}.", "I think {}", "It is ({}).",
    "{} ", "F. The answer is {}.", "E. The answer is {}.",
]  # fmt: skip


def by_llavas_scienceqa_script(text: str, num: int) -> str | None:
    """eval_science_qa.py: of A to E the text, or the start "A. ", else one "The answer is A" and a character."""
    if text in list("ABCDE"):
        found = text
    elif len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        found = text[0]
    else:
        named = [match[1] for match in re.finditer(r"The answer is ([A-Z])[^\n]", text)]
        found = named[0] if len(named) == 1 else "FAILED"
    return found if found in list("ABCDE"[:num]) else None


def test_scienceqa_with_both_readings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Free answers, as a model without LLaVA's request gives them."""
    rng = random.Random(4)
    files = ["--questions", *scienceqa_files(tmp_path)[:1], "--splits", tmp_path / "pid_splits.json"]
    problems = {name: {**json.loads((tmp_path / "problems.json").read_text())["1"]} for name in map(str, range(300))}
    for i, problem in enumerate(problems.values()):
        problem |= {"answer": rng.randrange(2), "image": "image.png" if i % 3 else None}
    write(tmp_path / "problems.json", problems)
    write(tmp_path / "pid_splits.json", {"test": list(problems), "minitest": ["5", "7"]})
    said = {name: rng.choice(FREE).replace("{}", rng.choice("ABCE")) for name in problems}
    answers = write(tmp_path / "a.json", said)
    arguments = ["questions", "--layout", "scienceqa", *files, "--answers", answers, "--out", tmp_path / "out"]
    whole = run(*arguments, "--part", "all")
    right = {
        name: by_llavas_scienceqa_script(said[name], 2) == "AB"[problem["answer"]] for name, problem in problems.items()
    }
    assert whole["questions"] == 300
    assert whole["strict"]["right"] == sum(right.values())
    assert whole["right"] > whole["strict"]["right"] > 0
    shown = capsys.readouterr().out
    assert f"{whole['strict']['accuracy']:.1%}" in re.search(r"accuracy, LLaVA's reading .*", shown)[0]
    images = run(*arguments)
    with_image = [right[name] for name, problem in problems.items() if problem["image"]]
    assert (images["questions"], images["strict"]["right"]) == (200, sum(with_image))
    assert images["extra_answers"] == 100
    assert whole["categories"]["context"]["IMG"]["questions"] == 200
    assert run(*arguments, "--part", "all", "--split", "minitest")["questions"] == 2


@pytest.mark.parametrize("as_lines", [True, False])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_llavas_scienceqa_is_known_by_its_content(tmp_path: Path, as_lines: bool, suffix: str) -> None:
    """As LLaVA's evaluation has it: questions in llava_test_CQM-A.json, and its answers with the prompt in them."""
    records, answers = [], []
    for i in range(12):
        words = f"Context: N/A\nWhich one, {i}?\nA. West\nB. East"
        turns = [
            {"from": "human", "value": f"<image>\n{words}"},
            {"from": "gpt", "value": f"The answer is {'AB'[i % 2]}."},
        ]
        records.append({"id": f"{i}", "conversations": turns} | ({"image": f"{i}/image.png"} if i % 3 else {}))
        answers.append({"question_id": f"{i}", "prompt": f"<image>\n{words}\n{CHOICE}", "text": "A", "metadata": {}})
    path = tmp_path / f"llava_test_CQM-A{suffix}"
    lines(path, records) if as_lines else write(path, records)
    arguments = ["questions", "--layout", "scienceqa", "--questions", path, "--out", tmp_path / "out"]
    saved = lines(tmp_path / "answers.jsonl", answers)
    whole = run(*arguments, "--answers", saved, "--part", "all")
    assert (whole["questions"], whole["right"], whole["strict"]["right"]) == (12, 6, 6)
    assert whole["categories"]["context"]["IMG"]["questions"] == 8
    assert whole["protocol"] == choose("scienceqa", "llava-1.5").stored()
    assert run(*arguments, "--answers", saved)["questions"] == 8


@pytest.mark.parametrize(("part", "num"), [("image", 32), ("video", 8), ("all", 40)])
def test_seed_in_parts(tmp_path: Path, part: str, num: int) -> None:
    """LLaVA's answers, whose ids of images are numbers; its script takes a letter alone."""
    content = seed_file()
    rng = random.Random(1)
    answers, right = [], []
    for record in content["questions"]:
        text = rng.choice(["{}", "{}.", "The answer is {}.", "({})"]).format(rng.choice(["A", record["answer"]]))
        own_id = record["question_id"]
        prompt = f"{record['question']}\nA. x\n{CHOICE}"
        answers.append({"question_id": int(own_id) if own_id.isdecimal() else own_id, "prompt": prompt, "text": text})
        if part in ("all", record["data_type"]):
            right.append(text == record["answer"])
    arguments = ["--layout", "seed", "--questions", write(tmp_path / "s.json", content), "--part", part]
    metrics = run("questions", *arguments, "--answers", lines(tmp_path / "a.jsonl", answers), "--out", tmp_path / "out")
    assert (metrics["questions"], metrics["strict"]["right"]) == (num, sum(right))
    assert metrics["right"] > metrics["strict"]["right"]
    assert metrics.get("extra_answers", 0) == 40 - num
    if part == "all":
        shares = metrics["strict"]["categories"]["data"]
        assert {name: share["questions"] for name, share in shares.items()} == {"image": 32, "video": 8}


# MMBench


def rounds(row: dict[str, Any], letter: str) -> list[dict[str, Any]]:
    """What model_vqa_mmbench.py --all-rounds writes: the options move, and the letters before them stay."""
    options = [row[name] for name in "ABCD" if row[name] not in ("", "nan")]
    chars, found = list("ABCD"[: len(options)]), []
    for number in range(len(options)):
        shown = "ABCD"[chars.index(letter)]  # where the option that the model means is shown
        found.append({
            "question_id": row["index"], "round_id": number, "prompt": row["question"], "text": shown,
            "options": options, "option_char": chars, "answer_id": "x", "model_id": "m", "metadata": {},
        })  # fmt: skip
        options, chars = options[1:] + options[:1], chars[1:] + chars[:1]
    return found


@pytest.mark.parametrize("with_options", [True, False])
@pytest.mark.parametrize("own_copies", [True, False])
def test_all_rounds_of_llava(tmp_path: Path, with_options: bool, own_copies: bool) -> None:
    """A model that always means the same option is right in all rounds or in none."""
    rows = mmbench_rows(8)
    answers = [one for row in rows for one in rounds(row, row["answer"] if row["index"] % 2 else "A")]
    if not with_options:
        answers = [{name: value for name, value in one.items() if name != "options"} for one in answers]
    right = sum(row["index"] % 2 or row["answer"] == "A" for row in rows)
    if own_copies:
        path = write_tsv(tmp_path / "plain.tsv", rows)
        turned = [one for one in read_mmbench(path) if int(one.question_id) >= 1_000_000]
        by_index = {f"{row['index']}": row for row in rows}
        for one in turned:
            row = {**by_index[one.group], "index": int(one.question_id), "answer": one.answer}
            rows.append(row | dict(zip("ABCD", one.options, strict=False)))
    arguments = ["--layout", "mmbench", "--questions", write_tsv(tmp_path / "q.tsv", rows)]
    saved = lines(tmp_path / "a.jsonl", answers)
    metrics = run("questions", *arguments, "--answers", saved, "--out", tmp_path / "out")
    assert (metrics["questions"], metrics["right"], metrics["once"]) == (8, right, right / 8)
    assert (metrics["strict"]["right"], metrics["strict"]["once"]) == (right, right / 8)
    once = run("questions", *arguments, "--answers", saved, "--circular", "false", "--out", tmp_path / "out")
    assert (once["questions"], once["right"], once["extra_answers"]) == (8, right, len(answers) - 8)
    assert "once" not in once
    # What is handed in to the benchmark's server: its own columns, the right answer among them.
    handed = [{**row, "prediction": row["answer"], "image": None} for row in rows[:8]]
    handed = lines(tmp_path / "handed.jsonl", [{k: v for k, v in row.items() if k != "image"} for row in handed])
    assert (
        run("questions", *arguments, "--answers", handed, "--circular", "false", "--out", tmp_path / "o")["right"] == 8
    )


def test_options_that_the_layout_does_not_have(tmp_path: Path) -> None:
    path = write(tmp_path / "q.json", {})
    for layout, part in (("gqa", "all"), ("mmvet", "video"), ("scienceqa", "video"), ("mmbench", "all")):
        with pytest.raises(InputError, match=rf"--part: .* got layout {layout}"):
            run("questions", "--layout", layout, "--questions", path, "--part", part, "--out", tmp_path)
    with pytest.raises(InputError, match="--prompt_suffix: expected words"):
        run("questions", "--layout", "gqa", "--questions", path, "--prompt_suffix", " ", "--out", tmp_path)


# POPE and MME


def pope_files(folder: Path, texts: list[str]) -> list[object]:
    records = [
        {
            "question_id": i,
            "image": f"{i // 6}.jpg",
            "text": f"Is there a thing{i} in the image?",
            "label": ["no", "yes"][i % 2],
        }
        for i in range(1, len(texts) + 1)
    ]
    said = [{"question_id": i, "answer": text} for i, text in enumerate(texts, 1)]
    folder.mkdir(parents=True, exist_ok=True)
    files = [lines(folder / "q.json", records), "--answers", lines(folder / "a.jsonl", said), "--out", folder / "out"]
    return ["pope", "--questions", *files]


def test_pope_warns_where_the_two_readings_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ["Yes", "No", "No", "No"] * 25
    metrics = run(*pope_files(tmp_path / "plain", plain))
    assert "warnings" not in metrics
    assert capsys.readouterr().err == ""
    # One answer of a hundred with a full stop is a point, and no more.
    assert "warnings" not in run(*pope_files(tmp_path / "one", ["Yes.", *plain[1:]]))
    metrics = run(*pope_files(tmp_path / "two", ["Yes.", *plain[1:4], "Yes.", *plain[5:]]))
    (warning,) = metrics["warnings"]
    assert warning.startswith("POPE q: accuracy is 75.0% as answers are read here and 73.0% as lmms-eval reads them")
    assert "2 answers are not exactly yes or no" in warning
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize(("word", "share"), [("yes", "100.0%"), ("no", "100.0%"), ("yes", "96.0%")])
def test_pope_warns_where_nearly_all_answers_are_the_same(tmp_path: Path, word: str, share: str) -> None:
    other = {"yes": "no", "no": "yes"}[word]
    texts = [word] * 96 + [word if share == "100.0%" else other] * 4
    (warning,) = run(*pope_files(tmp_path, texts))["warnings"]
    assert f"POPE q: {share} of the answers are {word}" in warning


def test_pope_by_llavas_script(tmp_path: Path) -> None:
    """eval_pope.py, step by step, on what models say."""
    rng = random.Random(0)
    said = [
        "Yes",
        "No",
        "yes.",
        "no, there is not",
        "There is not a dog.",
        "Yes. No.",
        "NO",
        "not",
        "",
        "No.",
        "a,no,b",
        "I see\nno",
    ]
    texts = [rng.choice(said) for _ in range(600)]
    metrics = run(*pope_files(tmp_path, texts))["q"]
    wrong = yes = 0
    for i, text in enumerate(texts, 1):
        if text.find(".") != -1:
            text = text.split(".")[0]
        words = text.replace(",", "").split(" ")
        answer = "no" if "No" in words or "not" in words or "no" in words else "yes"
        wrong += answer != ["no", "yes"][i % 2]
        yes += answer == "yes"
    assert metrics["accuracy"] == pytest.approx(1 - wrong / 600, abs=1e-12)
    assert metrics["yes_ratio"] == yes / 600


def mme_data(folder: Path) -> Path:
    """Two subtasks, one in the layout with `images`, without the images themselves."""
    for subtask, inner in (("existence", ""), ("artwork", "questions_answers_YN")):
        (folder / subtask / inner).mkdir(parents=True)
        for i in range(4):
            text = "Is there a {}, {}?{}Please answer yes or no.\t{}\n"
            text = text.format("dog", i, " ", "Yes") + text.format("cat", i, "  ", "No")
            (folder / subtask / inner / f"{i:04}.txt").write_text(text)
    return folder


def mme_records(layout: str) -> list[dict[str, Any]]:
    records = []
    for subtask in ("existence", "artwork"):
        for i in range(4):
            for thing in ("dog", "cat"):
                question, name = f"Is there a {thing}, {i}?", f"{subtask}/{i:04}.jpg"
                text = "Yes" if thing == "dog" or i % 2 else "No"
                records.append(
                    {
                        "llava": {"question_id": name, "prompt": f"{question}\n{SHORT}", "text": text},
                        "images": {
                            "image": name.replace("artwork/", "artwork/images/"),
                            "question": f"{question} Please answer yes or no.",
                            "answer": text,
                        },
                        "lmms-eval": {
                            "doc_id": len(records), "filtered_resps": text, "input": f"{question}\n{SHORT}",
                            "mme_perception_score": {"question_id": name, "category": subtask, "score": 1.0},
                        },
                    }[layout]
                )  # fmt: skip
    return records


@pytest.mark.parametrize("layout", ["llava", "images", "lmms-eval"])
def test_mme_from_saved_answers(tmp_path: Path, layout: str) -> None:
    records = mme_records(layout)
    random.Random(2).shuffle(records)
    data = mme_data(tmp_path / "data")
    saved = lines(tmp_path / "a.jsonl", records)
    metrics = run("mme", "--data", data, "--answers", saved, "--out", tmp_path / "out")
    assert {name: (one["accuracy"], one["accuracy_plus"]) for name, one in metrics["subtasks"].items()} == {
        "existence": (75.0, 50.0),
        "artwork": (75.0, 50.0),
    }
    assert metrics["yes_ratio"] == 0.75
    assert "warnings" not in metrics
    assert metrics["protocol"]["name"] == ("paper" if layout == "images" else "llava-1.5")
    with pytest.raises(InputError, match="expected 16 answers, 1 are missing, to question"):
        run("mme", "--data", data, "--answers", lines(saved, records[1:]), "--out", tmp_path / "out")
    part = [one for one in records if "artwork" in json.dumps(one)]
    metrics = run("mme", "--data", data, "--answers", lines(saved, part), "--out", tmp_path / "out")
    assert list(metrics["subtasks"]) == ["artwork"]


def test_an_mme_table_of_yes_alone_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for subtask in ("existence", "color"):
        rows = [f"{i}.jpg\tIs it?\t{truth}\tYes, it is\n" for i in range(5) for truth in ("Yes", "No")]
        write(tmp_path / f"{subtask}.txt", "".join(rows))
    metrics = run("mme", "--results", tmp_path, "--out", tmp_path / "out")
    assert [one["score"] for one in metrics["subtasks"].values()] == [50.0, 50.0]
    assert metrics["warnings"] == [
        "MME: 100.0% of the answers are yes, so that accuracy is the share of such labels, mostly 50.0"
    ]
    assert metrics["warnings"][0] in capsys.readouterr().err


# Captions

COCO = {
    "images": [{"id": 40 + i, "file_name": f"COCO_val2014_{40 + i:012}.jpg"} for i in range(4)],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [{"image_id": 40 + i, "category_id": 1 + i % 2} for i in range(4)],
}
SAYINGS = {40 + i: "A dog and a cat." for i in range(4)}
LAYOUTS = {
    "coco results": lambda number, text: {"image_id": number, "caption": text},
    "string id": lambda number, text: {"image_id": f"{number}", "caption": text},
    "padded": lambda number, text: {"image_id": f"{number:012}", "text": text},
    "name of 2017": lambda number, text: {"image": f"{number:012}.jpg", "caption": text},
    "no suffix": lambda number, text: {"image": f"COCO_val2014_{number:012}", "response": text},
    "path": lambda number, text: {"image_path": f"/data/COCO_val2014_{number:012}.jpg", "answer": text},
    "lmms-eval": lambda number, text: {
        "doc_id": number - 40, "target": "[]", "input": "Describe it.", "filtered_resps": text,
        "coco_Bleu_4": {"answer": ["x"], "pred": text, "image_id": number, "id": 7},
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("plain", [True, False])
def test_captions_by_any_name_of_their_image(
    tmp_path: Path, layout: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COCO's ids are known from the references, or by the digits at the end of a file's name."""
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr(captions, "has_java", lambda: False)
    objects: dict[str, Any] = COCO
    references: dict[str, Any] = {
        **COCO, "annotations": [{"image_id": 40 + i, "caption": "a dog or a cat"} for i in range(4)],
    }  # fmt: skip
    if plain:
        objects = {one["file_name"]: [["dog", "cat"][i % 2]] for i, one in enumerate(COCO["images"])}
        references = {name: ["a dog or a cat"] for name in objects}
    records = [LAYOUTS[layout](number, text) for number, text in SAYINGS.items()]
    extra = LAYOUTS[layout](999, "A unicorn.")
    files = ["--captions", lines(tmp_path / "c.json", [*reversed(records), extra]), "--out", tmp_path / "out"]
    found = run("chair", "--objects", write(tmp_path / "o.json", objects), *files)
    assert (found["captions"], found["mentions"], found["hallucinated"], found["extra_answers"]) == (4, 8, 4, 1)
    found = run("captions", "--references", write(tmp_path / "r.json", references), *files)
    assert (found["captions"], found["extra_answers"]) == (4, 1)
    lines(tmp_path / "c.json", [*records, records[1]])
    with pytest.raises(
        InputError, match=r"c.json:5: expected one caption an image, got a second one of COCO_val2014_0*41"
    ):
        run("captions", "--references", tmp_path / "r.json", *files)
    assert run("chair", "--objects", tmp_path / "o.json", *files)["captions"] == 5  # several of an image are allowed


def test_the_hint_names_images_that_there_are(tmp_path: Path) -> None:
    objects = write(tmp_path / "o.json", {"a.jpg": ["dog"]})
    arguments = [
        "chair",
        "--objects",
        objects,
        "--captions",
        lines(tmp_path / "c", [{"image": "b.jpg", "text": "A dog."}]),
    ]
    with pytest.raises(InputError, match=r"c:1: image 'b.jpg' is not known.*the objects call images 'a.jpg'$"):
        run(*arguments, "--out", tmp_path)
    write(objects, {**COCO, "images": [], "annotations": []})
    with pytest.raises(InputError, match="the objects have no image at all"):
        run(*arguments, "--out", tmp_path)
    write(objects, {"x_1.jpg": ["dog"], "y_1.jpg": ["dog"]})
    lines(tmp_path / "c", [{"image_id": 1, "caption": "A dog."}])
    with pytest.raises(InputError, match=r"image '1' may be 'x_1.jpg' or 'y_1.jpg'; give its whole name"):
        run(*arguments, "--out", tmp_path)
    lines(tmp_path / "c", [{"caption": "A dog."}])
    with pytest.raises(InputError, match=r"c:1: expected a caption with its 'image' or 'image_id'"):
        run(*arguments, "--out", tmp_path)


# Protocols


@pytest.mark.parametrize(
    ("benchmark", "protocol", "suffix", "asked", "expected"),
    [
        ("pope", "paper", None, "Is it?", "Is it?"),
        ("pope", "llava-1.5", None, "Is it?", f"Is it?\n{SHORT}"),
        ("mme", "paper", None, "Is it? Please answer yes or no.", "Is it? Please answer yes or no."),
        ("mme", "llava-1.5", None, "Is it?  Please answer yes or no.", f"Is it?\n{SHORT}"),
        ("gqa", "llava-1.5", None, "What?", f"What?\n{SHORT}"),
        ("seed", "llava-1.5", None, "What?\nA. x", f"What?\nA. x\n{CHOICE}"),
        ("scienceqa", "paper", None, "What?\nA. x", "What?\nA. x"),
        ("mmvet", "llava-1.5", None, "What?", "What?"),
        ("pope", "paper", "In one word.", "Is it?", "Is it?\nIn one word."),
        ("pope", "paper", SHORT, "Is it?", f"Is it?\n{SHORT}"),
        ("pope", "llava-1.5", "", "Is it?", "Is it?"),
    ],
)  # fmt: skip
def test_words_of_a_protocol(benchmark: str, protocol: Any, suffix: str | None, asked: str, expected: str) -> None:
    words = choose(benchmark, protocol, suffix)
    assert words.ask(asked) == expected
    body = asked.removesuffix("Please answer yes or no.").strip()
    declared = dataclasses.replace(own(benchmark), suffix="?")
    assert seen(declared, [(body, f"<image>\n{expected}")] * 3).suffix == words.suffix
    assert seen(words, [(body, expected), (body, None)]) == words
    assert seen(words, [(body, expected), (body, f"{body} Else.")]) == words


def test_a_suffix_is_named_by_the_protocol_that_has_it() -> None:
    assert choose("pope", "paper", SHORT).name == "llava-1.5"
    assert choose("seed", "llava-1.5", "").name == "paper"
    assert choose("seed", "llava-1.5", SHORT).name == "own"


def test_questions_are_put_in_other_words(tmp_path: Path) -> None:
    for one in read_mmbench(write_tsv(tmp_path / "q.tsv", mmbench_rows(4))):
        assert one.prompt == f"{questions.body(one)}\n{CHOICE}"
        assert questions.worded(one, choose("mmbench", "paper")).prompt == questions.body(one)
        assert questions.worded(one, choose("mmbench", "paper", "快")).prompt == f"{questions.body(one)}\n快"


@pytest.mark.parametrize("num_files", [1, 2])
def test_extra_answers_to_pope_are_counted_and_no_row_of_the_table(
    tmp_path: Path, num_files: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [{"question_id": i, "image": "a.jpg", "text": f"Is there a thing {i}?", "label": "no"} for i in range(4)]
    answers = [{"question_id": i, "answer": "No."} for i in range(4 + 3)]
    files = [lines(tmp_path / f"q{n}.json", asked) for n in range(num_files)]
    saved = [lines(tmp_path / f"a{n}.jsonl", answers) for n in range(num_files)]
    found = run("pope", "--questions", *files, "--answers", *saved, "--out", tmp_path / "out")
    assert (found["q0"]["accuracy"], found["extra_answers"]) == (1, 3 * num_files)
    assert re.findall(r"POPE (\w+), accuracy", capsys.readouterr().out) == [p.stem for p in files] + ["mean"]
