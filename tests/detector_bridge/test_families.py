"""The other detectors of transformers, against the library's own models and processors called directly."""

import importlib

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from detector_bridge.backends.transformers import FAMILIES, TransformersBackend
from detector_bridge.backends.transformers_omdet import suppressed
from detector_bridge.errors import InputError
from detector_bridge.prompts import find_phrases
from detector_bridge.refusal import RefusedError
from tests.detector_bridge.tiny_detector import draw_scene
from tests.detector_bridge.tiny_families import SIZE, WRITERS

# By its whole name: the library hides the module where there is no torchvision.
processing_omdet_turbo = importlib.import_module("transformers.models.omdet_turbo.processing_omdet_turbo")
PHRASES = ("dog", "traffic light", "a surfboard xyz", "red circle")
SIZES = ((200, 120), (90, 210), (128, 128), (300, 40))
WHOLE = ("owlv2", "owlvit", "omdet-turbo")  # score a phrase as a whole


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {kind: WRITERS[kind](folder / kind) for kind in WRITERS if kind != "grounding-dino"}


@pytest.fixture(scope="module")
def backends(checkpoints):
    return {kind: TransformersBackend.load(path) for kind, path in checkpoints.items()}


def ask(backend, image, phrases):
    """Score, boxes and their scores of each phrase, as the server has them, but at a threshold of 0."""
    prompts = backend.make_prompts(phrases)
    scores = backend.detect(backend.prepare(image)[None], [prompt.tokens for prompt in prompts], [0] * len(prompts))
    found = {}
    for prompt, tokens, boxes in zip(prompts, *backend.in_picture(scores, *image.size), strict=True):
        found |= find_phrases(prompt.spans, tokens, boxes, 0.0, 0.0)
    return found


def assert_same(ours, scores, boxes, size):
    """Every kept box has its like among the library's, which are in pixels and may lie outside the picture."""
    boxes = np.clip(np.asarray(boxes) / (size * 2), 0, 1)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    scores, boxes = np.asarray(scores)[inside], boxes[inside]
    order = np.argsort(-scores, kind="stable")
    assert len(ours.scores) == len(scores) > 0
    np.testing.assert_allclose(ours.scores, scores[order], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.boxes_xyxy, boxes[order], rtol=0, atol=1e-5)
    assert ours.score == ours.scores[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["Owlv2", "OwlViT"])
def test_owl_is_the_librarys(checkpoints, backends, kind, size):
    path, backend = checkpoints[kind.lower()], backends[kind.lower()]
    image = draw_scene(1, *size)
    images = getattr(transformers, f"{kind}ImageProcessorPil", None) or getattr(transformers, f"{kind}ImageProcessor")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    processor = getattr(transformers, f"{kind}Processor")(images.from_pretrained(path), tokenizer)
    model = getattr(transformers, f"{kind}ForObjectDetection").from_pretrained(path)
    ours = ask(backend, image, PHRASES)
    for phrase in PHRASES:  # one by one: the library keeps the best phrase of a box only
        inputs = processor(text=[[phrase]], images=image, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        (theirs,) = processor.post_process_grounded_object_detection(
            outputs, threshold=0.0, target_sizes=[image.size[::-1]]
        )
        assert_same(ours[phrase], theirs["scores"], theirs["boxes"], image.size)
    best = [found.score for found in ours.values()]
    assert max(best) - min(best) > 1e-3  # phrases are told apart, and by more than the tolerance


def plain_suppression(boxes, scores, labels, overlap):
    """What torchvision's `batched_nms` does, box by box."""
    kept = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        rivals = [j for j in kept if labels[j] == labels[i]]
        if all(iou(boxes[i].tolist(), boxes[j].tolist()) <= overlap for j in rivals):
            kept.append(i)
    return torch.tensor(kept)


def iou(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)


@pytest.mark.parametrize("size", SIZES)
def test_omdet_turbo_is_the_librarys(checkpoints, backends, monkeypatch, size):
    """Its processor needs torchvision for the suppression of boxes only; where it is not there, the test does that."""
    if not hasattr(processing_omdet_turbo, "batched_nms"):
        monkeypatch.setattr(processing_omdet_turbo, "batched_nms", plain_suppression, raising=False)
    path, image = checkpoints["omdet-turbo"], draw_scene(1, *size)
    images = getattr(transformers, "DetrImageProcessorPil", None) or transformers.DetrImageProcessor
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.OmDetTurboForObjectDetection.from_pretrained(path)
    padded = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
    task, classes = (tokenizer(text, **padded) for text in ([f"Detect {', '.join(PHRASES)}."], list(PHRASES)))
    with torch.no_grad():
        outputs = model(
            pixel_values=images.from_pretrained(path)(images=image, return_tensors="pt")["pixel_values"],
            classes_input_ids=classes["input_ids"],
            classes_attention_mask=classes["attention_mask"],
            tasks_input_ids=task["input_ids"],
            tasks_attention_mask=task["attention_mask"],
            classes_structure=torch.tensor([len(PHRASES)]),
        )
    (theirs,) = processing_omdet_turbo.OmDetTurboProcessor.post_process_grounded_object_detection(
        None, outputs, threshold=0.0, target_sizes=[image.size[::-1]], max_num_det=30 * len(PHRASES)
    )
    ours = ask(backends["omdet-turbo"], image, PHRASES)
    for number, phrase in enumerate(PHRASES):
        own = theirs["labels"] == number
        assert_same(ours[phrase], theirs["scores"][own], theirs["boxes"][own], image.size)


def test_mm_grounding_dino_is_the_librarys(checkpoints, backends):
    path, backend = checkpoints["mm-grounding-dino"], backends["mm-grounding-dino"]
    images = getattr(transformers, "GroundingDinoImageProcessorPil", None) or transformers.GroundingDinoImageProcessor
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    processor = transformers.GroundingDinoProcessor(images.from_pretrained(path), tokenizer)
    model = transformers.MMGroundingDinoForObjectDetection.from_pretrained(path)
    for size in SIZES[:2]:
        image = draw_scene(1, *size)
        inputs = processor(images=image, text="dog. traffic light. red circle.", return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        (theirs,) = processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], threshold=0.0, text_threshold=0.0, target_sizes=[image.size[::-1]]
        )
        (prompt,) = backend.make_prompts(("dog", "traffic light", "red circle"))
        assert [list(prompt.tokens)] == inputs["input_ids"].tolist()
        found = backend.detect(backend.prepare(image)[None], [prompt.tokens], [0])
        np.testing.assert_allclose(found.tokens[0].max(axis=1), theirs["scores"], rtol=0, atol=1e-5)
        boxes = np.clip(theirs["boxes"].numpy() / (image.size * 2), 0, 1)
        np.testing.assert_allclose(found.boxes_xyxy[0], boxes, rtol=0, atol=1e-5)
        tokens = outputs.logits.sigmoid()[0, :, : len(prompt.tokens)]
        np.testing.assert_allclose(found.tokens[0], tokens, rtol=0, atol=1e-5)
        assert tokens[:, 1:-1].std() > 0.02


@pytest.mark.parametrize("kind", WHOLE)
def test_batches_give_what_each_gives_alone(backends, kind):
    backend = backends[kind]
    asked = [("dog",), PHRASES, ("table", "cat"), ("bus",)]
    images = [draw_scene(seed, *size) for seed, size in enumerate(SIZES)]
    pixels = np.stack([backend.prepare(image) for image in images])
    assert pixels.shape == (4, 3, SIZE, SIZE)
    prompts = [backend.make_prompts(phrases)[0] for phrases in asked]
    rows = [(0, 0), (1, 1), (2, 2), (3, 3), (1, 0), (0, 2)]  # prompt, image
    batch = backend.detect(pixels, [prompts[i].tokens for i, _ in rows], [image for _, image in rows])
    assert batch.tokens.shape[0] == len(rows)
    for r, (i, image) in enumerate(rows):
        alone = backend.detect(pixels[image : image + 1], [prompts[i].tokens], [0])
        count = len(asked[i])
        np.testing.assert_allclose(batch.tokens[r, :, :count], alone.tokens[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(batch.boxes_xyxy[r], alone.boxes_xyxy[0], rtol=0, atol=1e-5)
        assert not batch.tokens[r, :, count:].any()


def test_boxes_of_owlv2_are_relative_to_the_picture_and_not_to_its_padding(backends):
    scores = type(backends["owlv2"].detect(np.zeros((1, 3, SIZE, SIZE), np.float32), [[[1]]], [0]))(
        np.full((1, 3, 1), 0.5, np.float32),
        np.array([[[0.1, 0.05, 0.3, 0.2], [0.2, 0.2, 0.4, 0.4], [0.2, 0.3, 0.4, 0.5]]], np.float32),
    )
    wide = backends["owlv2"].in_picture(scores, 400, 100)
    np.testing.assert_allclose(
        wide.boxes_xyxy[0], [[0.1, 0.2, 0.3, 0.8], [0.2, 0.8, 0.4, 1], [0.2, 1, 0.4, 1]], atol=1e-6
    )
    assert wide.tokens.ravel().tolist() == [0.5, 0.5, 0.0]  # the last one lies in the padding
    assert backends["owlvit"].in_picture(scores, 400, 100) is scores


def test_texts_that_are_too_long(backends):
    """OWL reads a phrase as far as it can; the task of OmDet-Turbo is continued in another prompt."""
    long = "dog " * 40
    (prompt,) = backends["owlv2"].make_prompts((long, "cat"))
    assert [len(text) for text in prompt.tokens] == [16, 3]
    assert prompt.tokens[0][0] == prompt.tokens[1][0] == prompt.tokens[0][-1] - 1
    names = [f"red dog {number}" for number in range(60)]
    prompts = backends["omdet-turbo"].make_prompts(names)
    assert len(prompts) > 1
    assert [name for prompt in prompts for name in prompt.spans] == names
    assert all(len(text) <= 77 for prompt in prompts for text in prompt.tokens)
    for kind in WHOLE:
        with pytest.raises(RefusedError, match="has no word in it"):
            backends[kind].make_prompts(("dog", "?"))
        with pytest.raises(RefusedError, match="expected at least one"):
            backends[kind].make_prompts(())


@pytest.mark.parametrize("seed", range(5))
def test_suppression_is_the_plain_one(seed):
    random = np.random.default_rng(seed)
    corner, size = random.uniform(0, 0.6, (25, 2)), random.uniform(0.1, 0.4, (25, 2))
    boxes, scores = np.concatenate([corner, corner + size], axis=1), random.uniform(size=(25, 3))
    gone = suppressed(scores, boxes)
    for phrase in range(3):
        kept = plain_suppression(torch.tensor(boxes), torch.tensor(scores[:, phrase]), torch.zeros(25), 0.5)
        assert sorted(kept.tolist()) == np.flatnonzero(~gone[:, phrase]).tolist()
    assert 0 < gone.sum() < gone.size


# Refusals


def test_a_model_that_is_not_served(tmp_path, checkpoints):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(InputError) as caught:
        TransformersBackend.load(tmp_path)
    assert str(caught.value) == (
        f"expected a zero-shot detector in {tmp_path}, one of grounding-dino, mm-grounding-dino, owlv2, owlvit, "
        "omdet-turbo, got a detr"
    )
    assert list(FAMILIES) == ["grounding-dino", "mm-grounding-dino", "owlv2", "owlvit", "omdet-turbo"]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"expected a config\.json that has a model_type"):
        TransformersBackend.load(tmp_path)


@pytest.mark.parametrize("kind", WHOLE)
def test_sides_and_weights_that_do_not_fit(tmp_path, checkpoints, kind):
    with pytest.raises(InputError, match=r"--short-side and --long-side are for GroundingDINO.*which reads pictures"):
        TransformersBackend.load(checkpoints[kind], short_side=100)
    for path in checkpoints[kind].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"x": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="unexpected: x"):
        TransformersBackend.load(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "model.safetensors").write_bytes((checkpoints[kind] / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="no image processor could be read"):
        TransformersBackend.load(tmp_path)


def test_a_library_without_the_model(monkeypatch, checkpoints):
    monkeypatch.delattr(transformers, "Owlv2ForObjectDetection")
    monkeypatch.setitem(transformers.__dict__, "Owlv2ForObjectDetection", None)
    with pytest.raises(InputError, match=r"is a OWLv2, which transformers .* does not have; update it"):
        TransformersBackend.load(checkpoints["owlv2"])
