"""Reading LLaVA's conversation files: what they say, and every way in which they can be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from vigor_jax.data.batches.examples import Example, scan_examples
from vigor_jax.data.records.bad_rows import refusal
from vigor_jax.data.text.conversation import Turn
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


def read_examples(path: Path, image_folder: Path | None) -> list[Example]:
    """All rows, or the line that training refuses the file with."""
    found = scan_examples(path, image_folder)
    if found.bad:
        raise InputError(refusal(path, found.bad, found.total))
    return found.examples


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
        ({"conversations": [GPT, HUMAN]}, "1 turns: expected each question to be followed by its answer"),
        ({"conversations": [GPT, GPT, HUMAN]}, "turn 1 is from 'gpt', expected 'human'"),
        ({"conversations": [HUMAN, HUMAN]}, "turn 1 is from 'human', expected 'gpt'"),
        ({"conversations": [HUMAN, GPT, HUMAN]}, "3 turns"),
        (
            {"conversations": turns(("human", "Hi"), ("gpt", "Ho"))},
            "place <image> 0 times but the example has 1 image",
        ),
        ({"conversations": [HUMAN, GPT, HUMAN, GPT]}, "place <image> 2 times"),
        ({"image": ...}, "place <image> 1 times but the example has no image"),
        ({"image": ""}, "place <image> 1 times but the example has no image"),
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


@pytest.mark.parametrize(
    ("changes", "image", "said"),
    [
        ({"id": ...}, "train/cat.jpg", None),
        ({"id": None}, "train/cat.jpg", None),
        ({"id": ["a", 1]}, "train/cat.jpg", None),
        ({"id": True}, "train/cat.jpg", None),
        ({"id": 1.5}, "train/cat.jpg", None),
        ({"conversations": [GPT, HUMAN, GPT]}, "train/cat.jpg", None),
        ({"conversations": [{**HUMAN, "value": "See <image> here"}, GPT]}, "train/cat.jpg", ["See <image> here"]),
        (
            {"conversations": [{**HUMAN, "value": "<image><image>\nSame <image>?"}, GPT]},
            "train/cat.jpg",
            ["<image>\nSame ?"],
        ),
        ({"image": ["dog.jpg"]}, "dog.jpg", None),
        ({"image": ..., "images": ["dog.jpg"]}, "dog.jpg", None),
        ({"image": ..., "images": "dog.jpg"}, "dog.jpg", None),
        ({"image": "", "images": ["dog.jpg"]}, "dog.jpg", None),
        ({"image": "dog.jpg", "images": ["dog.jpg"]}, "dog.jpg", None),
        (
            {"image_path": "/abs/cat.jpg", "image_id": 3, "video_id": "x", "video": "", "audio": None},
            "train/cat.jpg",
            None,
        ),
    ],
)
def test_what_llava_takes_with_an_image(
    tmp_path: Path, images: Path, changes: dict[str, Any], image: str, said: list[str] | None
) -> None:
    record = {key: value for key, value in {**RECORD, **changes}.items() if value is not ...}
    _, example = read_examples(write(tmp_path, [RECORD, record]), images)
    assert example.image == images / image
    assert [turn.text for turn in example.turns if turn.role == "human"] == (said or ["<image>\nWhat is this?"])
    assert [turn.role for turn in example.turns] == ["human", "gpt"]
    if isinstance(changes.get("id", 1), float | int | str) and changes.get("id") is not True:
        assert example.id == str(record["id"])
    else:
        assert example.id == "index 1"


QUOTING = "What does <image> mean in HTML?"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": ""}, "Hi"),
        ({"image": None}, "Hi"),
        ({"image": []}, "Hi"),
        ({"images": []}, "Hi"),
        ({"images": None, "videos": [], "has_image": False, "num_images": 0}, "Hi"),
        ({"source": "image_chat", "imagination": "x", "frame_rate": 3, "model": "m"}, "Hi"),
        ({"conversations": turns(("human", QUOTING), ("gpt", "An image."))}, QUOTING),
        ({"conversations": turns(("human", "<p>\n<image>\n</p> ok?"), ("gpt", "No."))}, "<p>\n<image>\n</p> ok?"),
        ({"conversations": turns(("gpt", "Hello!"), ("human", "Hi"), ("gpt", "Yes?"))}, "Hi"),
    ],
)
def test_what_llava_takes_as_text(
    tmp_path: Path, images: Path, changes: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in (None, images):
        (example,) = read_examples(write(tmp_path, [{**TEXT_ONLY, **changes}]), folder)
        assert example.image is None
        assert example.turns[0] == Turn("human", said)
    assert ("quote <image> (the first: index 0)" in caplog.text) == ("<image>" in said)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_path", "a.jpg"),
        ("imagePath", "a.jpg"),
        ("image_file", "a.jpg"),
        ("image_url", "https://x/a.jpg"),
        ("image_0", "a.jpg"),
        ("image_id", 17),
        ("input_image", "a.jpg"),
        ("path_to_image", "a.jpg"),
        ("img", "a.jpg"),
        ("photos", ["a.jpg"]),
        ("Image", "a.jpg"),
        ("IMAGE", "a.jpg"),
        ("jpg", "a.jpg"),
        ("has_image", True),
        ("video", "a.mp4"),
        ("videos", ["a.mp4"]),
        ("video_path", "a.mp4"),
        ("audio", {"path": "a.wav"}),
        ("audios", ["a.wav"]),
        ("mp4", "a.mp4"),
        ("wav", "a.wav"),
        ("frames", ["1.jpg"]),
        ("speech", "a.wav"),
        ("pixel_values", [[0.1]]),
    ],
)
def test_other_media_are_refused_by_key(tmp_path: Path, images: Path, key: str, value: Any) -> None:
    error = read_error(write(tmp_path, [TEXT_ONLY, {**TEXT_ONLY, key: value}]), images)
    assert f"index 1 (id 't'): the key {key!r}" in error
    in_turn = {**TEXT_ONLY, "conversations": [{"from": "human", "value": "Hi", key: value}, GPT]}
    assert f"index 0 (id 't'): turn 0: the key {key!r}" in read_error(write(tmp_path, [in_turn]), images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ["dog.jpg", "cat.jpg"]}, "expected one file name under 'images', got ['dog.jpg', 'cat.jpg']"),
        (
            {"images": ["dog.jpg"]},
            "expected one image, got 'train/cat.jpg' under 'image' and ['dog.jpg'] under 'images'",
        ),
        ({"image": {"path": "dog.jpg"}}, "expected one file name under 'image', got {'path': 'dog.jpg'}"),
        ({"image": [{"path": "dog.jpg"}]}, "expected one file name under 'image'"),
        ({"image": False}, "expected one file name under 'image', got False"),
        ({"image": [""]}, "expected one file name under 'image', got ['']"),
        ({"video": "a.mp4"}, "the key 'video' ('a.mp4') is about an image or another medium"),
        ({"audio": ["a.wav"]}, "the key 'audio'"),
        ({"image": "\ud800.jpg"}, "is no file name; repair its encoding"),
        ({"image": "a\0/b.jpg"}, "does not exist"),
        ({"image": "x" * 300 + ".jpg"}, "does not exist"),
        ({"conversations": [{**HUMAN, "value": "<image>\nHi \ud83d"}, GPT]}, "turn 0: text with a lone surrogate"),
        ({"conversations": [HUMAN, {**GPT, "value": "\udc00"}]}, "turn 1: text with a lone surrogate"),
        ({"conversations": [HUMAN, {**GPT, "value": ["A cat."]}]}, "expected a string under 'value', got ['A cat.']"),
        ({"conversations": [{"from": "system", "value": "Be brief."}, HUMAN, GPT]}, "under 'from', got 'system'"),
    ],
)
def test_rows_that_llava_could_not_train_on_either(
    tmp_path: Path, images: Path, changes: dict[str, Any], message: str
) -> None:
    error = read_error(write(tmp_path, [{**RECORD, **changes}]), images)
    assert message in error
    error.encode()  # can be printed


def test_an_image_that_does_not_exist_alone_in_its_file(tmp_path: Path, images: Path) -> None:
    for name in ("absent.jpg", "x" * 300, "dog.jpg\0"):
        assert "does not exist" in read_error(write(tmp_path, [{**RECORD, "image": name}]), images)


def test_all_bad_rows_are_named(tmp_path: Path, images: Path) -> None:
    lines = [json.dumps(RECORD), '{"id": ', json.dumps({**RECORD, "image": "absent.jpg"}), json.dumps({"id": "x"})]
    path = write(tmp_path, "\n".join(lines), "jsonl")
    error = read_error(path, images)
    assert error.startswith(f"{path}: 3 of 4 rows cannot be trained on: line 2: malformed JSON")
    assert "| line 3 (id 'a1'): image" in error
    assert "| line 4 (id 'x'): expected a list under 'conversations', got nothing" in error
    found = scan_examples(path, images)
    assert [example.label for example in found.examples] == ["line 1"]
    assert [(row.number, row.id) for row in found.bad] == [(2, None), (3, "a1"), (4, "x")]
    assert found.total == 4


def test_a_few_of_many_bad_rows_are_named(tmp_path: Path) -> None:
    bad = [{**TEXT_ONLY, "id": f"b{index}", "conversations": []} for index in range(30)]
    error = read_error(write(tmp_path, [TEXT_ONLY, *bad]), None)
    assert "30 of 31 rows" in error
    assert [f"'b{index}'" in error for index in range(30)] == [True] * 10 + [False] * 20
    assert "and 20 more" in error


def test_a_folder_with_none_of_the_images_is_no_matter_of_rows(tmp_path: Path, images: Path) -> None:
    path = write(tmp_path, [{**RECORD, "image": f"gone/{index}.jpg"} for index in range(3)])
    with pytest.raises(InputError, match=r"none of its 3 images exists; check the image folder .*images"):
        scan_examples(path, images)


def test_the_digest_is_of_what_is_learned(tmp_path: Path, images: Path) -> None:
    same = [RECORD, {**RECORD, "id": "other", "model": "x"}, {**RECORD, "conversations": [GPT, HUMAN, GPT]}]
    other = [{**RECORD, "image": "dog.jpg"}, {**RECORD, "conversations": [HUMAN, {**GPT, "value": "A cat"}]}]
    digests = [example.digest for example in read_examples(write(tmp_path, same + other), images)]
    assert len(set(digests[:3])) == 1
    assert len(set(digests)) == 3
