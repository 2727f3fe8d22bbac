"""How close captions come to those that people wrote: BLEU, ROUGE-L, CIDEr, METEOR, SPICE, by pycocoevalcap.

The figures are those of the COCO caption code, of which pycocoevalcap is the packaged one. METEOR and SPICE are Java
programs and are left out where there is no Java; SPICE also fetches its parser from the network when it runs first.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.caption_tokens import has_java, tokenize
from vigor_jax.evaluation.bootstrap import ratio
from vigor_jax.evaluation.image_names import ImageNames
from vigor_jax.evaluation.json_records import read_json

ORDERS = (1, 2, 3, 4)  # of n-grams

# The last axis of counts. A sum of scores over images divided by the images is their mean.
COUNTS = (
    "words", "reference_words",
    *(f"guessed_{n}" for n in ORDERS), *(f"matched_{n}" for n in ORDERS),
    "rouge_l", "cider", "images",
)  # fmt: skip

# Keep pycocoevalcap's BLEU from dividing by 0.
_TINY, _SMALL = 1e-15, 1e-9

JavaMetric = Literal["meteor", "spice"]


@dataclass(frozen=True)
class CaptionMetrics:
    """The figures of a set of captions.

    Attributes:
        bleu_1: Of the corpus: n-grams up to length 1 that a reference has / n-grams, times the brevity penalty, with
            the reference closest in length. This and all but CIDEr in [0, 1].
        bleu_2: Geometric mean over n-grams of length 1 and 2.
        bleu_3: The same up to 3.
        bleu_4: The same up to 4.
        rouge_l: F of the longest common subsequence with β 1.2, from the best precision and the best recall over the
            references; mean over captions.
        cider: CIDEr-D, in [0, 10]; 0 for a single image, as its words then are in every image.
        meteor: None where left out.
        spice: None where left out.
        cap: FiSAO's figure as its text has it: mean of BLEU-4, ROUGE-L and CIDEr, in percent. Which BLEU the text
            does not say.
        cap_table: FiSAO's figure as its tables have it: mean of BLEU-1 to 4, METEOR, ROUGE-L and CIDEr, in percent;
            that is what Table 1's numbers are in terms of Table 8's. None without METEOR.
        captions: How many there are.
        tokenizer: "PTBTokenizer", or "vigor_jax" for our own words, where there is no Java; figures from the two
            do not compare.
        left_out: Metric → why there is none.
        counts: Image → float64 [13], see `COUNTS`; `np.array(list(....values()))` is for `bootstrap`.
    """

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge_l: float
    cider: float
    meteor: float | None
    spice: float | None
    cap: float
    cap_table: float | None
    captions: int
    tokenizer: str
    left_out: Mapping[str, str]
    counts: Mapping[str, np.ndarray]


def read_named_references(path: Path) -> tuple[dict[str, list[str]], ImageNames]:
    """Image → captions that people wrote, from `{image: [caption, ...]}` or COCO's captions (images by `file_name`),
    and the images' other names.

    Raises:
        InputError: The file cannot be read or is neither.
    """
    content = read_json(path)
    what = f"{path}: expected {{image: [caption, ...]}} or COCO's captions annotations"
    if not isinstance(content, dict):
        raise InputError(f"{what}, got no JSON object")
    references: dict[str, list[str]] = {}
    ids: dict[str, str] = {}
    try:
        if isinstance(content.get("annotations"), list) and isinstance(content.get("images"), list):
            files = {image["id"]: image["file_name"] for image in content["images"]}
            ids = {str(number): name for number, name in files.items()}
            for annotation in content["annotations"]:
                references.setdefault(files[annotation["image_id"]], []).append(annotation["caption"])
        else:
            references = content
    except (KeyError, TypeError) as error:
        raise InputError(f"{what} ({error!r})") from error
    for image, texts in references.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{what}, got no list of captions for image {image!r}")
    if not references:
        raise InputError(f"{what}, got none")
    return references, ImageNames(references, {number: name for number, name in ids.items() if name in references})


def compute_metrics(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    java: bool | None = None,
    java_metrics: Collection[JavaMetric] = ("meteor", "spice"),
) -> CaptionMetrics:
    """The figures of captions.

    Args:
        captions: Image → caption, whose boxes do not count. CIDEr weighs words by how many of these images' references
            have them, so figures of a part of the images are not those of all.
        references: Image → captions that people wrote; may have further images, which do not count.
        java: Whether to run Java programs. Default: if there is Java.
        java_metrics: Which of them are tried. SPICE takes up to 8 GB of memory, and 200 MB from the network at first.

    Raises:
        InputError: pycocoevalcap is missing, there is no caption, or an image has no reference.
    """
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise InputError(f"captions: pycocoevalcap is missing ({error}); pip install 'vigor-jax[captions]'") from error
    if not captions:
        raise InputError("captions: expected at least one caption, got none")
    if gone := [image for image in captions if not references.get(image)]:
        example = next(iter(references), None)
        there = "there is no reference at all" if example is None else f"references call images as {example!r}"
        raise InputError(f"captions: no reference for image {gone[0]!r} ({len(gone)} lack theirs); {there}")
    java = has_java() if java is None else java
    said = tokenize({image: [without_boxes(text)] for image, text in captions.items()}, java=java)
    wanted = tokenize({image: references[image] for image in captions}, java=java)

    bleu = BleuScorer(n=len(ORDERS))
    for image in captions:
        bleu += (said[image][0], wanted[image])
    bleus, _ = bleu.compute_score(option="closest")
    rouge_l, rouges = Rouge().compute_score(wanted, said)
    cider, ciders = Cider().compute_score(wanted, said)

    left_out: dict[str, str] = {}
    by_java: dict[str, float | None] = dict.fromkeys(("meteor", "spice"))
    for name in by_java:
        if name not in java_metrics:
            left_out[name] = "not asked for"
        elif not java:
            left_out[name] = "needs Java, which is missing"
        else:
            try:
                by_java[name] = _run_java(name, said, wanted)
            # Of the many ways in which foreign programs fail, none should take the other figures along.
            except Exception as error:
                left_out[name] = f"failed: {type(error).__name__}: {error}"[:200]

    counts = {}
    for image, one, rouge, each in zip(captions, bleu.ctest, rouges, ciders, strict=True):
        closest = min((abs(length - one["testlen"]), length) for length in one["reflen"])[1]
        row = (one["testlen"], closest, *one["guess"], *one["correct"], rouge, each, 1)
        counts[image] = np.array(row, np.float64)
    named = {f"bleu_{n}": float(value) for n, value in zip(ORDERS, bleus, strict=True)}
    figures = named | {"rouge_l": float(rouge_l), "cider": float(cider)}
    meteor = by_java["meteor"]
    return CaptionMetrics(
        **figures,
        meteor=meteor,
        spice=by_java["spice"],
        cap=cap(figures),
        cap_table=None if meteor is None else cap_table({**figures, "meteor": meteor}),
        captions=len(captions),
        tokenizer="PTBTokenizer" if java else "vigor_jax",
        left_out=MappingProxyType(left_out),
        counts=MappingProxyType(counts),
    )


def cap(figures: Mapping[str, Any]) -> Any:
    """`CaptionMetrics.cap` of bleu_4, rouge_l and cider."""
    return 100 * (figures["bleu_4"] + figures["rouge_l"] + figures["cider"]) / 3


def cap_table(figures: Mapping[str, Any]) -> Any:
    """`CaptionMetrics.cap_table` of bleu_1 to bleu_4, meteor, rouge_l and cider."""
    names = (*(f"bleu_{n}" for n in ORDERS), "meteor", "rouge_l", "cider")
    return 100 * sum(figures[name] for name in names) / len(names)


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 13] → bleu_1 to bleu_4, rouge_l, cider and cap, each float64 [...]; see `CaptionMetrics`.

    The weights of CIDEr's words stay those of all images when a part of these is drawn.
    """
    column = dict(zip(COUNTS, np.moveaxis(np.asarray(counts, np.float64), -1, 0), strict=True))
    length = (column["words"] + _TINY) / (column["reference_words"] + _SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / length))
    figures: dict[str, np.ndarray] = {}
    product = np.ones(length.shape)
    for n in ORDERS:
        product = product * (column[f"matched_{n}"] + _TINY) / (column[f"guessed_{n}"] + _SMALL)
        figures[f"bleu_{n}"] = product ** (1 / n) * brevity
    for name in ("rouge_l", "cider"):
        figures[name] = ratio(column[name], column["images"])
    return {**figures, "cap": cap(figures)}


def _run_java(name: str, said: Mapping[str, list[str]], wanted: Mapping[str, list[str]]) -> float:
    if name == "spice":
        from pycocoevalcap.spice.spice import Spice

        return float(Spice().compute_score(wanted, said)[0])

    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    try:
        return float(meteor.compute_score(wanted, said)[0])
    finally:
        if meteor.lock.locked():  # it failed with the lock held, which its end would wait for without end
            meteor.lock.release()
