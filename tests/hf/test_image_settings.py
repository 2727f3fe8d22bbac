"""preprocessor_config.json against transformers' own image processors, and every setting that is refused."""

import json

import numpy as np
import pytest
import transformers
from PIL import Image

from tests.data.images.test_preprocessing import CLIP_PROCESSOR, LLAVA_PROCESSOR, picture
from tests.pixels import normalize
from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.data.images.preprocessing import preprocess
from vigor_jax.errors import InputError
from vigor_jax.hf.image_settings import preprocessing_from_hf, preprocessing_to_hf
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.json_fields import Fields

SIZE = 28
SQUARE = {"height": SIZE, "width": SIZE}
CLIP = {"size": {"shortest_edge": SIZE}, "crop_size": SQUARE}
SHAPES = [(28, 28), (40, 30), (30, 41), (17, 90), (90, 17), (1, 50), (27, 29), (64, 64)]

SUPPORTED = {
    "as llava-hf": CLIP,
    "numbers": {"size": SIZE, "crop_size": SIZE},
    "stretched": {"size": SQUARE, "crop_size": SQUARE},
    "stretched, not cropped": {"size": SQUARE, "do_center_crop": False},
    "stretched, then cropped": {"size": {"height": 40, "width": 33}, "crop_size": SQUARE},
    "stretched to less, black around": {"size": {"height": 20, "width": 33}, "crop_size": SQUARE},
    "not resized": {"do_resize": False, "crop_size": SQUARE},
    "another scale": CLIP | {"rescale_factor": 1 / 127.5},
    "not rescaled": CLIP | {"do_rescale": False},
    "not normalized": CLIP | {"do_normalize": False},
    "neither": CLIP | {"do_rescale": False, "do_normalize": False},
    "other statistics": CLIP | {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "rescale_factor": 0.01},
    **{f"filter {number}": CLIP | {"resample": number} for number in range(6)},
    "stretched with a filter": {"size": SQUARE, "crop_size": SQUARE, "resample": 2},
}


def assert_same(settings: dict, reference, *, kind: str = "CLIPImageProcessor") -> None:
    written = {"image_processor_type": kind, **settings}
    ours = preprocessing_from_hf(Fields(written, "file"), SIZE)
    # What an export writes means the same.
    assert preprocessing_from_hf(Fields(preprocessing_to_hf(ours), "file"), SIZE) == ours
    for width, height in SHAPES:
        image = picture(width, height)
        theirs = reference(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        found = normalize(preprocess(image, ours), ours)
        assert found.dtype == np.float32
        assert np.abs(found - theirs).max() <= 1e-6 * max(1, np.abs(theirs).max()), (width, height)


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_supported_setting_equals_transformers(name):
    assert_same(SUPPORTED[name], CLIP_PROCESSOR(**SUPPORTED[name]))


@pytest.mark.parametrize("name", ["as llava-hf", "stretched", "not normalized", "another scale", "filter 2"])
@pytest.mark.parametrize("do_pad", [False, True])
def test_padding_equals_transformers(name, do_pad):
    settings = SUPPORTED[name] | {"do_pad": do_pad}
    assert_same(settings, LLAVA_PROCESSOR(**settings), kind="LlavaImageProcessor")


def test_the_model_computes_what_the_settings_say(tmp_path):
    """Through a checkpoint: the tower's own mean and deviation take the scale up."""
    tiny = Tiny()
    checkpoint = build_checkpoint(tmp_path / "model", tiny)
    path = checkpoint / "preprocessor_config.json"
    settings = SUPPORTED["other statistics"]
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    opened = open_checkpoint(checkpoint)
    image = picture(40, 30)
    pixels = preprocess(image, opened.preprocessing).astype(np.float32) / 255
    vision = opened.config.vision
    found = (pixels - np.asarray(vision.image_mean, np.float32)) / np.asarray(vision.image_std, np.float32)
    theirs = transformers.AutoImageProcessor.from_pretrained(checkpoint, backend="pil")(image, return_tensors="np")
    np.testing.assert_allclose(found, theirs["pixel_values"][0].transpose(1, 2, 0), atol=1e-5)


def test_defaults_of_a_run_are_written_as_ever():
    """Digests of runs are made of this text; settings that came later must not change it."""
    assert repr(preprocessing_from_hf(Fields(CLIP, "file"), SIZE)) == (
        "Preprocessing(size=28, pad=False, image_mean=(0.48145466, 0.4578275, 0.40821073), "
        "image_std=(0.26862954, 0.26130258, 0.27577711))"
    )
    assert "stretch=(28, 28)" in repr(preprocessing_from_hf(Fields(SUPPORTED["stretched"], "file"), SIZE))


REFUSED = {
    "a longest edge too": ({"size": {"shortest_edge": SIZE, "longest_edge": 40}}, "size: expected a shortest_edge, or"),
    "a longest edge alone": ({"size": {"longest_edge": SIZE}}, "got the keys 'longest_edge'"),
    "half a size": ({"size": {"height": SIZE}}, "got the keys 'height'"),
    "no length": ({"size": {"shortest_edge": 0}}, "size.shortest_edge: expected a whole number from 1"),
    "a size in words": ({"size": "28"}, "size: expected a whole number"),
    "a list of three": ({"size": [28, 28, 3]}, "size: expected a whole number"),
    "another shortest edge": ({"size": {"shortest_edge": 32}}, "must be the same size"),
    "another crop": ({"crop_size": 32}, "must be the same size"),
    "no square crop": ({"crop_size": {"height": 28, "width": 20}}, "a height and a width that are equal"),
    "nothing cropped": ({"do_center_crop": False}, "do_center_crop false is not supported"),
    "stretched to another size": ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, "the same size"),
    "neither resized nor cropped": ({"do_resize": False, "do_center_crop": False}, "do_center_crop false"),
    "no filter": ({"resample": 6}, "resample 6 is not supported"),
    "a filter's name": ({"resample": "bicubic"}, "resample 'bicubic' is not supported"),
    "no scale": ({"rescale_factor": 0}, "rescale_factor: expected a number"),
    "a scale in words": ({"rescale_factor": "1/255"}, "rescale_factor: expected a number"),
    "two means": ({"image_mean": [0.5, 0.5]}, "image_mean: expected a list of 3 numbers"),
    "no deviation": ({"image_std": [0.5, 0, 0.5]}, "image_std: expected a list of 3 numbers"),
    "a flag in words": ({"do_normalize": "yes"}, "do_normalize 'yes' is not supported"),
    "another processor": ({"image_processor_type": "SiglipImageProcessor"}, "image_processor_type 'SiglipImage"),
    "no processor": ({"image_processor_type": ["CLIPImageProcessor"]}, "image_processor_type: expected a string"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_supported_is_refused_by_key_and_value(tmp_path, what):
    settings, message = REFUSED[what]
    checkpoint = build_checkpoint(tmp_path / "model", Tiny())
    path = checkpoint / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(InputError) as error:
        open_checkpoint(checkpoint)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_image_of_one_channel_after_loading_is_never_seen():
    with pytest.raises(AssertionError, match="load_image"):
        preprocess(Image.new("L", (3, 3)), preprocessing_from_hf(Fields(CLIP, "file"), SIZE))


@pytest.mark.parametrize("value", ["anyres", "anyres_max_9", "highres", "crop_split", 3])
def test_originals_with_several_views_of_an_image_are_refused(tmp_path, value):
    from tests.hf.served_world import edit, original

    base = original(tmp_path / "llava-base", legacy=True)
    edit(base, "config.json", image_aspect_ratio=value, mm_patch_merge_type="flat")
    with pytest.raises(InputError, match=f"image_aspect_ratio {value!r} is not supported"):
        open_checkpoint(base)


def test_an_originals_tower_brings_its_own_settings(tmp_path):
    from tests.hf.served_world import edit, original

    base = original(tmp_path / "llava-base", legacy=True)
    settings = {"size": SIZE, "crop_size": SIZE, "image_mean": [0.5, 0.5, 0.5], "resample": 2}
    (base / "clip" / "preprocessor_config.json").write_text(json.dumps(settings))
    for ratio in ("pad", "square", None):
        edit(base, "config.json", image_aspect_ratio=ratio)
        found = open_checkpoint(base).preprocessing
        assert (found.image_mean, found.resample, found.pad) == ((0.5, 0.5, 0.5), 2, ratio == "pad")
