"""Reading LLaVA's conversation files: what they say, and every way in which they can be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from vigor_jax.data.conversation import Turn
from vigor_jax.data.examples import Example, read_examples
from vigor_jax.errors import InputError

HUMAN = {"from": "human", "value": "<image>\nWhat is this?"}
GPT = {"from": "gpt", "value": "A cat.\u2028It sits."}
RECORD = {"id": "a1", "image": "train/cat.jpg", "conversations": [HUMAN, GPT]}
TEXT_ONLY = {
    "id": "t",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "cat.jpg").touch()
    (folder / "dog.jpg").touch()
    (folder / "folder.jpg").mkdir()
    return folder


def write(folder: Path, content: Any, suffix: str = "json") -> Path:
    """A JSON list, JSON lines, or the text itself."""
    path = folder / f"data.{suffix}"
    if suffix == "jsonl" and not isinstance(content, str):
        content = "\n".join(json.dumps(record, ensure_ascii=False) for record in content)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read_error(path: Path, image_folder: Path | None) -> str:
    with pytest.raises(InputError) as caught:
        read_examples(path, image_folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_reads_lists_and_lines(tmp_path: Path, images: Path, suffix: str) -> None:
    second = {
        "id": 7,
        "image": "dog.jpg",
        "conversations": [HUMAN, GPT, {**HUMAN, "value": "And?"}, GPT],
        "model": "",
    }
    path = write(tmp_path, [RECORD, second, TEXT_ONLY, {**TEXT_ONLY, "image": None}], suffix)
    cat, dog, text, same = read_examples(path, images)
    answer = Turn("gpt", "A cat.\u2028It sits.")
    assert cat == Example("a1", images / "train" / "cat.jpg", (Turn("human", "<image>\nWhat is this?"), answer))
    assert dog.id == "7"
    assert dog.image == images / "dog.jpg"
    assert dog.turns[2:] == (Turn("human", "And?"), answer)
    assert text == same == Example("t", None, (Turn("human", "Hi"), Turn("gpt", "Hello")))


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    line = json.dumps(TEXT_ONLY)
    path = write(tmp_path, f"\ufeff\r\n{line}\r\n\r\n{line}\r\n", "jsonl")
    assert len(read_examples(path, None)) == 2


def test_an_answer_may_hold_the_placeholder_as_text(tmp_path: Path) -> None:
    record = {
        **TEXT_ONLY,
        "conversations": [TEXT_ONLY["conversations"][0], {"from": "gpt", "value": "<image>"}],
    }
    assert read_examples(write(tmp_path, [record]), None)[0].turns[1].text == "<image>"


def test_names_the_place(tmp_path: Path) -> None:
    wrong = {**TEXT_ONLY, "id": "the wrong one", "conversations": []}
    message = read_error(write(tmp_path, [TEXT_ONLY, wrong]), None)
    assert "data.json, index 1 (id 'the wrong one')" in message
    path = write(tmp_path, f"{json.dumps(TEXT_ONLY)}\n\n{json.dumps(wrong)}", "jsonl")
    assert "data.jsonl, line 3 (id 'the wrong one')" in read_error(path, None)


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        ("", "json", "no examples"),
        ("[]", "json", "no examples"),
        (" \n\n", "jsonl", "no examples"),
        ('[{"id": "a"},\n {"id": }]', "json", "malformed JSON at line 2, column 9"),
        ('[{"id": "a"', "json", "malformed JSON, column"),
        (json.dumps(TEXT_ONLY) + '\n{"id": "b", ', "jsonl", "line 2: malformed JSON, column"),
        (json.dumps(TEXT_ONLY) + json.dumps(TEXT_ONLY), "jsonl", "line 1: malformed JSON"),
        ("id,image\n1,a.jpg", "csv", "line 1: malformed JSON"),
        ("[" * 100_000, "json", "nested too deeply"),
        ("[1]", "json", "index 0: expected an object with id and conversations, got int"),
        ('"text"', "jsonl", "line 1: expected an object with id and conversations, got str"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, suffix: str, message: str) -> None:
    assert message in read_error(write(tmp_path, text, suffix), None)


def test_unreadable_files(tmp_path: Path) -> None:
    assert "cannot read" in read_error(tmp_path / "absent.json", None)
    assert "cannot read" in read_error(tmp_path, None)
    path = tmp_path / "latin.json"
    path.write_bytes('["caf\u00e9"]'.encode("latin-1"))
    assert "not UTF-8 text" in read_error(path, None)


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in pairs]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": None}, "expected a string under 'id', got None"),
        ({"id": True}, "expected a string under 'id', got True"),
        ({"id": ...}, "expected a string under 'id', got nothing"),
        ({"conversations": ...}, "expected a list under 'conversations', got nothing"),
        ({"conversations": "Hi"}, "expected a list under 'conversations', got 'Hi'"),
        ({"conversations": []}, "0 turns"),
        ({"conversations": ["Hi", "Ho"]}, "turn 0 should be an object with from and value, got str"),
        (
            {"conversations": [{"value": "Hi"}, GPT]},
            "turn 0: expected 'human' or 'gpt' under 'from', got nothing",
        ),
        ({"conversations": turns(("user", "Hi"), ("gpt", "Ho"))}, "under 'from', got 'user'"),
        ({"conversations": [{"from": ["gpt"], "value": "Hi"}]}, "under 'from', got ['gpt']"),
        ({"conversations": [HUMAN, {"from": "gpt"}]}, "turn 1: expected a string under 'value', got nothing"),
        (
            {"conversations": [HUMAN, {"from": "gpt", "value": 3}]},
            "turn 1: expected a string under 'value', got 3",
        ),
        ({"conversations": [HUMAN, {**GPT, "value": " \n"}]}, "turn 1 is an empty answer"),
        ({"conversations": [HUMAN, {**GPT, "value": ""}]}, "turn 1 is an empty answer"),
        ({"conversations": [GPT, HUMAN]}, "turn 0 is from 'gpt', expected 'human'"),
        ({"conversations": [HUMAN, HUMAN]}, "turn 1 is from 'human', expected 'gpt'"),
        ({"conversations": [HUMAN, GPT, HUMAN]}, "3 turns"),
        (
            {"conversations": turns(("human", "Hi"), ("gpt", "Ho"))},
            "place <image> 0 times but the example has 1 image",
        ),
        ({"conversations": [{**HUMAN, "value": "<image><image>"}, GPT]}, "place <image> 2 times"),
        ({"image": ...}, "place <image> 1 times but the example has no image"),
        ({"image": ""}, "expected one file name under 'image', got ''"),
        (
            {"image": ["dog.jpg", "cat.jpg"]},
            "expected one file name under 'image', got ['dog.jpg', 'cat.jpg']",
        ),
        ({"image": "../images/dog.jpg"}, "must be a path inside the image folder"),
        ({"image": "train/../../secret.jpg"}, "must be a path inside the image folder"),
        ({"image": "/etc/passwd"}, "must be a path inside the image folder"),
        ({"image": "absent.jpg"}, "absent.jpg does not exist; 1 of 2 images are missing"),
        ({"image": "val/cat.jpg"}, "does not exist; 1 of 2 images are missing"),
        ({"image": "folder.jpg"}, "does not exist; 1 of 2 images are missing"),
        ({"image": "dog.jpg\0"}, "does not exist; 1 of 2 images are missing"),
    ],
)
def test_wrong_records(tmp_path: Path, images: Path, changes: dict[str, Any], message: str) -> None:
    record = {key: value for key, value in {**RECORD, **changes}.items() if value is not ...}
    error = read_error(write(tmp_path, [RECORD, record]), images)
    assert message in error
    assert "index 1" in error
    assert "id" in changes or "(id 'a1')" in error


def test_counts_missing_images_and_names_the_first(tmp_path: Path, images: Path) -> None:
    names = ["dog.jpg", "b/1.jpg", "train/2.jpg", "b/3.jpg", "train/cat.jpg"]
    records = [{**RECORD, "id": str(index), "image": name} for index, name in enumerate(names)]
    error = read_error(write(tmp_path, records, "jsonl"), images)
    assert "line 2 (id '1'): image" in error
    assert f"{images / 'b' / '1.jpg'} does not exist; 3 of 5 images are missing" in error


def test_image_without_a_folder(tmp_path: Path) -> None:
    assert "no image folder is given" in read_error(write(tmp_path, [RECORD]), None)
