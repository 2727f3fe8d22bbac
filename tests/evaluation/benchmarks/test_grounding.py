"""Boxes in captions against true ones: whose they are, when they are right, and the figures."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.evaluation.spoken import write
from vigor_jax.data.text.box_text import format_box, in_square
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.instances import instances
from vigor_jax.demo.scenes import IMAGE_SIZE, make_scene
from vigor_jax.errors import InputError
from vigor_jax.evaluate import main
from vigor_jax.evaluation.benchmarks import grounding
from vigor_jax.evaluation.benchmarks.synonyms import Synonyms
from vigor_jax.evaluation.box_overlap import best_overlap, in_pixels

# A wide image with two dogs and a cat, and a high one with a cat that two annotations have.
COCO = {
    "images": [
        {"id": 7, "file_name": "COCO_val2014_000000000007.jpg", "width": 200, "height": 100},
        {"id": 8, "file_name": "COCO_val2014_000000000008.jpg", "width": 60, "height": 80},
    ],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "fire hydrant"}],
    "annotations": [
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 40, 40]},
        {"image_id": 7, "category_id": 1, "bbox": [100, 20, 80, 80]},
        {"image_id": 7, "category_id": 2, "bbox": [50, 50, 20, 20]},
        {"image_id": 8, "category_id": 2, "bbox": [10, 10, 30, 60]},
    ],
}
WIDE, HIGH = (image["file_name"] for image in COCO["images"])
TABLE = "dog, puppy\ncat, kitten\nfire hydrant, hydrant\n"


@pytest.fixture
def coco(tmp_path):
    return write(tmp_path / "instances.json", COCO)


@pytest.fixture
def truth(coco):
    return grounding.read_instances([coco])


def boxed(text, **boxes):
    """A text with boxes for names in braces, given in pixels of the wide image."""
    spelled = {name: format_box(in_square(scaled(box), (200, 100))) for name, box in boxes.items()}
    return text.format(**spelled)


def scaled(box):
    left, top, right, bottom = box
    return left / 200, top / 100, right / 200, bottom / 100


def test_what_is_read(truth):
    assert truth.sizes == {WIDE: (200, 100), HIGH: (60, 80)}
    assert truth.boxes[WIDE]["dog"].tolist() == [[0, 0, 40, 40], [100, 20, 180, 100]]
    assert truth.boxes[HIGH]["cat"].tolist() == [[10, 10, 40, 70]]
    assert truth.images.find("7") == [WIDE]


def test_any_instance_will_do_and_every_box_must(truth):
    near, far, off = (2, 2, 40, 40), (100, 20, 180, 98), (60, 0, 100, 40)
    found = grounding.check_boxes(WIDE, boxed("Dogs {near} {far} and a dog {off}.", near=near, far=far, off=off), truth)
    assert [(phrase.words, len(phrase.boxes), phrase.present, phrase.is_right) for phrase in found.boxed] == [
        ("dogs", 2, True, True),
        ("dog", 1, True, False),
    ]
    worse = grounding.check_boxes(WIDE, boxed("Dogs {near} {off}.", near=near, off=off), truth)
    assert [phrase.is_right for phrase in worse.boxed] == [False]


def test_whose_box_it_is(truth):
    text = (
        "There is a dog [0, 0.25, 0.2, 0.45] and a grass [0, 0, 1, 1] lawn [0, 0, 1, 1], a cat in a corner "
        "[0.1, 0.1, 0.2, 0.2], fire hydrants [0, 0, 0.5, 0.5]. [0.1, 0.1, 0.2, 0.2]"
    )
    found = grounding.check_boxes(WIDE, text, truth)
    assert (found.phrases, found.boxes) == (3, 6)
    assert [(phrase.words, phrase.object, phrase.present, phrase.iou) for phrase in found.boxed] == [
        ("dog", "dog", True, pytest.approx(1.0, abs=1e-12)),
        ("fire hydrants", "fire hydrant", False, 0.0),
    ]


def test_half_of_a_name_is_none(truth):
    """A box within "fire hydrant" is of no phrase, for "fire" is no object and the mention is not over."""
    found = grounding.check_boxes(WIDE, "A fire [0, 0, 1, 1] hydrant and a dog", truth)
    assert (found.phrases, found.boxes, found.boxed) == (2, 1, ())


def test_synonyms(coco, tmp_path):
    truth = grounding.read_instances([coco], Synonyms.read(write(tmp_path / "synonyms.txt", TABLE)))
    found = grounding.check_boxes(WIDE, "A puppy [0.0, 0.25, 0.2, 0.45] and a kitten.", truth)
    assert [(phrase.words, phrase.object, phrase.is_right) for phrase in found.boxed] == [("puppy", "dog", True)]
    assert found.phrases == 2


def test_boxes_relative_to_the_image(truth):
    box = "A dog [0.0, 0.0, 0.2, 0.4]"
    assert grounding.check_boxes(WIDE, box, truth, "image").boxed[0].iou == pytest.approx(1.0, abs=1e-9)
    assert not grounding.check_boxes(WIDE, box, truth, "square").boxed[0].is_right


BOXES = st.tuples(*[st.integers(0, 100)] * 4).map(
    lambda corners: (min(corners[:2]) / 100, min(corners[2:]) / 100, max(corners[:2]) / 100, max(corners[2:]) / 100)
)


def reference(box, size, true, frame):
    """Intersection over union in exact numbers."""
    width, height = size
    side = max(size)
    scale = (side, side) if frame == "square" else size
    shift = ((side - width) // 2, (side - height) // 2) if frame == "square" else (0, 0)
    corners = [Fraction(round(100 * value), 100) * scale[at % 2] - shift[at % 2] for at, value in enumerate(box)]
    sides = [
        max(Fraction(0), min(corners[at + 2], Fraction(true[at + 2])) - max(corners[at], Fraction(true[at])))
        for at in (0, 1)
    ]
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (corners, list(map(Fraction, true)))]
    union = sum(areas) - sides[0] * sides[1]
    return sides[0] * sides[1] / union if union else Fraction(0)


@given(BOXES, BOXES, st.tuples(st.integers(1, 300), st.integers(1, 300)), st.sampled_from(["square", "image"]))
def test_overlaps_in_exact_numbers(box, other, size, frame):
    true = [corner * side for corner, side in zip(other, (*size, *size), strict=True)]
    expected = reference(box, size, true, frame)
    found = best_overlap(in_pixels(box, size, frame), np.array([true]))
    assert abs(found - float(expected)) <= 1e-9
    assert best_overlap(in_pixels(box, size, frame), np.zeros((0, 4))) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["dog", "cat", "lawn", "hydrants"]), st.none() | BOXES), max_size=8))
def test_figures_against_a_plain_count(said):
    synonyms = Synonyms.identity(("dog", "cat", "hydrant"))
    true = {"dog": np.array([[0.0, 0, 40, 40], [100, 20, 180, 100]]), "cat": np.array([[50.0, 50, 70, 70]])}
    truth = grounding.Instances(None, {WIDE: (200, 100)}, {WIDE: true}, synonyms)
    text = " and a ".join(f"{word} {format_box(box)}" if box else word for word, box in said)
    metrics = grounding.compute_metrics([grounding.check_boxes(WIDE, text, truth)])
    phrases = [(word.rstrip("s"), box) for word, box in said if word != "lawn"]
    with_box = [(word, box) for word, box in phrases if box]
    best = [
        max((reference(box, (200, 100), own, "square") for own in true.get(word, [])), default=Fraction(0))
        for word, box in with_box
    ]
    assume(all(abs(iou - Fraction(1, 2)) > 1e-9 for iou in best))  # which floats may round to either side
    right = [iou > Fraction(1, 2) for iou in best]
    present = [word in true for word, _ in with_box]
    assert (metrics.phrases, metrics.boxed, metrics.right) == (len(phrases), len(with_box), sum(right))
    assert (metrics.present, metrics.boxes) == (sum(present), sum(box is not None for _, box in said))
    assert metrics.accuracy == (sum(right) / len(right) if right else 0)
    assert metrics.accuracy_present == (sum(right) / sum(present) if any(present) else 0)
    assert metrics.boxed_share == (len(with_box) / len(phrases) if phrases else 0)
    assert metrics.grounded == (sum(right) / len(phrases) if phrases else 0)


def run(*arguments):
    texts = [str(argument) for argument in arguments]
    main(texts)
    return json.loads((Path(texts[texts.index("--out") + 1]) / "metrics.json").read_text())


def test_the_command_on_saved_captions(coco, tmp_path, capsys):
    captions = [
        {"image_id": 7, "caption": "A dog [0.0, 0.25, 0.2, 0.45] and a cat [0.5, 0.5, 0.6, 0.6]."},
        {"image_id": 8, "caption": "A cat and a dog [0.1, 0.1, 0.2, 0.2]."},
        {"image_id": 99, "caption": "A cat."},
    ]
    saved = write(tmp_path / "captions.json", captions)
    metrics = run("grounding", "--captions", saved, "--objects", coco, "--out", tmp_path / "out")
    assert {key: metrics[key] for key in ("captions", "phrases", "boxes", "boxed", "present", "right")} == {
        "captions": 2, "phrases": 4, "boxes": 3, "boxed": 3, "present": 2, "right": 1,
    }  # fmt: skip
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["policy"]["boxes"] == "square"
    assert metrics["extra_answers"] == 1
    low, high = metrics["intervals"]["accuracy"]
    assert 0 <= low <= metrics["accuracy"] <= high <= 1
    details = json.loads((tmp_path / "out" / "captions.json").read_text())
    assert [[box["right"] for box in each["boxes"]] for each in details] == [[True, False], [False]]
    shown = capsys.readouterr().out
    assert "right boxes" in shown
    assert "33.3%" in shown
    limited = run("grounding", "--captions", saved, "--objects", coco, "--out", tmp_path / "one", "--limit", 1)
    assert limited["captions"] == 1


def test_scenes_of_the_demo(tmp_path):
    """Captions with the boxes of the drawn pixels are right, those with the boxes of another object are not."""
    scenes = {f"{number:05}.png": make_scene(np.random.default_rng(number)) for number in range(12)}
    truth = grounding.read_instances([write(tmp_path / "instances.json", instances(scenes))])
    right = wrong = 0
    for name, scene in scenes.items():
        for item in scene.objects:
            box = drawn_box(scene, item)
            found = grounding.check_boxes(name, f"There is a {item.shape} {format_box(box)} in {item.color}.", truth)
            right += found.boxed[0].is_right
            others = [one for one in scene.objects if one.shape != item.shape]
            text = f"There is a {item.shape} {format_box(drawn_box(scene, others[0]))}"
            wrong += grounding.check_boxes(name, text, truth).boxed[0].is_right
    assert right == sum(len(scene.objects) for scene in scenes.values())
    assert wrong == 0


def drawn_box(scene, item):
    """Where the picture differs from the one without the object, which is its outline and a little shadow."""
    without = type(scene)(tuple(one for one in scene.objects if one is not item), scene.background)
    pictures = [np.asarray(draw(each), np.int64) for each in (scene, without)]
    differs = (np.abs(pictures[0] - pictures[1]).sum(-1)) > 60
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return tuple(edge / IMAGE_SIZE for edge in edges)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda coco: coco.pop("images"), "expected COCO's instances: images with a size, categories, and annotations"),
        (
            lambda coco: coco["images"][0].pop("width"),
            r"instances.json: expected COCO's instances.*KeyError\('width'\)",
        ),
        (
            lambda coco: coco["images"][0].update(width=0),
            r"expected width and height in pixels of image .*, got \(0, 100\)",
        ),
        (lambda coco: coco["annotations"][0].pop("bbox"), r"KeyError\('bbox'\)"),
        (lambda coco: coco["annotations"][0].update(bbox=[1, 2, 3]), "not enough values"),
        (lambda coco: coco["annotations"][0].update(bbox="none"), "expected COCO's instances"),
        (lambda coco: coco["annotations"][0].update(image_id=9), r"KeyError\(9\)"),
    ],
)
def test_broken_instances_are_named(tmp_path, change, message):
    content = json.loads(json.dumps(COCO))
    change(content)
    with pytest.raises(InputError, match=message) as error:
        grounding.read_instances([write(tmp_path / "instances.json", content)])
    assert "\n" not in str(error.value)


def test_a_plain_list_of_objects_has_no_boxes(tmp_path):
    with pytest.raises(InputError, match=r"objects.json: expected COCO's instances"):
        grounding.read_instances([write(tmp_path / "objects.json", {"a.jpg": ["dog"]})])


def test_a_category_without_a_synonym(coco, tmp_path):
    synonyms = Synonyms.read(write(tmp_path / "synonyms.txt", "dog, puppy\n"))
    with pytest.raises(InputError, match="the synonym table has no line for 'cat', 'fire hydrant'; add them"):
        grounding.read_instances([coco], synonyms)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --objects, COCO's instances for the boxes in captions, or --refs, .*; got neither"),
        (["--objects", "O", "--refs", "R"], "got both"),
        (["--objects", "O"], "grounding: give either --captions, or --model and --images"),
        (["--objects", "O", "--answers", "A", "--captions", "C"], "--answers are to --refs"),
        (["--refs", "R"], "grounding: give either --answers, or --model and --images"),
        (["--refs", "R", "--captions", "C", "--answers", "A"], "--captions are of --objects"),
        (["--refs", "R", "--answers", "A", "--prompt", "Where is it?"], "--prompt: expected words with {expression}"),
        (["--objects", "O", "--captions", "C", "--boxes", "pixels"], "square"),
    ],
)
def test_what_does_not_go_together(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message) as error:
        main(["grounding", *arguments, "--out", str(tmp_path)])
    assert "\n" not in str(error.value)
