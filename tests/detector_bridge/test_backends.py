"""The backends against the libraries called directly, against each other, and against themselves in batches."""

import json
import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from detector_bridge.backends.grounding import Grid
from detector_bridge.backends.transformers import TransformersBackend
from detector_bridge.convert import to_original
from detector_bridge.errors import InputError
from tests.detector_bridge.tiny_detector import draw_scene, prompt_of, write_transformers

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("VIGOR_DETECTOR_PYTHON", ROOT / ".venv-detector" / "bin" / "python"))
needs_groundingdino = pytest.mark.skipif(
    not PYTHON.exists(), reason="NOT TESTED: groundingdino-py; make its environment with scripts/detector_env.sh"
)
PHRASES = (("dog", "traffic light", "red circle"), ("dog",), ("table", "cat"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_transformers(tmp_path_factory.mktemp("tiny") / "detector")


@pytest.fixture(scope="module")
def backend(checkpoint):
    return TransformersBackend.load(checkpoint)


@pytest.fixture(scope="module")
def prompts(backend):
    return [prompt_of(backend, *phrases) for phrases in PHRASES]


@pytest.fixture(scope="module")
def pixels(backend):
    return np.stack([backend.prepare(draw_scene(seed)) for seed in range(2)])


def assert_close(ours, theirs, tolerance):
    np.testing.assert_allclose(ours.tokens, theirs.tokens, rtol=0, atol=tolerance)
    np.testing.assert_allclose(ours.boxes_xyxy, theirs.boxes_xyxy, rtol=0, atol=tolerance)


def row(scores, r, length):
    return type(scores)(scores.tokens[r : r + 1, :, :length], scores.boxes_xyxy[r : r + 1])


def test_scores_are_those_of_the_library(checkpoint, backend):
    image = draw_scene(0)
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(checkpoint)
    inputs = processor(images=image, text="dog. traffic light. red circle.", return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    prompt = prompt_of(backend, *PHRASES[0])
    assert inputs["input_ids"].tolist() == [prompt]
    scores = backend.detect(backend.prepare(image)[None], [prompt], [0])
    assert scores.tokens.dtype == scores.boxes_xyxy.dtype == np.float32
    assert scores.tokens.shape == (1, 40, len(prompt))
    np.testing.assert_allclose(scores.tokens[0], outputs.logits.sigmoid()[0, :, : len(prompt)], atol=1e-5)
    center, size = outputs.pred_boxes[0].split(2, dim=-1)
    corners = torch.cat([center - size / 2, center + size / 2], dim=-1).clip(0, 1)
    np.testing.assert_allclose(scores.boxes_xyxy[0], corners, atol=1e-5)


def test_scores_of_the_tiny_model_tell_phrases_and_pictures_apart(backend, pixels, prompts):
    scores = backend.detect(pixels, [prompts[0]] * 2, [0, 1]).tokens
    assert scores.min() < 0.05
    assert scores.max() > 0.6
    best = scores[:, :, 1:-1].max(axis=1)
    assert best.std(axis=1).min() > 0.1
    assert np.abs(best[0] - best[1]).max() > 0.02


@pytest.mark.slow
@pytest.mark.main
def test_a_batch_gives_what_each_prompt_gives_alone(backend, pixels, prompts):
    image_of = [0, 0, 1, 1, 0, 1]
    batch = backend.detect(pixels, prompts * 2, image_of)
    for r, image in enumerate(image_of):
        prompt = prompts[r % 3]
        alone = backend.detect(pixels[image : image + 1], [prompt], [0])
        assert_close(row(batch, r, len(prompt)), alone, 1e-4)
        assert not batch.tokens[r, :, len(prompt) :].any()


@pytest.mark.slow
@pytest.mark.main
def test_each_picture_is_looked_at_once(backend, pixels, prompts, monkeypatch):
    seen = []
    encoder = backend._network.model.backbone.backbone.conv_encoder
    hook = encoder.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    backend.detect(pixels, prompts * 3, [0, 1, 0, 1, 0, 1, 0, 1, 0])
    hook.remove()
    assert seen == [pixels.shape]


def test_phrases_hold_no_special_tokens(backend):
    assert backend.tokenize("red circle") == [backend._tokenizer.token_to_id(word) for word in ("red", "circle")]
    for text in ("[SEP]", "a [CLS] dog", "[PAD] [MASK] [UNK]"):
        assert not {0, 100, 101, 102, 103} & set(backend.tokenize(text))
    assert backend.tokenize("") == []


def test_phrases_are_tokenized_by_several_threads(backend):
    texts = [f"dog {i}" for i in range(50)]
    expected, wrong = [backend.tokenize(text) for text in texts], []

    def work():
        for _ in range(20):
            wrong.extend(text for text, ids in zip(texts, expected, strict=True) if backend.tokenize(text) != ids)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pictures_take_the_size_of_the_checkpoint_or_that_asked_for(checkpoint, backend):
    assert backend.prepare(draw_scene(0, 320, 240)).shape == (3, 224, 298)
    assert backend.prepare(draw_scene(0, 500, 100)).shape == (3, 80, 400)
    other = TransformersBackend.load(checkpoint, short_side=64, long_side=100)
    assert other.prepare(draw_scene(0, 320, 240)).shape == (3, 64, 85)
    assert other.prepare(draw_scene(0, 240, 480)).shape == (3, 100, 50)
    with pytest.raises(InputError, match="3000 x 1 pixels"):
        backend.prepare(Image.new("RGB", (3000, 1)))


def counted(network, height, width):
    """How many encoder positions the model itself makes of a picture."""
    features, _ = network.model.backbone.backbone(torch.zeros(1, 3, height, width), torch.ones(1, height, width))
    maps = [feature for feature, _ in features]
    maps.append(network.model.input_proj_vision[-1](maps[-1]))
    return sum(map_.shape[-2] * map_.shape[-1] for map_ in maps)


def test_pictures_are_padded_only_where_positions_are_too_few(backend):
    for height, width in ((224, 298), (5, 400), (33, 65), (1, 1), (97, 31)):
        positions = counted(backend._network, height, width)
        for queries in (positions, positions + 1):
            padded = backend._grid._replace(queries=queries).padded(height, width)
            if queries == positions:
                assert padded == (height, width)
            else:
                assert padded >= (height, width)
                assert counted(backend._network, *padded) >= queries


def test_a_backbone_that_leaves_out_remainders_pads_sooner():
    grid = Grid.of([(32, 32), (16, 16)], levels=3, queries=100)
    assert not grid.round_up
    assert grid.fits(80, 80)  # 100 + 25 + 9
    assert not grid._replace(queries=135).fits(87, 87)
    assert grid.padded(15, 800) == (32, 800)  # nothing would be left of the second map


def test_boxes_of_a_padded_strip_are_relative_to_the_strip(tmp_path, checkpoint):
    """With box heads that change nothing, boxes are the cells they started from, centered at (i + 0.5) / cells."""
    directory = write_transformers(tmp_path / "strip", queries=120)
    tensors = load_file(directory / "model.safetensors")
    heads = [key for key in tensors if "bbox_embed" in key and ".layers.2." in key]
    assert heads
    save_file(tensors | {key: 0 * tensors[key] for key in heads}, directory / "model.safetensors", {"format": "pt"})
    backend = TransformersBackend.load(directory)
    image = Image.fromarray(np.asarray(draw_scene(1, 2000, 8)))
    pixels = backend.prepare(image)[None]
    pixels = np.repeat(pixels, 4, axis=2)  # [1, 3, 8, 400]: one row of cells, 50 + 25 + 13 + 7
    assert pixels.shape[-2:] == (8, 400)
    assert backend._grid.padded(8, 400) == (64, 448)
    boxes = backend.detect(pixels, [prompt_of(backend, "dog")], [0]).boxes_xyxy[0]
    centers = (boxes[:, 0] + boxes[:, 2]) / 2
    widths = boxes[:, 2] - boxes[:, 0]
    inside = (boxes[:, 0] > 0) & (boxes[:, 2] < 1)
    for level, cells in enumerate((50, 25, 13, 7)):
        of_level = inside & np.isclose(widths, 0.05 * 2**level, atol=1e-4)
        assert of_level.sum() >= 2
        offsets = centers[of_level] * cells - 0.5
        np.testing.assert_allclose(offsets, np.round(offsets), atol=1e-3)
        middles = (boxes[of_level, 1] + boxes[of_level, 3]) / 2
        np.testing.assert_allclose(middles, 0.5, atol=1e-3)


@pytest.mark.slow
@pytest.mark.main
def test_half_precision_keeps_scores(checkpoint, backend, pixels, prompts):
    """Random weights exaggerate: bfloat16 changes which places become queries, so only the mean is bounded there."""
    exact = backend.detect(pixels[:1], prompts, [0, 0, 0])
    for dtype, summary in (("float16", np.max), ("bfloat16", np.mean)):
        half = TransformersBackend.load(checkpoint, dtype=dtype)
        assert half.dtype == dtype
        ours = half.detect(pixels[:1], prompts, [0, 0, 0])
        assert ours.tokens.dtype == ours.boxes_xyxy.dtype == np.float32
        assert 0 < summary(np.abs(ours.tokens.max(axis=1) - exact.tokens.max(axis=1))) < 0.05


def test_weights_may_be_a_bin_file_and_their_digest_tells_them_apart(tmp_path, checkpoint, backend, pixels, prompts):
    tensors = load_file(checkpoint / "model.safetensors")
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    other = TransformersBackend.load(tmp_path)
    assert other.digest != backend.digest
    assert_close(*(each.detect(pixels, prompts, [0, 1, 0]) for each in (other, backend)), 1e-6)


def test_loading_says_what_is_wrong(tmp_path, checkpoint):
    def variant(name, **changes):
        directory = tmp_path / name
        directory.mkdir()
        for path in checkpoint.iterdir():
            content = changes.get(path.name.replace(".", "_"), path.read_bytes())
            if content is not None:
                (directory / path.name).write_bytes(content)
        return directory

    def tensors(name, change):
        directory = variant(name)
        content = load_file(directory / "model.safetensors")
        change(content)
        save_file(content, directory / "model.safetensors", {"format": "pt"})
        return directory

    config = json.loads((checkpoint / "config.json").read_text())
    wider = json.dumps(config | {"num_queries": 41}).encode()
    tokenizer = (checkpoint / "tokenizer.json").read_text().replace("1012", "1013x", 1).encode()
    cases = [
        (tmp_path / "none", "found none"),
        (variant("no-weights", model_safetensors=None), "model\\*.safetensors"),
        (variant("cut", model_safetensors=b"123"), "no GroundingDINO could be read"),
        (variant("no-config", config_json=None), "no detector could be read"),
        (variant("other-model", config_json=b'{"model_type": "bert"}'), "got a bert"),
        (variant("no-processor", preprocessor_config_json=None), "no image processor"),
        (variant("wider", config_json=wider), "41|mismatched"),
        (variant("bad-tokenizer", tokenizer_json=tokenizer, vocab_txt=None), "tokenizer"),
        (tensors("missing", lambda t: t.pop("model.level_embed")), "missing: model.level_embed"),
        (tensors("left-over", lambda t: t.update(x=torch.zeros(1))), "unexpected: x"),
    ]
    for directory, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            TransformersBackend.load(directory)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="device"):
        TransformersBackend.load(checkpoint, device="cuda:99")
    with pytest.raises(InputError, match="dtype"):
        TransformersBackend.load(checkpoint, dtype="int8")


def test_prompts_that_do_not_fit_are_refused(backend, pixels, prompts):
    with pytest.raises(InputError, match="257 tokens"):
        backend.detect(pixels, [[101, *[1000] * 254, 1012, 102]], [0])
    with pytest.raises(InputError, match="image_of"):
        backend.detect(pixels, prompts[:1], [2])


def in_second_environment(tmp_path, checkpoint, original, pixels, prompts, image_of):
    """What both backends, and the package's own `predict`, make of the same arrays under transformers 4."""
    np.savez(tmp_path / "in.npz", pixels=pixels, image_of=image_of)
    image = tmp_path / "scene.png"
    draw_scene(0).save(image)
    task = {
        "transformers": str(checkpoint),
        "original": str(original),
        "prompts": prompts,
        "phrases": PHRASES[0],
        "image": str(image),
        "arrays": str(tmp_path / "in.npz"),
        "out": str(tmp_path / "out.npz"),
    }
    script = Path(__file__).with_name("run_groundingdino.py")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [PYTHON, "-W", "ignore", script, json.dumps(task)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "out.npz", allow_pickle=False) as out:
        return dict(out)


def assert_matched(ours, theirs, tolerance):
    """Every row of [Q, F] has its like among the other's: near ties may change the order of queries, nothing else."""
    distances = np.abs(ours[:, None] - theirs[None]).max(axis=-1)
    assert distances.min(axis=0).max() <= tolerance
    assert distances.min(axis=1).max() <= tolerance


def check_agreement(tmp_path, sizes, shapes, *, queries_alike, tolerance=1e-3):
    checkpoint = write_transformers(tmp_path / "transformers", d_model=256, **sizes)
    if queries_alike:  # a query then depends on its place in the picture and not on its rank
        tensors = load_file(checkpoint / "model.safetensors")
        ranks = tensors["model.query_position_embeddings.weight"]
        ranks[:] = ranks[:1].clone()
        save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    to_original(checkpoint, tmp_path / "original")
    backend = TransformersBackend.load(checkpoint)
    prompts = [prompt_of(backend, *phrases) for phrases in PHRASES]
    image_of = [0, 1, 1]
    full = np.stack([backend.prepare(draw_scene(seed)) for seed in range(2)])
    for height, width in shapes:
        pixels = np.ascontiguousarray(full[:, :, :height, :width])
        ours = np.concatenate(backend.detect(pixels, prompts, image_of), axis=-1)
        out = in_second_environment(tmp_path, checkpoint, tmp_path / "original", pixels, prompts, image_of)
        for name in ("transformers", "groundingdino"):
            theirs = np.concatenate([out[f"{name}_tokens"], out[f"{name}_boxes"]], axis=-1)
            assert theirs.shape == ours.shape
            for r in range(len(prompts)):
                assert_matched(ours[r], theirs[r], tolerance)
        assert out["rows_seen"].tolist() == [2]
    prepared = backend.prepare(draw_scene(0))
    np.testing.assert_allclose(out["prepared"], prepared, atol=1e-5)
    alone = backend.detect(prepared[None], prompts[:1], [0])
    assert alone.tokens.std() > 0.05
    ours = np.column_stack([alone.tokens[0].max(axis=-1), alone.boxes_xyxy[0]])
    assert_matched(ours, np.column_stack([out["predict_scores"], out["predict_boxes"]]), tolerance)


@needs_groundingdino
@pytest.mark.slow
def test_both_backends_agree_across_libraries(tmp_path):
    check_agreement(tmp_path, {}, [(224, 298), (9, 298)], queries_alike=False)


@needs_groundingdino
@pytest.mark.slow
def test_both_backends_agree_on_swin_t(tmp_path):
    sizes = {
        "embed_dim": 96,
        "depths": (2, 2, 6, 2),
        "swin_heads": 3,
        "layers": 6,
        "heads": 8,
        "ffn": 2048,
        "queries": 900,
        "text_width": 768,
        "text_layers": 12,
    }
    check_agreement(tmp_path, sizes, [(224, 298)], queries_alike=True)
