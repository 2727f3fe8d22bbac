"""Referring expressions: is the box that a model gives for a description the right one? (RefCOCO, RefCOCO+, RefCOCOg)

The arithmetic is that of the scripts of Qwen-VL and InternVL, and MDETR's before them: of each answer the first box, in
pixels of the image and not cut off at its edges; intersection over union of plain areas; right from 0.5 on; an answer
without a box is wrong; the share of right ones over expressions, not over things. Shikra and All-Seeing want more than
0.5. An answer with numbers outside [0, 1] or corners in the wrong order has no box here (`data.text.box_text`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vigor_jax.data.text.box_text import Box, find_boxes
from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import Asked
from vigor_jax.evaluation.bootstrap import ratio
from vigor_jax.evaluation.box_overlap import RIGHT, Frame, best_overlap, in_pixels

# As LLaVA-1.5 was asked in training.
PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {expression}"
# The last axis of counts.
COUNTS = ("expressions", "right", "unread", "iou")


@dataclass(frozen=True)
class Expression:
    """A description of a thing in an image.

    Attributes:
        id: In its file.
        image: File name.
        words: What describes the thing; or all that a model is asked, where the file says that.
        is_question: Whether it is the latter.
        box: Of the thing: left, top, right, bottom in pixels.
        size: Width and height of the image in pixels.
    """

    id: str
    image: str
    words: str
    is_question: bool
    box: Box
    size: tuple[int, int]


@dataclass(frozen=True)
class Located:
    """An answer to an expression.

    Attributes:
        expression: What was asked.
        box: The first box of the answer, as it has it; None if it has none.
        iou: With the true one; 0 without a box.
    """

    expression: Expression
    box: Box | None
    iou: float


@dataclass(frozen=True)
class ReferringMetrics:
    """The figures of a part.

    Attributes:
        accuracy: Right boxes / expressions, in [0, 1].
        mean_iou: Over expressions, in [0, 1].
        expressions: How many there are.
        right: Answers whose box has an IoU of 0.5 or more.
        unread: Answers without a box.
    """

    accuracy: float
    mean_iou: float
    expressions: int
    right: int
    unread: int


def check_prompt(prompt: str) -> None:
    """Refuses a prompt without a place for the expression.

    Raises:
        InputError: It has none, or several.
    """
    if prompt.count("{expression}") != 1:
        raise InputError(f"--prompt: expected words with {{expression}} in one place, got {prompt!r}")


def question(expression: Expression, prompt: str = PROMPT) -> str:
    """All that a model is asked."""
    return expression.words if expression.is_question else prompt.replace("{expression}", expression.words)


def asked(expressions: Sequence[Expression], prompt: str) -> list[Asked]:
    """What saved answers are known by."""
    return [Asked((each.id,), each.image, each.words, question(each, prompt)) for each in expressions]


def locate(expressions: Sequence[Expression], answers: Sequence[str], frame: Frame = "square") -> list[Located]:
    """Reads answers, one text an expression in the same order.

    Args:
        expressions: Any.
        answers: What the model said.
        frame: What its boxes are relative to.
    """
    found = []
    for expression, answer in zip(expressions, answers, strict=True):
        box = next((each.box for each in find_boxes(answer)), None)
        truth = np.array([expression.box], np.float64)
        iou = best_overlap(in_pixels(box, expression.size, frame), truth) if box else 0.0
        found.append(Located(expression, box, iou))
    return found


def count(answers: Sequence[Located]) -> dict[str, np.ndarray]:
    """Image → float64 [4], the sums of `COUNTS` over its expressions, for `bootstrap`."""
    counts: dict[str, np.ndarray] = {}
    for each in answers:
        row = np.array([1, each.iou >= RIGHT, each.box is None, each.iou], np.float64)
        counts[each.expression.image] = counts.get(each.expression.image, 0) + row
    return counts


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 4] → accuracy and mean_iou, each float64 [...]."""
    expressions, right, _, iou = np.moveaxis(np.asarray(counts), -1, 0)
    return {"accuracy": ratio(right, expressions), "mean_iou": ratio(iou, expressions)}


def compute_metrics(answers: Sequence[Located]) -> ReferringMetrics:
    """The figures of one part; at least one answer."""
    total = np.sum(list(count(answers).values()), axis=0)
    expressions, right, unread, _ = total
    figures = {name: float(value) for name, value in rates(total).items()}
    return ReferringMetrics(**figures, expressions=int(expressions), right=int(right), unread=int(unread))
