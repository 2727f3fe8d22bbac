"""Which part of an image shows a thing, and what probabilities say of a claim."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vigor_jax.errors import InputError
from vigor_jax.rewards.claims.crops import ClipAttributesConfig, CropEvidence, crop, probabilities
from vigor_jax.rewards.claims.judge import Truth

SIXTEENTHS = st.integers(0, 16).map(lambda number: number / 16)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


@given(
    st.lists(SIXTEENTHS, min_size=4, max_size=4),
    st.sampled_from((0.0, 0.125, 0.5, 1.0)),
    st.sampled_from(((64, 32), (48, 80), (16, 16))),
)
def test_mirrored_images_have_mirrored_crops(corners, margin, size):
    image = noise(*size)
    left, right = sorted(corners[:2])
    top, bottom = sorted(corners[2:])
    assume(left < right and top < bottom)
    shown = crop(image, (left, top, right, bottom), margin)
    mirrored = crop(ImageOps.mirror(image), (1 - right, top, 1 - left, bottom), margin)
    flipped = crop(ImageOps.flip(image), (left, 1 - bottom, right, 1 - top), margin)
    assert ImageOps.mirror(mirrored).tobytes() == ImageOps.flip(flipped).tobytes() == shown.tobytes()
    width, height = size[0] * (right - left), size[1] * (bottom - top)
    assert width <= shown.width <= width * (1 + 2 * margin) + 2
    assert height <= shown.height <= height * (1 + 2 * margin) + 2


@given(
    st.lists(st.floats(-0.1, 1.1), min_size=4, max_size=4),
    st.floats(0, 1),
    st.integers(1, 90),
    st.integers(1, 90),
)
def test_a_crop_has_a_pixel_and_lies_within_the_image(box, margin, width, height):
    image = noise(width, height)
    shown = crop(image, box, margin)
    assert 1 <= shown.width <= width
    assert 1 <= shown.height <= height


def test_what_is_in_the_box_is_shown():
    image = Image.new("RGB", (100, 50))
    image.paste((255, 0, 0), (20, 10, 60, 30))
    inside = np.asarray(crop(image, (0.2, 0.2, 0.6, 0.6), 0))
    assert inside.shape == (20, 40, 3)
    assert (inside == (255, 0, 0)).all()
    around = np.asarray(crop(image, (0.2, 0.2, 0.6, 0.6), 0.1))
    assert around.shape == (24, 48, 3)
    assert (around[2:-2, 4:-4] == (255, 0, 0)).all()
    assert not around[:2].any()
    assert not around[:, -4:].any()


def test_probabilities_are_a_softmax():
    rng = np.random.default_rng(0)
    crops, texts = (rng.normal(size=(number, 8)).astype(np.float32) for number in (3, 5))
    crops /= np.linalg.norm(crops, axis=-1, keepdims=True)
    texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
    found = probabilities(crops, texts, 100.0)
    wanted = torch.softmax(100 * torch.tensor(crops) @ torch.tensor(texts).T, -1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(probabilities(crops, texts, 1e6).sum(-1), 1)


RIGHT, WRONG, UNKNOWN = Truth.RIGHT, Truth.WRONG, Truth.UNKNOWN


@pytest.mark.parametrize(
    ("rows", "truth"),
    [
        ([[0.5, 0.3, 0.2]], RIGHT),
        ([[0.05, 0.6, 0.35]], WRONG),
        ([[0.49, 0.5, 0.01]], UNKNOWN),
        ([[0.06, 0.8, 0.14]], UNKNOWN),
        ([[0.01, 0.59, 0.4]], UNKNOWN),  # no rival is sure
        ([[0.05, 0.6, 0.35], [0.5, 0.3, 0.2]], RIGHT),  # one that fits is enough
        ([[0.05, 0.6, 0.35], [0.0, 0.0, 1.0]], WRONG),
        ([[0.05, 0.6, 0.35], [0.3, 0.6, 0.1]], UNKNOWN),
        ([[1.0], [1.0]], UNKNOWN),  # nothing to compare it with
    ],
)
def test_right_wrong_or_unknown(rows, truth):
    for order in (rows, rows[::-1]):
        evidence = CropEvidence(np.array(order))
        assert evidence.truth(ClipAttributesConfig()) is truth
        assert evidence.score == max(row[0] for row in rows)


def test_a_rival_is_that_of_all_boxes():
    assert CropEvidence(np.array([[0.1, 0.6, 0.3], [0.0, 0.7, 0.3]])).rival == 0
    assert CropEvidence(np.array([[0.1, 0.6, 0.3], [0.0, 0.3, 0.7]])).rival is None


def test_without_a_box_or_a_rival_nothing_is_known():
    for rows in (np.zeros((0, 1)), np.zeros((0, 4)), np.ones((2, 1))):
        evidence = CropEvidence(rows)
        assert evidence.truth(ClipAttributesConfig()) is UNKNOWN
        assert evidence.rival is None
        assert evidence.score == rows.sum() / max(len(rows), 1)


def test_thresholds_decide():
    evidence = CropEvidence(np.array([[0.3, 0.5, 0.2]]))
    assert evidence.truth(ClipAttributesConfig(least_right=0.3)) is RIGHT
    assert evidence.truth(ClipAttributesConfig(most_wrong=0.3, least_rival=0.5)) is WRONG
    assert evidence.truth(ClipAttributesConfig(most_wrong=0.3, least_rival=0.51)) is UNKNOWN


def test_what_a_crop_is_compared_with():
    config = ClipAttributesConfig()
    assert config.text("red car") == "a photo of a red car"
    assert config.text("orange car") == "a photo of an orange car"
    assert ClipAttributesConfig(template="{}, seen from near").text("oval box") == "an oval box, seen from near"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "a photo"}, "clip_attributes.template: expected a text with one {}, which .*, got 'a photo'"),
        ({"template": "{} or {}"}, "clip_attributes.template: expected a text with one {}"),
        ({"margin": -0.1}, "clip_attributes.margin: expected a number from 0 to 1, got -0.1"),
        ({"least_right": 1.5}, "clip_attributes.least_right: expected a number from 0 to 1, got 1.5"),
        ({"least_right": float("nan")}, "clip_attributes.least_right: expected a number from 0 to 1, got nan"),
        ({"most_wrong": -1}, "clip_attributes.most_wrong: expected a number from 0 to 1, got -1"),
        ({"least_rival": 2}, "clip_attributes.least_rival: expected a number from 0 to 1, got 2"),
        ({"most_wrong": 0.5}, "clip_attributes.least_right: expected more than most_wrong, 0.5, got 0.5"),
        (
            {"most_wrong": 0.3, "least_rival": 0.2},
            "clip_attributes.least_rival: expected more than most_wrong, 0.3, got 0.2",
        ),
        ({"batch_size": 0}, "clip_attributes.batch_size must be at least 1, got 0"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=f"^{message.replace('{', chr(92) + '{')}") as caught:
        ClipAttributesConfig(**changes)
    assert "\n" not in str(caught.value)


def test_what_is_not_given():
    with pytest.raises(InputError, match=r"^clip_attributes\.model is not given; name a CLIP, such as openai/clip"):
        ClipAttributesConfig().check_given()
