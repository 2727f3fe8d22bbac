"""Wrong files and rows: what is wrong is said in one line, and ties are no mistake."""

import json

import pyarrow.parquet as pq
import pytest

from tests.data.preferences.form_files import BAD, GOOD, ROWS, make_images, message, rated, said, write
from vigor_jax.data.preferences.read import scan_preferences
from vigor_jax.data.preferences.write import write_preferences
from vigor_jax.errors import InputError
from vigor_jax.records import Preference

TRL, OWN, VLF, POVID = ROWS["trl"], ROWS["own"], ROWS["vlfeedback"], ROWS["povid"]
RLHF, SENTINEL = ROWS["llava_rlhf"], ROWS["sentinel"]


def without(row, *keys):
    return {key: value for key, value in row.items() if key not in keys}


def conversation(*messages, **others):
    chosen, rejected = [message("assistant", GOOD)], [message("assistant", BAD)]
    return {"prompt": list(messages), "chosen": chosen, "rejected": rejected, "images": ["a.png"]} | others


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images")


WRONG_ROWS = {
    # texts
    "equal texts": (TRL | {"rejected": GOOD}, "two responses are equal ('A red car waits.'); nothing is to be learned"),
    "equal messages": (
        conversation(message("user", None, "Q?"), rejected=[message("assistant", GOOD)]),
        "'chosen' and 'rejected' are equal; nothing is to be learned from them",
    ),
    "equal conversations": (
        POVID | {"rejected_conversations": POVID["conversations"]},
        "the two conversations have equal answers; nothing is to be learned from them",
    ),
    "empty chosen": (TRL | {"chosen": " \n"}, "response 0 is empty"),
    "empty rejected": (TRL | {"rejected": ""}, "response 1 is empty"),
    "empty completion": (
        VLF | {"completions": [*VLF["completions"], rated("", 1, 1, 1)]},
        "response 2 is empty",
    ),
    "empty sentence": (SENTINEL | {"y_lose": ""}, "response 1 is empty"),
    "empty question": (TRL | {"prompt": " "}, "the question is empty"),
    "empty question of text alone": (OWN | {"image": "", "prompt": ""}, "the question is empty"),
    "empty question of a history": (
        OWN | {"history": ["", "Yes."]} | {"image": ""},
        "a question of the history is empty",
    ),
    "empty answer of a history": (OWN | {"history": ["Q?", ""]}, "an answer of the history is empty"),
    "half a history": (OWN | {"history": ["Q?"]}, "expected each question of the history with its answer, got an odd"),
    "lone surrogate": (
        TRL | {"chosen": "a red \ud83d car"},
        r"text with a lone surrogate (half of a \u pair): 'a red \ud83d car'"),
    "lone surrogate in a name": (OWN | {"name": "\udce9"}, r"text with a lone surrogate (half of a \u pair): '\udce9'"),
    "no text": (TRL | {"chosen": 5}, "expected a list under 'chosen', got 5"),
    "chosen is missing": (without(TRL, "chosen"), "'chosen' is missing"),
    "prompt is missing": (without(TRL, "prompt"), "'prompt' is missing"),
    # images
    "two images": (TRL | {"images": ["a.png", "sub/b.png"]}, "expected one image under 'images', got 2"),
    "image is a number": (OWN | {"image": 5}, "expected the name of an image under 'image', got 5"),
    "image elsewhere": (OWN | {"image": "../a.png"}, "image '../a.png' must be a path inside the image folder"),
    "image at a root": (OWN | {"image": "/a.png"}, "image '/a.png' must be a path inside the image folder"),
    "image with a surrogate": (OWN | {"image": "\ud83d.png"}, "is no file name; repair its encoding"),
    "no image": (without(VLF, "img_path"), "has no image; name it under 'image', or leave the row out"),
    "null image": (ROWS["rlaif_v"] | {"image": None, "image_path": None}, "has no image"),
    "no such image": (OWN | {"image": "c.png"}, "c.png does not exist; 1 of 2 images are missing; check the image"),
    "image in a question without one": (
        without(POVID, "image"),
        "the question '<image>\\nWhat waits?' places <image>, but the row has no image",
    ),
    "image in two questions": (
        RLHF | {"conversations": said("<image>\nQ?", "A.", "<image>\nQ?")},
        "2 questions place <image>; expected one",
    ),
    "another medium": (without(OWN, "image") | {"video": "a.mp4"}, "the key 'video' ('a.mp4') is about an image or"),
    "image under another key": (without(TRL, "images") | {"img": "a.png"}, "the key 'img' ('a.png') is about an image"),
    # ratings
    "one response": (OWN | {"responses": [GOOD], "ratings": [1.0]}, "expected two responses or more, got 1"),
    "one response after leaving out": (
        VLF | {"completions": [rated("a", 1, 2, 3), rated("b", 1, "N/A", 3)]},
        "expected two rated responses or more, got 1",
    ),
    "rating too high": (
        VLF | {"completions": [rated("a", "1", "2", "3"), rated("b", "1", "2", "6")]},
        "completion 1: expected a rating of Visual Faithfulness from 1 to 5, got '6'",
    ),
    "rating too low": (
        VLF | {"completions": [rated("a", 0.5, 2, 3), rated("b", 1, 2, 3)]},
        "completion 0: expected a rating of Helpfulness from 1 to 5, got 0.5",
    ),
    "negative rating": (
        VLF | {"completions": [rated("a", "-1", 2, 3), rated("b", 1, 2, 3)]},
        "completion 0: expected a rating of Helpfulness from 1 to 5, got '-1'",
    ),
    "rating is NaN": (
        VLF | {"completions": [rated("a", float("nan"), 2, 3), rated("b", 1, 2, 3)]},
        "completion 0: expected a rating of Helpfulness from 1 to 5, got nan",
    ),
    "rating is a list": (
        VLF | {"completions": [rated("a", [1], 2, 3), rated("b", 1, 2, 3)]},
        "completion 0: expected a rating of Helpfulness, got [1]",
    ),
    "own rating is NaN": (OWN | {"ratings": [1.0, float("nan")]}, "expected finite ratings, got [1.0, nan]"),
    "own rating is infinite": (OWN | {"ratings": [1.0, float("inf")]}, "expected finite ratings, got [1.0, inf]"),
    "own rating is huge": (OWN | {"ratings": [1, 10**400]}, "expected finite ratings, got [1, 1000000000"),
    "own rating is text": (OWN | {"ratings": [1.0, "2"]}, "expected numbers under 'ratings', got [1.0, '2']"),
    "fewer ratings": (OWN | {"ratings": [1.0]}, "expected a rating for each response, got 2 responses and 1 ratings"),
    "unknown preference": (RLHF | {"preference": 3}, "1, 2 or 0 (a tie) under 'preference', got 3"),
    "preference in words": (RLHF | {"preference": "first"}, "1, 2 or 0 (a tie) under 'preference', got 'first'"),
    "preference is true": (RLHF | {"preference": True}, "1, 2 or 0 (a tie) under 'preference', got True"),
    "preference is NaN": (RLHF | {"preference": float("nan")}, "1, 2 or 0 (a tie) under 'preference', got nan"),
    # conversations
    "a system message": (
        conversation({"role": "system", "content": "Be kind."}, message("user", None, "Q?")),
        "prompt, message 0: expected the role user or assistant, got 'system'",
    ),
    "an image in an answer": (
        conversation(message("user", None, "Q?"), chosen=[message("assistant", None, GOOD)]),
        "chosen, message 0: expected parts of type text, got {'type': 'image', 'text': None}",
    ),
    "a part of another type": (
        conversation({"role": "user", "content": [{"type": "video"}]}),
        "prompt, message 0: expected parts of type text or image, got {'type': 'video'}",
    ),
    "two turns more": (
        conversation(message("user", None, "Q?"), chosen=[message("assistant", GOOD), message("user", "And?")]),
        "expected one message of the assistant under 'chosen' behind what both have, got assistant, user",
    ),
    "no answer": (
        conversation(message("user", None, "Q?"), chosen=[]),
        "expected one message of the assistant under 'chosen' behind what both have, got none",
    ),
    "two questions in a row": (
        conversation(message("user", None, "Q?"), message("user", "And?")),
        "message 1 of the prompt is by 'user'; expected user and assistant in alternation",
    ),
    "an answer at the end": (
        RLHF | {"conversations": said("<image>\nQ?", "A.")},
        "expected 'conversations' to end with a question",
    ),
    "turns of others": (
        RLHF | {"conversations": [{"from": "user", "value": "Q?"}]},
        "conversations, turn 0: expected 'human' or 'gpt' under 'from', got 'user'",
    ),
    "two turns by one": (
        RLHF | {"conversations": said("<image>\nQ?") * 2},
        "conversations: two turns by 'human' follow each other",
    ),
    "conversations of two lengths": (
        POVID | {"rejected_conversations": said("<image>\nWhat waits?", BAD, "And?", "A dog.")},
        "expected conversations of equal length, got 2 and 4 turns",
    ),
    "two questions": (
        POVID | {"rejected_conversations": said("<image>\nWhat else?", BAD)},
        "turn 0: expected the same question in both conversations, got two",
    ),
    "no JSON in text": (
        ROWS["rlhf_v"] | {"text": "a caption"},
        "expected JSON with question, chosen and rejected under 'text', got 'a caption'",
    ),
    "half of the JSON": (ROWS["rlhf_v"] | {"text": '{"question": "Q?", "chosen": "A."}'}, "'rejected' is missing"),
    "columns of two lengths": (
        VLF | {"completions": {"model": ["m"], "response": ["a", "b"]}},
        "expected lists of equal length under 'completions'",
    ),
    "no annotations": (
        VLF | {"completions": [rated("a", 1, 2, 3), {"response": "b"}]},
        "completion 1: expected ratings under 'annotations', got None",
    ),
    "answers that differ too early": (
        TRL | {"vigor_context_length": 12},
        "the answers differ within the first 12 letters, which 'vigor_context_length' calls common",
    ),
    "own context is a number": (OWN | {"context": 5}, "expected text under 'context', got 5"),
    "own history is text": (OWN | {"history": "Q?A."}, "expected a list under 'history', got 'Q?A.'"),
    "own history is an object": (OWN | {"history": {"Q?": "A.", "R?": "B."}}, "expected a list under 'history', got {"),
    "own prompt is a list": (OWN | {"prompt": ["Q?"]}, "expected text under 'prompt', got ['Q?']"),
    "a context that is no text": (SENTINEL | {"context": ["It rains."]}, "expected text under 'context', got ['It"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_ROWS)
def test_a_wrong_row_among_right_ones(what, tmp_path, images):
    wrong, reason = WRONG_ROWS[what]
    likest = max(ROWS, key=lambda form: len(ROWS[form].keys() & wrong.keys()))
    path = write(tmp_path / "f.jsonl", [ROWS[likest], wrong])
    scan = scan_preferences(path, images)
    assert [row.label for row in scan.rows] == ["line 1"]
    (bad,) = scan.bad
    assert reason in bad.reason
    assert "\n" not in bad.message
    assert bad.message.startswith(f"{path}, line 2")
    assert (bad.number, scan.total, scan.skipped) == (2, 2, {})


def test_rows_that_are_no_objects(tmp_path, images):
    path = tmp_path / "f.jsonl"
    path.write_text(f"{json.dumps(TRL)}\n[1]\n{{\n\n{json.dumps(TRL)}\n")
    scan = scan_preferences(path, images)
    assert [row.label for row in scan.rows] == ["line 1", "line 5"]
    assert [(row.label, row.reason) for row in scan.bad] == [
        ("line 2", "expected an object, got [1]"),
        ("line 3", "malformed JSON, column 2: Expecting property name enclosed in double quotes; fix the file"),
    ]


def test_ties_are_counted(tmp_path, images):
    tied = [rated("a", 1, 2, 3), rated("b", 3, 2, 1)]
    for rows in (
        [RLHF, RLHF | {"preference": 0}, RLHF | {"preference": "0"}],
        [VLF, VLF | {"completions": tied}, VLF | {"completions": tied}],
        [OWN, OWN | {"ratings": [1.0, 1.0]}, OWN | {"ratings": [0, 0]}],
    ):
        scan = scan_preferences(write(tmp_path / "f.json", rows), images)
        assert (len(scan.rows), scan.bad, scan.skipped, scan.total) == (1, [], {"ties": 2}, 3)


WRONG_FILES = {
    "no completions": (
        [without(VLF, "completions")] * 2,
        "resembles vlfeedback: 'completions' is missing in index 0, which has id, img_path, models, prompt; ",
    ),
    "no rejected conversations": (
        [without(POVID, "rejected_conversations")],
        "resembles povid: 'rejected_conversations' is missing in index 0, which has conversations, id, image; "
        "docs/preferences.md shows the forms",
    ),
    "no second output": ([without(RLHF, "output_2")], "resembles llava_rlhf: 'output_2' is missing in index 0"),
    "no rejected": ([without(TRL, "rejected")], "resembles trl: 'rejected' is missing in index 0"),
    "no question": ([without(ROWS["rlaif_v"], "question")], "resembles trl: 'prompt' is missing in index 0"),
    "no question and an answer": (
        [without(ROWS["rlaif_v"], "question", "rejected", "image")],
        "resembles trl: 'prompt' and 'rejected' are missing in index 0",
    ),
    "no rating": ([without(OWN, "ratings")] * 3, "resembles own: 'ratings' is missing in index 0"),
    "captions": (
        [{"file": "a.png", "caption": "A car."}],
        "expected one of the forms own, trl, rlhf_v, rlaif_v, vlfeedback, povid, llava_rlhf, sentinel "
        "(docs/preferences.md), got rows of caption, file",
    ),
    "empty objects": ([{}], "got rows of nothing"),
    "numbers": ([1, 2], "none of its first 2 rows is an object; index 1: expected an object, got 2"),
    "nothing": ([], "no preferences; expected a JSON list, one JSON object a line, or rows of Parquet"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_FILES)
def test_a_wrong_file_says_what_it_resembles(what, tmp_path, images):
    rows, reason = WRONG_FILES[what]
    path = write(tmp_path / "f.json", rows)
    with pytest.raises(InputError) as caught:
        scan_preferences(path, images)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_form_that_is_given(tmp_path, images):
    path = write(tmp_path / "f.json", [TRL])
    for form, told in {
        "vlfeedback": "expected vlfeedback: 'completions' is missing in index 0, which has chosen, images, prompt",
        "povid": "expected povid: 'conversations' and 'rejected_conversations' are missing in index 0",
        "rlhfv": "unknown form 'rlhfv' of preferences; the nearest known one is 'rlhf_v'",
    }.items():
        with pytest.raises(InputError) as caught:
            scan_preferences(path, images, form)
        assert told in str(caught.value)


def test_images_that_are_not_there(tmp_path, images):
    path = write(tmp_path / "f.json", [OWN, OWN])
    with pytest.raises(InputError, match=r"index 0 \(id '3'\): has an image \(a.png\) but no image folder is given"):
        scan_preferences(path, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"none of its 2 images exists; check the image folder .*empty"):
        scan_preferences(path, tmp_path / "empty")


def test_files_that_cannot_be_read(tmp_path, images):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing else")
    (tmp_path / "x.json").write_bytes(b'[{"prompt": "\xff"}]')
    (tmp_path / "y.json").write_text('[{"prompt": 1},')
    (tmp_path / "folder").mkdir()
    for name, told in {
        "x.parquet": "not a whole Parquet file",
        "x.json": "not UTF-8 text .* at byte 13",
        "y.json": "malformed JSON, column 16",
        "missing.json": "cannot read the preference file .No such file",
        "missing.parquet": "there is no such file",
        "folder": "expected files of preferences that end in .parquet, .json, .jsonl, got none",
    }.items():
        with pytest.raises(InputError, match=told):
            scan_preferences(tmp_path / name, images)


def test_nothing_behind_pairs_under_numbers_is_left_out_in_silence(tmp_path, images):
    pair = {"question": "Q?", "context": "A car.", "y_win": "It is red.", "y_lose": "It is blue."}
    for separator in ("\n", " "):
        for name in ("f.json", "f.jsonl"):
            (tmp_path / name).write_text(separator.join(json.dumps({number: [pair]}) for number in ("1", "2")))
            with pytest.raises(InputError) as caught:
                scan_preferences(tmp_path / name, images)
            assert str(caught.value).startswith(f"{tmp_path / name}")


def test_a_damaged_page_is_noticed(tmp_path, images):
    path = tmp_path / "p.parquet"
    write_preferences(path, [Preference("a.png", f"Q{n}?", (f"{n} good", f"{n} bad"), (1.0, 0.0)) for n in range(50)])
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not a whole Parquet file .*write it again"):
        scan_preferences(path, images)
