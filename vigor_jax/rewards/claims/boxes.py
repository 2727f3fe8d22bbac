"""Boxes of one phrase in one image, and their geometry. Corners are relative to the image: x to the right, y down."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

Boxes: TypeAlias = Float[np.ndarray, "N 4"]  # x and y of the upper left corner, then of the lower right one, in [0, 1]


def as_boxes(boxes_xyxy: ArrayLike) -> Boxes:
    """Boxes as `Signal` and `Detection` have them, as float64, which decides what lies on a threshold.

    Raises:
        ValueError: They have another shape than [N, 4], or a corner that is no number.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    if boxes.size == 0:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise ValueError(f"boxes: expected finite numbers of shape [N, 4], got {boxes.shape}")
    return boxes


def areas(boxes: Boxes) -> Float[np.ndarray, " N"]:
    """Of each box; 0 for one that is turned inside out."""
    return np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None)


def intersections(first: Boxes, second: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "N M"]:
    """The area that each of the first shares with each of the second."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = np.clip(high - low, 0, None)
    return sides[..., 0] * sides[..., 1]


def overlaps(first: Boxes, second: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "N M"]:
    """Intersection over union."""
    shared = intersections(first, second)
    union = areas(first)[:, None] + areas(second)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def suppress(boxes: Boxes, scores: Float[np.ndarray, " N"], iou: float) -> Bool[np.ndarray, " N"]:
    """Greedy non-maximum suppression: which boxes stay.

    The best stays, and of the rest whatever overlaps no box that stays by more than `iou`. Of equal scores the box that
    comes first by its corners is the better one, so that the order of the boxes does not matter.
    """
    kept = np.zeros(len(boxes), dtype=bool)
    alike = overlaps(boxes, boxes) > iou
    for place in np.lexsort((*boxes.T[::-1], -scores)):
        kept[place] = not (alike[place] & kept).any()
    return kept
