"""CHAIR: which of the objects that a caption mentions are not in its image (Rohrbach et al. 2018).

An object is in an image if its annotations have it, or if a reference caption mentions it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.errors import InputError, some
from vigor_jax.evaluation.benchmarks.synonyms import Mention, Synonyms
from vigor_jax.evaluation.bootstrap import ratio
from vigor_jax.evaluation.image_names import ImageNames
from vigor_jax.evaluation.json_records import read_json


@dataclass(frozen=True)
class Reference:
    """What is in the images.

    Attributes:
        objects: Image → the objects in it, under the names that `synonyms` gives them.
        synonyms: Finds the same objects in captions.
    """

    objects: dict[str, frozenset[str]]
    synonyms: Synonyms


@dataclass(frozen=True)
class CheckedCaption:
    """A caption against its image.

    Attributes:
        image: File name.
        mentions: The objects that the caption mentions, in order, each as often as it does.
        present: The objects in the image.
        words: Words of the caption, cut at white space; boxes are none.
    """

    image: str
    mentions: tuple[Mention, ...]
    present: frozenset[str]
    words: int

    @property
    def hallucinated(self) -> tuple[bool, ...]:
        """For each mention, whether its object is not in the image."""
        return tuple(mention.object not in self.present for mention in self.mentions)


# The last axis of counts.
COUNTS = (
    "captions", "hallucinated_captions", "mentions", "hallucinated", "first_mentions", "first_hallucinated",
    "objects", "objects_mentioned", "words",
)  # fmt: skip


@dataclass(frozen=True)
class ChairMetrics:
    """The figures of a set of captions.

    Attributes:
        chair_i: Hallucinated mentions / mentions. This and the next three in [0, 1]; 0 where there is nothing to
            divide by.
        chair_s: Captions with a hallucinated mention / captions.
        chair_first: Hallucinated share of each caption's first mentions (3 unless told), over all captions. It does
            not fall when captions end early, as chair_i does, for what is not there tends to be mentioned late.
        recall: Objects in the images that their captions mention / objects in the images, summed over captions (as in
            the script that most papers use; the authors' own has no recall).
        words: Mean words of a caption.
        captions: How many there are.
        mentions: Of objects of the table, in all captions.
        hallucinated: Mentions of objects that are not in the image.
        hallucinated_captions: Captions with such a mention.
    """

    chair_i: float
    chair_s: float
    chair_first: float
    recall: float
    words: float
    captions: int
    mentions: int
    hallucinated: int
    hallucinated_captions: int


class Annotations(NamedTuple):
    """What files say of images.

    Attributes:
        images: All of them.
        objects: Image → names of objects.
        captions: Image → reference captions.
        vocabulary: Names of objects and categories.
    """

    images: ImageNames
    objects: Mapping[str, Collection[str]]
    captions: Mapping[str, Sequence[str]]
    vocabulary: Collection[str]

    def reference(self, synonyms: Synonyms | None = None, *, images: Collection[str] | None = None) -> Reference:
        """What is in the images.

        Args:
            synonyms: As for `read_objects`.
            images: Only in these.
        """
        if not synonyms and not self.vocabulary:
            raise InputError("objects: reference captions need a synonym table, or a file of objects besides")
        synonyms = synonyms or Synonyms.identity(self.vocabulary)
        wanted = None if images is None else frozenset(images)
        present = {
            image: frozenset(synonyms.canonical(name) or "" for name in names)
            | {mention.object for caption in self.captions.get(image, ()) for mention in synonyms.extract(caption)}
            for image, names in self.objects.items()
            if wanted is None or image in wanted
        }
        return Reference(present, synonyms)


def read_objects(paths: Sequence[Path], synonyms: Synonyms | None = None) -> Reference:
    """Reads what is in images, from one file or several that add to each other.

    A file is `{image: [object, ...]}`, or COCO's instances (images go by their `file_name`, objects by their
    category's name) or COCO's reference captions; which of these it is shows in its content.

    Args:
        paths: JSON files.
        synonyms: Maps names and captions to objects. Default: each name in the files is an object, COCO's categories
            without an instance included.

    Raises:
        InputError: A file cannot be read or is nothing of that, or has an object that the synonyms do not know, or
            there are captions but neither synonyms nor objects.
    """
    return read_annotations(paths, synonyms).reference(synonyms)


def read_annotations(paths: Sequence[Path], synonyms: Synonyms | None = None) -> Annotations:
    """As `read_objects`, but reads no captions for objects yet."""
    objects: dict[str, set[str]] = {}
    captions: dict[str, list[str]] = {}
    vocabulary: set[str] = set()
    ids: dict[str, str] = {}
    for path in paths:
        content = read_json(path)
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected {{image: [object, ...]}} or COCO annotations, got no JSON object")
        try:
            if isinstance(content.get("annotations"), list) and isinstance(content.get("images"), list):
                found, texts, known = _parse_coco(content)
                ids |= {str(image["id"]): image["file_name"] for image in content["images"]}
            else:
                found, texts, known = _parse_plain(content)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: expected {{image: [object, ...]}} or COCO annotations ({error!r})") from error
        if synonyms:
            _check_known(path, known, synonyms)
        vocabulary |= known
        for image, names in found.items():
            objects.setdefault(image, set()).update(names)
        for image, own in texts.items():
            captions.setdefault(image, []).extend(own)
    return Annotations(ImageNames(objects, ids), objects, captions, vocabulary)


_Found = tuple[Mapping[str, Collection[str]], Mapping[str, Sequence[str]], set[str]]


def _parse_plain(content: Mapping[str, Any]) -> _Found:
    for image, objects in content.items():
        if not isinstance(objects, list) or not all(isinstance(name, str) and name.strip() for name in objects):
            raise TypeError(f"no list of names under {image!r}")
    return content, {}, {name for objects in content.values() for name in objects}


def _parse_coco(content: Mapping[str, Any]) -> _Found:
    files = {image["id"]: image["file_name"] for image in content["images"]}
    categories = {category["id"]: category["name"] for category in content.get("categories", ())}
    objects: dict[str, set[str]] = {name: set() for name in files.values()}
    captions: dict[str, list[str]] = {}
    for annotation in content["annotations"]:
        image = files[annotation["image_id"]]
        if "category_id" in annotation:
            objects[image].add(categories[annotation["category_id"]])
        else:
            captions.setdefault(image, []).append(annotation["caption"])
    for text in (*files.values(), *categories.values(), *(text for texts in captions.values() for text in texts)):
        if not isinstance(text, str):
            raise TypeError(f"no text but {text!r} as a file name, category or caption")
    return objects, captions, set(categories.values())


def _check_known(path: Path, names: Iterable[str], synonyms: Synonyms) -> None:
    if unknown := sorted(name for name in names if synonyms.canonical(name) is None):
        raise InputError(
            f"{path}: the synonym table has no line for {some(map(repr, unknown), 3)}; add them, or go without a table"
        )


def check_caption(image: str, caption: str, reference: Reference) -> CheckedCaption:
    """Compares a caption with its image.

    Raises:
        InputError: The reference does not have the image.
    """
    if image not in reference.objects:
        example = next(iter(reference.objects), None)
        there = "there is no image at all" if example is None else f"images are called as {example!r} there"
        raise InputError(f"CHAIR: the objects of image {image!r} are not known; {there}")
    caption = without_boxes(caption)
    mentions = tuple(reference.synonyms.extract(caption))
    return CheckedCaption(image, mentions, reference.objects[image], len(caption.split()))


def count(captions: Sequence[CheckedCaption], *, first: int = 3) -> dict[str, np.ndarray]:
    """Image → int64 [9], the sums of `COUNTS` over its captions; `np.array(list(....values()))` is for `bootstrap`.

    Args:
        captions: Several of an image allowed.
        first: How many mentions of a caption are its first ones.

    Raises:
        InputError: `first` is below 1.
    """
    if first < 1:
        raise InputError(f"CHAIR: expected 1 first mention or more, got first={first}")
    counts: dict[str, np.ndarray] = {}
    for caption in captions:
        absent = caption.hallucinated
        found = caption.present.intersection(mention.object for mention in caption.mentions)
        row = [1, any(absent), len(absent), sum(absent), len(absent[:first]), sum(absent[:first])]
        row += [len(caption.present), len(found), caption.words]
        counts[caption.image] = counts.get(caption.image, 0) + np.array(row, np.int64)
    return counts


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 9] → chair_i, chair_s, chair_first, recall and words, each float64 [...]; see `ChairMetrics`."""
    column = dict(zip(COUNTS, np.moveaxis(np.asarray(counts), -1, 0), strict=True))
    return {
        "chair_i": ratio(column["hallucinated"], column["mentions"]),
        "chair_s": ratio(column["hallucinated_captions"], column["captions"]),
        "chair_first": ratio(column["first_hallucinated"], column["first_mentions"]),
        "recall": ratio(column["objects_mentioned"], column["objects"]),
        "words": ratio(column["words"], column["captions"]),
    }


def compute_metrics(captions: Sequence[CheckedCaption], *, first: int = 3) -> ChairMetrics:
    """The figures of captions.

    Args:
        captions: As for `count`.
        first: As for `count`.

    Raises:
        InputError: There is no caption, or as `count`.
    """
    if not captions:
        raise InputError("CHAIR: expected at least one caption, got none")
    total = np.sum(list(count(captions, first=first).values()), axis=0)
    numbers = dict(zip(COUNTS, total.tolist(), strict=True))
    return ChairMetrics(
        **{name: float(value) for name, value in rates(total).items()},
        captions=numbers["captions"],
        mentions=numbers["mentions"],
        hallucinated=numbers["hallucinated"],
        hallucinated_captions=numbers["hallucinated_captions"],
    )
