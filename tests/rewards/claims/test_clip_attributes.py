"""Attributes that a CLIP judges: probabilities against transformers, signals, batches, devices, and what is refused.

As a program, `python -m tests.rewards.claims.test_clip_attributes JOB`, it judges on several devices.
"""

import dataclasses
import json
import logging
import math
import shutil
import socket
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.rewards.claims import crop_world
from tests.rewards.claims.crop_world import WORLD, detected, items, stream
from tests.stages.sft_world import finish, spawn_python
from tests.tiny_clip import TinyClip
from vigor_jax.errors import InputError
from vigor_jax.hf.clip.checkpoint import open_clip
from vigor_jax.parallel.config import DistributedConfig
from vigor_jax.parallel.sharding import join_processes
from vigor_jax.rewards import clip_towers
from vigor_jax.rewards.claims.crops import ClipAttributesConfig
from vigor_jax.rewards.claims.judge import JudgeConfig, Truth
from vigor_jax.rewards.claims.stream import ClaimsConfig

CLOSE = 1e-4
MARGIN = 0.1
TINY = TinyClip()
VARIANTS = [
    TINY,
    dataclasses.replace(TINY, old_end=True, image_size=56, patch_size=8),
    dataclasses.replace(TINY, act="gelu", text_layers=1, text_heads=2, projection=7),
    dataclasses.replace(TINY, text_layers=4, text_mlp=32, positions=77, projection=64, vision_layers=1),
]
# What rules a color out: all others but those that look like it.
COLORS = [
    *("red", "orange", "yellow", "green", "blue", "purple", "pink"),
    *("brown", "black", "white", "gray", "silver", "gold", "beige"),
]
ALIKE = [
    *(("red", "orange"), ("orange", "yellow"), ("orange", "brown"), ("yellow", "gold"), ("yellow", "beige")),
    *(("blue", "purple"), ("purple", "pink"), ("pink", "red"), ("silver", "gray"), ("silver", "white")),
    *(("gold", "brown"), ("gold", "orange"), ("beige", "brown"), ("beige", "white"), ("beige", "gray")),
]
# The claims of each text: the thing and its color. The ring was not found.
CLAIMS = (
    ([("star", "red"), ("moon", "blue")], [("star", "black")]),
    ([("house", "orange")], [], [("house", "orange")], []),
    ([("ring", "green")],),
    ([("star", "purple"), ("moon", "yellow")],),
    ([],),
    ([("heart", "white")],),
)


def rivals(color):
    return [other for other in COLORS if other != color and not {(color, other), (other, color)} & set(ALIKE)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return crop_world.make_world(tmp_path_factory.mktemp("crops"))


@pytest.fixture(scope="module")
def judge(world):
    return stream(world)


def wanted(world, number, thing, color, boxes, template="a photo of {}"):
    """Probabilities by transformers' model, tokenizer and processor, of crops by PIL: one row a box."""
    model = transformers.CLIPModel.from_pretrained(world / "clip").float().eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(world / "clip")
    processor = transformers.CLIPImageProcessor.from_pretrained(world / "clip")
    image, shown = Image.open(world / "images" / f"{number}.png"), []
    for left, top, right, bottom in boxes:
        x, y = MARGIN * (right - left), MARGIN * (bottom - top)
        first, high = (max(0, math.floor(at * size)) for at, size in ((left - x, image.width), (top - y, image.height)))
        last, low = (
            min(size, math.ceil(at * size)) for at, size in ((right + x, image.width), (bottom + y, image.height))
        )
        cut = image.crop((first, high, last, low))
        side = max(cut.size)
        square = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in processor.image_mean))
        square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
        shown.append(square)
    texts = [f"{'an' if each[0] in 'aeiou' else 'a'} {each} {thing}" for each in (color, *rivals(color))]
    texts = [template.replace("{}", text) for text in texts]
    limit = model.config.text_config.max_position_embeddings
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    with torch.no_grad():
        found = model(**tokens, **processor(shown, return_tensors="pt"))
    return found.logits_per_image.softmax(-1).numpy()


def counted(boxes):
    """Without the third star, which is nearly the first."""
    return [box for box in boxes if box != (0.21, 0.2, 0.61, 0.5)]


@pytest.mark.parametrize(
    "tiny", [pytest.param(tiny, id=str(i), marks=[pytest.mark.slow] * (i > 1)) for i, tiny in enumerate(VARIANTS)]
)
def test_probabilities_are_those_of_transformers(tmp_path, tiny):
    root = crop_world.make_world(tmp_path, tiny)
    seen = []
    for number, (item, found) in enumerate(stream(root).evidence(items(root))):
        assert item == items(root)[number]
        texts, boxes = WORLD[number]
        for text, own in zip(texts, CLAIMS[number], strict=True):
            assert [(each.claim.subject.phrase, each.claim.value.value) for each in found[text]] == own
            for each, (thing, color) in zip(found[text], own, strict=True):
                assert each.boxes == boxes[thing]
                if not boxes[thing]:
                    assert each.evidence.truth(ClipAttributesConfig()) is Truth.UNKNOWN
                    continue
                expected = wanted(root, number, thing, color, counted(boxes[thing]))
                np.testing.assert_allclose(each.evidence.probabilities, expected, atol=CLOSE)
                seen += list(expected)
    assert len(seen) == 10
    assert all(row.max() > 0.1 and row.min() < 0.05 for row in seen)


def test_the_template_counts(world):
    (text,), boxes = WORLD[5]
    (_, found), = stream(world, template="{} in a box").evidence(items(world)[5:])  # fmt: skip
    expected = wanted(world, 5, "heart", "white", boxes["heart"], "{} in a box")
    np.testing.assert_allclose(found[text][0].evidence.probabilities, expected, atol=CLOSE)


def test_signals_follow_the_probabilities(world):
    """With thresholds between which the probabilities of a random CLIP lie."""
    limits = {"least_right": 0.12, "most_wrong": 0.05, "least_rival": 0.2}
    truths = set()
    for number, verdicts in enumerate(stream(world, **limits).judge(items(world))):
        texts, boxes = WORLD[number]
        path = f"{number}.png"
        about = [(verdict.image, verdict.candidate, verdict.stream) for verdict in verdicts]
        assert about == [(path, candidate, "clip_attributes") for candidate, _ in enumerate(texts)]
        for text, verdict, own in zip(texts, verdicts, CLAIMS[number], strict=True):
            signals = {signal.label: signal for signal in verdict.signals}
            for thing, color in own:
                if not boxes[thing]:
                    continue
                found = wanted(world, number, thing, color, counted(boxes[thing]))
                right = (found[:, 0] >= 0.12).any()
                wrong = ((found[:, 0] <= 0.05) & (found[:, 1:].max(1) >= 0.2)).all()
                truths.add((right, wrong))
                if not right and not wrong:
                    assert f"{thing}: {color}" not in signals
                    continue
                signal = signals.pop(f"{thing}: {color}")
                assert (signal.positive, signal.negative, signal.absent) == (right, wrong, wrong)
                assert signal.score == pytest.approx(found[:, 0].max(), abs=CLOSE)
                assert (signal.kind, signal.boxes_xyxy) == ("attribute", boxes[thing])
                assert [text[slice(*span)] for span in signal.spans] == [color]
            assert not signals
    assert truths == {(True, False), (False, True), (False, False)}


def test_the_order_of_boxes_changes_nothing(world, judge):
    item = items(world)[0]
    first = next(judge.judge([item]))
    turned = {thing: boxes[::-1] for thing, boxes in WORLD[0][1].items()}
    other = next(judge.judge([item._replace(verdicts={"detector": detected(item.texts, turned, item.image)})]))
    assert [[(s.label, s.absent, s.score) for s in verdict.signals] for verdict in first] == [
        [(s.label, s.absent, s.score) for s in verdict.signals] for verdict in other
    ]


def found_by(judge, given):
    return [
        [each.evidence.probabilities.tolist() for own in claims.values() for each in own]
        for _, claims in judge.evidence(given)
    ]


def test_batches_change_no_digit_and_compile_once(world, judge):
    """A run that was stopped in between judges in other batches, and images have any number of crops."""
    every = items(world)
    expected = found_by(judge, every)
    assert found_by(judge, every[::-1]) == expected[::-1]
    assert [found for item in every for found in found_by(judge, [item])] == expected
    assert found_by(stream(world), every[3:]) == expected[3:]
    assert judge.compilations == 2
    for other in (1, 2, 16):
        for one, own in zip(found_by(stream(world, batch_size=other), every), expected, strict=True):
            for its, mine in zip(one, own, strict=True):
                np.testing.assert_allclose(its, mine, atol=1e-5)


def test_nothing_goes_to_the_device_unasked(world, judge):
    expected = list(judge.judge(items(world)))
    with jax.transfer_guard("disallow"):
        assert list(judge.judge(items(world))) == expected


def test_an_image_is_decoded_once_and_only_where_something_is_claimed(world, monkeypatch):
    opened, read = [], clip_towers.load_image
    monkeypatch.setattr(clip_towers, "load_image", lambda path: opened.append(path.name) or read(path))
    list(stream(world).judge(items(world)))
    assert sorted(opened) == ["0.png", "1.png", "3.png", "5.png"]


def test_items_are_read_ahead_and_not_all_at_once(world, judge):
    asked = []

    def asking():
        for item in [*items(world)[2:3] * 40, *items(world)]:
            asked.append(item)
            yield item

    results = judge.judge(asking())
    assert not asked
    next(results)  # of what claims nothing no batch is ever full
    assert len(asked) == 6


def test_phrases_are_embedded_once(world, monkeypatch):
    judge, texts, embed = stream(world), [], clip_towers.ClipTowers.embed_texts
    monkeypatch.setattr(
        clip_towers.ClipTowers,
        "embed_texts",
        lambda self, given, **how: texts.extend(given) or embed(self, given, **how),
    )
    for _ in range(2):
        list(judge.judge(items(world)))
    assert len(texts) == len(set(texts))
    assert {"a photo of a red star", "a photo of an orange house"} <= set(texts)


def test_sizes_are_not_judged(world):
    """A crop does not show how large a thing is."""
    item = items(world)[0]
    item = item._replace(texts=("We see a large red star.",), verdicts={"detector": item.verdicts["detector"][:1]})

    def kinds(**changes):
        (_, claims), = stream(world, **changes).evidence([item])  # fmt: skip
        return {each.claim.value.kind for own in claims.values() for each in own}

    assert kinds() == {"color"}
    assert kinds(skip=("color",)) == {"size"}
    assert kinds(skip=()) == {"color", "size"}
    assert kinds(skip=("color", "size")) == set()


def test_which_boxes_count_is_as_for_other_claims(world):
    item = items(world)[3]
    claims = ClaimsConfig(judge=JudgeConfig(iou=1.0))
    (_, found), = stream(world, claims=claims).evidence([item])  # fmt: skip
    assert [len(each.evidence.probabilities) for each in found[item.texts[0]]] == [3, 1]


def test_the_share_of_right_and_wrong_is_told(world, caplog):
    with caplog.at_level(logging.INFO):
        list(stream(world, least_right=1e-9, most_wrong=0.0).judge(items(world)))
        assert "clip_attributes: 7 claims, 100% of them right, 0% wrong" in caplog.messages
        caplog.clear()
        list(stream(world).judge(items(world)[4:5]))
    assert not caplog.messages


def test_the_digest_covers_all_that_decides(world, judge, tmp_path):
    assert stream(world, batch_size=7).digest == judge.digest
    shutil.copytree(world / "clip", tmp_path / "copy")
    assert stream(world, model=tmp_path / "copy").digest == judge.digest
    assert stream(world, claims=ClaimsConfig(kinds=("number",))).digest == judge.digest
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    scaled = tensors | {"logit_scale": np.array(2.0, np.float32)}
    save_file(scaled, tmp_path / "copy" / "model.safetensors", {"format": "pt"})
    changes = [
        {"template": "{}"}, {"margin": 0.2}, {"skip": ()}, {"least_right": 0.6}, {"most_wrong": 0.1},
        {"least_rival": 0.7}, {"model": tmp_path / "copy"}, {"claims": ClaimsConfig(judge=JudgeConfig(iou=0.4))},
    ]  # fmt: skip
    digests = {stream(world, **change).digest for change in changes}
    assert len(digests | {judge.digest}) == 1 + len(changes)


def test_an_image_that_cannot_be_read_is_named(world, judge, tmp_path):
    item = items(world)[0]
    with pytest.raises(InputError, match=r"^0\.png: .*no\.png: no such image") as caught:
        list(judge.judge([item._replace(path=item.path.with_name("no.png"))]))
    assert "\n" not in str(caught.value)
    (tmp_path / "0.png").write_bytes(item.path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"^0\.png: .*not a readable image") as caught:
        list(judge.judge([item._replace(path=tmp_path / "0.png")]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"clip has no logit_scale, by which cosines become probabilities; give a whole CLIP, such as openai"),
        (np.array(np.nan, np.float32), r"logit_scale: expected the logarithm of a scale, .* got \[nan\]; download"),
        (np.array(1e4, np.float32), r"got \[10000\.0\]"),
        (np.zeros(3, np.float32), r"got \[0\.0, 0\.0, 0\.0\]"),
    ],
    ids=["missing", "nan", "huge", "several"],
)
def test_a_clip_without_a_scale(world, tmp_path, value, message):
    shutil.copytree(world / "clip", tmp_path / "clip")
    tensors = load_file(tmp_path / "clip" / "model.safetensors")
    del tensors["logit_scale"]
    tensors |= {} if value is None else {"logit_scale": value}
    save_file(tensors, tmp_path / "clip" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=message) as caught:
        stream(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_scale_is_that_of_transformers(world):
    model = transformers.CLIPModel.from_pretrained(world / "clip")
    assert open_clip(world / "clip").scale() == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)


@pytest.mark.slow
def test_same_on_eight_devices(world, judge, tmp_path):
    job = {"world": str(world), "out": str(tmp_path / "out.json"), "meshes": [(2, 2, 2), (1, 8, 1), (8, 1, 1)]}
    program = ["-m", "tests.rewards.claims.test_clip_attributes", json.dumps(job)]
    finish(spawn_python(program, devices=8, cache=tmp_path / "cache"))
    assert_same(judge, world, json.loads((tmp_path / "out.json").read_text()))


@pytest.mark.slow
def test_same_in_two_processes(world, judge, tmp_path):
    """Each reads the images of its rows alone, and both know all probabilities."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    jobs = [
        {
            "world": str(world),
            "out": str(tmp_path / f"out-{process}.json"),
            "meshes": [(4, 1, 1), (1, 2, 2)],
            "distributed": {"coordinator": coordinator, "num_processes": 2, "process_id": process},
        }
        for process in range(2)
    ]
    program = ["-m", "tests.rewards.claims.test_clip_attributes"]
    finish(*(spawn_python([*program, json.dumps(job)], devices=2, cache=tmp_path / "cache") for job in jobs))
    one, other = (json.loads((tmp_path / f"out-{process}.json").read_text()) for process in range(2))
    assert one == other
    assert_same(judge, world, one)


def assert_same(judge, world, found):
    expected = [row for own in found_by(judge, items(world)) for claim in own for row in claim]
    assert len(expected) == 9
    for own in found:
        rows = [row for image in own for claim in image for row in claim]
        for its, mine in zip(rows, expected, strict=True):
            np.testing.assert_allclose(its, mine, atol=1e-5)


def main() -> None:
    job = json.loads(sys.argv[1])
    if "distributed" in job:
        join_processes(DistributedConfig(**job["distributed"]))
    world = Path(job["world"])
    found = [found_by(stream(world, *sizes), items(world)) for sizes in job["meshes"]]
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
