"""Are the boxes in captions right? Each against the true boxes of what its phrase names, at an IoU of 0.5.

A box belongs to the mention of an object that it stands right behind. The words that mean an object are those that
CHAIR goes by (`synonyms.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vigor_jax.data.text.box_text import Box, strip_boxes
from vigor_jax.errors import InputError, some
from vigor_jax.evaluation.benchmarks.synonyms import Synonyms
from vigor_jax.evaluation.bootstrap import ratio
from vigor_jax.evaluation.box_overlap import RIGHT, Frame, best_overlap, in_pixels
from vigor_jax.evaluation.image_names import ImageNames
from vigor_jax.evaluation.json_records import read_json

# The last axis of counts.
COUNTS = ("captions", "phrases", "boxes", "boxed", "present", "right")


@dataclass(frozen=True)
class Instances:
    """The true boxes in images.

    Attributes:
        images: All of them.
        sizes: Image → width and height in pixels.
        boxes: Image → object → float64 [N, 4], left, top, right and bottom in pixels.
        synonyms: Finds the same objects in captions.
    """

    images: ImageNames
    sizes: Mapping[str, tuple[int, int]]
    boxes: Mapping[str, Mapping[str, np.ndarray]]
    synonyms: Synonyms


@dataclass(frozen=True)
class BoxedPhrase:
    """A mention of an object with a box, or with several.

    Attributes:
        words: As the caption has them, in lower case.
        object: What they mean.
        boxes: As the caption has them.
        present: Whether the object is in the image.
        iou: Of the worst of the boxes with the true box that it fits best; 0 if the object is not in the image.
    """

    words: str
    object: str
    boxes: tuple[Box, ...]
    present: bool
    iou: float

    @property
    def is_right(self) -> bool:
        return self.iou >= RIGHT


@dataclass(frozen=True)
class CheckedBoxes:
    """The boxes of a caption against its image.

    Attributes:
        image: File name.
        phrases: How often the caption mentions an object.
        boxes: How many boxes it has.
        boxed: The mentions that have one; boxes behind other words are of no phrase.
    """

    image: str
    phrases: int
    boxes: int
    boxed: tuple[BoxedPhrase, ...]


@dataclass(frozen=True)
class GroundingMetrics:
    """The figures of a set of captions; shares in [0, 1], 0 where there is nothing to divide by.

    Attributes:
        boxed_share: Phrases with a box / phrases.
        accuracy: Right boxes / phrases with a box; the box of what is not in the image is wrong.
        accuracy_present: The same of phrases whose object is in the image.
        grounded: Phrases with a right box, and so of a right object / phrases.
        captions: How many there are.
        phrases: Mentions of objects in them.
        boxes: Boxes in them.
        boxed: Phrases with a box.
        present: Of these, phrases whose object is in the image.
        right: Of these, those whose box is right; of several boxes each must be.
    """

    boxed_share: float
    accuracy: float
    accuracy_present: float
    grounded: float
    captions: int
    phrases: int
    boxes: int
    boxed: int
    present: int
    right: int


def read_instances(paths: Sequence[Path], synonyms: Synonyms | None = None) -> Instances:
    """Reads true boxes from COCO's instances; several files add to each other.

    Args:
        paths: JSON files with images (id, file_name, width, height), categories (id, name) and annotations (image_id,
            category_id, bbox: left, top, width and height in pixels).
        synonyms: Maps the categories and captions to objects. Default: each category is an object.

    Raises:
        InputError: A file cannot be read or is nothing of that, or has a category that the synonyms do not know.
    """
    sizes: dict[str, tuple[int, int]] = {}
    boxes: dict[str, dict[str, list[Box]]] = {}
    ids: dict[str, str] = {}
    categories: set[str] = set()
    for path in paths:
        content = read_json(path)
        try:
            files = {image["id"]: image["file_name"] for image in content["images"]}
            sizes |= {image["file_name"]: (image["width"], image["height"]) for image in content["images"]}
            names = {category["id"]: category["name"] for category in content["categories"]}
            for annotation in content["annotations"]:
                left, top, width, height = map(float, annotation["bbox"])
                own = boxes.setdefault(files[annotation["image_id"]], {})
                own.setdefault(names[annotation["category_id"]], []).append((left, top, left + width, top + height))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: expected COCO's instances: images with a size, categories, and annotations with a bbox "
                f"({error!r})"
            ) from error
        _check_sizes(path, sizes)
        ids |= {str(number): name for number, name in files.items()}
        categories.update(names.values())
    synonyms = synonyms or Synonyms.identity(categories)
    if unknown := sorted(name for name in categories if synonyms.canonical(name) is None):
        raise InputError(
            f"{paths[0]}: the synonym table has no line for {some(map(repr, unknown), 3)}; add them, or go without a "
            "table"
        )
    merged = {image: _merged(boxes.get(image, {}), synonyms) for image in sizes}
    return Instances(ImageNames(sizes, ids), sizes, merged, synonyms)


def _check_sizes(path: Path, sizes: Mapping[str, Any]) -> None:
    for image, size in sizes.items():
        if not isinstance(image, str) or not all(type(side) is int and side > 0 for side in size):
            raise InputError(f"{path}: expected width and height in pixels of image {image!r}, got {size}")


def _merged(boxes: Mapping[str, Sequence[Box]], synonyms: Synonyms) -> dict[str, np.ndarray]:
    """Object → the boxes of all categories that are this object."""
    found: dict[str, list[Box]] = {}
    for category, own in boxes.items():
        found.setdefault(synonyms.canonical(category) or "", []).extend(own)
    return {name: np.array(own, np.float64) for name, own in found.items()}


def check_boxes(image: str, caption: str, truth: Instances, frame: Frame = "square") -> CheckedBoxes:
    """Compares the boxes of a caption with those in its image.

    Args:
        image: As `truth` calls it.
        caption: With boxes, or without.
        truth: The true boxes.
        frame: What the caption's boxes are relative to.
    """
    plain = strip_boxes(caption)
    mentions = truth.synonyms.extract(plain.text)
    found: dict[int, list[Box]] = {}  # by the number of the mention that a box stands behind
    for place, box in plain.places:
        if at_end := truth.synonyms.mention_at_end(plain.text[: place.end]):
            number, mention = at_end
            if mentions[number : number + 1] == [mention]:  # else "dog [...] house" is none
                found.setdefault(number, []).append(box)
    boxed = []
    for number, boxes in sorted(found.items()):
        words, name = mentions[number].words, mentions[number].object
        true = truth.boxes[image].get(name, np.zeros((0, 4)))
        iou = min(best_overlap(in_pixels(box, truth.sizes[image], frame), true) for box in boxes)
        boxed.append(BoxedPhrase(words, name, tuple(boxes), len(true) > 0, iou))
    return CheckedBoxes(image, len(mentions), len(plain.boxes), tuple(boxed))


def count(captions: Sequence[CheckedBoxes]) -> dict[str, np.ndarray]:
    """Image → int64 [6], the sums of `COUNTS` over its captions, for `bootstrap`."""
    counts: dict[str, np.ndarray] = {}
    for each in captions:
        present, right = (sum(getattr(phrase, name) for phrase in each.boxed) for name in ("present", "is_right"))
        row = np.array([1, each.phrases, each.boxes, len(each.boxed), present, right], np.int64)
        counts[each.image] = counts.get(each.image, 0) + row
    return counts


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 6] → boxed_share, accuracy, accuracy_present and grounded, float64 [...]; see `GroundingMetrics`."""
    column = dict(zip(COUNTS, np.moveaxis(np.asarray(counts), -1, 0), strict=True))
    return {
        "boxed_share": ratio(column["boxed"], column["phrases"]),
        "accuracy": ratio(column["right"], column["boxed"]),
        "accuracy_present": ratio(column["right"], column["present"]),
        "grounded": ratio(column["right"], column["phrases"]),
    }


def compute_metrics(captions: Sequence[CheckedBoxes]) -> GroundingMetrics:
    """The figures of captions.

    Raises:
        InputError: There is no caption.
    """
    if not captions:
        raise InputError("grounding: expected at least one caption, got none")
    total = np.sum(list(count(captions).values()), axis=0)
    shares = {name: float(value) for name, value in rates(total).items()}
    num_captions, phrases, boxes, boxed, present, right = total.tolist()
    return GroundingMetrics(
        **shares, captions=num_captions, phrases=phrases, boxes=boxes, boxed=boxed, present=present, right=right
    )
