"""POPE: is a model led to say that an object is there which is not (Li et al. 2023)?

Questions and answers as the benchmark's authors store them, their way to read a yes or no out of an answer next to the
strict one of lmms-eval, and the figures. New questions come from `pope_build.py`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import Asked
from vigor_jax.evaluation.bootstrap import ratio
from vigor_jax.evaluation.json_records import read_records
from vigor_jax.evaluation.saved_answers import SPLITS

YesNo = Literal["yes", "no"]
Parser = Callable[[str], YesNo | None]

# The last axis of counts.
OUTCOMES = ("tp", "fp", "tn", "fn", "unparsed")


@dataclass(frozen=True)
class PopeQuestion:
    """One question.

    Attributes:
        question_id: Counts from 1 in each file.
        image: File name.
        text: "Is there a dog in the image?"
        label: The right answer.
    """

    question_id: int
    image: str
    text: str
    label: YesNo


@dataclass(frozen=True)
class PopeMetrics:
    """The figures of a split, or their mean over splits.

    Attributes:
        accuracy: Right answers / questions; an unparsed answer is wrong. This and the next four in [0, 1]; what has
            nothing to divide by is 0.
        precision: tp / (tp + fp).
        recall: tp / (tp + fn).
        f1: Harmonic mean of precision and recall.
        yes_ratio: Answers that are yes / questions.
        tp: Answered yes, rightly; a whole number but for a mean, as the next four.
        fp: Answered yes, wrongly: the hallucinations.
        tn: Answered no, rightly.
        fn: Answered no, wrongly.
        unparsed: Neither yes nor no; only the strict parser has such.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    tp: float
    fp: float
    tn: float
    fn: float
    unparsed: float


def read_questions(path: Path) -> list[PopeQuestion]:
    """Reads questions: `question_id`, `image`, `text` and `label`, one JSON object a line, or a JSON list of them.

    Raises:
        InputError: The file cannot be read, has no question or an id twice, or a question is not as described.
    """
    questions: list[PopeQuestion] = []
    ids: set[int] = set()
    for place, record in read_records(path, {"question_id": int, "image": str, "text": str, "label": str}):
        if record["label"] not in ("yes", "no"):
            raise InputError(f"{place}: expected 'yes' or 'no' under 'label', got {record['label']!r}")
        if record["question_id"] in ids:
            raise InputError(f"{place}: question_id {record['question_id']} is there twice; ids are different")
        ids.add(record["question_id"])
        questions.append(PopeQuestion(**{field.name: record[field.name] for field in fields(PopeQuestion)}))
    if not questions:
        raise InputError(f"{path}: expected POPE questions, got an empty file")
    return questions


def write_questions(path: Path, questions: Iterable[PopeQuestion]) -> None:
    """Writes what `read_questions` reads, one a line."""
    lines = [json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in questions]
    Path(path).write_text("".join(lines), encoding="utf-8")


def asked(questions: Sequence[PopeQuestion], name: str = "") -> list[Asked]:
    """What saved answers to questions are known by; `name` is of their file, which may say what split they are."""
    split = next((split for split in SPLITS if split in name), None)
    return [Asked((str(one.question_id),), one.image, one.text, split=split) for one in questions]


def parse_answer(text: str) -> YesNo:
    """Reads an answer as POPE's authors do: whatever does not say no says yes.

    Up to the first full stop and without commas, the text is cut at spaces, and only at these; "No", "no" or "not"
    among the pieces is no. So "NO", "No!", "No\\nthere" and an empty answer are yes. Boxes are taken out before.
    """
    words = without_boxes(text).partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def parse_answer_strict(text: str) -> YesNo | None:
    """Reads an answer as lmms-eval's task `pope` does: yes or no and nothing else, but for case and outer white space.

    "Yes." with its full stop is neither, and so wrong. The figures from it are those of lmms-eval with one exception:
    what lmms-eval prints as the yes-ratio is the share of yes among the labels, which no model can change.
    """
    word = without_boxes(text).lower().strip()
    return "yes" if word == "yes" else "no" if word == "no" else None


def read_contained(questions: Sequence[PopeQuestion], answers: Sequence[str]) -> list[str]:
    """What VCD's script takes answers for: the label's word if it is in them, also within a word, else the other.

    So "I do not know" is no where the label is no ("know" has it, too), and no where the label is yes.
    """
    words = {"yes": ("yes", "no"), "no": ("no", "yes")}
    pairs = zip(questions, answers, strict=True)
    return [words[one.label][one.label not in without_boxes(answer).lower()] for one, answer in pairs]


def count(
    questions: Sequence[PopeQuestion], answers: Sequence[str], parser: Parser = parse_answer
) -> dict[str, np.ndarray]:
    """Image → int64 [5], how many of its answers are of each of `OUTCOMES`.

    Raises:
        InputError: Not as many answers as questions.
    """
    if len(questions) != len(answers):
        raise InputError(f"POPE: expected an answer to each of {len(questions)} questions, got {len(answers)}")
    counts: dict[str, np.ndarray] = {}
    outcomes = {("yes", "yes"): "tp", ("no", "yes"): "fp", ("no", "no"): "tn", ("yes", "no"): "fn"}
    for question, answer in zip(questions, answers, strict=True):
        parsed = parser(answer)
        outcome = "unparsed" if parsed is None else outcomes[question.label, parsed]
        counts.setdefault(question.image, np.zeros(5, np.int64))[OUTCOMES.index(outcome)] += 1
    return counts


def stack(splits: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """The counts of several splits, for `bootstrap`: int64 [images, splits, 5]; 0 where a split lacks an image."""
    images = dict.fromkeys(image for split in splits for image in split)
    return np.array([[split.get(image, np.zeros(5, np.int64)) for split in splits] for image in images])


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 5] → accuracy, precision, recall, f1 and yes_ratio, each float64 [...]; see `PopeMetrics`."""
    tp, fp, tn, fn, _ = np.moveaxis(np.asarray(counts), -1, 0)
    total = np.sum(counts, -1)
    precision, recall = ratio(tp, tp + fp), ratio(tp, tp + fn)
    return {
        "accuracy": ratio(tp + tn, total),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": ratio(tp + fp, total),
    }


def mean_rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., splits, 5] → the rates of each split, and of these the unweighted mean, float64 [...]."""
    return {name: values.mean(-1) for name, values in rates(counts).items()}


def compute_metrics(
    questions: Sequence[PopeQuestion], answers: Sequence[str], parser: Parser = parse_answer
) -> PopeMetrics:
    """The figures of one split.

    Args:
        questions: At least one.
        answers: What the model said, one text a question, in the same order.
        parser: `parse_answer` or `parse_answer_strict`.

    Raises:
        InputError: Not as many answers as questions.
    """
    total = np.sum(list(count(questions, answers, parser).values()), axis=0)
    return PopeMetrics(
        **{name: float(value) for name, value in rates(total).items()},
        **{name: int(value) for name, value in zip(OUTCOMES, total, strict=True)},
    )


def mean(metrics: Sequence[PopeMetrics]) -> PopeMetrics:
    """Every figure's unweighted mean over splits, as papers report it: f1 is the mean of the splits' f1."""
    return PopeMetrics(
        **{
            field.name: float(np.mean([getattr(split, field.name) for split in metrics]))
            for field in fields(PopeMetrics)
        }
    )
