"""Boxes that a model wrote against true ones, in pixels of the image."""

from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from vigor_jax.data.text.box_text import Box, in_image
from vigor_jax.rewards.claims.boxes import as_boxes, overlaps

# What a model's boxes are relative to: the square that LLaVA-1.5 pads the image to, or the image.
Frame: TypeAlias = Literal["square", "image"]
# From this intersection over union on a box is right.
RIGHT = 0.5


def in_pixels(box: Box, size: tuple[int, int], frame: Frame) -> Box:
    """A box as a model wrote it → pixels of the image; one that reaches into the padding stays as large as it is."""
    width, height = size
    left, top, right, bottom = in_image(box, size) if frame == "square" else box
    return left * width, top * height, right * width, bottom * height


def best_overlap(box: Box, truth: Float[np.ndarray, "N 4"]) -> float:
    """The largest intersection over union of a box with any true one, 0 without any."""
    return float(overlaps(as_boxes([box]), as_boxes(truth)).max(initial=0.0))
