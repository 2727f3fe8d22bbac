"""Image files of every kind, and files that are none."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detector_bridge.images import decode
from detector_bridge.refusal import RefusedError
from tests.detector_bridge.sidecar import encode, picture

MOST = 1_000_000


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and brings next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats(kind):
    image = picture(0)
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(np.asarray(decode(encode(image, kind, **options), MOST)), np.asarray(image))


def test_jpeg_and_gif():
    for kind in ("JPEG", "GIF"):
        found = np.asarray(decode(encode(picture(0), kind), MOST), float)
        assert np.abs(found - np.asarray(picture(0), float)).mean() < 12


def test_cmyk():
    found = np.asarray(decode(encode(picture(0).convert("CMYK"), "JPEG", quality=95), MOST), float)
    assert np.abs(found - np.asarray(picture(0), float)).mean() < 12


def test_sixteen_bits_are_scaled_not_clipped():
    gray = np.asarray(picture(0).convert("L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(np.asarray(decode(encode(deep, kind), MOST)), np.stack([gray] * 3, -1))


def test_palette_alpha_gray_and_one_bit():
    image = picture(0)
    palette = image.quantize(16)
    np.testing.assert_array_equal(np.asarray(decode(encode(palette), MOST)), np.asarray(palette.convert("RGB")))
    see_through = image.copy()
    see_through.putalpha(Image.fromarray(np.asarray(image)[..., 0]))
    np.testing.assert_array_equal(np.asarray(decode(encode(see_through), MOST)), np.asarray(image))
    for mode in ("L", "LA", "1"):
        converted = image.convert(mode)
        np.testing.assert_array_equal(np.asarray(decode(encode(converted), MOST)), np.asarray(converted.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    """What a camera stored turned or mirrored comes out upright."""
    upright = picture(0)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(np.asarray(decode(encode(stored, exif=exif), MOST)), np.asarray(upright))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "INVALID_IMAGE"),
        (b"no image at all", "INVALID_IMAGE"),
        (encode(picture(0), "JPEG")[:700], "INVALID_IMAGE"),
        (encode(picture(0))[:700], "INVALID_IMAGE"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "INVALID_IMAGE"),
        (png_header(30_000, 30_000), "IMAGE_TOO_LARGE"),
        (png_header(100, 100_000), "IMAGE_TOO_LARGE"),
    ],
)
def test_refusals(content, code):
    with pytest.raises(RefusedError) as caught:
        decode(content, MOST)
    assert caught.value.code == code
    assert "\n" not in caught.value.message
    assert "0x" not in caught.value.message


def read_or_refuse(content: bytes) -> str:
    """RGB or the code of a refusal; anything else is raised."""
    try:
        return decode(content, MOST).mode
    except RefusedError as error:
        return error.code


OUTCOMES = ("RGB", "INVALID_IMAGE", "IMAGE_TOO_LARGE")
STARTS = [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM", b"II*\0"]


@given(st.binary(max_size=2000), st.sampled_from(STARTS))
def test_random_bytes_are_refused_or_read(content, start):
    assert read_or_refuse(start + content) in OUTCOMES


@given(st.data())
def test_damaged_files_are_refused_or_read(data):
    content = bytearray(encode(picture(1, 40, 30), data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP"]))))
    for _ in range(data.draw(st.integers(1, 10))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert read_or_refuse(bytes(content)) in OUTCOMES
