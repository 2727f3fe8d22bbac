"""Referring expressions: the layouts of files, what a pickle may hold, and accuracy against the scripts' arithmetic."""

import collections
import datetime
import json
import pickle
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.spoken import write
from vigor_jax.data.text.box_text import format_box, in_square
from vigor_jax.errors import InputError
from vigor_jax.evaluate import main
from vigor_jax.evaluation.benchmarks import referring
from vigor_jax.evaluation.benchmarks.referring import Expression
from vigor_jax.evaluation.benchmarks.referring_files import read_expressions, read_pickle
from vigor_jax.evaluation.commands.grounding import GroundingCommand

INSTANCES = {
    "images": [
        {"id": 5, "file_name": "COCO_train2014_000000000005.jpg", "width": 640, "height": 480},
        {"id": 6, "file_name": "COCO_train2014_000000000006.jpg", "width": 300, "height": 500},
    ],
    "annotations": [
        {"id": 50, "image_id": 5, "category_id": 1, "bbox": [10.5, 20.25, 100, 200]},
        {"id": 51, "image_id": 5, "category_id": 1, "bbox": [300, 100, 340, 380]},
        {"id": 60, "image_id": 6, "category_id": 1, "bbox": [0, 0, 150, 500]},
    ],
    "categories": [{"id": 1, "name": "person"}],
}
SPLITS = {50: "train", 51: "testA", 60: "val"}


def refs():
    """As the authors' files have them; the file's name is not the image's."""
    found, number = [], 0
    for each in INSTANCES["annotations"]:
        sentences = []
        for words in (f"the {each['id']} one", f"man in {each['id']}"):
            sentences.append({"tokens": words.split(), "raw": words.title(), "sent": words, "sent_id": number})
            number += 1
        found.append(
            {
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "file_name": f"COCO_train2014_{each['image_id']:012}_{each['id']}.jpg",
                "ann_id": each["id"],
                "ref_id": number,
                "image_id": each["image_id"],
                "split": SPLITS[each["id"]],
                "sentences": sentences,
                "category_id": 1,
            }
        )
    return found


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "refcoco+"
    folder.mkdir()
    write(folder / "instances.json", INSTANCES)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs(), protocol=2))
    return folder


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_the_authors(folder, protocol):
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs(), protocol=protocol))
    found = read_expressions([folder / "refs(unc).p"])
    assert list(found) == ["refcoco+_testA", "refcoco+_val"]
    first, second = found["refcoco+_testA"]
    assert first == Expression(
        "2", "COCO_train2014_000000000005.jpg", "the 51 one", False, (300, 100, 640, 480), (640, 480)
    )
    assert second.words == "man in 51"
    assert found["refcoco+_val"][0].box == (0, 0, 150, 500)
    assert list(read_expressions([folder / "refs(unc).p"], ["train"])) == ["refcoco+_train"]
    elsewhere = folder / "other.json"
    (folder / "instances.json").rename(elsewhere)
    assert read_expressions([folder / "refs(unc).p"], (), elsewhere) == found


def test_pickles_of_python_2(tmp_path):
    """Its texts are bytes, which may be no UTF-8."""
    data = b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9 man'\np3\nsS'n'\np4\nI7\nsa."
    (tmp_path / "refs.p").write_bytes(data)
    assert read_pickle(tmp_path / "refs.p") == [{"sent": "caf\N{REPLACEMENT CHARACTER} man", "n": 7}]


class Runs:
    """Code in a pickle."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Runs(Path.touch, Path("ran")), "pathlib"),
        (Runs(eval, "open('ran', 'w')"), "eval"),
        (Runs(getattr, dict, "mro"), "getattr"),
        (collections.OrderedDict(a=1), "OrderedDict"),
        (datetime.date(2020, 1, 1), "date"),
        ([{"a": [Runs(print, "ran")]}], "print"),
    ],
)
def test_a_pickle_of_anything_else_is_not_run(tmp_path, monkeypatch, value, named, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    with pytest.raises(InputError, match=r"refs\(unc\)\.p: it refers to '.*'.*could run code.*JSON lines") as error:
        read_expressions([path])
    assert named in str(error.value) or protocol < 4
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@given(st.data())
def test_a_damaged_pickle_is_one_line(tmp_path_factory, data):
    whole = bytearray(pickle.dumps(refs(), protocol=data.draw(st.sampled_from([0, 2]))))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.sampled_from(b"(.}]NKc\x80\x00\xff"))
    path = tmp_path_factory.getbasetemp() / "refs(unc).p"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    write(path.with_name("instances.json"), INSTANCES)
    try:
        read_expressions([path])
        message = ""
    except InputError as error:
        message = str(error)
    assert "\n" not in message


SHIKRA = {
    "img_path": "COCO_train2014_000000000005.jpg",
    "expression": "the giant doughnut",
    "bbox": [334.72, 298.08, 522.88, 450.24],
    "dataset_name": "refcocog",
    "height": 480,
    "width": 640,
}
QWEN = {"image": "a.jpg", "sent": "white shirt man", "bbox": [1, 2, 3, 4], "height": 48, "width": 64}
LLAVA = {
    "question_id": "r7",
    "image": "a.jpg",
    "text": "Please provide the bounding box coordinate of the region this sentence describes: a cat.",
    "bbox": [1, 2, 3, 4],
    "height": 48,
    "width": 64,
    "category": "refcoco_val",
}


def lines(path, records):
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def test_lines_of_others(tmp_path):
    paths = [lines(tmp_path / f"{name}.jsonl", [each]) for name, each in
             {"REC_refcocog_umd_test": SHIKRA, "refcoco_testA": QWEN, "refcoco_val": LLAVA}.items()]  # fmt: skip
    found = read_expressions(paths)
    assert list(found) == ["REC_refcocog_umd_test", "refcoco_testA", "refcoco_val"]
    shikra, qwen, llava = (own[0] for own in found.values())
    assert (shikra.image, shikra.words, shikra.is_question) == (SHIKRA["img_path"], "the giant doughnut", False)
    assert (shikra.box, shikra.size) == (tuple(SHIKRA["bbox"]), (640, 480))
    assert referring.question(shikra, referring.PROMPT) == (
        "Please provide the bounding box coordinate of the region this sentence describes: the giant doughnut"
    )
    assert referring.question(qwen, "Where is {expression}? {}") == "Where is white shirt man? {}"
    assert (llava.id, referring.question(llava)) == ("r7", LLAVA["text"])


def test_splits_within_a_file(tmp_path):
    path = lines(tmp_path / "all.jsonl", [{**QWEN, "split": split} for split in ("train", "val", "testA", "val")])
    assert {part: len(own) for part, own in read_expressions([path]).items()} == {"all_val": 2, "all_testA": 1}
    assert list(read_expressions([path], ["testA", "testB"])) == ["all_testA"]
    with pytest.raises(InputError, match="expected expressions of testC, got train, val, testA"):
        read_expressions([path], ["testC"])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**QWEN, "bbox": [1, 2, 3]}, "expected bbox: left, top, right, bottom in pixels, and width and height"),
        ({**QWEN, "bbox": [5, 2, 3, 4]}, r"expected bbox: left, top, right, bottom in pixels, got \[5, 2, 3, 4\]"),
        ({**QWEN, "bbox": [1, 2, 3, "four"]}, "could not convert"),
        ({**QWEN, "bbox": "none"}, "expected a list under 'bbox', got 'none'"),
        ({**QWEN, "width": 0}, "width 0, height 48"),
        ({key: value for key, value in QWEN.items() if key != "height"}, "width 64, height None"),
        ({key: value for key, value in QWEN.items() if key != "sent"}, "words under one of expression, sent, text"),
        (
            {key: value for key, value in QWEN.items() if key != "image"},
            "expected an image under one of img_path, image",
        ),
    ],
)
def test_a_broken_line_is_named(tmp_path, record, message):
    path = lines(tmp_path / "a.jsonl", [QWEN, record])
    with pytest.raises(InputError, match=message) as error:
        read_expressions([path])
    assert f"{path}:2" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda refs: refs.append(7), r"refs\(unc\)\.p, ref 3: expected ann_id, image_id, split, sentences, got 7"),
        (lambda refs: refs[1].pop("split"), "ref 1: expected ann_id, image_id, split, sentences"),
        (lambda refs: refs[1].update(ann_id=[51]), "ref 1: expected ann_id"),
        (lambda refs: refs[1].update(ann_id=99), r"ref 1: .*instances\.json has no image 5 or no annotation 99"),
        (lambda refs: refs[1].update(sentences=["a man"]), "ref 1: expected a sentence with its 'sent', got 'a man'"),
    ],
)
def test_broken_refs_are_named(folder, change, message):
    content = refs()
    change(content)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=message):
        read_expressions([folder / "refs(unc).p"])


def test_other_files_are_refused(folder, tmp_path):
    path = folder / "refs(unc).p"
    with pytest.raises(InputError, match=r"another file has the part refcoco\+_testA, refcoco\+_val, too; rename"):
        read_expressions([path, path])
    with pytest.raises(InputError, match="cannot read the file"):
        read_expressions([tmp_path / "none.p"])
    path.write_bytes(pickle.dumps({"refs": []}))
    with pytest.raises(InputError, match="expected a list of refs, got a dict"):
        read_expressions([path])
    (folder / "instances.json").write_text("[]")
    path.write_bytes(pickle.dumps(refs()))
    with pytest.raises(InputError, match=r"instances.json: expected COCO's instances"):
        read_expressions([path])


def by_the_scripts(answer, box, size):
    """Precision at 1 as Qwen-VL's and InternVL's scripts take it, of a box in the padded square; in float64.

    The square is undone as All-Seeing's script does it.
    """
    found = re.findall(r"\[*\[(.*?),(.*?),(.*?),(.*?)\]\]*", answer)
    try:
        predicted = np.array(found[0], np.float64)
    except (IndexError, ValueError):
        predicted = np.zeros(4)
    width, height = size
    predicted = predicted * max(size)
    delta = abs(width - height) // 2
    if height < width:
        predicted[[1, 3]] -= delta
    elif width < height:
        predicted[[0, 2]] -= delta
    target = np.array(box, np.float64)
    low, high = np.maximum(predicted[:2], target[:2]), np.minimum(predicted[2:], target[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    areas = [np.prod(each[2:] - each[:2]) for each in (predicted, target)]
    return shared / (sum(areas) - shared)


def some_answers(seed=3, count=400):
    rng = random.Random(seed)
    for number in range(count):
        size = (rng.randrange(50, 640), rng.randrange(50, 640))
        left, right = sorted(rng.sample(range(size[0] + 1), 2))
        top, bottom = sorted(rng.sample(range(size[1] + 1), 2))
        expression = Expression(
            str(number), f"{number % 90}.jpg", f"thing {number}", False, (left, top, right, bottom), size
        )
        near = [value + rng.gauss(0, 0.12) * (right - left) for value in (left, top, right, bottom)]
        near = [min(max(value, 0), size[at % 2]) for at, value in enumerate(near)]
        near = [min(near[0], near[2]), min(near[1], near[3]), max(near[0], near[2]), max(near[1], near[3])]
        box = in_square(tuple(value / size[at % 2] for at, value in enumerate(near)), size)
        said = rng.choice([
            "{}", "{}", "{}", "It is at {}.", "[{}]", "The {} and [0.1, 0.2, 0.3, 0.4]", "I cannot see it.",
            "[0.1, 0.2",
        ])  # fmt: skip
        yield expression, said.format(format_box(box))


def test_accuracy_is_that_of_the_scripts():
    expressions, answers = zip(*some_answers(), strict=True)
    expected = np.array(
        [by_the_scripts(answer, one.box, one.size) for one, answer in zip(expressions, answers, strict=True)]
    )
    located = referring.locate(expressions, answers)
    assert np.allclose([each.iou for each in located], expected, rtol=0, atol=1e-12)
    metrics = referring.compute_metrics(located)
    assert metrics.right == (expected >= 0.5).sum()
    assert metrics.accuracy == (expected >= 0.5).mean()
    assert metrics.mean_iou == pytest.approx(expected.mean(), abs=1e-12)
    assert 60 < metrics.right < 340
    assert metrics.unread == sum("I cannot" in answer or answer == "[0.1, 0.2" for answer in answers) > 30


@pytest.mark.parametrize("answer", ["", "[]", "[0.9, 0.9, 0.1, 0.1]", "[10, 20, 300, 400]", "left"])
def test_an_answer_without_a_box_is_wrong(answer):
    expression = Expression("1", "a.jpg", "x", False, (0, 0, 64, 48), (64, 48))
    (found,) = referring.locate([expression], [answer])
    assert (found.box, found.iou) == (None, 0)


def test_boxes_relative_to_the_image():
    expression = Expression("1", "a.jpg", "x", False, (32, 0, 64, 24), (64, 48))
    (found,) = referring.locate([expression], ["[0.5, 0, 1, 0.5]"], "image")
    assert found.iou == 1


def run(*arguments):
    texts = [str(argument) for argument in arguments]
    main(texts)
    return json.loads((Path(texts[texts.index("--out") + 1]) / "metrics.json").read_text())


@pytest.mark.parametrize("matched_by", ["id", "image and prompt", "order"])
def test_the_command(folder, tmp_path, capsys, matched_by):
    path = folder / "refs(unc).p"
    parts = read_expressions([path])
    said = []
    for own in parts.values():
        for each in own:
            box = in_square(tuple(value / each.size[at % 2] for at, value in enumerate(each.box)), each.size)
            answer = {"text": f"{format_box(box)}" if "the" in each.words else "[0.0, 0.0, 0.1, 0.1]"}
            if matched_by == "id":
                answer |= {"question_id": int(each.id)}
            elif matched_by == "image and prompt":
                answer |= {"image": each.image, "prompt": referring.question(each)}
            said.append(answer)
    if matched_by != "order":
        said.reverse()
    answers = lines(tmp_path / "a.jsonl", said)
    metrics = run("grounding", "--refs", path, "--answers", answers, "--out", tmp_path / "out")
    for part in ("refcoco+_testA", "refcoco+_val"):
        assert metrics[part]["accuracy"] == 0.5
        assert metrics[part]["expressions"] == 2
        assert metrics[part]["intervals"]["accuracy"] == [0.5, 0.5]  # one image, which every draw has
    assert metrics["policy"] == {"prompt": None, "boxes": "square"}
    details = json.loads((tmp_path / "out" / "expressions.json").read_text())
    assert [each["iou"] > 0.5 for each in details] == [True, False] * 2
    assert "refcoco+_testA, accuracy at 0.5" in capsys.readouterr().out


def test_a_file_of_answers_for_each_part(tmp_path):
    paths = [lines(tmp_path / f"refcoco_{split}.jsonl", [QWEN]) for split in ("val", "testA")]
    answers = [
        lines(tmp_path / f"{n}.jsonl", [{"question_id": 0, "text": t}]) for n, t in enumerate(("none", "[0, 0, 1, 1]"))
    ]
    metrics = run("grounding", "--refs", *paths, "--answers", *answers, "--out", tmp_path / "out")
    assert [metrics[part]["unread"] for part in ("refcoco_val", "refcoco_testA")] == [1, 0]
    more = [*answers, answers[0]]
    with pytest.raises(InputError, match="one for each of refcoco_val, refcoco_testA in this order, got 3"):
        run("grounding", "--refs", *paths, "--answers", *more, "--out", tmp_path / "out")
    other = lines(tmp_path / "x.jsonl", [{"image": "a.jpg", "question": "?", "text": "x"}])
    with pytest.raises(InputError, match="expected the answer to one of 1 questions"):
        run("grounding", "--refs", paths[0], "--answers", other, "--out", tmp_path / "out")


class SaysBoxes:
    """Stands for a model: it answers everything with one box, and keeps what it was asked."""

    def __init__(self, *images):
        self.images = {image: Path(image) for image in images}
        self.asked = {}

    def asking(self, protocol):
        return protocol

    def answer(self, name, asked, paths=None, *, protocol=None):
        self.asked[name] = [(str(paths[image]), words) for image, words in asked]
        return ["[0.0, 0.0, 1.0, 1.0]"] * len(asked)


def test_what_a_model_is_asked(folder, tmp_path):
    """In a folder that calls COCO's images as it did in 2017."""
    model = SaysBoxes("000000000005.jpg", "000000000006.jpg")
    command = GroundingCommand(tmp_path / "out", refs=(folder / "refs(unc).p",), splits=("testA", "val"))
    metrics = command.metrics(model)
    begin = "Please provide the bounding box coordinate of the region this sentence describes: "
    assert model.asked == {
        "expressions-refcoco+_testA": [
            ("000000000005.jpg", f"{begin}{words}") for words in ("the 51 one", "man in 51")
        ],
        "expressions-refcoco+_val": [("000000000006.jpg", f"{begin}{words}") for words in ("the 60 one", "man in 60")],
    }
    assert metrics["policy"]["prompt"] == referring.PROMPT
    assert metrics["refcoco+_testA"]["mean_iou"] == pytest.approx(340 * 380 / 640**2)
    assert metrics["refcoco+_val"]["mean_iou"] == pytest.approx(150 * 500 / 500**2)


def test_captions_of_a_model(tmp_path):
    content = {**INSTANCES, "annotations": INSTANCES["annotations"][:1]}
    instances = write(tmp_path / "instances.json", content)
    model = SaysBoxes(*(image["file_name"] for image in INSTANCES["images"]))
    metrics = GroundingCommand(tmp_path / "out", objects=(instances,), caption_prompt="Say.", limit=1).metrics(model)
    assert model.asked == {"captions": [("COCO_train2014_000000000005.jpg", "Say.")]}
    assert (metrics["captions"], metrics["boxes"], metrics["boxed"]) == (1, 1, 0)
