"""Images as small WebP, all in one run of bytes that stays below a size."""

import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from vigor_jax.data.images.preprocessing import load_image
from vigor_jax.errors import InputError
from vigor_jax.records import ImageFile

logger = logging.getLogger(__name__)

# Longer side in pixels and WebP's quality, best first. The last is taken even if it is too large.
LEVELS = ((448, 90), (384, 80), (320, 72), (256, 66), (208, 60), (168, 55), (136, 48), (112, 42), (96, 36), (80, 30))
# Larger ones would show no more on the page.
MAX_BYTES_EACH = 24_000
# This many images, spread evenly, tell how large all will be.
_PROBES = 64
_MARGIN = 1.1


class Thumbnail(NamedTuple):
    """A picture's width and height in pixels, and its file."""

    width: int
    height: int
    data: bytes


def make_thumbnails(paths: Sequence[ImageFile | None], budget: int) -> list[Thumbnail | None]:
    """Thumbnails, as large and as good as fit; None for each image that is not there or cannot be read.

    Args:
      paths: files; None for an image whose file is not known.
      budget: most bytes of all of them together.
    """
    budget = min(budget, MAX_BYTES_EACH * len(paths))
    known = [index for index, path in enumerate(paths) if path is not None]
    probes = [paths[known[int(i)]] for i in np.linspace(0, len(known) - 1, min(len(known), _PROBES))]
    made: list[Thumbnail | None] = []
    with ThreadPoolExecutor() as pool:
        for level in LEVELS:
            is_last = level == LEVELS[-1]
            sizes = [len(each.data) for each in pool.map(partial(_make, level), probes) if each]
            if sizes and np.mean(sizes) * len(known) * _MARGIN > budget and not is_last:
                continue
            made = list(pool.map(partial(_make, level), paths))
            if sum(len(each.data) for each in made if each) <= budget or is_last:
                break
    if missing := [path for path, each in zip(paths, made, strict=True) if each is None]:
        example = next((f", such as {path}" for path in missing if path), "")
        logger.warning("%d of %d images are missing or cannot be read%s", len(missing), len(paths), example)
    return made


def _make(level: tuple[int, int], path: ImageFile | None) -> Thumbnail | None:
    side, quality = level
    if path is None:
        return None
    try:
        image = load_image(path)  # as the models saw it, so that boxes lie where they belong
    except InputError:
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=4)
    return Thumbnail(image.width, image.height, file.getvalue())
