"""Every layout in which tools save answers is read, in any order; what is missing or double is named."""

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import Asked, fits, match, plain, read_answers
from vigor_jax.evaluation.benchmarks import pope
from vigor_jax.evaluation.benchmarks.pope import PopeQuestion
from vigor_jax.evaluation.image_names import ImageNames
from vigor_jax.evaluation.saved_answers import SavedAnswer, read_saved

Record = dict[str, Any]
SUFFIX = "Answer the question using a single word or phrase."
THINGS = ("dog", "cat", "dog bed", "traffic light", "bus", "person")
QUESTIONS = [
    PopeQuestion(
        i + 1, f"COCO_val2014_{1000 + 7 * (i // 6):012}.jpg", f"Is there a {THINGS[i % 6]} in the image?", "yes"
    )
    for i in range(36)
]
TEXTS = [f"said {i}" for i in range(len(QUESTIONS))]


def authors(q: PopeQuestion, text: str) -> Record:
    return {"question": q.text, "answer": text}


def llava(q: PopeQuestion, text: str) -> Record:
    prompt = f"{q.text}\n{SUFFIX}"
    return {
        "question_id": q.question_id,
        "prompt": prompt,
        "text": text,
        "answer_id": "x",
        "model_id": "m",
        "metadata": {},
    }


def vcd(q: PopeQuestion, text: str) -> Record:
    return {
        "question_id": q.question_id,
        "prompt": q.text,
        "text": text,
        "model_id": "m",
        "image": q.image,
        "metadata": {},
    }


def ours(q: PopeQuestion, text: str) -> Record:
    line = {"image": q.image, "prompt": q.text, "text": text, "mean_logprob": -0.5, "num_tokens": 3}
    return {**line, "finish_reason": "stop"}


def string_ids(q: PopeQuestion, text: str) -> Record:
    return {"question_id": f"{q.question_id}", "answer": text}


def filled(q: PopeQuestion, text: str) -> Record:
    return {"question_id": q.question_id, "image": q.image, "text": q.text, "label": q.label, "answer": text}


def with_the_truth(q: PopeQuestion, text: str) -> Record:
    return {"index": float(q.question_id), "question": q.text, "answer": q.label, "prediction": text}


def coco_number(q: PopeQuestion, text: str) -> Record:
    return {"image_id": int(Path(q.image).stem[-12:]), "question": q.text, "response": text}


def elsewhere(q: PopeQuestion, text: str) -> Record:
    return {"image_path": f"/data/val2014/{q.image}", "query": f"<image>\nUSER: {q.text.upper()} Answer:", "text": text}


def other_year(q: PopeQuestion, text: str) -> Record:
    return {"image": q.image.removeprefix("COCO_val2014_"), "prompt": q.text, "model_answer": text}


def logged_before(q: PopeQuestion, text: str) -> Record:
    doc = {"id": "0", "question_id": f"{q.question_id}", "question": q.text, "answer": q.label}
    doc |= {"image_source": Path(q.image).stem, "category": "random"}
    line = {"doc_id": q.question_id - 1, "doc": doc, "target": q.label, "arguments": [["x", {"until": ["\n"]}]]}
    return {**line, "resps": [[text]], "filtered_resps": [text], "doc_hash": "h"}


def logged_now(q: PopeQuestion, text: str) -> Record:
    figures = {"question_id": f"{q.question_id}", "score": 0.0, "prediction": "x", "ground_truth": q.label}
    line = {"doc_id": q.question_id - 1, "target": q.label, "input": f"{q.text}\n{SUFFIX}", "filtered_resps": text}
    return {**line, "pope_accuracy": figures, "pope_f1_score": figures, "doc_hash": "h"}


def logged_without_ids(q: PopeQuestion, text: str) -> Record:
    return {"doc_id": q.question_id - 1, "input": f"{q.text}\n{SUFFIX}", "resps": [[text]], "filtered_resps": [text]}


NAMED = [
    llava, vcd, ours, string_ids, filled, with_the_truth, coco_number, elsewhere, other_year, logged_before, logged_now,
    logged_without_ids,
]  # fmt: skip


def as_lines(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


CONTAINERS: dict[str, Callable[[Sequence[Record]], bytes]] = {
    "lines": lambda records: as_lines(records).encode(),
    "list": lambda records: json.dumps(records, indent=1).encode(),
    "lines.gz": lambda records: gzip.compress(as_lines(records).encode()),
    "list.gz": lambda records: gzip.compress(json.dumps(records).encode()),
    "bom": lambda records: b"\xef\xbb\xbf" + as_lines(records).encode(),
    "logs": lambda records: json.dumps({"args": {"x": 1}, "logs": records}).encode(),
    "sentences": lambda records: json.dumps({"sentences": records, "overall_metrics": {"CHAIRs": 0.5}}).encode(),
}


def read(path: Path, questions: Sequence[PopeQuestion] = QUESTIONS) -> list[str]:
    return read_answers([path], pope.asked(questions)).texts


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("layout", NAMED)
def test_layouts_with_names_are_read_in_any_order(tmp_path: Path, layout: Callable, container: str) -> None:
    records = [layout(q, text) for q, text in zip(QUESTIONS, TEXTS, strict=True)]
    for seed in (None, 0, 1):
        if seed is not None:
            random.Random(seed).shuffle(records)
        path = tmp_path / "answers"
        path.write_bytes(CONTAINERS[container](records))
        assert read(path) == TEXTS


def test_the_authors_layout_goes_by_order_and_its_words_are_checked(tmp_path: Path) -> None:
    records = [authors(q, text) for q, text in zip(QUESTIONS, TEXTS, strict=True)]
    path = tmp_path / "a.json"
    path.write_text(as_lines(records))
    assert read(path) == TEXTS
    path.write_text(as_lines([{"answer": text} for text in TEXTS]))
    assert read(path) == TEXTS
    path.write_text(as_lines([records[1], records[0], *records[2:]]))
    with pytest.raises(InputError, match=r"a.json:1: expected the answer to question 1, 'Is there a dog in the"):
        read(path)
    path.write_text(as_lines(records[:-1]))
    with pytest.raises(InputError, match="expected 36 answers, got 35; they have no ids"):
        read(path)
    path.write_text(as_lines([*records, records[0]]))
    found = read_answers([path], pope.asked(QUESTIONS))
    assert (found.texts, len(found.extra)) == (TEXTS, 1)


@pytest.mark.parametrize("layout", NAMED)
def test_what_is_missing_double_or_extra_is_named(
    tmp_path: Path, layout: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    records = [layout(q, text) for q, text in zip(QUESTIONS, TEXTS, strict=True)]
    path = tmp_path / "a.jsonl"
    if layout is not logged_without_ids:
        path.write_text(as_lines([*records[:4], *records[5:9], *records[10:]]))
        with pytest.raises(InputError, match=r"a.jsonl: expected 36 answers, 2 are missing, to question 5, 10"):
            read(path)
        path.write_text(as_lines([*records, records[2]]))
        with pytest.raises(InputError, match=r"a.jsonl:37: question 3 is answered twice, first at .*a.jsonl:3;"):
            read(path)
    other = PopeQuestion(99, "COCO_val2014_000000999999.jpg", "Is there a unicorn in the image?", "no")
    path.write_text(as_lines([*records, layout(other, "extra")]))
    found = read_answers([path], pope.asked(QUESTIONS))
    assert (found.texts, [one.text for one in found.extra]) == (TEXTS, ["extra"])
    assert "1 answers are to nothing that is asked here and are left out" in caplog.text


@pytest.mark.parametrize("layout", [llava, vcd, filled, logged_before, logged_now])
def test_an_id_with_other_words_is_no_answer(tmp_path: Path, layout: Callable) -> None:
    """The ids of all of POPE's files are 1 to 3000: answers to another file must not be taken."""
    others = [PopeQuestion(q.question_id, q.image, q.text.replace("bus", "train"), q.label) for q in QUESTIONS]
    path = tmp_path / "a.jsonl"
    path.write_text(as_lines([layout(q, text) for q, text in zip(others, TEXTS, strict=True)]))
    with pytest.raises(InputError, match=r"6 are missing, to question 5, 11, 17 and 3 more; .*:5 has that id but"):
        read(path)


def test_an_id_with_another_image_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [
        {"question_id": q.question_id, "image": q.image, "answer": t} for q, t in zip(QUESTIONS, TEXTS, strict=True)
    ]
    records[7]["image"] = QUESTIONS[0].image
    path.write_text(as_lines(records))
    with pytest.raises(InputError, match=r"to question 8; .*:8 has that id but is about image 'COCO_val"):
        read(path)


def splits() -> dict[str, list[PopeQuestion]]:
    """As the benchmark's: each with ids from 1, the questions with yes the same in all."""
    absent = {"random": "train", "popular": "chair", "adversarial": "leash"}
    return {
        split: [
            PopeQuestion(q.question_id, q.image, q.text if i % 2 else q.text.replace(THINGS[i % 6], other), q.label)
            for i, q in enumerate(QUESTIONS)
        ]
        for split, other in absent.items()
    }


@pytest.mark.parametrize("layout", [llava, vcd, ours, filled, logged_now, logged_without_ids, authors])
@pytest.mark.parametrize("order", [("random", "popular", "adversarial"), ("adversarial", "popular", "random")])
def test_one_file_answers_all_splits(tmp_path: Path, layout: Callable, order: tuple[str, ...]) -> None:
    """LLaVA and lmms-eval write all of POPE to one file, in their own order; LLaVA's ids continue over the files."""
    every = splits()
    records, said = [], {}
    for name in order:
        said[name] = [f"{name} {i}" if not i % 2 else f"same {i}" for i in range(len(QUESTIONS))]
        for q, text in zip(every[name], said[name], strict=True):
            record = layout(q, text)
            if "doc_id" in record:
                record["doc_id"] = len(records)
            records.append(record)
    path = tmp_path / "merge.jsonl"
    path.write_text(as_lines(records))
    asked = [one for name, questions in every.items() for one in pope.asked(questions, f"coco_pope_{name}")]
    assert read_answers([path], asked).texts == [text for name in every for text in said[name]]
    if layout is llava:
        path.write_text(as_lines([{**record, "question_id": 5 + i} for i, record in enumerate(records)]))
        assert read_answers([path], asked).texts == [text for name in every for text in said[name]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected answers, got an empty file"),
        ("[]", "expected answers, got an empty file"),
        ("[1]", "item 1: expected an object with one of model_answer, prediction"),
        ('{"question_id": 1, "answer": 5}', "expected a string under 'answer', got 5"),
        ('{"question_id": 1, "answer": null}', "expected a string under 'answer', got None"),
        ('{"question_id": 1, "filtered_resps": [[-1.5, true]]}', "expected a string under 'filtered_resps'"),
        ('{"question_id": 1}\n{"question_id": 2}', ":1: expected the answer under one of"),
        ('{"question_id": 1, "answer": "x"}\n{"question_id', ":2: malformed JSON"),
        ('{"1": "x", "2": 7}', "'2': expected a string under 'answer', got 7"),
        ("{", "malformed JSON"),
        ('[{"question_id": ' + "9" * 5000 + ', "answer": "x"}]', "a number that is too long"),
        ("犬", "malformed JSON"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    for packed in (content.encode(), gzip.compress(content.encode())):
        (tmp_path / "a.json").write_bytes(packed)
        with pytest.raises(InputError, match=message) as caught:
            read(tmp_path / "a.json")
        assert "\n" not in str(caught.value)
        assert "a.json" in str(caught.value)


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(as_lines([string_ids(q, "x") for q in QUESTIONS]).encode())
    for content in (packed[:-9], packed[:20], packed[:30] + b"\x00\x00\x00" + packed[33:], b"\x1f\x8b"):
        (tmp_path / "a.jsonl.gz").write_bytes(content)
        with pytest.raises(InputError, match="cannot read it"):
            read(tmp_path / "a.jsonl.gz")


def test_objects_of_answers(tmp_path: Path) -> None:
    for content in (
        {str(q.question_id): text for q, text in zip(QUESTIONS, TEXTS, strict=True)},
        {str(q.question_id): {"image": q.image, "answer": text} for q, text in zip(QUESTIONS, TEXTS, strict=True)},
    ):
        for indent in (None, 2):
            (tmp_path / "a").write_text(json.dumps(content, indent=indent))
            assert read(tmp_path / "a") == TEXTS
    (tmp_path / "a").write_text('{"question_id": 1, "answer": "alone"}')
    assert read(tmp_path / "a", QUESTIONS[:1]) == ["alone"]


def test_of_the_same_question_one_answer_is_enough(tmp_path: Path) -> None:
    twice = [*QUESTIONS, PopeQuestion(37, QUESTIONS[3].image, QUESTIONS[3].text, "yes")]
    path = tmp_path / "a.jsonl"
    path.write_text(as_lines([ours(q, text) for q, text in zip(QUESTIONS, TEXTS, strict=True)]))
    assert read(path, twice) == [*TEXTS, TEXTS[3]]
    path.write_text(as_lines([ours(q, text) for q, text in zip(twice, [*TEXTS, "second"], strict=True)]))
    assert read(path, twice) == [*TEXTS, "second"]


@pytest.mark.parametrize(
    ("called", "found"),
    [
        ("a/b.jpg", ["a/b.jpg"]),
        ("b.jpg", ["a/b.jpg"]),
        ("b", ["a/b.jpg"]),
        ("/x/y/a/b.jpg", ["a/b.jpg"]),
        ("a/images/b.jpg", ["a/b.jpg"]),
        ("42", ["COCO_val2014_000000000042.jpg"]),
        ("000000000042.jpg", ["COCO_val2014_000000000042.jpg"]),
        ("COCO_val2017_000000000042", ["COCO_val2014_000000000042.jpg"]),
        ("7", ["named by its id.jpg"]),
        ("5", ["x_5.png", "y_5.png"]),
        ("z_5.png", []),
        ("0", []),
        ("", []),
        ("same.png", ["p/same.png", "q/same.png"]),
        ("q/same.png", ["q/same.png"]),
        ("11.5", []),
    ],
)
def test_images_under_other_names(called: str, found: list[str]) -> None:
    names = ["a/b.jpg", "COCO_val2014_000000000042.jpg", "x_5.png", "y_5.png", "named by its id.jpg", "p/same.png"]
    assert ImageNames([*names, "q/same.png"], {"7": "named by its id.jpg"}).find(called) == found


@pytest.mark.parametrize(("said", "read_as"), [("\ud83d cut", "\ufffd cut"), ("\ud83d\ude00", "😀"), ("é犬", "é犬")])
def test_halves_of_characters_are_replaced(tmp_path: Path, said: str, read_as: str) -> None:
    """A model's last token may be cut within a character."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"image": said, "question": said, "answer": said}]))
    (answer,) = read_saved([path])
    assert (answer.text, answer.image, answer.question) == (read_as, read_as, read_as)
    answer.text.encode()


def test_endless_numbers_are_names(tmp_path: Path) -> None:
    names = ImageNames(["9" * 5000 + ".jpg", "a5.jpg"])
    assert names.find("9" * 5000) == ["9" * 5000 + ".jpg"]
    assert names.find("8" * 5000) == []
    assert names.find("5") == names.find("005") == ["a5.jpg"]


@given(st.lists(st.text(min_size=1), unique=True, min_size=1), st.text())
def test_an_image_that_is_known_is_itself(names: list[str], called: str) -> None:
    known = ImageNames(names)
    assert set(known.find(called)) <= set(names)
    for name in names:
        assert known.find(name) == [name]


@pytest.mark.parametrize(
    ("words", "said", "expected"),
    [
        ("Is there a dog?", "<image>\nIs there a dog?\nAnswer shortly.", True),
        ("Is there a dog?", "is  there a DOG?", True),
        ("Is there a dog in it", "Is there a dog in items", False),
        ("Is there a dog?", "Is there a cat?", False),
        ("Context: x. Is there a dog?", "Is there a dog?", True),
        ("", "anything", True),
    ],
)
def test_words_around_a_question(words: str, said: str, expected: bool) -> None:
    assert fits(plain(words), plain(said)) == expected


def test_questions_without_images_go_by_their_words() -> None:
    asked = [Asked((f"{i}",), None, f"Why {i}?", f"Why {i}?\nA. x\nB. y") for i in range(4)]
    said = [SavedAnswer(f"{i}", f"t{i}", question=f"Why {i}?\nA. x\nB. y") for i in (2, 0, 3, 1)]
    assert match(said, asked, "a").texts == ["t0", "t1", "t2", "t3"]


def test_several_files_are_one(tmp_path: Path) -> None:
    records = [vcd(q, text) for q, text in zip(QUESTIONS, TEXTS, strict=True)]
    for name, part in (("1", records[20:]), ("0", records[:20])):
        (tmp_path / name).write_text(as_lines(part))
    paths = [tmp_path / "1", tmp_path / "0"]
    assert read_answers(paths, pope.asked(QUESTIONS)).texts == TEXTS
    assert len(read_saved(paths)) == len(QUESTIONS)
