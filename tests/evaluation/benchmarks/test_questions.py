import json
import random
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest

from tests.evaluation.spoken import REQUEST, say, write
from vigor_jax.data.images.store import open_images
from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import read_answers
from vigor_jax.evaluation.benchmarks import mmvet, questions
from vigor_jax.evaluation.benchmarks.answer_letters import parse_letter_strict
from vigor_jax.evaluation.benchmarks.question_files import find_files
from vigor_jax.evaluation.benchmarks.question_layouts import read_gqa, read_scienceqa, read_scienceqa_llava, read_seed
from vigor_jax.evaluation.bootstrap import bootstrap


def seed_file(num=40):
    rng = random.Random(0)
    types = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    records = []
    for i in range(num):
        is_video = i % 5 == 4
        records.append(
            {
                "answer": rng.choice("ABCD"),
                **{f"choice_{letter}": f"thing {i} {letter}" for letter in "abcd"},
                "data_id": f"{i}.webm" if is_video else f"1454426_{i // 2}",
                "data_type": "video" if is_video else "image",
                "question": f"What is in it, {i}?",
                "question_id": f"v{i}" if is_video else f"{1000 + i}",
                "question_type_id": 10 if is_video else 1 + i % 2,
            }
        )
    return {"question_type": types, "questions": records}


def test_seed(tmp_path):
    content = seed_file()
    found = read_seed(write(tmp_path / "SEED-Bench.json", content))
    records = [record for record in content["questions"] if record["data_type"] == "image"]
    assert [question.question_id for question in found] == [record["question_id"] for record in records]
    assert found[0].image == "1454426_0"
    assert found[0].prompt == (
        "What is in it, 0?\nA. thing 0 a\nB. thing 0 b\nC. thing 0 c\nD. thing 0 d\n"
        "Answer with the option's letter from the given choices directly."
    )
    videos = read_seed(tmp_path / "SEED-Bench.json", "video")
    assert [(one.question_id, one.image) for one in videos] == [(f"v{i}", f"v{i}") for i in range(4, 40, 5)]
    assert videos[0].categories == {"type": ("Action Recognition",)}

    rng = random.Random(1)
    said = [say(rng, "ABCD") for _ in found]
    outcomes = questions.outcomes(found, [text for text, _ in said])
    metrics = questions.compute_metrics(outcomes)
    right = [record["answer"] == letter for record, (_, letter) in zip(records, said, strict=True)]
    assert metrics.accuracy == pytest.approx(sum(right) / len(right), abs=1e-9)
    assert (metrics.right, metrics.questions) == (sum(right), 32)
    assert metrics.unparsed == sum(letter is None for _, letter in said)
    for name, number in (("Scene Understanding", 1), ("Instance Identity", 2)):
        part = [r for r, record in zip(right, records, strict=True) if record["question_type_id"] == number]
        assert metrics.categories["type"][name].accuracy == pytest.approx(sum(part) / len(part), abs=1e-9)
    counts = questions.count(outcomes)
    assert list(counts) == list(dict.fromkeys(record["data_id"] for record in records))
    array = np.array(list(counts.values()))
    assert questions.rates(array.sum(0))["accuracy"] == pytest.approx(metrics.accuracy, abs=1e-12)
    low, high = bootstrap(array, questions.rates, num=100)["accuracy"]
    assert low < metrics.accuracy < high
    # Of what is said here, the strict reading takes the letter alone.
    strict = questions.compute_metrics(questions.outcomes(found, [text for text, _ in said], parse_letter_strict))
    assert strict.right == sum(text == record["answer"] for record, (text, _) in zip(records, said, strict=True)) > 0


def test_seed_2_is_read_where_it_is_about_one_image(tmp_path):
    content = seed_file(6)
    for record in content["questions"]:
        record["data_type"] = "Single Image"
    content["questions"][0] |= {"data_type": "Multiple Images", "data_id": ["1.png", "2.png"]}
    content["questions"][1]["data_id"] = "task10/1.png"
    found = read_seed(write(tmp_path / "s.json", content))
    assert len(found) == 5
    assert found[0].image == "task10/1.png"


PROBLEMS = {
    "1": ("natural science", "grade2", "image.png", "", 0),
    "2": ("social science", "grade7", "image.png", "Look at the map.", 2),
    "4": ("language science", "grade12", None, "Read this. ", 1),
    "9": ("natural science", "grade6", None, "", 1),
    "10": ("natural science", "grade7", "choice.png", "", 1),
}


def scienceqa_files(folder):
    problems = {
        name: {
            "question": f"Which one, {name}?",
            "choices": ["West", "East", "South"][: 3 if name == "2" else 2],
            "answer": answer,
            "hint": hint,
            "image": image,
            "task": "closed choice",
            "grade": grade,
            "subject": subject,
            "topic": "x",
            "lecture": "",
            "solution": "",
            "split": "test",
        }
        for name, (subject, grade, image, hint, answer) in PROBLEMS.items()
    }
    splits = {"train": [], "test": ["10", "1", "2", "4"], "minitest": ["9"]}
    return write(folder / "problems.json", problems), write(folder / "pid_splits.json", splits)


def test_scienceqa(tmp_path):
    files = scienceqa_files(tmp_path)
    found = read_scienceqa(*files)
    assert [(one.question_id, one.image, one.answer) for one in found] == [
        ("10", "10/choice.png", "B"), ("1", "1/image.png", "A"), ("2", "2/image.png", "C"),
    ]  # fmt: skip
    assert found[0].prompt == f"Which one, 10?\nA. West\nB. East\n{REQUEST}"
    assert found[2].prompt == f"Context: Look at the map.\nWhich one, 2?\nA. West\nB. East\nC. South\n{REQUEST}"
    every = read_scienceqa(*files, text_only=True)
    assert [one.image for one in every] == ["10/choice.png", "1/image.png", "2/image.png", None]
    assert read_scienceqa(*files, "minitest", text_only=True)[0].categories == {
        "subject": ("NAT",),
        "context": ("NO",),
        "grade": ("G1-6",),
    }
    metrics = questions.compute_metrics(questions.outcomes(every, ["B", "B", "(C)", "the answer is b"]))
    assert metrics.accuracy == 0.75
    share = {kind: {name: (s.right, s.questions) for name, s in v.items()} for kind, v in metrics.categories.items()}
    assert share == {
        "subject": {"NAT": (1, 2), "SOC": (1, 1), "LAN": (1, 1)},
        "context": {"IMG": (2, 3), "TXT": (2, 2)},
        "grade": {"G7-12": (3, 3), "G1-6": (0, 1)},
    }
    assert list(questions.count(questions.outcomes(every, ["A"] * 4)))[-1] == "question 4"


@pytest.mark.parametrize("options", ["A. West\nB. East (far)\nC. South", "Options: (A) West (B) East (far) (C) South"])
def test_scienceqa_as_llava_stores_it(tmp_path, options):
    prompt = f"Context: N/A\nWhich one?\n{options}"
    turns = [{"from": "human", "value": f"{prompt}\n<image>"}, {"from": "gpt", "value": "The answer is B."}]
    records = [
        {"id": "4", "image": "4/image.png", "conversations": turns},
        {"id": "5", "conversations": [{"from": "human", "value": prompt}, turns[1]]},
    ]
    for content in (records, "".join(json.dumps(record) + "\n" for record in records)):
        path = write(tmp_path / "llava_test_CQM-A.json", content)
        (found,) = read_scienceqa_llava(path)
        assert found.options == ("West", "East (far)", "South")
        assert (found.question_id, found.image, found.answer) == ("4", "4/image.png", "B")
        assert found.prompt == f"{prompt}\n{REQUEST}"
        assert [one.image for one in read_scienceqa_llava(path, text_only=True)] == ["4/image.png", None]


def gqa_file():
    kinds = [("query", "obj"), ("verify", "attr"), ("logical", "obj"), ("choose", "rel")]
    truths = ["dog", "no", "yes", "t-shirt", "Left"]
    return {
        f"2026{i:04}": {
            "semantic": [{"operation": "select", "dependencies": [], "argument": "x (1)"}],
            "entailed": [],
            "equivalent": [f"2026{i:04}"],
            "question": f"What is it, {i}?",
            "imageId": f"n{i // 3}",
            "isBalanced": True,
            "groups": {"global": None, "local": "x"},
            "answer": truths[i % 5],
            "semanticStr": "select",
            "annotations": {},
            "types": {"detailed": "d", "semantic": kinds[i % 4][1], "structural": kinds[i % 4][0]},
            "fullAnswer": "Something.",
        }
        for i in range(60)
    }


def test_gqa(tmp_path):
    content = gqa_file()
    found = read_gqa(write(tmp_path / "testdev_balanced_questions.json", content))
    assert found[4].image == "n1.jpg"
    assert found[0].prompt == "What is it, 0?\nAnswer the question using a single word or phrase."
    rng = random.Random(2)
    variants = [str, str.upper, lambda t: f" {t}. ", lambda t: f"a {t}", lambda t: "", lambda t: f"{t}s", lambda t: "É"]
    said = [rng.choice(variants)(one["answer"]) for one in content.values()]
    metrics = questions.compute_metrics(questions.outcomes(found, said))

    def plain(text):  # what LLaVA's conversion does, after white space
        return text.strip().rstrip(".").lower()

    right = [plain(text) == plain(one["answer"]) for text, one in zip(said, content.values(), strict=True)]
    assert metrics.accuracy == pytest.approx(float(Fraction(sum(right), len(right))), abs=1e-9)
    by_kind = defaultdict(list)
    for good, one in zip(right, content.values(), strict=True):
        by_kind["open" if one["types"]["structural"] == "query" else "binary"].append(good)
    for name, part in by_kind.items():
        assert metrics.categories["kind"][name].accuracy == pytest.approx(sum(part) / len(part), abs=1e-9)
    assert set(metrics.categories["structural"]) == {"query", "verify", "logical", "choose"}
    assert set(metrics.categories["semantic"]) == {"obj", "attr", "rel"}
    assert metrics.unparsed == said.count("")


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (read_seed, [], "expected SEED-Bench's JSON object"),
        (read_seed, {"questions": []}, "expected questions, found none"),
        (read_seed, {"questions": [{"data_type": "image"}]}, "question 1: not as the benchmark has it .*choice_a"),
        (
            read_seed,
            {"questions": [{**seed_file(1)["questions"][0], "answer": "E"}]},
            "question 1000: expected one of its 4 options .* got 'E'",
        ),
        (read_gqa, [], "expected an object"),
        (read_gqa, {"1": {"question": "x"}}, "question 1: not as the benchmark has it"),
        (read_gqa, {"1": 5}, "question 1: not as the benchmark has it"),
        (read_gqa, {}, "found none"),
        (mmvet.read_mmvet, [], "expected MM-Vet's object"),
        (mmvet.read_mmvet, {"v1_0": {"question": "x"}}, "question v1_0: not as the benchmark has it"),
        (
            read_scienceqa_llava,
            [{"id": "1", "image": "x", "conversations": []}],
            "question 1: not as the benchmark has",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, reader, content, message):
    with pytest.raises(InputError, match=message):
        reader(write(tmp_path / "file.json", content))


def test_bad_scienceqa(tmp_path):
    problems, splits = scienceqa_files(tmp_path)
    with pytest.raises(InputError, match="expected the ids of split 'dev', got train, test, minitest"):
        read_scienceqa(problems, splits, "dev")
    with pytest.raises(InputError, match="problem 77 of split 'test' is missing"):
        read_scienceqa(problems, write(tmp_path / "other.json", {"test": ["1", "77"]}))
    with pytest.raises(InputError, match="found none of the kind"):
        read_scienceqa(problems, splits, "minitest")


def test_answers_in_every_layout(tmp_path):
    found = read_gqa(write(tmp_path / "q.json", dict(list(gqa_file().items())[:4])))
    texts = ["dog", "", "Yes.", "犬\u2028"]

    def read(path):
        return read_answers([path], questions.asked(found)).texts

    both = list(zip(found, texts, strict=True))
    ours = [{"image": one.image, "prompt": one.prompt, "text": text, "num_tokens": 3} for one, text in both]
    llava = [{"question_id": one.question_id, "prompt": one.prompt, "text": text} for one, text in both]
    numbers = [{"question_id": int(one.question_id), "answer": text} for one, text in both]
    gqa = [{"questionId": one.question_id, "prediction": text} for one, text in both]
    for records in (ours, llava, numbers, gqa):
        for order in (1, -1):
            path = write(
                tmp_path / "a.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records[::order])
            )
            assert read(path) == texts
            assert read(write(tmp_path / "a.json", records[::order])) == texts
    assert read(write(tmp_path / "a.json", {one.question_id: text for one, text in both})) == texts
    index = [{"index": one.question_id, "answer": "the right one", "prediction": text} for one, text in both]
    assert read(write(tmp_path / "a.json", index)) == texts
    assert read(write(tmp_path / "a.json", [*gqa, {"question_id": "7", "text": "x"}, {"text": "x"}])) == texts
    for records, message in (
        (gqa[:3], "expected 4 answers, 1 are missing, to question 20260003"),
        (ours[1:], "1 are missing, to question 20260000"),
        ([*gqa, gqa[0]], "item 5: question 20260000 is answered twice"),
        ([{"question_id": "7", "text": "x"}], "expected the answer to one of 4 questions, got that to '7'"),
        ([{"text": "x"}], "expected 4 answers, got 1"),
        ([{"question_id": "20260000", "text": 5}], "expected a string under 'text', got 5"),
    ):
        with pytest.raises(InputError, match=message):
            read(write(tmp_path / "a.json", records))
    with pytest.raises(InputError, match="each of 4 questions, got 3"):
        questions.outcomes(found, texts[:3])
    with pytest.raises(InputError, match="at least one question"):
        questions.compute_metrics([])


def test_files_are_found_with_and_without_suffix(tmp_path):
    found = read_seed(write(tmp_path / "s.json", seed_file(12)))
    (tmp_path / "1454426_0").write_bytes(b"x")
    (tmp_path / "1454426_1.png").write_bytes(b"x")
    assert find_files(found, open_images(tmp_path)) == {
        "1454426_0": tmp_path / "1454426_0",
        "1454426_1": tmp_path / "1454426_1.png",
    }
