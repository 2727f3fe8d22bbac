"""Captions of images: both layouts, and what is refused."""

import json

import pytest

from vigor_jax.data.text.image_captions import captions_of, read_captions
from vigor_jax.errors import InputError

CAPTIONS = {"a.jpg": ["One.", " Two. "], "folder/b.jpg": ["Three.", ""]}
EXPECTED = {"a.jpg": ("One.", "Two."), "folder/b.jpg": ("Three.",)}


def lines(path):
    return path.write_text("\n".join(json.dumps({"image": image, "captions": own}) for image, own in CAPTIONS.items()))


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object(tmp_path, indent):
    (tmp_path / "c.json").write_text(json.dumps(CAPTIONS, indent=indent))
    assert read_captions(tmp_path / "c.json") == EXPECTED


def test_lines(tmp_path):
    lines(tmp_path / "c.jsonl")
    assert read_captions(tmp_path / "c.jsonl") == EXPECTED
    (tmp_path / "one.jsonl").write_text('{"image": "a.jpg", "captions": ["One."]}')
    assert read_captions(tmp_path / "one.jsonl") == {"a.jpg": ("One.",)}


@pytest.mark.parametrize("letter", ["\u2028", "\u0085", "\u00e9"])
def test_letters_that_divide_lines_elsewhere_are_text(tmp_path, letter):
    entries = [{"image": image, "captions": [f"A{letter}cup."]} for image in ("a.jpg", "b.jpg")]
    content = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    (tmp_path / "c.jsonl").write_text(content, encoding="utf-8")
    assert read_captions(tmp_path / "c.jsonl") == dict.fromkeys(("a.jpg", "b.jpg"), (f"A{letter}cup.",))


def test_an_image_is_found_with_or_without_its_folders():
    assert captions_of(EXPECTED, "train2017/a.jpg") == ("One.", "Two.")
    assert captions_of(EXPECTED, "folder/b.jpg") == ("Three.",)
    with pytest.raises(InputError, match=r"image 'b\.jpg' has no captions"):
        captions_of(EXPECTED, "b.jpg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no captions; expected"),
        ("{}", "has no captions; expected"),
        ('{"a.jpg": "One."}', "expected the name of an image and a list of captions, got 'a.jpg' and 'One.'"),
        ('{"a.jpg": []}', "expected the name of an image and a list of captions, got 'a.jpg' and a list of 0"),
        ('{"a.jpg": [" "]}', "and a list of 1"),
        ('{"image": "a.jpg", "captions": ["One."]}\n{"image"', ":2: malformed JSON"),
        ('{"image": "a.jpg", "captions": ["1"]}\n[1]', ":2: expected an object, got a list of 1"),
        ('{"image": "a", "captions": ["1"]}\n{"image": "a", "captions": ["2"]}', ":2: 'a' has two lists of captions"),
    ],
)
def test_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(InputError) as error:
        read_captions(tmp_path / "c.json")
    assert str(error.value).startswith(f"captions: {tmp_path / 'c.json'}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_captions(tmp_path / "c.json")
    (tmp_path / "c.json").write_bytes(b'{"a": ["\xff"]}')
    with pytest.raises(InputError, match="is not UTF-8"):
        read_captions(tmp_path / "c.json")
