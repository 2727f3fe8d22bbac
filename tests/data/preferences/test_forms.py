"""Every form of preferences is read into one record, from JSON, JSON lines and Parquet."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.preferences.form_files import BAD, GOOD, RED, ROWS, make_images, message, rated, said, write
from vigor_jax.data.preferences.forms import FORMS
from vigor_jax.data.preferences.read import scan_preferences
from vigor_jax.data.preferences.write import WRITERS
from vigor_jax.records import Preference

EXPECTED = {
    form: Preference("a.png", "What waits?", (GOOD, BAD), (1.0, 0.0), name="" if form in ("trl", "sentinel") else "3")
    for form in ROWS
}
EXPECTED["vlfeedback"] = Preference("a.png", "What waits?", (GOOD, BAD), (5.0, 8 / 3), name="3")
EXPECTED["llava_rlhf"] = Preference("a.png", "What waits?", (BAD, GOOD), (0.0, 1.0), name="3")
EXPECTED["sentinel"] = Preference("a.png", "What waits?", (f" {GOOD}", f" {BAD}"), (1.0, 0.0), "It rains.", False)


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images")


def read(path, images, form=None):
    """The preferences of a file that has no bad row and nothing left out."""
    scan = scan_preferences(path, images, form)
    assert not scan.bad
    assert not scan.skipped
    assert scan.total == len(scan.rows)
    return [row.preference for row in scan.rows]


def test_there_is_a_row_of_every_form():
    assert ROWS.keys() == FORMS.keys()


def test_the_page_has_an_example_of_every_form(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "preferences.md").read_text()
    (tmp_path / "train").mkdir()
    for name in ("17.jpg", "train/17.jpg"):
        (tmp_path / name).write_bytes(RED)
    found = {}
    for block in re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        scan = scan_preferences(write(tmp_path / "f.json", [json.loads(block)]), tmp_path)
        assert not scan.bad
        found[scan.form] = scan.rows[0].preference
    assert found.keys() == FORMS.keys()
    for form, preference in found.items():
        ((better, worse),) = preference.pairs()
        assert "A cup" in preference.responses[better]
        assert " fork" in preference.responses[worse]
        assert (preference.context == "") == (form not in ("own", "sentinel"))
    rows = re.findall(r"^\| `(\w+)` \|.*\| (yes)? ?\|$", page.partition("## The record")[0], re.MULTILINE)
    assert [form for form, _ in rows] == list(FORMS)
    assert {form for form, written in rows if written} == WRITERS.keys()


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
@pytest.mark.parametrize("form", ROWS)
def test_a_row_of_each_form(form, suffix, tmp_path, images):
    path = write(tmp_path / f"file.{suffix}", [ROWS[form], ROWS[form] | {"another key": 1}])
    for given in (None, form):
        scan = scan_preferences(path, images, given)
        assert (scan.form, scan.total, scan.bad, scan.skipped) == (form, 2, [], {})
        assert [row.preference for row in scan.rows] == [EXPECTED[form]] * 2
        assert [row.image.read_bytes() for row in scan.rows] == [RED] * 2
        labels = {"json": ["index 0", "index 1"], "jsonl": ["line 1", "line 2"], "parquet": ["row 0", "row 1"]}
        assert [row.label for row in scan.rows] == labels[suffix]
        assert [row.number for row in scan.rows] == ([1, 2] if suffix == "jsonl" else [0, 1])


def test_lengths_of_lists_do_not_matter_to_parquet(tmp_path, images):
    """What `datasets` makes of a Sequence of objects: an object of lists."""
    row = ROWS["vlfeedback"]
    columns = {key: [each[key] for each in row["completions"]] for key in row["completions"][0]}
    for suffix in ("parquet", "json"):
        assert read(write(tmp_path / f"f.{suffix}", [row | {"completions": columns}]), images) == [
            EXPECTED["vlfeedback"]
        ]


QUESTION = [message("user", None, "What waits?")]
CONVERSATIONS = {
    "text in messages": {
        "prompt": [{"role": "user", "content": "What waits?"}],
        "chosen": [{"role": "assistant", "content": GOOD}],
        "rejected": [{"role": "assistant", "content": BAD}],
    },
    "parts": {"prompt": QUESTION, "chosen": [message("assistant", GOOD)], "rejected": [message("assistant", BAD)]},
    "prompt in the answers": {
        "chosen": [*QUESTION, message("assistant", GOOD)],
        "rejected": [*QUESTION, message("assistant", BAD)],
    },
    "prompt in both": {
        "prompt": [],
        "chosen": [*QUESTION, message("assistant", GOOD)],
        "rejected": [*QUESTION, message("assistant", BAD)],
    },
    "text as the prompt": {
        "prompt": "<image>\nWhat waits?",
        "chosen": [message("assistant", GOOD)],
        "rejected": [message("assistant", BAD)],
    },
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["json", "parquet"])
@pytest.mark.parametrize("what", CONVERSATIONS)
def test_trl_conversations(what, suffix, tmp_path, images):
    path = write(tmp_path / f"f.{suffix}", [CONVERSATIONS[what] | {"images": ["a.png"]}])
    assert read(path, images) == [EXPECTED["trl"]]


@pytest.mark.parametrize("key", ["image", "images"])
@pytest.mark.parametrize("value", ["a.png", ["a.png"], {"path": "a.png"}, [{"bytes": None, "path": "a.png"}]])
def test_trl_images_by_name(key, value, tmp_path, images):
    row = {"prompt": "What waits?", "chosen": GOOD, "rejected": BAD, key: value}
    assert read(write(tmp_path / "f.jsonl", [row]), images) == [EXPECTED["trl"]]


def test_history_and_context_of_trl(tmp_path, images):
    prompt = [message("user", None, "What waits?"), message("assistant", "A car."), message("user", "Which?")]
    row = {"images": ["a.png"], "prompt": prompt, "chosen": [message("assistant", "Red.")]}
    row["rejected"] = [message("assistant", "Blue.")]
    (found,) = read(write(tmp_path / "f.jsonl", [row]), images)
    assert found == Preference("a.png", "Which?", ("Red.", "Blue."), (1.0, 0.0), history=("What waits?", "A car."))
    row["prompt"].append(message("assistant", "It is"))
    (found,) = read(write(tmp_path / "f.jsonl", [row]), images)
    assert (found.context, found.whole, found.prompt) == ("It is", True, "Which?")
    row |= {"chosen": [message("assistant", " quite red.")], "rejected": [message("assistant", " quite blue.")]}
    (found,) = read(write(tmp_path / "f.jsonl", [row | {"vigor_context_length": 6}]), images)
    assert (found.context, found.responses) == ("It is quite", (" red.", " blue."))


def test_the_better_one_of_llava_rlhf(tmp_path, images):
    row = ROWS["llava_rlhf"]
    plain = {"output_1": BAD, "output_2": GOOD}
    rows = [row | {"preference": value} for value in (1, "1", 1.0, 2, "2")] + [row | plain]
    found = read(write(tmp_path / "f.json", rows), images)
    assert [preference.ratings for preference in found] == [(1.0, 0.0)] * 3 + [(0.0, 1.0)] * 3
    assert {preference.responses for preference in found} == {(BAD, GOOD)}
    several = row | {"conversations": said("<image>\nWhat?", "A car.", "What waits?")}
    (found,) = read(write(tmp_path / "f.json", [several]), images)
    assert (found.history, found.prompt) == (("What?", "A car."), "What waits?")


def test_povid_compares_the_last_answers_that_differ(tmp_path, images):
    better = said("<image>\nOne?", "1", "Two?", "2", "Three?", "3")
    worse = said("One?", "1 or so", "Two?", "22", "Three?", "3")
    row = {"id": "x", "image": "a.png", "conversations": better, "rejected_conversations": worse}
    (found,) = read(write(tmp_path / "f.json", [row]), images)
    assert found == Preference("a.png", "Two?", ("2", "22"), (1.0, 0.0), history=("One?", "1"), name="x")


def test_ratings_are_means_and_those_that_are_none_are_left_out(tmp_path, images):
    completions = [
        rated("one", "5", "5", "4.5"), rated("two", 3, 4, 5), rated("no rating", "5", "N/A", "5"),
        rated("none", None, "1", "1"), rated("one", "1", "1", "1"), rated("no text", "", "1", "1"),
    ]  # fmt: skip
    row = ROWS["vlfeedback"] | {"completions": completions}
    scan = scan_preferences(write(tmp_path / "f.json", [row, row]), images)
    assert scan.skipped == {"responses whose rating is no number": 6, "responses that repeat another": 2}
    assert not scan.bad
    assert scan.rows[0].preference.responses == ("one", "two")
    assert scan.rows[0].preference.ratings == pytest.approx(((14.5 / 3 + 1) / 2, 4.0))
    assert scan.rows[0].preference.pairs() == ((1, 0),)


def test_aspects_that_a_completion_lacks(tmp_path, images):
    """Parquet has every aspect in every row, null where a row lacks it; JSON leaves it out."""
    completions = [rated(GOOD, "5", "5", "5"), rated(BAD, "2", "5", "1")]
    del completions[1]["annotations"]["Ethical Considerations"]
    for suffix in ("json", "parquet"):
        (found,) = read(write(tmp_path / f"f.{suffix}", [ROWS["vlfeedback"] | {"completions": completions}]), images)
        assert found.ratings == (5.0, 1.5)


SENTENCE = Preference("a.png", "Q?", (" It is red.", " It is blue."), (1.0, 0.0), "A car.", False)
FIRST = Preference("a.png", "Q?", ("It is red.", "It is blue."), (1.0, 0.0), "", False)
PAIR = {"question": "Q?", "y_win": "It is red.", "y_lose": "It is blue."}
LAYOUTS = {
    "data pairs": ([PAIR | {"image_path": "a.png", "context": "A car."}], SENTENCE),
    "first sentence": ([PAIR | {"image_path": "a.png", "context": ""}], FIRST),
    "whole answers": (
        [PAIR | {"image_path": "a.png", "context": None}],
        Preference("a.png", "Q?", ("It is red.", "It is blue."), (1.0, 0.0)),
    ),
    "for LLaMA-Factory": (
        [{"instruction": "<image>Q?", "context": "A car.", "chosen": "It is red.", "rejected": "It is blue.",
          "images": ["a.png"]}],
        SENTENCE,
    ),
    "win and lose": (
        [{"question": "Q?", "win": "It is red.", "lose": "It is blue.", "context": "A car.", "image_path": "a.png"}],
        SENTENCE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("what", LAYOUTS)
def test_layouts_of_sentinel(what, suffix, tmp_path, images):
    rows, expected = LAYOUTS[what]
    scan = scan_preferences(write(tmp_path / f"f.{suffix}", rows), images)
    assert scan.form == "sentinel"
    assert [row.preference for row in scan.rows] == [expected]


@pytest.mark.parametrize("indent", [None, 2])
def test_pairs_of_sentinel_under_numbers_of_images(indent, tmp_path):
    """Visual Genome's images are in two folders, or in one that somebody has put them in."""
    folder = tmp_path / "vg"
    for name in ("VG_100K/1.jpg", "VG_100K_2/2.jpg", "3.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(RED)
    pair = PAIR | {"context": "A car.", "type": "y+"}
    path = tmp_path / "LLaVA.json"
    path.write_text(json.dumps({"1": [pair, pair], "2": [pair], "3": [pair], "4": [pair]}, indent=indent))
    scan = scan_preferences(path, folder)
    assert [row.preference.image for row in scan.rows] == ["VG_100K/1.jpg"] * 2 + ["VG_100K_2/2.jpg", "3.jpg"]
    assert [row.label for row in scan.rows] == [
        "image 1, pair 0",
        "image 1, pair 1",
        "image 2, pair 0",
        "image 3, pair 0",
    ]
    assert [row.label for row in scan.bad] == ["image 4, pair 0"]
    assert "4.jpg does not exist; 1 of 5 images are missing" in scan.bad[0].reason


def test_rows_without_an_image(tmp_path):
    """They are text alone where the form knows such."""
    for form in ("trl", "povid", "llava_rlhf", "own"):
        row = {key: value for key, value in ROWS[form].items() if key not in ("image", "images")}
        for key in ("conversations", "rejected_conversations"):
            if key in row:
                row[key] = said(*(turn["value"].removeprefix("<image>\n") for turn in row[key]))
        scan = scan_preferences(write(tmp_path / "f.jsonl", [row, row | {"images": []}]), None)
        assert [row.preference.image for row in scan.rows] == ["", ""]
        assert [row.image for row in scan.rows] == [None, None]


PLACED = {
    "<image>\nQ?": "Q?", "Q?\n<image>": "Q?", "<image>Q?<image>": "Q?", "Say <image> now": "Say  now", " Q? \n": "Q?",
    "<image>": "",
}  # fmt: skip


@pytest.mark.parametrize("question", PLACED)
def test_the_image_comes_before_the_first_question(question, tmp_path, images):
    row = ROWS["povid"] | {"conversations": said(question, GOOD), "rejected_conversations": said(question, BAD)}
    (found,) = read(write(tmp_path / "f.jsonl", [row]), images)
    assert found.prompt == PLACED[question]


def test_an_image_of_a_later_question_stays_there(tmp_path, images):
    turns = said("Hello.", "Hi.", "What waits?\n<image>")
    (found,) = read(write(tmp_path / "f.jsonl", [ROWS["llava_rlhf"] | {"conversations": turns}]), images)
    assert (found.history, found.prompt) == (("Hello.", "Hi."), "<image>\nWhat waits?")


def test_a_folder_of_files(tmp_path, images):
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        write(folder / f"{number}.parquet", [ROWS["rlaif_v"] | {"question": f"{number} {row}?"} for row in range(2)])
    (folder / "README.md").write_text("what this is")
    (folder / "2.parquet").rename(folder / "2.PARQUET")
    scan = scan_preferences(folder, images)
    assert [row.preference.prompt for row in scan.rows] == [
        f"{number} {row}?" for number in range(3) for row in range(2)
    ]
    assert [row.number for row in scan.rows] == list(range(6))
    assert scan.rows[3].label == "1.parquet, row 1"


def test_paths_from_the_root_that_lead_into_the_folder(tmp_path, images):
    row = ROWS["own"] | {"image": f"{images}/sub/b.png"}
    (found,) = read(write(tmp_path / "f.jsonl", [row]), images)
    assert found.image == "sub/b.png"


def test_other_types_of_parquet(tmp_path, images):
    """Large and dictionary-encoded text, as polars and pandas write it."""
    table = pa.table(
        {
            "prompt": pa.array(["What waits?"], pa.large_string()),
            "chosen": pa.array([GOOD]).dictionary_encode(),
            "rejected": pa.array([BAD], pa.large_string()),
            "images": pa.array([["a.png"]], pa.large_list(pa.large_string())),
        }
    )
    pq.write_table(table, tmp_path / "f.parquet")
    assert read(tmp_path / "f.parquet", images) == [EXPECTED["trl"]]
