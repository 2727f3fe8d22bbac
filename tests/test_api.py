"""The public API as a program uses it: what it gives, what it refuses, its types, and docs/api.md word by word."""

import ast
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import transformers
from PIL import Image

import vigor_jax as vj
from detector_bridge.hub import is_id
from tests.detector_bridge.tiny_detector import write_transformers
from tests.test_api_selection import WrongFrom, made
from tests.tiny_llava import Tiny, build_checkpoint, build_model, write_processor
from vigor_jax import cli
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.data.images.given import image_files
from vigor_jax.data.images.preprocessing import load_image
from vigor_jax.inference.responses import SamplingOptions, queries
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.pipeline import rounds as pipeline_rounds
from vigor_jax.stages.score_config import StreamConfig

ROOT = Path(__file__).resolve().parents[1]
ENTITIES = vj.PhrasesConfig(extractor="entities")
GREEDY = {"temperature": 0, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The files that docs/api.md names."""
    world = tmp_path_factory.mktemp("api")
    build_checkpoint(world / "llava-1.5-7b-hf", Tiny())
    write_reward_model(world / "reward-model")
    write_transformers(world / "grounding-dino-tiny")
    (world / "photos").mkdir()
    rng = np.random.default_rng(0)
    records = []
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (30 + i, 44, 3), np.uint8)).save(world / "photos" / f"{i}.jpg")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"A red circle, {i}."}]
        records.append({"id": str(i), "image": f"{i}.jpg", "conversations": turns})
    (world / "chat.json").write_text(json.dumps(records))
    return world


def write_reward_model(directory: Path) -> None:
    """A random model that likes to answer 1 or 0."""
    write_processor(directory, Tiny())
    model = build_model(Tiny(), seed=5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        for token_id in [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(["1", "0"])]:
            model.lm_head.weight[token_id] *= 3
    model.save_pretrained(directory)


@pytest.fixture(scope="module")
def model(world):
    return vj.load(world / "llava-1.5-7b-hf")


@pytest.fixture(scope="module")
def images(world):
    return [str(world / "photos" / f"{i}.jpg") for i in range(2)]


@pytest.fixture(scope="module")
def responses(model, images):
    return model.generate(images, "Describe this image.", num_candidates=3, max_new_tokens=12, seed=4)


# Import


def test_importing_costs_little_and_brings_no_jax():
    program = """
import sys, time
before = set(sys.modules)
start = time.perf_counter()
import vigor_jax
took = time.perf_counter() - start
print(took, *({name.split(".")[0] for name in sys.modules} - {name.split(".")[0] for name in before}))
"""
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(5)
    ]
    assert {name for _, *names in runs for name in names} <= {"vigor_jax", *sys.stdlib_module_names}
    assert min(float(took) for took, *_ in runs) < 0.2


def test_every_public_name_is_there_and_no_other():
    for name in vj.__all__:
        assert getattr(vj, name) is getattr(vj, name)
        assert name in dir(vj)
        assert getattr(vj, name).__doc__
    assert sorted(vj.__all__) == vj.__all__
    assert vj.__version__
    with pytest.raises(AttributeError, match="module 'vigor_jax' has no attribute 'lod'"):
        _ = vj.lod


def test_the_names_for_type_checkers_are_those_that_are_imported():
    tree = ast.parse((ROOT / "vigor_jax" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.asname: node.module for node in block.body for alias in node.names}
    assert sorted(typed) == vj.__all__
    assert typed | {"export": vj._PLACE["export"]} == vj._PLACE
    for name, module in typed.items():
        assert getattr(vj, name).__module__.startswith("vigor_jax"), module


def test_the_module_of_the_command_is_the_function_too(tmp_path, world):
    """Whoever imports `vigor_jax.export` puts the module in the function's place."""
    import vigor_jax.export

    out = vigor_jax.export(world / "llava-1.5-7b-hf", tmp_path / "out", layout="llava")
    assert out == tmp_path / "out"
    assert json.loads((out / "config.json").read_text())["model_type"].startswith("llava")
    assert isinstance(vj.load(out), vj.Policy)


# Responses


@pytest.mark.slow
@pytest.mark.main
def test_responses_are_a_table(responses, images):
    table = pandas.DataFrame(responses)
    assert [*table.columns] == [
        "index", "image", "prompt", "candidate", "text", "token_ids", "logprobs", "mean_logprob", "finish_reason",
    ]  # fmt: skip
    assert table["index"].tolist() == [0, 0, 0, 1, 1, 1]
    assert table["image"].tolist() == [images[0]] * 3 + [images[1]] * 3
    assert table["candidate"].tolist() == [0, 1, 2] * 2
    assert set(table["finish_reason"]) <= {"stop", "length", "repetition"}
    for response in responses:
        assert len(response.token_ids) == len(response.logprobs) <= 12
        assert response.mean_logprob == pytest.approx(np.mean(response.logprobs), abs=1e-6)
    with pytest.raises(AttributeError):
        responses[0].text = ""


@pytest.mark.slow
def test_what_is_generated_does_not_depend_on_what_else_is_asked(model, images, responses):
    alone = model.generate(images[1], "Describe this image.", num_candidates=3, max_new_tokens=12, seed=4, batch_size=1)
    assert [r.text for r in alone] == [r.text for r in responses[3:]]
    other = model.generate(images[1], "Describe this image.", num_candidates=3, max_new_tokens=12, seed=5)
    assert [r.text for r in other] != [r.text for r in alone]


def test_all_kinds_of_images_are_the_same_picture(model, tmp_path):
    """A photograph that lies on its side by its EXIF, as a path, bytes, PIL's and NumPy's."""
    pixels = np.random.default_rng(3).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    path = tmp_path / "a.png"
    upright = np.rot90(pixels, -1)
    kinds = [path, str(path), path.read_bytes(), Image.open(path), upright, Image.fromarray(upright).convert("RGBA")]
    found = model.generate(kinds, "What is it?", **GREEDY)
    assert len({response.text for response in found}) == 1
    assert len({np.round(response.mean_logprob, 4) for response in found}) == 1
    assert [response.image for response in found[:2]] == [str(path)] * 2
    assert all(re.fullmatch("sha256:[0-9a-f]{16}", response.image) for response in found[2:])
    assert found[3].image == found[4].image == found[5].image
    lying = model.generate(pixels, "What is it?", **GREEDY)[0]
    assert np.round(lying.mean_logprob, 4) != np.round(found[0].mean_logprob, 4)


@pytest.mark.parametrize(
    "mode", ["I", "I;16", "I;16B", "F", "1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr"]
)
def test_a_pil_image_of_any_mode_is_the_picture_of_its_file(tmp_path, mode):
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 2**16, (8, 9)).astype({"F": np.float32, "I": np.int32}.get(mode, np.uint16))
    if mode == "I;16B":
        image = Image.frombytes(mode, (9, 8), wide.astype(">u2").tobytes())
    elif mode in ("I", "I;16", "F"):
        image = Image.fromarray(wide / np.float32(2**16) if mode == "F" else wide)
    else:
        image = Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).convert("L" if mode == "LA" else "RGB")
        image = image.convert("P").convert(mode) if mode == "PA" else image.convert(mode)
    assert image.mode == mode
    ((found, _),) = image_files(image)
    assert image.mode == mode
    pixels = np.asarray(load_image(found))
    assert np.ptp(pixels) > 100
    if mode == "F":
        wanted = np.rint(np.asarray(image) * 255)
    elif mode.startswith("I"):
        wanted = wide >> 8
    else:
        wanted = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels, wanted[..., None].repeat(3, 2) if wanted.ndim == 2 else wanted)
    suffix = {"F": "tiff", "I": "tiff", "I;16B": "tiff", "PA": None, "RGBX": None, "CMYK": "tiff", "YCbCr": "tiff"}.get(
        mode, "png"
    )
    if suffix:
        image.save(tmp_path / f"a.{suffix}")
        ((in_file, _),) = image_files(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(pixels, np.asarray(load_image(in_file)))


def test_bytes_that_can_change_are_bytes(images):
    content = Path(images[0]).read_bytes()
    assert image_files(bytearray(content)) == image_files([bytearray(content)]) == image_files(content)
    assert [query.index for query in queries(bytearray(content), ["a", "b"])] == [0, 0]


def closed(path):
    image = Image.open(path)
    image.close()
    return image


def cut_off(path):
    content = Path(path).read_bytes()
    return Image.open(io.BytesIO(content[: len(content) // 2]))


def test_what_is_no_image_is_refused_before_anything_is_loaded(world, images, tmp_path):
    model = vj.load(world / "llava-1.5-7b-hf")
    for image, message in [
        (str(tmp_path / "gone.jpg"), r"images\[1\]: .*gone\.jpg: no such image; check the path"),
        (tmp_path, r"images\[1\]: .* is a folder; list its files"),
        ("a\0b", r"images\[1\]: .*no such image"),
        ("a" * 5000, r"images\[1\]: .*no such image"),
        (closed(images[0]), r"images\[1\]: the PIL image cannot be read \(.+\); open it again, or give its path"),
        (cut_off(images[0]), r"images\[1\]: the PIL image cannot be read \(.+\); open it again, or give its path"),
        (Image.new("RGB", (0, 3)), r"images\[1\]: the image has 0 x 3 pixels; expected at least one"),
    ]:
        for call in (
            lambda given: model.generate(given, "What?"),
            lambda given: model.logprobs(given, "What?", ["a", "b"]),
            lambda given: vj.RewardModel(None).judge(given, ["a", "b"]),
        ):
            with pytest.raises(vj.InputError, match=message) as caught:
                call([images[0], image])
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 400
    assert "model" not in vars(model)


@pytest.mark.main
def test_a_path_stays_as_it_was_given(world, model, monkeypatch):
    """And is the same image however it is written."""
    monkeypatch.chdir(world / "photos")
    names = ["./0.jpg", "0.jpg", "../photos//1.jpg"]
    said = model.generate(names, "What is it?", seed=3, max_new_tokens=8)
    assert [response.image for response in said] == names
    assert said[0].text == said[1].text
    assert [s.image for s in model.logprobs(names, "What is it?", said)] == names
    other = ["0.jpg", Path("0.jpg"), "../photos/1.jpg"]
    assert [s.image for s in model.logprobs(other, None, said)] == ["0.jpg", "0.jpg", "../photos/1.jpg"]
    judge = vj.RewardModel(WrongFrom())
    for given in (names, other):
        assert [judgment.image for judgment in judge.judge(given, said)] == names
    assert [judgment.image for judgment in judge.judge(names, ["a"] * 3)] == names


def test_prompts_without_images_and_several_for_one_image(model, images):
    words = ["What is a dog?", "What is a cat?"]
    assert [r.prompt for r in model.generate(None, words, **GREEDY)] == words
    several = model.generate(images[0], words, **GREEDY)
    assert [(r.index, r.prompt) for r in several] == [(0, words[0]), (0, words[1])]
    each = model.generate(images, words, **GREEDY)
    assert [(r.index, r.prompt) for r in each] == [(0, words[0]), (1, words[1])]
    assert each[0].text == several[0].text


@pytest.mark.main
def test_logprobs_of_what_was_sampled_and_of_other_texts(model, images, responses):
    again = model.logprobs(images, None, responses)
    assert [*pandas.DataFrame(again).columns] == [
        "index", "image", "prompt", "text", "token_ids", "logprobs", "sum_logprob", "mean_logprob",
    ]  # fmt: skip
    for score, response in zip(again, responses, strict=True):
        assert (score.image, score.text, score.token_ids) == (response.image, response.text, response.token_ids)
        np.testing.assert_allclose(score.logprobs, response.logprobs, rtol=0, atol=1e-4)
        assert score.sum_logprob == pytest.approx(sum(score.logprobs), abs=1e-4)
    ids = [response.token_ids for response in responses[::3]]
    by_ids = model.logprobs(images, "Describe this image.", ids)
    np.testing.assert_allclose([s.sum_logprob for s in by_ids], [s.sum_logprob for s in again[::3]], atol=1e-3)
    assert [s.text for s in by_ids] == [r.text for r in responses[::3]]
    texts = model.logprobs(images[0], "What?", ["A dog.", "A cat sits."])
    assert [s.text for s in texts] == ["A dog.", "A cat sits."]
    assert all(s.token_ids[-1] == 2 for s in texts)  # </s>
    assert model.logprobs(images[0], "What?", "A dog.")[0].logprobs == pytest.approx(texts[0].logprobs, abs=1e-4)


def test_the_options_are_those_of_the_config():
    config = typing.get_type_hints(SamplingConfig)
    assert typing.get_type_hints(SamplingOptions) == config


def test_logprobs_take_what_generate_returned_however_the_prompts_were_given(model, images):
    words = ["What is it?", "What color is it?"]
    for given in (images[0], images, None):
        said = model.generate(given, iter(words), **GREEDY)
        for again in (words, tuple(words), iter(words), None):
            found = model.logprobs(given, again, said)
            assert [(s.index, s.prompt) for s in found] == [(r.index, r.prompt) for r in said]
        with pytest.raises(vj.InputError, match=r"answers 'What is it\?', and the prompt given is .*'Why\?'"):
            model.logprobs(given, ["Why?", words[1]], said)
    found = model.logprobs(images, words[0], model.generate(images, words[0], **GREEDY)[1:])
    assert [(s.index, s.prompt) for s in found] == [(1, words[0])]


REFUSED = [
    (lambda m, i: m.generate(3, "a"), "images: expected a path, bytes of an image file, a PIL image or a uint8 array"),
    (lambda m, i: m.generate([], "a"), "images: expected at least one, got an empty list"),
    (lambda m, i: m.generate([i[0], 3], "a"), r"images\[1\]: expected a path, .*, got int"),
    (lambda m, i: m.generate(np.zeros((4, 4, 3)), "a"), r"images: expected a uint8 array .*, got float64 \[4, 4, 3\]"),
    (lambda m, i: m.generate(np.zeros((2, 4, 4, 3), np.uint8), "a"), "give a list of images"),
    (lambda m, i: m.generate(np.zeros((0, 4, 3), np.uint8), "a"), r"got uint8 \[0, 4, 3\]"),
    (lambda m, i: m.generate("gone.jpg", "a"), "images: gone.jpg: no such image"),
    (lambda m, i: m.generate(b"no image", "a"), "sha256:.*: not a readable image"),
    (lambda m, i: m.generate(i, ["a"]), "prompts: expected one for each image, or one for all, got 1 for 2 images"),
    (lambda m, i: m.generate(i, []), "prompts: expected at least one, got an empty list"),
    (lambda m, i: m.generate(i, 3), "prompts: expected a string, or a list of one for each image, got int"),
    (lambda m, i: m.generate(i, ["a", 3]), r"prompts\[1\]: expected a string, got int"),
    (lambda m, i: m.generate(None, "<image> a"), "comes without an image"),
    (lambda m, i: m.generate(i, "a", temprature=1), "unknown sampling option 'temprature'; the nearest option is tem"),
    (lambda m, i: m.generate(i, "a", top_k=1.5), "sampling.top_k: expected a whole number, got 1.5"),
    (lambda m, i: m.generate(i, "a", top_p="1"), "sampling.top_p: expected a number, got '1'"),
    (lambda m, i: m.generate(i, "a", seed=True), "sampling.seed: expected a whole number, got True"),
    (lambda m, i: m.generate(i, "a", top_p=2), "sampling.top_p must be above 0 and at most 1"),
    (lambda m, i: m.logprobs(i, "a", []), "responses: expected at least one, got an empty list"),
    (lambda m, i: m.logprobs(i, "a", ["x"]), "expected one response for each image and prompt, got 1 for 2"),
    (
        lambda m, i: m.logprobs(i, "a", ["x", 2.5]),
        r"responses\[1\]: expected a string, token ids or a Resp",
    ),
    (lambda m, i: m.logprobs(i, None, ["x", "y"]), "prompts: expected what the responses answer, got None"),
    (lambda m, i: m.logprobs(i[0], "a", " "), "empty answer"),
    (lambda m, i: m.logprobs(i[0], "a", "x", batch_size=0), "batch_size: expected a whole number of at least 1, got 0"),
    (lambda m, i: m.logprobs(i[0], "a", "x", batch_size=-1), "batch_size: expected .*, got -1"),
    (lambda m, i: m.logprobs(i[0], "a", "x", batch_size="8"), "batch_size: expected .*, got '8'"),
    (lambda m, i: m.logprobs(i[0], "a", "x", batch_size=True), "batch_size: expected .*, got True"),
    (lambda m, i: m.logprobs(i[0], "a", [True, False]), r"responses\[0\]: expected a string, token ids or a Response"),
    (lambda m, i: m.logprobs(i[0], "a", [[5, True]]), r"responses\[0\]: expected a string, token ids or a Response"),
    (lambda m, i: m.generate(i, b"a"), "prompts: expected a string, or a list of one for each image, got bytes"),
    (lambda m, i: m.generate(i, {"a": 1}), "prompts: expected a string, or a list of one for each image, got dict"),
    (lambda m, i: m.logprobs(i[0], "a", [999]), "has the token id 999, expected 0 to 575"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_a_policy_refuses(model, images, call, message):
    with pytest.raises(vj.InputError, match=message) as caught:
        call(model, images)
    assert "\n" not in str(caught.value)


def test_responses_to_other_images_are_refused(model, images, responses):
    with pytest.raises(vj.InputError, match=r"responses\[0\] is about image 0, .*0\.jpg, and the one given .*1\.jpg"):
        model.logprobs(images[::-1], None, responses)
    with pytest.raises(vj.InputError, match=r"responses\[0\] answers 'Describe this image\.', and the prompt given is"):
        model.logprobs(images, "What?", responses)
    with pytest.raises(vj.InputError, match="expected all of them to come from generate, or none"):
        model.logprobs(images, "What?", [responses[0], "A dog."])


def test_what_load_refuses(tmp_path, world):
    for call, message in [
        (lambda: vj.load(3), "model: expected the directory of a checkpoint, got int"),
        (lambda: vj.load(tmp_path / "gone"), "is no directory"),
        (lambda: vj.load(world / "llava-1.5-7b-hf", vision_tower=3), "vision_tower: expected the directory of a CLIP"),
        (lambda: vj.load(world / "llava-1.5-7b-hf", mesh="auto"), "mesh: expected a MeshConfig or .*, got 'auto'"),
        (lambda: vj.load(world / "llava-1.5-7b-hf", dtype="bf16"), "dtype: expected one of float32, bfloat16, float16"),
        (lambda: vj.RewardModel.load(world / "reward-model", dtype="half"), "dtype: expected one of .*, got 'half'"),
        (lambda: vj.RewardModel.load(world / "reward-model", mesh=[1]), r"mesh: expected .*, got \[1\]"),
        (lambda: vj.export(None, tmp_path / "out"), "export: checkpoint: expected a path, got NoneType"),
        (lambda: vj.export(world / "llava-1.5-7b-hf", 3), "export: out: expected a path, got int"),
        (lambda: vj.export("a", "b", base=3), "export: base: expected a path, got int"),
        (lambda: vj.sentences(None), "text: expected a string, got NoneType"),
        (lambda: vj.phrases(None), "text: expected a string, got NoneType"),
        (lambda: vj.phrases("a", {"extractor": "entities"}), "config: expected a PhrasesConfig, got dict"),
        (lambda: vj.load(world / "llava-1.5-7b-hf", template="v9"), "template: expected one of"),
        (lambda: vj.RewardModel.load(world / "reward-model", questoin=""), "unknown option 'questoin'; the nearest"),
        (lambda: vj.Detector(), "give either addresses, of sidecars that serve, or model"),
        (lambda: vj.Detector("a:1", box_treshold=1), "Detector: unknown option 'box_treshold'; the nearest option is"),
        (lambda: vj.Detector("a:1", timeout="long"), "Detector: .*timeout"),
        (lambda: vj.RewardModel.load(world / "reward-model", batch_size=0), "reward_model.batch_size must be at least"),
        (lambda: vj.RewardModel.load(world / "reward-model", per="word"), "RewardModel.load: .*per"),
        (lambda: vj.Detector("a:1").judge([b""], ["a"]), "Detector: it is not connected"),
        (lambda: vj.run(3), "config: expected a TrainConfig, a YAML file or a mapping, got int"),
        (lambda: vj.run({"sft": {"epochz": 2}}), "unknown key sft.epochz; the nearest known one is sft.epochs"),
        (lambda: vj.sft(tmp_path / "gone.yaml"), "gone.yaml"),
    ]:
        with pytest.raises(vj.InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.main
def test_what_an_export_says_of_its_training_is_taken(tmp_path, world):
    for name in ("llava-1.5-7b-hf", "reward-model"):
        shutil.copytree(world / name, tmp_path / name)
        training = {"template": "v0", "per": "description", "question": "Is it so?", "freeze": []}
        (tmp_path / name / "vigor_jax.json").write_text(json.dumps({"template": "v0", "training": training}))
    assert vj.load(world / "llava-1.5-7b-hf").template_name == "v1"
    assert vj.load(tmp_path / "llava-1.5-7b-hf").template_name == "v0"
    assert vj.load(tmp_path / "llava-1.5-7b-hf", template="plain").template_name == "plain"
    config = vj.RewardModel.load(tmp_path / "reward-model", batch_size=2).stream._config
    assert (config.template, config.per, config.question) == ("v0", "description", "Is it so?")
    config = vj.RewardModel.load(tmp_path / "reward-model", question="And so?").stream._config
    assert (config.per, config.question) == ("description", "And so?")


# Judges


@pytest.fixture(scope="module")
def judged(world, images, responses):
    with vj.Detector(model=world / "grounding-dino-tiny", phrases=ENTITIES) as detector:
        texts = [["A dog. Two cats and a bench.", "A bus."], "No people, and a car."]
        by_detector = detector.judge(images, texts)
        same = detector.judge([Image.open(images[0])], [texts[0]])
        of_responses = detector.judge(images, responses)
    with pytest.raises(vj.InputError, match="Detector: it is not connected; judge inside"):
        detector.judge(images, texts)
    judge = vj.RewardModel.load(world / "reward-model", batch_size=2)
    return texts, by_detector, same, of_responses, judge.judge(images, texts), judge.judge(images, responses)


def test_judgments_are_a_table_in_the_order_of_the_texts(judged, images, responses):
    texts, by_detector, same, of_responses, by_model, model_of_responses = judged
    flat = [*texts[0], texts[1]]
    for stream, found in (("detector", by_detector), ("reward_model", by_model)):
        table = pandas.DataFrame(found)
        assert [*table.columns] == [
            "index", "image", "candidate", "text", "stream", "negative", "positive", "signals", "attributes",
        ]  # fmt: skip
        assert table["text"].tolist() == flat
        assert table["candidate"].tolist() == [0, 1, 0]
        assert table["image"].tolist() == [images[0]] * 2 + [images[1]]
        assert set(table["stream"]) == {stream}
    assert [signal.label for signal in by_detector[0].signals] == ["dog", "cat", "bench"]
    assert [len(judgment.signals) for judgment in by_model] == [2, 1, 1]
    assert [judgment.signals for judgment in same] == [judgment.signals for judgment in by_detector[:2]]
    for found in (of_responses, model_of_responses):
        assert [(j.index, j.candidate, j.text) for j in found] == [(r.index, r.candidate, r.text) for r in responses]


@pytest.mark.slow
@pytest.mark.main
def test_a_detector_is_asked_for_the_attributes_of_claims(world, images):
    tagged = vj.PhrasesConfig(tagger=ROOT / "vigor_jax" / "demo" / "checkpoints" / "tagger")
    claims = vj.Claims(phrases=tagged)
    with vj.Detector(model=world / "grounding-dino-tiny", phrases=tagged, claims=claims) as detector:
        (found,) = detector.judge(images[0], ["There is a star in red."])
    assert {"red star", "blue star"} <= {asked.phrase for asked in found.attributes}
    assert "orange star" not in {asked.phrase for asked in found.attributes}
    assert [said.stream for said in claims.judge([found])] == ["claims"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "responses: expected at least one text for each image, .*; got none"),
        (iter([]), "responses: expected at least one text for each image, .*; got none"),
        (None, "responses: expected at least one text for each image, .*; got NoneType"),
        (["a"], "responses: expected one text or list for each image, got 1 for 2 images"),
        (["a", 3], r"responses\[1\]: expected a text or a list of texts, got 3"),
        (["a", []], r"responses\[1\]: expected a text or a list of texts, got \[\]"),
        ([made(5, 0, "a")], r"responses: image 5, 5\.jpg, is not among the images"),
    ],
)
def test_what_judges_refuse(world, images, texts, message):
    judge = vj.RewardModel(None)
    with pytest.raises(vj.InputError, match=message):
        judge.judge(images, texts)


def test_sentences_and_phrases():
    text = "There is a dog on the bench. No cat!"
    found = vj.sentences(text)
    assert pandas.DataFrame(found).to_dict("list") == {
        "text": ["There is a dog on the bench.", "No cat!"], "start": [0, 29], "end": [28, 36],
    }  # fmt: skip
    named = vj.phrases(text, ENTITIES)
    assert [(p.text, bool(p.mentions), bool(p.denied)) for p in named] == [
        ("dog", True, False), ("bench", True, False), ("cat", False, True),
    ]  # fmt: skip


# Runs, types, docs


def test_a_config_from_anywhere_is_the_same(tmp_path):
    from vigor_jax.api.training import _train_config

    sections = {"model": {"path": "a b/model"}, "run": {"dir": str(tmp_path / "run"), "stages": ["sample", "score"]}}
    others = {"select": {"fusion": {"weights": {"detector": 0.5}}}, "sft": {"images": None, "epochs": 3}}
    (tmp_path / "c.yaml").write_text(json.dumps(sections))  # JSON is YAML
    from_file = _train_config(tmp_path / "c.yaml", others)
    assert from_file.select.fusion.weights == {"detector": 0.5}
    assert (from_file.sft.epochs, from_file.run.stages) == (3, ("sample", "score"))
    assert _train_config(sections, others) == from_file
    assert _train_config(None, sections | others) == from_file
    assert _train_config(from_file, {}) == from_file
    assert _train_config(from_file, {"run": from_file.run, "sft": {"epochs": 4}}).sft.epochs == 4


# Of each kind one; `test_configs.py` reads all of them at each gate.
OF_EACH_KIND = {"fisao_7b.yaml", "vigor_all_claims_7b.yaml"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.name, marks=[pytest.mark.slow] * (path.name not in OF_EACH_KIND))
        for path in sorted((ROOT / "configs").glob("*.yaml"))
    ],
)
def test_a_whole_config_comes_through_unchanged(name):
    from vigor_jax.api.training import _train_config

    arguments = ["--config", str(ROOT / "configs" / name), "--run.dir=runs/a", "--model.path=a/b"]
    config = cli.parse(TrainConfig, arguments, description="")
    assert _train_config(config, {}) == config
    streams = "detector", StreamConfig("streams.py:Mine", {"weight": 0.5, "words": ["a", "b"], "deep": {"x": None}})
    config = dataclasses.replace(config, score=dataclasses.replace(config.score, streams=streams))
    assert _train_config(config, {}) == config
    parts = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    assert _train_config(None, parts) == config
    assert _train_config({"run": parts.pop("run")}, parts) == config


def test_values_of_options_may_be_numpys_and_paths_are_no_names_on_the_hub(tmp_path, monkeypatch):
    from vigor_jax.api.training import _train_config

    run = {"dir": Path("runs/a"), "rounds": np.int64(2)}
    options = {"weights": np.array([1.5, 2]), "where": Path("a/b")}
    score = {"streams": [StreamConfig("s.py:S", options)], "reward_model": Path("org/judge")}
    config = _train_config(
        {"run": run, "model": {"path": Path("org/name")}}, {"sft": {"learning_rate": np.float32(0.5)}, "score": score}
    )
    assert (config.run.dir, config.run.rounds, config.sft.learning_rate) == (Path("runs/a"), 2, 0.5)
    assert config.score.streams == (StreamConfig("s.py:S", {"weights": [1.5, 2.0], "where": "./a/b"}),)
    for place in (config.model.path, config.score.reward_model):
        assert not is_id(place)
    assert Path(config.model.path) == Path("org/name")
    assert is_id(_train_config({"run": run, "model": {"path": "org/name"}}, {}).model.path)
    with pytest.raises(vj.InputError, match=r"^sft.epochs: \{1\} is no value of an option"):
        _train_config({"run": run, "model": {"path": "a"}, "sft": {"epochs": {1}}}, {})

    # What is opened: a Path that does not exist is no directory, and nothing is asked of the Hub.
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda path: vj.load(path),
        lambda path: vj.RewardModel.load(path),
        lambda path: vj.export(path, tmp_path / "out"),
    ):
        with pytest.raises(vj.InputError, match=r"org/name(: neither| is no directory)"):
            call(Path("org/name"))


@pytest.mark.parametrize("rounds", [1, 3])
def test_sft_returns_the_export_of_the_last_round(tmp_path, monkeypatch, rounds):
    """Where the pipeline puts it; the docs' own run trains for real."""
    done = []
    monkeypatch.setattr(pipeline_rounds, "run_rounds", done.append)
    run = RunConfig(tmp_path / "run", ("sample",), rounds=rounds)
    for given in (run, {"dir": run.dir, "rounds": rounds}):
        found = vj.sft(run=given, model={"path": "a"})
        assert done[-1].run == dataclasses.replace(run, stages=("sft", "export"))
        assert found == (run.dir if rounds == 1 else run.dir / "round-3") / "export"
    assert vj.run(run=run, model={"path": "a"}) == run.dir
    with pytest.raises(vj.InputError, match="run: expected a mapping or a RunConfig, got int"):
        vj.sft(run=3)


def test_a_users_program_has_every_public_name():
    program = (ROOT / "tests" / "api_program.py").read_text()
    assert {f"vj.{name}" for name in vj.__all__} <= set(re.findall(r"vj\.\w+", program))


@pytest.mark.slow
@pytest.mark.main
def test_types_of_a_users_program(tmp_path):
    """`mypy --strict` on that program, which finds the package as an installed one is found:
    what is wrong inside it, or in what it stands on, is not the program's."""
    program = ROOT / "tests" / "api_program.py"
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\nfollow_imports = silent\nfollow_imports_for_stubs = true\n")
    command = [sys.executable, "-m", "mypy", f"--config-file={config}", str(program)]
    # Without PYTHONPATH, whose folders mypy takes for installed packages.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    notes = re.findall(r'Revealed type is "(.+)"', done.stdout)
    assert "error:" not in done.stdout, done.stdout
    expected = [
        "vigor_jax.inference.policy.Policy",
        "list[vigor_jax.inference.responses.Response]",
        "tuple[float, ...]",
        "list[vigor_jax.inference.responses.ResponseLogprobs]",
        "list[vigor_jax.api.models.Judgment]",
        "list[vigor_jax.api.selection.Chosen]",
        "pathlib.Path",
    ]
    assert [note.replace("builtins.", "") for note in notes] == expected


@pytest.mark.slow
@pytest.mark.main
def test_the_docs_run_word_by_word(world, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    monkeypatch.chdir(world)
    space, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, block in enumerate(blocks):
            exec(compile(block, f"docs/api.md, block {number}", "exec"), space)
    assert len(space["responses"]) == len(space["again"]) == len(space["found"]) == len(space["said"]) == 10
    assert space["tuned"] == Path("runs/sft/export")
    assert (world / "llava-tuned" / "config.json").is_file()
    assert "decided_by" not in printed.getvalue()
    assert "['There is a dog on the bench.', 'There is no cat.']" in printed.getvalue()
