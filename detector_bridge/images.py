"""Image files of unknown origin to upright RGB pictures, within limits."""

import io

import numpy as np
from PIL import Image, ImageOps

from detector_bridge.refusal import RefusedError

# Raster formats decoded without another program's help; PIL would hand EPS to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "MPO")

# Ours is checked before anything is decoded; PIL's own only warns up to twice its value.
Image.MAX_IMAGE_PIXELS = None


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """Reads an image file as an RGB picture, the first frame of several.

    EXIF rotation is applied; 16-bit samples keep their upper eight bits; transparency is dropped, as LLaVA's own
    preprocessing drops it.

    Raises:
      RefusedError: INVALID_IMAGE or IMAGE_TOO_LARGE.
    """
    if not content:
        raise RefusedError("INVALID_IMAGE", "the image has 0 bytes; expected a whole image file")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise RefusedError(
                    "IMAGE_TOO_LARGE", f"the image has {width} x {height} pixels; at most {max_pixels} are taken"
                )
            return _rgb(ImageOps.exif_transpose(image))
    except RefusedError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever their format's code happens to raise
        reason = " ".join(str(error).split()) or type(error).__name__
        # PIL names the in-memory file by its address.
        reason = reason if "<_io.BytesIO" not in reason else f"no image of a known format ({', '.join(FORMATS)})"
        raise RefusedError("INVALID_IMAGE", f"the image of {len(content)} bytes cannot be read: {reason}") from None


def _rgb(image: Image.Image) -> Image.Image:
    # PIL clips these modes at 255 instead of scaling them.
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        samples = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(samples, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
