"""What boxes say of a claim: right, wrong, or unknown, which is neither for nor against a caption.

A claim about a thing of which there is no box is unknown: that the thing is not there is said of it already.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from vigor_jax.errors import InputError
from vigor_jax.rewards.claims.boxes import Boxes, areas, as_boxes, intersections, suppress
from vigor_jax.rewards.claims.claim import Attribute, Claim, Number, Place, RelationName

_COUNTS_KEPT = 2**10  # of the phrases of some images, whose candidates name the same things


class Truth(Enum):
    """What boxes say of a claim."""

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class JudgeConfig:
    """When a claim is right, when wrong; between is unknown. Lengths are fractions of the image's width or height.

    Attributes:
        least_score: Boxes with a lower score do not count; [0, 1].
        iou: Of two boxes of a phrase that overlap by more the one with the lower score does not count; [0, 1].
        count_tolerance: A number from boxes may be wrong by this fraction of it, rounded down, for detectors miss and
            double more where there is more: by none up to 4 and by one from 5 with 0.2. Within that the answer is
            unknown, but right for the number itself.
        most_counted: From more boxes no claim of number is wrong, only right or unknown.
        narrowed: "at least": two dogs on the couch are two dogs or more in the image, so too many boxes say nothing.
            "exactly": as if the image had no others, which may be known of some data.
        place_margin: How far a center may be from the line between two parts of the image and still be on either side.
        center_width: The middle part of the image: a third, as in a grid of three by three.
        side_width: How far the left reaches, and from the other side the right; the same for top and bottom. With 0.5
            the halves of the image meet.
        unnamed_direction: "any": what is "at the top" may be anywhere from left to right. "center": it is in the
            middle part there, which may be known of some data.
        relation_margin: How far the center of a thing is beyond that of the other for left, right, above and below, in
            halves of the sum of their sizes: 1 if the boxes only touch. At least this is right, and at least this to
            the other side wrong.
        least_inside: The part of a box that lies within the other for "inside"; (0, 1].
        most_outside: With at most this part in it, it is not inside; [0, 1). What is on another thing and not above it
            has more than this part in it.
        most_gap: What is on another thing is no farther from it than this fraction of its width or height.
        attribute_margin: By how much the score of the phrase as claimed is above or below that of the best rival; (0,
            1].
        least_attribute: If no score is as high, the detector knows none of them; [0, 1].
    """

    least_score: float = 0.0
    iou: float = 0.5
    count_tolerance: float = 0.2
    most_counted: int = 12
    narrowed: Literal["at least", "exactly"] = "at least"
    place_margin: float = 0.05
    center_width: float = 1 / 3
    side_width: float = 0.5
    unnamed_direction: Literal["any", "center"] = "any"
    relation_margin: float = 0.3
    least_inside: float = 0.7
    most_outside: float = 0.1
    most_gap: float = 0.25
    attribute_margin: float = 0.1
    least_attribute: float = 0.25

    def __post_init__(self) -> None:
        fractions = (
            "least_score", "iou", "count_tolerance", "place_margin", "center_width", "side_width", "least_inside",
            "most_outside", "attribute_margin", "least_attribute",
        )  # fmt: skip
        for name in fractions:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: expected a fraction in [0, 1], got {getattr(self, name)}")
        for name in ("most_counted", "relation_margin", "most_gap"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: expected a number from 0, got {getattr(self, name)}")
        if self.most_outside >= self.least_inside:
            raise InputError(
                f"most_outside: expected less than least_inside, {self.least_inside}, got {self.most_outside}"
            )


@dataclass(frozen=True)
class Found:
    """The boxes of one phrase in one image.

    Attributes:
        boxes_xyxy: [N, 4], as `Signal` and `Detection` have them.
        scores: [N]; None where only the order is known, the best first, as in a `Signal`.
    """

    boxes_xyxy: ArrayLike
    scores: Sequence[float] | Float[np.ndarray, " N"] | None = None


def judge(claim: Claim, subject: Found, target: Found | None = None, config: JudgeConfig | None = None) -> Truth:
    """Judges a claim of number, place or relation.

    Args:
        claim: The claim.
        subject: The boxes of its subject's phrase.
        target: Those of the phrase of a relation's object.
        config: Thresholds.

    Raises:
        ValueError: The claim is one of attribute, for which see `judge_attribute`, or boxes are malformed.
    """
    config = config or JudgeConfig()
    boxes = counted_boxes(subject, config)
    value = claim.value
    if isinstance(value, Attribute):
        raise ValueError("a claim of attribute is judged by scores of rival phrases: see judge_attribute")
    if not len(boxes):
        return Truth.UNKNOWN
    if isinstance(value, Number):
        return _number(value, len(boxes), config)
    if isinstance(value, Place):
        return any_of(judge_place(value, boxes, config))
    others = counted_boxes(target, config) if target else np.zeros((0, 4))
    return any_of(_relation(value.name, boxes, others, config)) if len(others) else Truth.UNKNOWN


def judge_attribute(asked: float, rivals: Sequence[float], config: JudgeConfig | None = None) -> Truth:
    """Judges a claim of attribute by the scores of the phrases that `attributed_phrases` gives.

    Args:
        asked: Score of the phrase as claimed, "red car"; [0, 1].
        rivals: Those of its rivals, "blue car"; without any the answer is unknown.
        config: Thresholds.
    """
    config = config or JudgeConfig()
    if not rivals or max(asked, *rivals) < config.least_attribute:
        return Truth.UNKNOWN
    ahead = asked - max(rivals)
    if ahead >= config.attribute_margin:
        return Truth.RIGHT
    return Truth.WRONG if -ahead >= config.attribute_margin else Truth.UNKNOWN


def counted_boxes(found: Found, config: JudgeConfig) -> Boxes:
    """The boxes that count: with a score that is high enough, after suppression.

    Raises:
        ValueError: Boxes are malformed, or there are not as many scores.
    """
    boxes = found.boxes_xyxy
    if found.scores is None and isinstance(boxes, tuple) and all(isinstance(box, tuple) for box in boxes):
        return _counted_once(boxes, config)  # those of a `Signal`: every claim about the thing asks again
    return _counted(found, config)


@lru_cache(_COUNTS_KEPT)
def _counted_once(boxes_xyxy: tuple[Any, ...], config: JudgeConfig) -> Boxes:
    boxes = _counted(Found(boxes_xyxy), config)
    boxes.flags.writeable = False  # it is shared
    return boxes


def _counted(found: Found, config: JudgeConfig) -> Boxes:
    boxes = as_boxes(found.boxes_xyxy)
    scores = np.arange(len(boxes), 0.0, -1) if found.scores is None else np.asarray(found.scores, dtype=np.float64)
    if scores.shape != (len(boxes),):
        raise ValueError(f"scores: expected one for each of {len(boxes)} boxes, got {scores.shape}")
    kept = scores >= config.least_score if found.scores is not None else np.ones(len(boxes), dtype=bool)
    boxes, scores = boxes[kept], scores[kept]
    return boxes[suppress(boxes, scores, config.iou)]


def count_tolerance(number: int, config: JudgeConfig) -> int:
    """By how much a number of boxes may be wrong."""
    return math.floor(config.count_tolerance * number + 1e-9)


def _number(value: Number, count: int, config: JudgeConfig) -> Truth:
    if count < value.least:
        bound = value.least
    elif value.most is not None and count > value.most:
        if value.narrowed and config.narrowed == "at least":
            return Truth.UNKNOWN
        bound = value.most
    else:
        return Truth.RIGHT
    is_unsure = count > config.most_counted or abs(count - bound) <= count_tolerance(bound, config)
    return Truth.UNKNOWN if is_unsure else Truth.WRONG


def any_of(answers: np.ndarray) -> Truth:
    """Of 1 right, -1 wrong, 0 unknown: one right thing of a name is enough, and all must be wrong for a wrong claim."""
    if (answers > 0).any():
        return Truth.RIGHT
    return Truth.WRONG if (answers < 0).all() else Truth.UNKNOWN


def judge_place(value: Place, boxes: Boxes, config: JudgeConfig) -> Int[np.ndarray, " N"]:
    """Whether each box is there, by its center: 1 right, -1 wrong, 0 unknown."""
    unnamed = "center" if config.unnamed_direction == "center" else None
    sides = (
        (value.horizontal or unnamed, (boxes[:, 0] + boxes[:, 2]) / 2),
        (value.vertical or unnamed, (boxes[:, 1] + boxes[:, 3]) / 2),
    )
    return np.min([_side(side, center, config) for side, center in sides if side], axis=0)


def _side(side: str, center: np.ndarray, config: JudgeConfig) -> np.ndarray:
    if side == "center":
        ahead = config.center_width / 2 - np.abs(center - 0.5)
    else:
        ahead = config.side_width - (center if side in ("left", "top") else 1 - center)
    return _sign(ahead, config.place_margin)


def _relation(name: RelationName, first: Boxes, second: Boxes, config: JudgeConfig) -> np.ndarray:
    """Of each pair of boxes, [N * M]."""
    one, other = np.repeat(first, len(second), axis=0), np.tile(second, (len(first), 1))
    part = intersections(first, second).reshape(-1) / np.maximum(areas(one), 1e-12)
    if name == "inside":
        return np.where(part >= config.least_inside, 1, np.where(part <= config.most_outside, -1, 0))
    axis = 0 if name in ("left", "right") else 1
    beyond = (other[:, axis] + other[:, axis + 2] - one[:, axis] - one[:, axis + 2]) / 2
    half = (one[:, axis + 2] - one[:, axis] + other[:, axis + 2] - other[:, axis]) / 2
    ahead = (beyond if name in ("left", "above", "on") else -beyond) / np.maximum(half, 1e-12)
    answers = _sign(ahead, config.relation_margin)
    return _on(answers, part, one, other, config) if name == "on" else answers


def _on(answers: np.ndarray, part: np.ndarray, one: Boxes, other: Boxes, config: JudgeConfig) -> np.ndarray:
    """What is apart is not on it; what is below and overlaps may be, for tables are seen from above."""
    gaps = np.maximum(other[:, :2] - one[:, 2:], one[:, :2] - other[:, 2:])
    is_apart = (gaps > config.most_gap * (one[:, 2:] - one[:, :2])).any(axis=1)
    answers = np.where((answers < 0) & (part > config.most_outside), 0, answers)
    return np.where(is_apart, -1, answers)


def _sign(ahead: np.ndarray, margin: float) -> np.ndarray:
    return np.where(ahead >= margin, 1, np.where(ahead <= -margin, -1, 0))
