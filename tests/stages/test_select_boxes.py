"""Boxes in the targets: `select.boxes`, from the images' files to the targets."""

import json
import re

import pytest
from PIL import Image

from vigor_jax.data.records import store
from vigor_jax.data.text.box_text import find_boxes, strip_boxes
from vigor_jax.errors import InputError
from vigor_jax.records import Candidate, Selection, Signal, Span, Target, Verdict
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.stages.select import select
from vigor_jax.stages.select_config import SelectConfig


def write_images(folder, **sizes):
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in sizes.items():
        Image.new("RGB", size).save(folder / f"{name}.png")
    return folder


def write_found(folder, texts, box=(0.0, 0.0, 0.5, 1.0), absent="car"):
    """Candidates of two images, with a dog in each that was found, and a car that was not."""
    candidates, verdicts = [], []
    for image in ("high.png", "wide.png"):
        for number, text in enumerate(texts):
            signals = []
            for word in ("dog", absent):
                spans = tuple(Span(*match.span()) for match in re.finditer(word, text))
                is_found = word == "dog"
                if spans:
                    boxes = (box, (0.9, 0.9, 1.0, 1.0)) if is_found else ()
                    one = Signal(word, spans, float(not is_found), float(is_found), 0.5, not is_found, boxes)
                    signals.append(one)
            candidates.append(Candidate(image, "?", number, text, (2,), -1.0, "stop"))
            verdicts.append(Verdict(image, number, "detector", tuple(sorted(signals, key=lambda s: s.spans[0]))))
    store.write_part(folder / "candidates", 0, 1, candidates, Candidate)
    store.write_part(folder / "verdicts" / "detector", 0, 1, verdicts, Verdict)
    return folder


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "A dog BOX sits. The dog runs."),
        ({"refine": "none"}, "A car and a dog BOX. A dog sits. The dog runs."),
        ({"strategy": "random"}, "A dog BOX sits. The dog runs."),
        ({"strategy": "random", "refine": "none"}, "A car and a dog BOX. A dog sits. The dog runs."),
    ],
)
def test_boxes_in_the_text(tmp_path, settings, text):
    """Relative to the square: in the high image the box is moved to the right, in the wide one down."""
    images = write_images(tmp_path / "images", high=(50, 100), wide=(100, 50))
    write_found(tmp_path, ["A car and a dog. A dog sits. The dog runs."])
    summary = select(SelectConfig(boxes="text", **settings), tmp_path, streams=["detector"], images=str(images))
    assert (summary.boxes, summary.repairs) == ({"targets": 2, "boxes": 2}, {"targets": 0, "repairs": 0})
    assert "with boxes: 2 targets, 2 boxes" in summary.table().splitlines()
    boxes = {"high.png": "[0.25, 0.0, 0.5, 1.0]", "wide.png": "[0.0, 0.25, 0.5, 0.75]"}
    for each in store.read_parts(tmp_path / "selections", Selection):
        assert each.refined == text.replace("BOX", boxes[each.image])
        assert not find_boxes(each.text)
    targets = {target.image: target.text for target in store.read_parts(tmp_path / "targets", Target)}
    assert targets == {image: text.replace("BOX", box) for image, box in boxes.items()}
    turns = [each["conversations"] for each in json.loads((tmp_path / "targets.json").read_text())]
    assert [turn[0]["value"] for turn in turns] == ["<image>\n?"] * 2
    assert [turn[1]["value"] for turn in turns] == [targets[image] for image in ("high.png", "wide.png")]


def test_boxes_of_the_control_are_those_of_what_was_drawn(tmp_path):
    images = write_images(tmp_path / "images", high=(50, 100), wide=(100, 50))
    write_found(tmp_path, ["A car. A dog sits.", "The dog runs. A dog. A dog is red."])
    config = SelectConfig(boxes="text", strategy="random_drop")
    select(config, tmp_path, streams=["detector"], images=str(images))
    for each in store.read_parts(tmp_path / "selections", Selection):
        plain = strip_boxes(each.refined)
        (place,) = (place.end for place, _ in plain.places)
        assert place == plain.text.index("dog") + 3
        kept = [each.text[slice(*s)] for s in split_sentences(each.text) if s not in [d.span for d in each.dropped]]
        assert plain.text == " ".join(kept)


def test_without_boxes_nothing_is_read_of_images(tmp_path):
    write_found(tmp_path, ["A dog sits."])
    select(SelectConfig(), tmp_path, streams=["detector"], images="nowhere")
    assert [each.refined for each in store.read_parts(tmp_path / "selections", Selection)] == ["A dog sits."] * 2


def test_boxes_need_the_images(tmp_path):
    write_found(tmp_path, ["A dog sits."])
    config = SelectConfig(boxes="text")
    with pytest.raises(
        InputError, match=r"select\.boxes text needs the images' sizes, and sample\.images is not given"
    ):
        select(config, tmp_path, streams=["detector"])
    images = write_images(tmp_path / "images", high=(50, 100))
    with pytest.raises(InputError, match=r"select: .*wide\.png has candidates and is gone; put it back"):
        select(config, tmp_path, streams=["detector"], images=str(images))
    (images / "wide.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"wide\.png: not a readable image"):
        select(config, tmp_path, streams=["detector"], images=str(images))


def test_a_response_with_boxes_counts_like_one_without(tmp_path):
    """Penalties, content, repetitions and words do not see them."""
    images = write_images(tmp_path / "images", high=(50, 100), wide=(100, 50))
    plain = ["A dog sits. A car. A dog sits.", "dog"]
    boxed = ["A dog [0.1, 0.1, 0.2, 0.2] sits. A car. A dog sits [0.1, 0.1, 0.2, 0.3].", "dog [0.1, 0.1, 0.2, 0.2]"]
    config = SelectConfig(boxes="text", repetitions="once")
    found = []
    for name, texts in (("plain", plain), ("boxed", boxed)):
        select(config, write_found(tmp_path / name, texts), streams=["detector"], images=str(images))
        found.append(list(store.read_parts(tmp_path / name / "selections", Selection)))
    for one, other in zip(*found, strict=True):
        assert one.refined == other.refined != ""
        assert (one.words, one.repeats, one.has_content, one.penalties) == (
            other.words, other.repeats, other.has_content, other.penalties,
        )  # fmt: skip
