"""Public layouts, in small files of our own: read, mapped, counted, and refused with the line or index."""

import json
import shlex

import pytest
from PIL import Image

from tests.feedback.annotations import annotation
from vigor_jax.annotate import main
from vigor_jax.data.records.annotations import read_annotations
from vigor_jax.errors import InputError
from vigor_jax.feedback.public.read import read_public

CAR = "A red car waits. Two dogs 😀 sleep. It may rain."


def part(text, said, **label):
    start = text.index(said)
    return {"start": start, "end": start + len(said), "text": said, **label}


def haldetect(*parts, image=42, text=CAR, **others):
    return {"question": "Describe it.", "response": text, "image_id": image, "annotations": list(parts)} | others


M_HALDETECT = haldetect(
    part(CAR, "A red car waits.", label="ACCURATE"),
    part(CAR, "Two dogs", label="INACCURATE"),
    part(CAR, " 😀 sleep.", label="ACCURATE"),
    part(CAR, " It may rain.", label="ANALYSIS"),
)
RLHF_V = {
    "idx": 3,
    "text": json.dumps(
        {
            "question": "Describe it.",
            "rejected": "A red car waits. Two dogs sleep.\nIt is noon. It is noon.",
            "chosen": "A red car  waits. One dog sleeps. It is noon.",
        }
    ),
    "image_path": "coco/7.jpg",
}


def word(said, place=None):
    start = CAR.index(said)
    return {"name": said, "char_index": place or f"{start}:{start + len(said)}"}


HALLOC = {
    "id": "7",
    "prompt": "Describe it.",
    "hallucinated_text": CAR,
    "source_text": "A red car waits.",
    "image_id": 2317,
    "annotations": {
        "object": [{"obj": word("dogs")}],
        "attribute": [{"obj": word("dogs"), "attr": word("Two")}],
        "relationship": [],
        "scene": [{"scene": word("rain") | {"name": "r-ain"}}],  # as its tokens have it
    },
}


def write(tmp_path, *rows, kind="list"):
    path = tmp_path / ("x.json" if kind != "lines" else "x.jsonl")
    content = json.dumps(list(rows)) if kind == "list" else "\n".join(map(json.dumps, rows))
    path.write_text(content)
    return path


def read(tmp_path, *rows, **options):
    return read_public(write(tmp_path, *rows), **options)


def test_m_haldetect(tmp_path):
    found = read(tmp_path, M_HALDETECT, unnamed="conjecture")
    assert found.layout == "m_haldetect"
    assert found.annotations == [annotation(CAR, [], ["conjecture"], [], image="COCO_val2014_000000000042.jpg")]
    assert dict(found.counts) == {"ACCURATE -> right": 2, "INACCURATE -> conjecture": 1, "ANALYSIS -> right": 1}
    table = M_HALDETECT | {"annotations": json.dumps(M_HALDETECT["annotations"]), "image_id": None, "image": "x/y.jpg"}
    assert read(tmp_path, table).annotations == [annotation(CAR, [], ["object"], [], image="x/y.jpg")]


def test_m_haldetect_leaves_out_what_people_did_not_know(tmp_path):
    parts = M_HALDETECT["annotations"]
    unsure = haldetect(*parts[:2], part(CAR, "It may rain.", label="UNSURE"))
    unsure_and_wrong = haldetect(*parts[:2], part(CAR, "sleep", label="unsure"), parts[3])
    unjudged, unknown = haldetect(*parts[:2]), haldetect(*parts[:3], part(CAR, "It may rain.", label="MAYBE"))
    found = read(tmp_path, unsure, unsure_and_wrong, unjudged, unknown, M_HALDETECT)
    assert found.annotations == [annotation(CAR, [], ["object"], [], image="COCO_val2014_000000000042.jpg")]
    assert dict(found.left_out) == {
        "descriptions with a sentence that people were not sure about": 1,
        "descriptions with a sentence that nobody judged": 1,
        "descriptions with 'MAYBE', which has no meaning here; give --kind 'MAYBE'=MEANING": 1,
        "descriptions that are in the file a second time": 1,
    }
    (mapped,) = read(tmp_path, unknown, kinds={"maybe": "conjecture"}).annotations
    assert mapped.sentences[2].errors == ("conjecture",)


def test_rlhf_v(tmp_path):
    found = read(tmp_path, RLHF_V)
    text = json.loads(RLHF_V["text"])["rejected"]
    # Of two equal sentences, the corrected text kept one.
    assert found.annotations == [annotation(text, [], ["object"], [], ["object"], image="coco/7.jpg")]
    assert dict(found.counts) == {"kept -> right": 2, "changed -> object": 2}


def test_halloc(tmp_path):
    found = read(tmp_path, HALLOC)
    assert found.annotations == [annotation(CAR, [], ["object", "attribute"], ["conjecture"], image="2317.jpg")]
    assert dict(found.counts) == {"object -> object": 1, "attribute -> attribute": 2, "scene -> conjecture": 1}
    (other,) = read(tmp_path, HALLOC, kinds={"scene": "location"}).annotations
    assert other.sentences[2].errors == ("location",)
    emoji = word("😀", str(CAR.index("😀")))  # a single letter, which is one code point
    row = HALLOC | {"image_id": "COCO_train2014_1.jpg", "annotations": json.dumps({"other": [{"word": emoji}]})}
    (single,) = read(tmp_path, row, unnamed="location").annotations
    assert single == annotation(CAR, [], ["location"], [], image="COCO_train2014_1.jpg")


def test_images_are_looked_for(tmp_path):
    for name in ("VG_100K_2/2317.jpg", "train2014/7.png", "val2014/COCO_val2014_000000000042.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "photos" / name)
    images = str(tmp_path / "photos")
    assert read(tmp_path, HALLOC, images=images).annotations[0].image == "VG_100K_2/2317.jpg"
    assert read(tmp_path, HALLOC | {"image_id": "7.png"}, images=images).annotations[0].image == "train2014/7.png"
    found = read(tmp_path, M_HALDETECT, haldetect(image=43), images=images)
    assert found.annotations[0].image == "val2014/COCO_val2014_000000000042.jpg"
    assert [bad.reason for bad in found.bad] == [
        f"image 'COCO_val2014_000000000043.jpg' is not in {images}; check --images"
    ]


BROKEN = {
    "no object": ("x", "expected an object, got 'x'"),
    "no response": (haldetect(text=None), "'response' is missing"),
    "empty": (haldetect(text=" "), "the description is empty"),
    "no list": (haldetect() | {"annotations": 3}, "expected a list under 'annotations', got 3"),
    "no JSON": (haldetect() | {"annotations": "[{"}, "expected JSON under 'annotations'"),
    "no image": (haldetect(image=None), "expected a number or a name of COCO's"),
    "no part": (haldetect(7), "annotations, part 0: expected an object with start, end and a label, got 7"),
    "no label": (haldetect(part(CAR, "car")), "annotations, part 0: expected a class under 'label'"),
    "no start": (haldetect({"end": 3, "label": "x"}), "annotations, part 0: expected whole numbers under start"),
    "shifted": (haldetect({"start": 3, "end": 7, "text": "A re", "label": "x"}),
                "annotations, part 0: 3 to 7 is 'ed c', but its text says 'A re'"),
    "outside": (haldetect({"start": 3, "end": 70, "label": "ACCURATE"}), "a part from 3 to 70 is outside of the 47"),
}  # fmt: skip


def spoiled(annotations):
    return HALLOC | {"annotations": annotations}


BROKEN_HALLOC = {
    "no kinds": (spoiled([]), "expected lists of object, attribute and so on under 'annotations', got []"),
    "no list": (spoiled({"object": {}}), "expected a list under 'annotations, object', got {}"),
    "no words": (spoiled({"object": ["dogs"]}), "annotations, object 0: expected an object of words with name and"),
    "no place": (spoiled({"object": [{"obj": {"name": "dogs"}}]}),
                 "annotations, object 0, obj: expected START:END under 'char_index', got {'name': 'dogs'}"),
    "no number": (spoiled({"object": [{"obj": word("dogs", "a:b")}]}),
                  "annotations, object 0, obj: expected START:END"),
    "shifted": (spoiled({"object": [{"obj": word("dogs", "20:24")}]}),
                "annotations, object 0, obj: 20:24 is ' dog', but its name is 'dogs'"),
    "outside": (spoiled({"object": [{"obj": {"char_index": "40:99"}}]}), "a part from 40 to 99 is outside of the 47"),
    "backwards": (spoiled({"object": [{"obj": {"char_index": "9:3"}}]}), "a part from 9 to 3 is outside of the 47"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_HALLOC)
def test_broken_rows_of_halloc_are_refused(tmp_path, case):
    row, reason = BROKEN_HALLOC[case]
    path = write(tmp_path, HALLOC, row)
    with pytest.raises(InputError) as refused:
        main(["read", str(path), "--out", str(tmp_path / "annotations.jsonl")])
    assert str(refused.value).startswith(f"{path}, index 1: {reason}")


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("kind", ["list", "lines"])
def test_broken_rows_are_refused_by_line_or_index(tmp_path, case, kind):
    row, reason = BROKEN[case]
    path, out = write(tmp_path, M_HALDETECT, row, kind=kind), tmp_path / "annotations.jsonl"
    with pytest.raises(InputError) as refused:
        main(["read", str(path), "--out", str(out)])
    place = "index 1" if kind == "list" else "line 2"
    assert str(refused.value).startswith(f"{path}, {place}: {reason}")
    assert not out.exists()
    main(["read", str(path), "--out", str(out), "--skip_bad"])
    assert len(list(read_annotations(out))) == 1


def test_the_command_counts(tmp_path, capsys):
    path, out = write(tmp_path, RLHF_V, RLHF_V), tmp_path / "annotations.jsonl"
    main(["read", str(path), "--out", str(out)])
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        f"{path}: layout rlhf_v, 2 rows",
        "  changed -> object: 2",
        "  kept -> right: 2",
        "left out: 1 descriptions that are in the file a second time",
        f"{out}: 1 descriptions, 4 sentences, 2 of them wrong",
    ]
    with pytest.raises(InputError, match="--kind: 'kept' cannot mean 'rihgt'; the nearest meaning is 'right'"):
        main(["read", str(path), "--out", str(out), "--kind", "kept=rihgt"])
    with pytest.raises(InputError, match="expected WORD=MEANING"):
        main(["read", str(path), "--out", str(out), "--kind", "kept"])
    with pytest.raises(
        InputError, match=r"none of 2 rows can be used: 2 descriptions with a sentence that people were"
    ):
        main(["read", str(path), "--out", str(out), "--kind", "kept=unsure"])
    with pytest.raises(InputError, match=r"index 0: expected one of the layouts m_haldetect, rlhf_v, halloc, got an"):
        main(["read", str(write(tmp_path, {"a": 1})), "--out", str(out)])
    with pytest.raises(InputError, match="cannot read the judgment file"):
        main(["read", str(tmp_path / "none.json"), "--out", str(out)])


UNKNOWN = {
    "17": {
        "file_name": "a.jpg",
        "caption": "A red car waits. A dog sleeps.",
        "labels": {"items": [
            {"sentence": "A red car waits.", "errors": {"object": False, "attribute": True}, "creativity": 0},
            {"sentence": "A dog sleeps.", "errors": {"object": False, "attribute": False}, "creativity": 1},
        ]},
        "detail": 3,
        "omitted": ["a tree", "a bus"],
    }
}  # fmt: skip
MAP = (
    "image=file_name", "description=caption", "sentences=labels.items", "text=sentence", "kind=errors",
    "creative=creativity", "detail=detail", "missing=omitted",
)  # fmt: skip


def options(*paths):
    return [each for path in paths for each in ("--map", path)]


def test_any_file_can_be_mapped(tmp_path):
    path, out = tmp_path / "x.json", tmp_path / "annotations.jsonl"
    path.write_text(json.dumps(UNKNOWN, indent=1))
    main(["read", str(path), "--out", str(out), *options(*MAP)])
    expected = annotation(
        UNKNOWN["17"]["caption"], ["attribute"], ["creative"], image="a.jpg", detail=3, missing=("a tree", "a bus")
    )
    assert list(read_annotations(out)) == [expected]
    main(["read", str(path), "--out", str(out), *options(*(each for each in MAP if "caption" not in each))])
    assert list(read_annotations(out)) == [expected]
    rows = {"data": [{"img": 5, "text": CAR, "spans": [{"from": 17, "to": 25, "is": ["Objekt"]}]}]}
    path.write_text(json.dumps(rows))
    paths = ("image=img", "description=text", "parts=spans", "start=from", "end=to", "kind=is")
    main(["read", str(path), "--out", str(out), *options(*paths), "--kind", "Objekt=object"])
    assert list(read_annotations(out)) == [annotation(CAR, [], ["object"], [], image="5")]


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (("imge=x",), "--map: unknown field 'imge'; the nearest field is 'image'"),
        (("image",), "--map: expected FIELD=PATH, got 'image'"),
        (("image=a", "image=b"), "--map: image has two paths"),
        (("image=a",), "--map: kind has no path"),
        (("image=a", "kind=b"), "--map: give either sentences=PATH, or parts=PATH"),
        (("image=a", "kind=b", "parts=c"), "--map: description has no path"),
        (("image=file_name", "kind=errors", "sentences=labels", "text=sentence"),
         r"key 17: sentence: expected an object with 'sentence', got \{'items'"),
        (("image=none", "kind=errors", "sentences=labels.items", "text=sentence"),
         "key 17: none: expected an object with 'none'"),
        (("image=file_name", "kind=errors", "sentences=labels.items", "text=sentence", "description=file_name"),
         "key 17: the sentence 'A red car waits.' does not follow in the description"),
    ],
)  # fmt: skip
def test_wrong_maps_are_refused(tmp_path, paths, reason):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(UNKNOWN))
    with pytest.raises(InputError, match=reason):
        main(["read", str(path), "--out", str(tmp_path / "out.jsonl"), *options(*paths)])


def test_inspect_finds_the_way(tmp_path, capsys):
    """Its guess, taken as it is, reads the file."""
    path, out = tmp_path / "x.json", tmp_path / "annotations.jsonl"
    path.write_text(json.dumps({str(number): UNKNOWN["17"] | {"file_name": f"{number}.jpg"} for number in range(3)}))
    main(["inspect", str(path)])
    shown = capsys.readouterr().out
    assert "3 rows" in shown
    assert "labels.items[].errors.attribute" in shown
    assert "true/false 6; 'True' 3, 'False' 3" in shown
    assert "file_name" in next(line for line in shown.splitlines() if line.endswith("<- image?"))
    guess = shown.splitlines()[-1].partition("annotate read ")[2].replace("annotations.jsonl", str(out)).split()
    main(["read", *guess])
    assert [each.sentences[0].errors for each in read_annotations(out)] == [("attribute",)] * 3
    assert [each.missing for each in read_annotations(out)] == [("a tree", "a bus")] * 3


def test_inspect_finds_the_way_into_json_that_is_text(tmp_path, capsys):
    path, out = tmp_path / "my file.json", tmp_path / "annotations.jsonl"
    rows = [row | {"annotations": json.dumps(row["annotations"]), "image": "a.jpg"} for row in (M_HALDETECT,) * 2]
    rows[1]["response"] = rows[1]["response"].replace("red", "old")
    rows[1]["annotations"] = rows[1]["annotations"].replace("red", "old")
    path.write_text(json.dumps(rows))
    main(["inspect", str(path)])
    guess = shlex.split(capsys.readouterr().out.splitlines()[-1].partition("annotate read ")[2])
    assert "parts=annotations(JSON)" in guess
    words = [
        option for word in ("ACCURATE=right", "ANALYSIS=right", "INACCURATE=object") for option in ("--kind", word)
    ]
    main(["read", *guess[:-1], str(out), *words])
    assert [each.sentences[1].errors for each in read_annotations(out)] == [("object",)] * 2
    path.write_text(json.dumps([rows[0] | {"annotations": 3}]))
    with pytest.raises(InputError, match=r"annotations\(JSON\): expected JSON as text, got 3"):
        main(["read", *guess[:-1], str(out), *words])


def test_inspect_looks_into_text_and_refuses_what_is_no_json(tmp_path, capsys):
    main(["inspect", str(write(tmp_path, RLHF_V, {"a": 1}, kind="lines"))])
    shown = capsys.readouterr().out
    assert "text(JSON).rejected" in shown
    assert "<- image?" in shown
    path = tmp_path / "y.json"
    path.write_text("{]")
    with pytest.raises(InputError, match=r"expected rows of JSON, got none; line 1: malformed JSON"):
        main(["inspect", str(path)])
