"""The command: what it writes, that the same again changes nothing, and what it refuses."""

import base64
import json
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from tests.feedback.annotations import TEXT, annotation, write_run
from tests.feedback.test_exports import json_of
from vigor_jax.annotate import main
from vigor_jax.data.records.annotations import read_annotations, write_annotations
from vigor_jax.errors import InputError
from vigor_jax.feedback.form import hotkeys
from vigor_jax.feedback.judgments import read_judgments
from vigor_jax.feedback.server import TOKEN


@pytest.fixture
def world(tmp_path):
    run, images = write_run(tmp_path)
    return tmp_path, ["export", "--run", str(run), "--images", str(images), "--out", str(tmp_path / "project")]


def tasks_of(folder):
    return sorted(
        json.loads((folder / "project" / "tasks.json").read_text()), key=lambda task: task["data"]["image_name"]
    )


def test_a_project(world, capsys):
    folder, command = world
    main(command)
    assert "2 descriptions, 5 sentences" in capsys.readouterr().out
    car, cats = tasks_of(folder)
    assert car["data"]["description"] == TEXT
    assert cats["data"]["sentences"] == [[0, 11], [12, 23]]
    assert (
        base64.b64decode(cats["data"]["image"].removeprefix("data:image/png;base64,"))
        == (folder / "photos" / "deep" / "b 1.png").read_bytes()
    )
    (prediction,) = car["predictions"]
    assert prediction["model_version"] == "sentences"
    assert [region["value"]["text"] for region in prediction["result"]] == [
        "A red car waits at the left.", "A dog sleeps.", "He may wait for a friend.",
    ]  # fmt: skip
    assert all(region["value"]["labels"] == [] for region in prediction["result"])
    form = ElementTree.parse(folder / "project" / "label_config.xml")
    assert {each.get("value"): each.get("hotkey") for each in form.iter("Label")} == hotkeys()
    page = (folder / "project" / "instructions.html").read_text()
    assert all(f"<kbd>{key}</kbd>" in page for key in hotkeys().values())
    before = {path.name: path.read_bytes() for path in (folder / "project").iterdir()}
    assert before.keys() == {"label_config.xml", "tasks.json", "instructions.html", "README.md"}
    main(command)
    assert {path.name: path.read_bytes() for path in (folder / "project").iterdir()} == before


def test_verdicts_are_shown_if_asked_for(world):
    folder, command = world
    main([*command, "--predictions", "verdicts", "--attributes", "color,count,age"])
    car, cats = tasks_of(folder)
    shown = [region["value"]["labels"] for region in car["predictions"][0]["result"]]
    assert shown == [["Attribute"], ["Object"], ["Conjecture"]]
    assert [region["value"]["labels"] for region in cats["predictions"][0]["result"]] == [["No error"], ["No error"]]
    assert car["predictions"][0]["model_version"] == "verdicts"


def test_where_images_are(world):
    folder, command = world
    main([*command, "--images_by", "local"])
    assert tasks_of(folder)[1]["data"]["image"] == "/data/local-files/?d=photos/deep/b%201.png"
    assert (
        f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={folder.resolve()}" in (folder / "project" / "README.md").read_text()
    )
    main([*command, "--images_by", "url", "--images_url", "https://example.org/x/"])
    assert tasks_of(folder)[1]["data"]["image"] == "https://example.org/x/deep/b%201.png"


def test_gold_is_mixed_in_and_cannot_be_told(world):
    folder, command = world
    known = [annotation("A cat.", ["object"], image="a.png"), annotation(TEXT, [], ["object"], [], image="a.png")]
    write_annotations(folder / "gold.jsonl", known)
    main([*command, "--gold", str(folder / "gold.jsonl"), "--limit", "1"])
    texts = [task["data"]["description"] for task in tasks_of(folder)]
    assert sorted(texts) == sorted(["A cat.", TEXT, 'Two "cats".\nThey 😀 sit.'])
    assert {frozenset(task["data"]) for task in tasks_of(folder)} == {
        frozenset({"image", "image_name", "description", "sentences", "key"})
    }
    with pytest.raises(InputError, match=r"--gold: 1 descriptions are not candidates of .* people could tell them"):
        main([*command, "--gold", str(folder / "gold.jsonl"), "--predictions", "verdicts"])


def test_export_refuses(world, monkeypatch):
    folder, command = world
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(InputError, match=f"{TOKEN} is not set; copy the token"):
        main([*command, "--push", "http://127.0.0.1:9"])
    assert (folder / "project" / "tasks.json").exists()
    monkeypatch.setenv(TOKEN, "secret")
    monkeypatch.setitem(sys.modules, "label_studio_sdk", None)
    with pytest.raises(
        InputError, match=r"label-studio-sdk is missing .*; pip install 'vigor-jax\[annotate\]'"
    ) as refused:
        main([*command, "--push", "http://127.0.0.1:9"])
    assert "secret" not in str(refused.value)
    with pytest.raises(InputError, match="expected the address of a server such as"):
        main([*command, "--push", "localhost"])
    with pytest.raises(InputError, match="--images_by url and --images_url go together"):
        main([*command, "--images_by", "url"])
    with pytest.raises(InputError, match="--limit: expected 0 or more"):
        main([*command, "--limit", "-1"])
    with pytest.raises(InputError, match="expected parts such as"):
        main([*command, "--candidates", "chosen"])
    (folder / "photos" / "a.png").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 2 images that are described, 'a\.png' first"):
        main(command)
    with pytest.raises(InputError, match="unknown command 'exprot'; the nearest command is 'export'"):
        main(["exprot"])


def test_import(tmp_path, capsys):
    first = annotation(TEXT, ["attribute:color"], ["object"], ["creative"], detail=4, missing=("a tree",))
    second = annotation(TEXT, ["attribute:color"], [], ["creative"], detail=2)
    other = annotation("A cat.", [], image="b.jpg")
    one, two = json_of(1, first, who=1), json_of(2, other, who=1)
    one["annotations"] += json_of(1, second, who=2)["annotations"]
    path, out = tmp_path / "export.json", tmp_path / "annotations.jsonl"
    path.write_text(json.dumps([one, two]))
    command = ["import", "--export", str(path), "--out", str(out)]
    main(command)
    assert list(read_annotations(out)) == [other]
    assert [each.annotation for each in read_judgments(tmp_path / "annotations.judgments.jsonl")] == [
        first,
        second,
        other,
    ]
    (undecided,) = map(json.loads, (tmp_path / "annotations.undecided.jsonl").read_text().splitlines())
    assert (undecided["sentence"], undecided["what"]) == (2, "error")
    assert "1 descriptions are left out for it" in capsys.readouterr().out
    main([*command, "--weight", "1=2"])
    assert [each.sentences for each in read_annotations(out)] == [first.sentences, other.sentences]
    with pytest.raises(InputError, match="--weight: no judgment is by '7'; known ones are '1', '2'"):
        main([*command, "--weight", "7=2"])
    with pytest.raises(InputError, match="expected ANNOTATOR=WEIGHT with a weight of 0 or more"):
        main([*command, "--weight", "1=-2"])


def test_import_loses_nothing(tmp_path, capsys):
    good, bad = json_of(1, annotation("A cat.", [])), json_of(2, annotation("A dog.", []))
    bad["annotations"][0]["result"][0]["value"]["labels"] = ["Wrong"]
    path, out = tmp_path / "export.json", tmp_path / "annotations.jsonl"
    path.write_text(json.dumps([good]))
    command = ["import", "--export", str(path), "--out", str(out)]
    main(command)
    before = out.read_bytes()
    path.write_text(json.dumps([good, bad]))
    with pytest.raises(
        InputError, match=r"task 2, annotator 1: sentence 1 \('A dog\.'\) unknown choice 'Wrong'.*--skip_bad"
    ):
        main(command)
    assert out.read_bytes() == before
    main([*command, "--skip_bad"])
    assert out.read_bytes() == before
    assert "left out: task 2, annotator 1: sentence 1" in capsys.readouterr().out
    path.write_text(json.dumps([bad]))
    with pytest.raises(InputError, match="no other is left"):
        main([*command, "--skip_bad"])
    path.write_text("[]")
    with pytest.raises(InputError, match=r"expected judgments, got none \(it is empty\)"):
        main(command)
