"""Whole CLIPs against transformers: embeddings and scores, tokens, and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.tiny_clip import REAL_VOCABULARY, TinyClip, build_checkpoint, build_model, small_vocabulary
from tests.tiny_llava import Tiny
from tests.tiny_llava import build_checkpoint as build_llava
from vigor_jax.data.images.preprocessing import load_image, preprocess
from vigor_jax.errors import InputError
from vigor_jax.hf.clip.checkpoint import compare_towers, open_clip
from vigor_jax.hf.clip.config import from_hf, to_hf
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh

TINY = TinyClip()
VARIANTS = [
    TINY,
    dataclasses.replace(TINY, old_end=True),
    dataclasses.replace(TINY, act="gelu", text_layers=1, text_heads=2, projection=7),
    dataclasses.replace(TINY, vision_layers=1, text_width=32, text_heads=4, image_size=56, patch_size=8),
    dataclasses.replace(TINY, text_layers=4, text_mlp=32, positions=77, projection=64, old_end=True),
]
TEXTS = [
    "dog", "The Dog", "a cat and the dog on a mat", "", "teddy bear", "é 猫 ?!", "  many   spaces\n here ",
    "it's the cat's 123", "the " * 100,
]  # fmt: skip
CLOSE = 1e-5


def mesh():
    return make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])


def embeddings(directory, texts, pixels, scan=True):
    clip = open_clip(directory)
    model = clip.load(mesh=mesh(), dtype=jnp.float32, scan=scan)
    words = np.concatenate([model.embed_texts(jnp.asarray(clip.tokenizer.rows([text]))) for text in texts])
    together = np.asarray(model.embed_texts(jnp.asarray(clip.tokenizer.rows(texts))))
    assert np.abs(words - together).max() < CLOSE  # whatever stands behind a text, and next to it
    return together, np.asarray(model.embed_images(jnp.asarray(pixels)))


def reference(directory, texts, images):
    """As transformers' own pipeline: its tokenizer pads with end tokens, its processor makes the pixels."""
    model = transformers.CLIPModel.from_pretrained(directory).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(directory)
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    pixels = transformers.CLIPImageProcessor.from_pretrained(directory)(images, return_tensors="pt")
    with torch.no_grad():
        found = model(**tokens, **pixels)
        projected = model.get_text_features(**tokens)
    projected = getattr(projected, "pooler_output", projected)
    projected = projected / projected.norm(dim=-1, keepdim=True)
    assert torch.allclose(projected, found.text_embeds, atol=1e-6)
    scale = model.logit_scale.exp()
    return found.text_embeds.numpy(), found.image_embeds.numpy(), (found.logits_per_image / scale).detach().numpy()


def pictures(size, count=3, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(size, size), (size + 9, size), (size, 2 * size)][:count]
    return [Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]


def ours_of(directory, images):
    settings = open_clip(directory).preprocessing
    return np.stack([preprocess(image, settings) for image in images])


def marks_of(number: int, scan: bool) -> list[pytest.MarkDecorator]:
    """Each takes long to compile: two are fast, of which one, of layers that are apart, runs once."""
    if (number, scan) in ((0, True), (2, False)):
        return [] if scan else [pytest.mark.main]
    return [pytest.mark.slow, pytest.mark.main] if scan or number == 4 else [pytest.mark.slow]


@pytest.mark.parametrize(
    ("tiny", "scan"),
    [
        pytest.param(tiny, scan, id=f"{number}-{scan}", marks=marks_of(number, scan))
        for number, tiny in enumerate(VARIANTS)
        for scan in (True, False)
    ],
)
def test_embeddings_are_those_of_transformers(tmp_path, tiny, scan):
    directory = build_checkpoint(tmp_path / "clip", tiny)
    images = pictures(tiny.image_size, 1)
    texts, pixels = embeddings(directory, TEXTS, ours_of(directory, images), scan)
    wanted_texts, wanted_images, scores = reference(directory, TEXTS, images)
    assert np.abs(texts - wanted_texts).max() < CLOSE
    assert np.abs(pixels - wanted_images).max() < CLOSE
    assert np.abs(pixels @ texts.T - scores).max() < CLOSE
    assert np.abs(texts[0] - texts[2]).max() > 0.05
    assert np.allclose(np.linalg.norm(texts, axis=-1), 1, atol=1e-6)


@pytest.mark.skipif(not REAL_VOCABULARY.exists(), reason="CLIP's vocabulary is not here")
def test_the_real_tokenizer(tmp_path):
    photos = sorted((REAL_VOCABULARY.parents[2] / "photos").glob("*.jpg"))[:2]
    lines = (REAL_VOCABULARY.parents[2] / "captions" / "llava13b_coco_captions.jsonl").read_text().splitlines()[:20]
    texts = [*TEXTS, "traffic light", *(json.loads(line)["text"] for line in lines)]
    directory = build_checkpoint(tmp_path / "clip", dataclasses.replace(TINY, positions=77), real=True)
    clip, tokenizer = open_clip(directory), transformers.CLIPTokenizer.from_pretrained(directory)
    for text in texts:
        wanted = tokenizer(text, truncation=True, max_length=77)["input_ids"]
        row = clip.tokenizer.rows([text])[0]
        assert row[: len(wanted)].tolist() == wanted
        assert not row[len(wanted) :].any()
    assert clip.tokenizer.rows(["a photo of a cat"])[0].tolist()[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    words, pixels = embeddings(directory, texts[:12], ours_of(directory, [load_image(photo) for photo in photos]))
    wanted_words, _, _ = reference(directory, texts[:12], [Image.open(photo) for photo in photos])
    assert np.abs(words - wanted_words).max() < CLOSE
    assert pixels.shape == (2, TINY.projection)


def test_configs_survive_and_the_first_conversions_are_read(tmp_path):
    for tiny in VARIANTS:
        config = build_model(tiny, small_vocabulary()[0]).config.to_dict()
        ours = from_hf(config, tmp_path / "config.json")
        assert from_hf(to_hf(ours, "float32"), tmp_path / "config.json") == ours
        written = transformers.CLIPConfig.from_dict(to_hf(ours, "float32"))
        assert from_hf(written.to_dict(), tmp_path / "config.json") == ours
    # `text_config_dict` comes before `text_config`, as in transformers; so does its default of what it leaves out.
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    old = {"model_type": "clip", "text_config": {"hidden_size": 64, "eos_token_id": 2}, "text_config_dict": text}
    ours, theirs = from_hf(old, tmp_path / "config.json"), transformers.CLIPConfig.from_dict(dict(old))
    assert ours.text.hidden_size == theirs.text_config.hidden_size == 768
    assert ours.text.end_token_id == theirs.text_config.eos_token_id == 49407
    assert ours.vision.num_layers == theirs.vision_config.num_hidden_layers
    assert ours.projection_dim == theirs.projection_dim


@pytest.mark.main
def test_half_precision_on_disk_gives_the_same_texts(tmp_path):
    directory = build_checkpoint(tmp_path / "half", dtype=torch.float16)
    words, _ = embeddings(directory, TEXTS, ours_of(directory, pictures(TINY.image_size, 1)))
    model = transformers.CLIPModel.from_pretrained(directory, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "whole")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(directory / name, tmp_path / "whole")
    wanted, _, _ = reference(tmp_path / "whole", TEXTS, pictures(TINY.image_size, 1))
    assert np.abs(words - wanted).max() < CLOSE


def test_a_digest_names_weights_tokenizer_and_image_settings(tmp_path):
    first = open_clip(build_checkpoint(tmp_path / "a")).digest()
    assert open_clip(build_checkpoint(tmp_path / "b")).digest() == first
    assert open_clip(build_checkpoint(tmp_path / "c", seed=1)).digest() != first
    for file, old, new in (("preprocessor_config.json", "0.48145466", "0.5"), ("tokenizer.json", "NFC", "NFD")):
        text = (tmp_path / "b" / file).read_text()
        assert old in text
        (tmp_path / "b" / file).write_text(text.replace(old, new))
        assert open_clip(tmp_path / "b").digest() != first
        (tmp_path / "b" / file).write_text(text)


def refused(directory, match):
    with pytest.raises(InputError, match=match) as error:
        open_clip(directory)
    assert "\n" not in str(error.value)


def test_what_is_no_whole_clip_is_refused(tmp_path):
    refused(tmp_path / "absent", "no directory; give the directory of a CLIP")
    refused(build_llava(tmp_path / "llava"), "expected a whole CLIP .* got 'llava'")
    directory = build_checkpoint(tmp_path / "clip")
    tensors = load_file(directory / "model.safetensors")

    def with_tensors(changed):
        save_file(changed, directory / "model.safetensors", {"format": "pt"})

    with_tensors({name: each for name, each in tensors.items() if "projection" not in name})
    refused(directory, r"has no visual_projection and no text_projection: it holds a part of a CLIP only")
    with_tensors({name: each for name, each in tensors.items() if "text_model.final" not in name})
    refused(directory, "2 missing: text_model.final_layer_norm.bias, text_model.final_layer_norm.weight")
    with_tensors(tensors | {"text_projection.weight": tensors["text_projection.weight"][:, 1:].copy()})
    refused(directory, r"text_projection.weight \(expected \[20, 48\], got \[20, 47\]\)")
    with_tensors(tensors)
    open_clip(directory)


def test_texts_without_their_end_are_refused(tmp_path):
    for old_end in (False, True):
        directory = build_checkpoint(tmp_path / f"clip{old_end}", dataclasses.replace(TINY, old_end=old_end))
        path = directory / "tokenizer.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"post_processor": None}))
        refused(directory, "do not end with (token|the largest id)")
        content["model"]["vocab"] |= {"new</w>": len(content["model"]["vocab"])}
        path.write_text(json.dumps(content))
        refused(directory, "vocab_size is .* take both files from one checkpoint")
        path.unlink()
        refused(directory, r"tokenizer.json is missing; transformers writes it: CLIPTokenizerFast")


def test_a_text_with_half_a_character_is_refused(tmp_path):
    with pytest.raises(InputError, match="lone surrogate"):
        open_clip(build_checkpoint(tmp_path / "clip")).tokenizer.rows(["a \ud83d"])


def test_whether_the_policy_has_the_same_tower(tmp_path):
    """Bit by bit, of a tower in the same type or in half of it; llava-hf has neither projection nor text tower."""
    sizes = Tiny(vision_width=32, vision_mlp=48, vision_layers=3, vision_heads=4)
    llava = build_llava(tmp_path / "llava", sizes, dtype=torch.float16)
    policy = open_checkpoint(llava)
    assert "has other weights" in compare_towers(open_clip(build_checkpoint(tmp_path / "clip")), policy)
    model = build_model(TINY, small_vocabulary()[0])
    tower = transformers.LlavaForConditionalGeneration.from_pretrained(llava).model.vision_tower
    state = {name.removeprefix("vision_model."): each.float() for name, each in tower.state_dict().items()}
    model.vision_model.load_state_dict(state)
    same = open_clip(build_checkpoint(tmp_path / "same", model=model))
    count = len([name for name in same.tensors if name.startswith("vision_model.")])
    assert f"has the verifier's weights ({count} of {count} tensors" in compare_towers(same, policy)
    with torch.no_grad():
        model.vision_model.post_layernorm.bias[0] += 1
    other = open_clip(build_checkpoint(tmp_path / "other", model=model))
    assert "(1 of 55 tensors differ, vision_model.post_layernorm.bias first)" in compare_towers(other, policy)
    wider = open_clip(build_checkpoint(tmp_path / "wider", dataclasses.replace(TINY, vision_width=64)))
    assert "is another model" in compare_towers(wider, policy)
