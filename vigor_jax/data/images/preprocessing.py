"""Photographs to square uint8 pixels, exactly as LLaVA and CLIP's image processor prepare them."""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from detector_bridge import image_formats
from detector_bridge.images import decode, formats
from detector_bridge.refusal import RefusedError
from vigor_jax.data.images.folders import FolderWalk, count, kind_of, tell, tell_left_out
from vigor_jax.errors import InputError
from vigor_jax.records import ImageFile

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Resizing the short edge of a thread-like picture makes its long edge huge; above this it is no photograph.
_MAX_RESIZED_PIXELS = 100_000_000

# Of the files that a folder or a tar lists as images.
SUFFIXES = tuple(suffix for suffix, name in image_formats.SUFFIXES.items() if name in formats())


@dataclass(frozen=True, repr=False)
class Preprocessing:
    """How pixels are prepared for a vision tower: pad, resize, crop, rescale and normalize, in this order.

    Attributes:
        size: Side in pixels of the square that the tower takes: 224 for LLaVA v1.0, 336 for v1.5. The center of
            that size is cut out; where the picture is smaller, black is around it.
        pad: Whether a picture is padded to a square first (LLaVA v1.5) or loses what lies beyond the central
            square (v1.0, llava-hf).
        image_mean: Per-channel mean, range [0, 1]; also the color of the padding.
        image_std: Per-channel standard deviation, above 0.
        do_resize: Whether the picture is resized.
        stretch: (height, width) that the picture is resized to, whatever its proportions; None for the shorter edge
            to `size`.
        resample: PIL's number of the filter that resizes: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box,
            5 Hamming.
        rescale_factor: What pixels in [0, 255] are multiplied by.
        do_normalize: Whether the mean is taken off and the rest divided by the deviation.
    """

    size: int
    pad: bool = False
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    do_resize: bool = True
    stretch: tuple[int, int] | None = None
    resample: int = 3
    rescale_factor: float = 1 / 255
    do_normalize: bool = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"image size must be at least 1 pixel, got {self.size}")
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            raise InputError(
                "image_mean and image_std need three values each and deviations above 0, got "
                f"{self.image_mean} and {self.image_std}"
            )

    def __repr__(self) -> str:
        """Settings at their defaults are left out but for the oldest four: digests of runs are made of this text."""
        oldest = ("size", "pad", "image_mean", "image_std")
        shown = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if field.name in oldest or getattr(self, field.name) != field.default
        ]
        return f"Preprocessing({', '.join(shown)})"

    @property
    def scaled_mean(self) -> tuple[float, float, float]:
        """The mean to take off pixels / 255, so that only one formula is needed on the device."""
        red, green, blue = self.image_mean if self.do_normalize else (0.0, 0.0, 0.0)
        scale = 255 * self.rescale_factor
        return red / scale, green / scale, blue / scale

    @property
    def scaled_std(self) -> tuple[float, float, float]:
        """What to divide pixels / 255 minus `scaled_mean` by."""
        red, green, blue = self.image_std if self.do_normalize else (1.0, 1.0, 1.0)
        scale = 255 * self.rescale_factor
        return red / scale, green / scale, blue / scale


def find_images(place: Path) -> dict[str, Path]:
    """Name → file, in the order of the names: an image by its file name, those of a folder by their path below it.

    Links are followed; see `FolderWalk`. What is left out is logged, by its kind.

    Raises:
      InputError: there is no such place, or no image in it.
    """
    if place.is_file():
        return {place.name: place}
    if not place.is_dir():
        raise InputError(f"images: {place} is neither a file nor a folder")
    walk, images, others = FolderWalk(place), {}, Counter[str]()
    for file in walk:
        path = Path(file)
        if path.suffix.lower() in SUFFIXES:
            images[path.relative_to(place).as_posix()] = path
        else:
            others[kind_of(file)] += 1
    others += walk.problems
    if not images:
        found = f"; found only {count(others)}" if others else ""
        raise InputError(f"images: no file below {place} ends in one of {' '.join(SUFFIXES)}{found}")
    tell_left_out(place, len(images), others)
    if walk.second_names:
        tell(f"{place}: links give {walk.second_names} of its files a second name")
    return dict(sorted(images.items()))


def load_image(source: ImageFile | bytes) -> Image.Image:
    """Reads one picture as upright RGB, by the function that the detector's sidecar reads it by.

    For a plain 8-bit picture that is PIL's own conversion, as in LLaVA; transparency is dropped. Unlike LLaVA's own
    code, and like transformers' `load_image`, it applies a rotation that is noted in EXIF.

    Args:
        source: A file, an image of a shard, or the bytes of one.

    Raises:
        InputError: The picture is missing, empty, truncated, of no format that is accepted, or too large to be
            decoded safely.
    """
    name = f"image of {len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        return decode(source if isinstance(source, bytes | Path) else source.read_bytes())
    except RefusedError as error:
        raise InputError(f"{name}: not a readable image ({error.message}); replace or remove it") from None
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such image; check the image folder") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{name}: cannot read the image ({reason}); replace or remove it") from error


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Everything up to, and not including, rescaling and normalizing, which the model does on the device.

    Optional padding to a square (color int(255 * mean), picture centered by floor), resize of the shortest edge to
    `size` or as the settings say, central crop.

    Args:
        image: RGB picture of any size.
        preprocessing: The vision tower's settings.

    Returns:
        uint8 [size, size, 3] in [0, 255].

    Raises:
        InputError: The picture is so elongated that resizing its short edge would not fit in memory.
    """
    assert image.mode == "RGB", f"expected an RGB image, got {image.mode}; use load_image"
    if preprocessing.pad:
        image = _pad_to_square(image, preprocessing)
    if preprocessing.do_resize:
        image = image.resize(_resized(image, preprocessing), Image.Resampling(preprocessing.resample))
    size = preprocessing.size
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _resized(image: Image.Image, preprocessing: Preprocessing) -> tuple[int, int]:
    """Width and height that the picture is resized to."""
    if preprocessing.stretch:
        height, width = preprocessing.stretch
        return width, height
    edge = preprocessing.size
    short, long = sorted(image.size)
    new_long = edge * long // short
    if edge * new_long > _MAX_RESIZED_PIXELS:
        raise InputError(
            f"image of {image.width} x {image.height} pixels is too elongated to resize its short edge to "
            f"{edge}; crop or remove it"
        )
    return (edge, new_long) if image.width <= image.height else (new_long, edge)


def _pad_to_square(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    width, height = image.size
    side = max(width, height)
    red, green, blue = (int(255 * mean) for mean in preprocessing.image_mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
