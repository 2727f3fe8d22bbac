"""Image files of unknown origin to upright RGB pictures, within limits: the one way for trainer and sidecar.

What is one picture to a person is one array to the policy, the reward model and the detector. Needs Pillow and NumPy.
"""

import contextlib
import functools
import io
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, WebPImagePlugin

from detector_bridge.image_formats import FORMATS, HEAD, sniff
from detector_bridge.refusal import RefusedError

try:
    from PIL import AvifImagePlugin
except ImportError:  # before Pillow 11.3
    AvifImagePlugin = None  # type: ignore[assignment]

# Of a picture, whatever decodes it: checked before anything is decoded. A decoded pixel takes three or four bytes.
MAX_PIXELS = 64_000_000
MAX_SIDE = 65_535
# The longer side over the shorter one: resized for a model, nothing would be left of the shorter.
MAX_RATIO = 500

# Pillow warns of metadata that nobody reads here; a picture that cannot be read is an error.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow decodes: WebP and AVIF are left out of some builds."""
    lacking = set()
    if not WebPImagePlugin.SUPPORTED:
        lacking.add("WEBP")
    if not getattr(AvifImagePlugin, "SUPPORTED", False):
        lacking.add("AVIF")
    Image.init()
    return tuple(name for name in FORMATS if name not in lacking and name in Image.OPEN)


def decode(source: bytes | Path | IO[bytes], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads an image file as an upright RGB picture, the first frame of several.

    A rotation noted in EXIF is applied. Transparency is dropped, as LLaVA's own preprocessing drops it. Samples of 16
    bits keep their upper eight; 32-bit integers count as 16-bit ones; floats as [0, 1], or as [0, 255] where one is
    above 1.

    Args:
      source: a whole file, by its content, its path or an open stream that can seek.
      max_pixels: width times height; sides are limited by `MAX_SIDE` and `MAX_RATIO`.

    Raises:
      RefusedError: INVALID_IMAGE or IMAGE_TOO_LARGE; one line, which does not name the file.
      OSError: the path cannot be opened.
    """
    if isinstance(source, Path):
        with open(source, "rb") as file:
            return decode(file, max_pixels)
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    kind = _check_format(stream)
    try:
        # Not `Image.open`: it hides why a file cannot be read, and its own limit is one for the whole process.
        factory, _ = Image.OPEN[kind]
        with factory(stream, "") as image:
            _check_size(*image.size, max_pixels)
            image.load()
            return upright_rgb(image)
    except RefusedError:
        raise
    except Image.DecompressionBombError:  # some plugins look at Pillow's own limit as they read the header
        message = f"the {kind} image has too many pixels; at most {max_pixels} are taken"
        raise RefusedError("IMAGE_TOO_LARGE", message) from None
    except Exception as error:  # decoders of damaged files raise whatever their format's code happens to raise
        raise RefusedError("INVALID_IMAGE", f"the {kind} image cannot be read: {_words(error)}") from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture that `decode` makes of an image, from one that Pillow has read; that one stays as it is."""
    return _turn(image, _rgb(image))


def to_png(content: bytes) -> bytes:
    """The picture that `decode` makes of a file, as a PNG, which any decoder turns into the same pixels.

    Raises:
      RefusedError: see `decode`.
    """
    out = io.BytesIO()
    decode(content).save(out, "PNG")
    return out.getvalue()


def _check_format(stream: IO[bytes]) -> str:
    stream.seek(0)
    head = stream.read(HEAD)
    stream.seek(0)
    if not head:
        raise RefusedError("INVALID_IMAGE", "the image has 0 bytes; expected a whole image file")
    kind = sniff(head)
    if kind not in FORMATS:
        raise RefusedError(
            "INVALID_IMAGE", f"the file cannot be read as an image: it is {kind}; accepted: {', '.join(formats())}"
        )
    if kind not in formats():
        raise RefusedError(
            "INVALID_IMAGE",
            f"the {kind} image cannot be read: this Pillow was built without {kind}; install a newer one (pip install "
            f"-U pillow), or convert it to one of {', '.join(formats())}",
        )
    return kind


def _check_size(width: int, height: int, max_pixels: int) -> None:
    size = f"the image has {width} x {height} pixels"
    if max(width, height) > MAX_SIDE:
        raise RefusedError("IMAGE_TOO_LARGE", f"{size}; at most {MAX_SIDE} to a side are taken")
    if Image.MAX_IMAGE_PIXELS is not None:  # a program that sets Pillow's own limit lower means it
        max_pixels = min(max_pixels, 2 * Image.MAX_IMAGE_PIXELS)
    if width * height > max_pixels:
        raise RefusedError("IMAGE_TOO_LARGE", f"{size}; at most {max_pixels} are taken")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise RefusedError("INVALID_IMAGE", f"{size}; one side may be at most {MAX_RATIO} times the other: crop it")


def _rgb(image: Image.Image) -> Image.Image:
    # PIL clips these modes at 255 instead of scaling them.
    if image.mode == "I" or image.mode.startswith("I;16"):
        samples = np.clip(np.asarray(image), 0, 65535)
        return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), nan=0.0)
        values = values * 255 if values.max(initial=0) <= 1 else values
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied: not converted in one step
        image = image.convert(image.mode.upper())
    if "transparency" in image.info:  # dropped in any case, and PIL would warn of it
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _turn(opened: Image.Image, picture: Image.Image) -> Image.Image:
    """Applies EXIF's orientation; what is damaged says nothing, as the picture itself is whole."""
    orientation = 1
    with contextlib.suppress(Exception):
        orientation = opened.getexif().get(_ORIENTATION, 1)
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
