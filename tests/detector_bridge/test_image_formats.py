"""One list of formats, one way to pixels, and limits that hold before anything is decoded."""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector_bridge.image_formats import FORMATS, SUFFIXES, sniff
from detector_bridge.images import MAX_PIXELS, MAX_RATIO, MAX_SIDE, decode, formats, to_png
from detector_bridge.refusal import RefusedError
from tests.detector_bridge.sidecar import ROOT, encode, picture
from tests.detector_bridge.test_images import png_header


def several(kind: str, **options) -> bytes:
    """The first pictures in one file."""
    return encode(picture(0), kind, save_all=True, append_images=[picture(1), picture(2)], **options)


def test_this_pillow_decodes_all_formats():
    assert formats() == FORMATS == ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
    assert set(SUFFIXES.values()) == set(FORMATS)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_known_by_its_first_bytes_and_decoded(kind):
    content = encode(picture(0), kind)
    assert sniff(content[:64]) == kind
    found = np.asarray(decode(content), float)
    assert np.abs(found - np.asarray(picture(0), float)).mean() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"])
def test_eight_bit_pictures_are_what_pillow_makes_of_them(kind, mode):
    image = picture(0).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(picture(1).convert("L"))
    try:
        content = encode(image, kind)
    except (OSError, ValueError):
        pytest.skip(f"{kind} has no {mode}")
    with Image.open(io.BytesIO(content)) as plain:
        assert decode(content).tobytes() == plain.convert("RGB").tobytes()


@pytest.mark.parametrize(
    "content",
    [
        several("GIF", duration=50),
        several("PNG", default_image=False),
        several("WEBP", lossless=True),
        several("TIFF"),
        several("AVIF", quality=100),
        several("MPO", quality=98),
    ],
    ids=["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"],
)
def test_the_first_of_several_pictures(content):
    assert np.abs(np.asarray(decode(content), float) - np.asarray(picture(0), float)).mean() < 12


def gray() -> np.ndarray:
    return np.asarray(picture(0).convert("L"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("low", [0, 255])
def test_sixteen_bits_keep_the_upper_eight(kind, low):
    deep = Image.fromarray((gray().astype(np.uint16) << 8) + np.uint16(low))
    np.testing.assert_array_equal(np.asarray(decode(encode(deep, kind))), np.stack([gray()] * 3, -1))


def png(width: int, height: int, color_type: int, rows: bytes) -> bytes:
    """A PNG of 16-bit samples, which Pillow does not write for colors."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_pngs_of_every_color_type(color_type, channels):
    random = np.random.default_rng(color_type)
    samples = random.integers(0, 65536, (12, 17, channels), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    upper = (samples >> 8).astype(np.uint8)
    colors = upper[..., :3] if channels > 2 else np.repeat(upper[..., :1], 3, axis=2)
    np.testing.assert_array_equal(np.asarray(decode(png(17, 12, color_type, rows))), colors)


def test_sixteen_bits_of_the_other_byte_order():
    deep = Image.frombytes("I;16B", (160, 120), (gray().astype(np.uint16) * 257).astype(">u2").tobytes())
    content = encode(deep, "TIFF")
    assert content.startswith(b"MM")
    np.testing.assert_array_equal(np.asarray(decode(content)), np.stack([gray()] * 3, -1))


def test_integers_and_floats():
    levels = gray()
    cases = {
        "32-bit integers": Image.fromarray(levels.astype(np.int32) * 257),
        "floats to 1": Image.fromarray(levels.astype(np.float32) / 255),
        "floats to 255": Image.fromarray(levels.astype(np.float32)),
    }
    for image in cases.values():
        np.testing.assert_array_equal(np.asarray(decode(encode(image, "TIFF"))), np.stack([levels] * 3, -1))
    odd = Image.fromarray(np.array([[np.nan, -1, 300, np.inf]], np.float32))
    assert np.asarray(decode(encode(odd, "TIFF")))[0, :, 0].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("transparency", [0, bytes(range(16))])
def test_transparent_palettes_keep_their_colors(transparency, recwarn):
    palette = picture(0).quantize(16)
    content = encode(palette, "PNG", transparency=transparency)
    np.testing.assert_array_equal(np.asarray(decode(content)), np.asarray(palette.convert("RGB")))
    assert not recwarn.list


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_orientation_in_every_format(kind, options):
    exif = Image.Exif()
    exif[0x0112] = 8
    content = encode(picture(0), kind, exif=exif, **options)
    turned = picture(0).transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(np.asarray(decode(content)), np.asarray(turned))


def test_damaged_metadata_does_not_spoil_a_picture():
    content = encode(picture(0), "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    with Image.open(io.BytesIO(content)) as plain:
        assert decode(content).tobytes() == plain.convert("RGB").tobytes()


def test_to_png_keeps_the_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6
    for content in (encode(picture(0), "AVIF"), encode(picture(0), "JPEG", exif=exif)):
        converted = to_png(content)
        assert sniff(converted[:64]) == "PNG"
        assert decode(converted).tobytes() == decode(content).tobytes()


def refusal(content) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        decode(content)
    assert "\n" not in caught.value.message
    assert "0x" not in caught.value.message
    return caught.value


def boxes(brand: bytes, *compatible: bytes) -> bytes:
    content = b"ftyp" + brand + b"\0\0\0\0" + b"".join(compatible)
    return struct.pack(">I", 4 + len(content)) + content + b"\0" * 100


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"not a picture", "text"),
        (b"caption,image\ndog,1.jpg\n", "text"),
        (b"BMW and other cars, listed one a line\n", "text"),
        (b'{"image": "1.jpg"}', "JSON"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b'\xef\xbb\xbf<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?><svg/>', "XML"),
        (b"\0" * 5000, "nothing but zeros"),
        (b"\x01\x02\x03\x04" * 50, "of no known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "EPS"),
        (b"\xc5\xd0\xd3\xc6" + b"\0" * 40, "EPS"),
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1" + b"\0" * 40, "Photoshop"),
        (b"DDS \x7c\0\0\0" + b"\0" * 120, "DDS"),
        (encode(picture(0), "JPEG2000"), "JPEG 2000"),
        (encode(picture(0), "ICO"), "ICO"),
        (encode(picture(0), "PPM"), "Netpbm"),
        (boxes(b"heic", b"mif1", b"heic"), "HEIF"),
        (boxes(b"mif1"), "HEIF"),
        (boxes(b"isom", b"mp42"), "video"),
        (b"PK\x03\x04" + b"\0" * 40, "ZIP"),
        (b"\x1f\x8b\x08" + b"\0" * 40, "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_picture_is_named(content, what):
    error = refusal(content)
    assert error.code == "INVALID_IMAGE"
    assert f"it is {what}" in error.message
    assert f"accepted: {', '.join(FORMATS)}" in error.message


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", [0.02, 0.3, 0.7])
def test_truncated_files_name_their_format(kind, part):
    whole = encode(picture(0), kind)
    error = refusal(whole[: max(64, int(len(whole) * part))])
    assert error.code == "INVALID_IMAGE"
    assert error.message.startswith(f"the {kind} image cannot be read: ")
    assert refusal(b"").message == "the image has 0 bytes; expected a whole image file"


def gif(width: int, height: int) -> bytes:
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0" * 6 + frame + b"\x02\x01\x44\x00;"


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHH", 60, 0, 0, 54, 40, width, height, 1, 24) + b"\0" * 80


def tiff(width: int, height: int) -> bytes:
    small = {258: 8, 259: 1, 262: 1, 277: 1, 273: 200, 278: height, 279: 64}
    tags = sorted((small | {256: width, 257: height}).items())
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4 + b"\0" * 200


def webp(width: int, height: int) -> bytes:
    """An extended header, with its canvas, before a small picture."""
    small = encode(picture(0, 16, 16), "WEBP")[12:]
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas + small
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(width: int, height: int) -> bytes:
    content = bytearray(encode(picture(0, 16, 16), "JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def avif(width: int, height: int) -> bytes:
    content = bytearray(encode(picture(0, 16, 16), "AVIF"))
    place = content.index(b"ispe") + 8
    content[place : place + 8] = struct.pack(">II", width, height)
    return bytes(content)


HUGE = {
    "PNG": png_header(60_000, 60_000),
    "PNG, high": png_header(1, 60_000_000),
    "PNG, wide": png_header(2_000_000_000, 1),
    "GIF": gif(65_535, 65_535),
    "BMP": bmp(50_000, 50_000),
    "BMP, high": bmp(1, 60_000_000),
    "TIFF": tiff(60_000, 60_000),
    "TIFF, high": tiff(1, 60_000_000),
    "JPEG": jpeg(65_500, 65_500),
    "WEBP": webp(16_000, 16_000),
    "AVIF": avif(16_000, 16_000),
}


def test_what_claims_to_be_huge_costs_nothing(tmp_path):
    """In a separate process, whose peak memory is that of one file after the other."""
    program = """
import json, resource, sys, time
from pathlib import Path
from detector_bridge.images import decode, formats
from detector_bridge.refusal import RefusedError
formats()
start, before, said = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        decode(path)
    except RefusedError as error:
        said[path.name] = [error.code, error.message]
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([said, time.monotonic() - start, kilobytes]))
"""
    for name, content in HUGE.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said, seconds, kilobytes = json.loads(done.stdout)
    assert set(said) == set(HUGE)
    assert all(code == "IMAGE_TOO_LARGE" and "pixels; at most" in message for code, message in said.values())
    assert "60000 x 60000" in said["PNG"][1]
    assert "1 x 60000000" in said["PNG, high"][1]
    assert seconds < 5
    assert kilobytes < 20_000


@pytest.mark.parametrize(
    ("width", "height", "code"),
    [
        (8000, 8000, None),
        (8001, 8000, "IMAGE_TOO_LARGE"),
        (MAX_SIDE + 1, 500, "IMAGE_TOO_LARGE"),
        (500, MAX_SIDE + 1, "IMAGE_TOO_LARGE"),
        (MAX_RATIO, 1, None),
        (MAX_RATIO + 1, 1, "INVALID_IMAGE"),
        (2, 2 * MAX_RATIO + 1, "INVALID_IMAGE"),
    ],
)
def test_limits_are_exact(width, height, code):
    assert MAX_PIXELS == 8000 * 8000
    content = encode(Image.new("1", (width, height)))
    if code is None:
        assert decode(content).size == (width, height)
    else:
        error = refusal(content)
        assert error.code == code
        assert f"{width} x {height} pixels" in error.message


def test_no_other_program_is_ever_asked(tmp_path, monkeypatch):
    """Pillow has Ghostscript read EPS; a program of that name notes that it was called."""
    called = tmp_path / "called"
    for name in ("gs", "gswin64c", "gswin32c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {called}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    refusal(encode(picture(0), "EPS"))
    assert not called.exists()


def test_a_stream_and_a_path_are_read_as_bytes_are(tmp_path):
    content = encode(picture(0), "TIFF")
    path = tmp_path / "picture.jpg"  # the content decides
    path.write_bytes(content)
    with open(path, "rb") as stream:
        stream.read(7)
        assert decode(stream).tobytes() == decode(path).tobytes() == decode(content).tobytes()
    with pytest.raises(FileNotFoundError):
        decode(Path("nowhere.png"))
