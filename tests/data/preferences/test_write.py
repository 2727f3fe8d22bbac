"""Preferences in our own file and in others' forms say the same when they are read again."""

import dataclasses
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.data.preferences.form_files import BLUE, IMAGES, RED, make_images
from vigor_jax.data.images.store import open_images
from vigor_jax.data.preferences.read import scan_preferences
from vigor_jax.data.preferences.unpack import unpack_images
from vigor_jax.data.preferences.write import ROWS_PER_GROUP, to_rlaif_v, to_sentinel, to_trl, write_preferences
from vigor_jax.data.records.schemas import schema_of
from vigor_jax.errors import InputError
from vigor_jax.records import Preference

FORMS = {"trl.parquet": to_trl, "trl.jsonl": to_trl, "rlaif_v.parquet": to_rlaif_v, "sentinel.jsonl": to_sentinel}
RATINGS = (1.0, 0.0)
PLAIN = Preference("a.png", "What waits?", ("A car.", "A dog."), RATINGS, name="7")
SENTENCES = Preference("sub/b.png", "Say.", (" It is red.", " It is blue."), RATINGS, "A car waits.", whole=False)
HISTORY = Preference("a.png", "Which?", ("Red.", "Blue."), RATINGS, history=("What is it?", "A car."))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def located(preferences, folder):
    images = open_images(folder)
    return [(each, images.file(each.image) if each.image else None) for each in preferences]


def again(path, folder):
    """The preferences of a file in which nothing is wrong."""
    scan = scan_preferences(path, folder)
    assert not scan.bad
    assert not scan.skipped
    return [row.preference for row in scan.rows]


@pytest.mark.parametrize("name", FORMS)
def test_round_trips(name, tmp_path, folder):
    preferences = [
        PLAIN,
        SENTENCES,
        dataclasses.replace(SENTENCES, whole=True),
        dataclasses.replace(PLAIN, whole=False),
    ]
    FORMS[name](tmp_path / name, located(preferences, folder))
    assert again(tmp_path / name, folder) == preferences
    assert scan_preferences(tmp_path / name, folder).form == name.split(".")[0]


def test_images_are_in_parquet_and_named_in_lines(tmp_path, folder):
    for name, write in FORMS.items():
        write(tmp_path / name, located([PLAIN, SENTENCES], folder))
        inside = name.endswith(".parquet")
        rows = scan_preferences(tmp_path / name, None if inside else folder).rows
        assert [row.image.read_bytes() for row in rows] == [RED, BLUE]
        assert [isinstance(row.image, Path) for row in rows] == [not inside] * 2


TEXTS = st.lists(
    st.sampled_from(["<image>", "\n", '"', "\\", "{", "'", "\u2028", "\t", " ", ".", "car", "<"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    min_size=1,
    max_size=6,
).map("".join)


@st.composite
def preferences(draw):
    """One, right or wrong; with a context that a space divides from what continues it, or with a history."""
    context = draw(st.just("") | TEXTS.map(str.rstrip))
    space = " " if context else ""
    responses = tuple(space + draw(TEXTS.map(str.lstrip) if context else TEXTS) for _ in range(2))
    history = tuple(draw(TEXTS) for _ in range(draw(st.sampled_from([0, 0, 2, 4]))))
    image, name = draw(st.sampled_from(IMAGES)), draw(st.just("") | TEXTS)
    return Preference(image, draw(TEXTS), responses, RATINGS, context, draw(st.booleans()), history, name)


@settings(deadline=None, max_examples=25)
@given(st.lists(preferences(), min_size=1, max_size=3))
@example([dataclasses.replace(PLAIN, prompt="<image>")])
@example([dataclasses.replace(PLAIN, prompt=" \n"), dataclasses.replace(PLAIN, prompt=" What? ")])
@example([dataclasses.replace(HISTORY, prompt="<image>\nWhich?")])
@example([dataclasses.replace(HISTORY, prompt="Which <image>?", history=("What?", "<image>"))])
@example([dataclasses.replace(PLAIN, responses=("<image>\n", "\n<image>"))])
def test_any_text_survives_every_form(folder, given_preferences):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        write_preferences(path / "own.parquet", given_preferences)
        assert pq.read_table(path / "own.parquet").num_rows == len(given_preferences)
        read = [row.preference for row in scan_preferences(path / "own.parquet", folder).rows]
        assume(read)
        write_preferences(path / "read.parquet", read)
        assert again(path / "read.parquet", folder) == read
        for file, write in FORMS.items():
            can = [each for each in read if "trl" in file or not each.history]
            if file == "sentinel.jsonl":
                can = [each for each in can if each.prompt]
            if can:
                write(path / file, located(can, folder))
                assert again(path / file, folder) == can


def test_own_files_have_equal_bytes_and_the_records_columns(tmp_path):
    found = [PLAIN, SENTENCES, HISTORY, Preference("", "Q?", ("a", "b", "c"), (1.0, 3.0, 2.5), name="t")] * 2000
    for name in ("a.parquet", "b.parquet"):
        write_preferences(tmp_path / name, iter(found))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pq.read_schema(tmp_path / "a.parquet").equals(schema_of(Preference))
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert rows[:4] == [json.loads(json.dumps(dataclasses.asdict(each))) for each in found[:4]]


def test_other_files_have_equal_bytes(tmp_path, folder):
    for name, write in FORMS.items():
        for number in "12":
            write(tmp_path / f"{number}{name}", located([PLAIN, SENTENCES], folder))
        assert (tmp_path / f"1{name}").read_bytes() == (tmp_path / f"2{name}").read_bytes()


def test_one_row_for_each_pair_the_best_first(tmp_path, folder):
    several = Preference("a.png", "Q?", ("worst", "best", "middle", "middle too"), (1.0, 4.0, 2.0, 2.0), name="x")
    pairs = [
        ("best", "middle"), ("best", "middle too"), ("best", "worst"), ("middle", "worst"), ("middle too", "worst"),
    ]  # fmt: skip
    for name, write in FORMS.items():
        write(tmp_path / name, located([several], folder))
        found = again(tmp_path / name, folder)
        assert [each.responses for each in found] == pairs
        assert {(each.prompt, each.name, each.ratings) for each in found} == {("Q?", "x", RATINGS)}


def test_text_alone_and_history_in_trl(tmp_path, folder):
    text = dataclasses.replace(PLAIN, image="")
    later = dataclasses.replace(HISTORY, prompt="<image>\nWhich?")
    for name in ("trl.parquet", "trl.jsonl"):
        to_trl(tmp_path / name, located([text, HISTORY, later], folder))
        assert again(tmp_path / name, folder) == [text, HISTORY, later]
    roles = [message["role"] for message in pq.read_table(tmp_path / "trl.parquet").to_pylist()[1]["prompt"]]
    assert roles == ["user", "assistant", "user"]


def test_columns_of_ours_are_there_only_where_they_say_something(tmp_path, folder):
    to_trl(tmp_path / "t.parquet", located([PLAIN], folder))
    assert pq.read_schema(tmp_path / "t.parquet").names == ["images", "prompt", "chosen", "rejected", "id"]
    to_trl(tmp_path / "t.jsonl", located([PLAIN], folder))
    assert list(json.loads((tmp_path / "t.jsonl").read_text())) == ["images", "prompt", "chosen", "rejected", "id"]
    to_rlaif_v(tmp_path / "r.parquet", located([PLAIN], folder))
    assert pq.read_schema(tmp_path / "r.parquet").names == [
        "ds_name", "image", "question", "chosen", "rejected", "origin_dataset", "origin_split", "idx", "image_path",
    ]  # fmt: skip
    to_trl(tmp_path / "t.parquet", located([PLAIN, SENTENCES], folder))
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert [(row["vigor_context_length"], row["vigor_whole"]) for row in rows] == [(0, True), (12, False)]
    assert rows[1]["chosen"][0]["content"] == [{"type": "text", "text": "A car waits. It is red."}]


def test_what_datasets_is_told_of_the_columns(tmp_path, folder):
    """By hand it was seen that datasets 2.21.0 and 5.2.0 read these files, with images as pictures."""
    to_rlaif_v(tmp_path / "r.parquet", located([PLAIN], folder))
    schema = pq.read_schema(tmp_path / "r.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features.pop("image") == {"_type": "Image"}
    assert list(features.values()) == [{"dtype": "string", "_type": "Value"}] * 8
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    to_trl(tmp_path / "t.parquet", located([SENTENCES], folder))
    features = json.loads(pq.read_schema(tmp_path / "t.parquet").metadata[b"huggingface"])["info"]["features"]
    text = {"dtype": "string", "_type": "Value"}
    message = [{"role": text, "content": [{"type": text, "text": text}]}]
    assert features == {
        "images": [{"_type": "Image"}],
        **dict.fromkeys(("prompt", "chosen", "rejected"), message),
        "id": text,
        "vigor_context_length": {"dtype": "int64", "_type": "Value"},
        "vigor_whole": {"dtype": "bool", "_type": "Value"},
    }


def test_images_are_read_group_by_group(tmp_path):
    """So that no more of them are held than one row group has."""
    read = []

    class Counted:
        name = "a.png"

        def read_bytes(self):
            read.append(pa.total_allocated_bytes())
            return bytes(100_000)

    preferences = ((dataclasses.replace(PLAIN, prompt=f"{n}?"), Counted()) for n in range(4 * ROWS_PER_GROUP))
    to_rlaif_v(tmp_path / "r.parquet", preferences)
    metadata = pq.read_metadata(tmp_path / "r.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [ROWS_PER_GROUP] * 4
    assert max(read) - min(read) < 2 * ROWS_PER_GROUP * 100_000


def test_sentinels_columns(tmp_path, folder):
    to_sentinel(tmp_path / "s.jsonl", located([PLAIN, SENTENCES, dataclasses.replace(SENTENCES, whole=True)], folder))
    rows = list(map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines()))
    assert rows[0] == {
        "image_id": "a", "image_path": "a.png", "question": "What waits?", "context": None, "y_win": "A car.",
        "y_lose": "A dog.", "id": "7",
    }  # fmt: skip
    assert (rows[1]["context"], rows[1]["y_win"], rows[1]["image_id"]) == ("A car waits.", "It is red.", "b")
    assert "vigor_whole" not in rows[1]
    assert rows[2]["vigor_whole"] is True


def test_white_space_behind_a_context_is_one_space_in_sentinel(tmp_path, folder):
    wide = dataclasses.replace(SENTENCES, responses=("\n\nIt is red.", "  It is blue."))
    before = dataclasses.replace(SENTENCES, context="A car waits.\n", responses=("It is red.", "It is blue."))
    to_sentinel(tmp_path / "s.jsonl", located([wide, before], folder))
    assert again(tmp_path / "s.jsonl", folder) == [SENTENCES, SENTENCES]


REFUSED = {
    "history in rlaif_v": (to_rlaif_v, HISTORY, "rlaif_v has one question, and this one has a history; write trl"),
    "text in rlaif_v": (to_rlaif_v, dataclasses.replace(PLAIN, image=""), "rlaif_v is about images, and this one has"),
    "history in sentinel": (to_sentinel, HISTORY, "sentinel has one question, and this one has a history; write trl"),
    "text in sentinel": (to_sentinel, dataclasses.replace(PLAIN, image=""), "sentinel is a question about an image"),
    "no question": (to_sentinel, dataclasses.replace(PLAIN, prompt=""), "sentinel is a question about an image"),
    "no space": (
        to_sentinel,
        dataclasses.replace(SENTENCES, responses=("s.", "ful of red.")),
        "sentinel has a space between the context and what continues it, and here is none",
    ),
    "other space": (
        to_sentinel,
        dataclasses.replace(SENTENCES, responses=(" It is red.", "\nIt is red.")),
        "the responses differ in white space only, which sentinel does not keep",
    ),
    "fewer ratings": (to_trl, dataclasses.replace(PLAIN, ratings=(1.0,)), "got 2 responses, 1 ratings and a history"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_form_cannot_hold_is_refused_before_anything_is_written(what, tmp_path, folder):
    write, preference, reason = REFUSED[what]
    path = tmp_path / "out.parquet"
    path.write_bytes(b"before")
    with pytest.raises(InputError) as caught:
        write(path, located([PLAIN, preference], folder))
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"preference of image {preference.image!r}")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_image_that_cannot_be_read(tmp_path, folder):
    path = tmp_path / "out.parquet"
    for image, reason in (
        (folder / "gone.png", "gone.png cannot be read .No such file"),
        (None, "this one is not given"),
    ):
        for write in (to_trl, to_rlaif_v):
            with pytest.raises(InputError, match=reason):
                write(path, [(PLAIN, image)])
    assert not list(tmp_path.iterdir())


def test_a_write_that_is_stopped_leaves_what_was_there(tmp_path):
    def stopped():
        yield PLAIN
        raise KeyboardInterrupt

    write_preferences(tmp_path / "p.parquet", [PLAIN])
    before = (tmp_path / "p.parquet").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_preferences(tmp_path / "p.parquet", stopped())
    assert (tmp_path / "p.parquet").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_no_preferences(tmp_path):
    write_preferences(tmp_path / "p.parquet", [])
    assert pq.read_table(tmp_path / "p.parquet").num_rows == 0
    with pytest.raises(InputError, match="no preferences"):
        scan_preferences(tmp_path / "p.parquet", None)


def test_images_are_unpacked_once_under_their_names(tmp_path):
    """Another image of the same name gets another one; the same command again changes nothing."""

    class Image:
        def __init__(self, name, content):
            self.name, self.content = name, content

        def read_bytes(self):
            return self.content

    named = [dataclasses.replace(PLAIN, image=name) for name in ("x/a.png", "x/a.png", "x/a.png", "b.png")]
    to_rlaif_v(
        tmp_path / "r.parquet",
        [(each, Image(each.image, content)) for each, content in zip(named, (RED, RED, BLUE, BLUE), strict=True)],
    )
    rows = scan_preferences(tmp_path / "r.parquet", None).rows
    out = tmp_path / "out"
    for _ in range(2):
        found = list(unpack_images(((row.preference, row.image) for row in rows), out))
        names = [preference.image for preference, _ in found]
        assert names[:2] == ["x/a.png", "x/a.png"]
        assert names[2].startswith("x/a-")
        assert names[3] == "b.png"
        assert [image.read_bytes() for _, image in found] == [RED, RED, BLUE, BLUE]
        assert [out / name for name in names] == [image for _, image in found]
        files = [file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()]
        assert sorted(files) == sorted(set(names))
