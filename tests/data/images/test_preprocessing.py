"""Image preparation against transformers' image processors, and every file that is no picture."""

import io
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detector_bridge.images import decode
from detector_bridge.refusal import RefusedError
from tests.detector_bridge.test_images import png_header
from tests.pixels import normalize
from vigor_jax.data.images.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing, load_image, preprocess
from vigor_jax.errors import InputError

PHOTOS = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "photos"
# The classes that resize with PIL; transformers 4 calls them by the plain names.
CLIP_PROCESSOR = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
LLAVA_PROCESSOR = getattr(transformers, "LlavaImageProcessorPil", None) or transformers.LlavaImageProcessor


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise over a gradient, so that both fine detail and position matter."""
    noise = np.random.default_rng(seed).integers(0, 120, (height, width, 3))
    slope = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).sum(axis=-1, keepdims=True)
    return Image.fromarray(((noise + slope) % 256).astype(np.uint8), "RGB").convert(mode)


def reference(image: Image.Image, preprocessing: Preprocessing, **settings: bool) -> np.ndarray:
    """What transformers makes of it, channels last."""
    size = preprocessing.size
    sizes = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    processor = LLAVA_PROCESSOR(do_pad=True, **sizes) if preprocessing.pad else CLIP_PROCESSOR(**sizes)
    pixels = processor(image, return_tensors="np", **settings)["pixel_values"][0]
    return pixels.transpose(1, 2, 0)


def check(image: Image.Image, original: Image.Image, preprocessing: Preprocessing) -> None:
    ours = preprocess(image, preprocessing)
    size = preprocessing.size
    assert ours.shape == (size, size, 3)
    assert ours.dtype == np.uint8
    theirs = reference(original, preprocessing, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(ours, theirs)
    normalized = normalize(ours, preprocessing)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, reference(original, preprocessing), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize(
    ("width", "height"),
    [
        (28, 28),
        (1, 1),
        (1, 40),
        (40, 1),
        (29, 28),
        (28, 29),
        (27, 500),
        (500, 27),
        (333, 101),
        (100, 333),
        (31, 30),
    ],
)
def test_sizes_equal_transformers(width: int, height: int, pad: bool) -> None:
    for size in (28, 33):
        image = picture(width, height)
        check(image, image, Preprocessing(size=size, pad=pad))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 40),
    pad=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_size_equals_transformers(width: int, height: int, size: int, pad: bool, seed: int) -> None:
    image = picture(width, height, seed=seed)
    check(image, image, Preprocessing(size=size, pad=pad))


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "jpg"),
        ("RGB", "bmp"),
        ("RGB", "webp"),
        ("P", "gif"),
        ("P", "png"),
        ("L", "png"),
        ("L", "jpg"),
        ("LA", "png"),
        ("RGBA", "png"),
        ("RGBA", "webp"),
        ("CMYK", "jpg"),
        ("1", "png"),
        ("I;16", "png"),
    ],
)
def test_modes_equal_transformers(tmp_path: Path, mode: str, suffix: str, pad: bool) -> None:
    path = tmp_path / f"picture.{suffix}"
    image = picture(70, 45, "L" if mode == "I;16" else mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(picture(70, 45, "L", seed=1))
    gray = image
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image.save(path)
    with Image.open(path) as original:
        # LLaVA drops an alpha channel; transformers, given one, would blend the picture with white.
        shown = original.convert("RGB") if mode in ("LA", "RGBA") else original
        # Of 16 bits the upper eight count, as for the detector; transformers makes all above 255 white.
        shown = gray if mode == "I;16" else shown
        check(load_image(path), shown, Preprocessing(size=32, pad=pad))
    assert load_image(path).tobytes() == load_image(path.read_bytes()).tobytes()
    assert load_image(path).mode == "RGB"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the photographs")
@pytest.mark.parametrize(("size", "pad"), [(224, False), (336, False), (336, True)])
def test_photographs_equal_transformers(size: int, pad: bool) -> None:
    paths = sorted(PHOTOS.glob("*.jpg"))
    assert paths
    for path in paths:
        with Image.open(path) as original:
            check(load_image(path), original, Preprocessing(size=size, pad=pad))


def test_padding_color_and_place() -> None:
    white = Image.new("RGB", (4, 7), (255, 255, 255))
    pixels = preprocess(white, Preprocessing(size=7, pad=True))
    # Three columns are missing: one goes to the left, two to the right.
    is_picture = (pixels == 255).all(axis=(0, 2))
    assert is_picture.tolist() == [False, True, True, True, True, False, False]
    assert pixels[0, 0].tolist() == [122, 116, 104]


def test_normalization_by_hand() -> None:
    preprocessing = Preprocessing(size=1)
    pixels = np.array([[[0, 128, 255]]], np.uint8)
    expected = [(value / 255 - m) / s for value, m, s in zip((0, 128, 255), CLIP_MEAN, CLIP_STD, strict=True)]
    np.testing.assert_allclose(normalize(pixels, preprocessing)[0, 0], expected, rtol=0, atol=1e-6)
    other = Preprocessing(size=1, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
    np.testing.assert_allclose(normalize(pixels, other)[0, 0], [-1, 1 / 255, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_rotation_is_applied_as_for_the_detector(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rotated.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = picture(20, 10)
    stored.save(path, exif=exif)
    assert load_image(path).size == (10, 20)
    if suffix in ("png", "tif"):
        assert load_image(path).tobytes() == stored.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_alpha_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "transparent.png"
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(path)
    assert load_image(path).getpixel((0, 0)) == (10, 20, 30)


# ---- what can be wrong


def image_error(source: Path | bytes) -> str:
    with pytest.raises(InputError) as caught:
        load_image(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def encoded(suffix: str) -> bytes:
    file = io.BytesIO()
    picture(40, 30).save(file, suffix)
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"not a picture", encoded("png")[:200], encoded("jpeg")[:400]])
def test_unreadable_images(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    assert str(path) in image_error(path)
    assert f"image of {len(content)} bytes" in image_error(content)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "0 bytes"),
        (b"a text", "it is text"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "it is EPS"),
        (encoded("jpeg2000"), "it is JPEG 2000"),
        (encoded("dds"), "it is DDS"),
        (encoded("ppm"), "it is Netpbm"),
        (encoded("png")[:200], "the PNG image cannot be read"),
        (png_header(60_000, 60_000), "60000 x 60000 pixels; at most 64000000"),
        (png_header(1, 60_000_000), "1 x 60000000 pixels; at most 65535 to a side"),
        (png_header(5_010, 10), "5010 x 10 pixels; one side may be at most 500 times the other"),
    ],
)
def test_refused_as_the_sidecar_refuses(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(RefusedError) as theirs:
        decode(content)
    assert named in theirs.value.message
    assert image_error(path) == f"{path}: not a readable image ({theirs.value.message}); replace or remove it"
    assert theirs.value.message in image_error(content)


def test_missing_image_and_folder(tmp_path: Path) -> None:
    assert "no such image" in image_error(tmp_path / "absent.jpg")
    assert str(tmp_path) in image_error(tmp_path)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    picture(40, 30).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "bomb.png: not a readable image" in image_error(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None)
@given(
    format_name=st.sampled_from(["png", "jpeg", "gif", "webp", "tiff", "bmp"]),
    place=st.integers(0, 10_000),
    replacement=st.binary(min_size=1, max_size=6),
)
def test_damaged_bytes_give_a_picture_or_an_input_error(format_name: str, place: int, replacement: bytes) -> None:
    content = bytearray(encoded(format_name))
    place %= len(content)
    content[place : place + len(replacement)] = replacement
    try:
        image = load_image(bytes(content))
    except InputError:
        return
    assert image.mode == "RGB"


def test_thread_like_image() -> None:
    with pytest.raises(InputError, match="1 x 60000 pixels is too elongated"):
        preprocess(Image.new("RGB", (1, 60_000)), Preprocessing(size=224))
    assert preprocess(Image.new("RGB", (1, 300)), Preprocessing(size=224)).shape == (224, 224, 3)


@pytest.mark.parametrize(
    "settings",
    [{"size": 0}, {"size": -3}, {"size": 8, "image_std": (1.0, 0.0, 1.0)}, {"size": 8, "image_mean": (0.5,)}],
)
def test_wrong_settings(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="got"):
        Preprocessing(**settings)
