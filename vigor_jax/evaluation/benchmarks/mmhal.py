"""MMHal-Bench: 96 questions about 96 images, each answer rated from 0 to 6 by a judge that reads (Sun et al. 2023).

The judge sees no image but the names of what is in it and a human answer, as published. Departures from the published
script: the prompt says the same in our own words and without worked examples, so that figures compare with published
ones loosely only (`--prompt` takes the published one); a rating is read with
markdown around it; and a reply without one clear rating is asked for again and then left out, where the script makes
it a 0, which is a hallucination.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import Asked
from vigor_jax.evaluation.benchmarks.mmhal_prompt import PROMPT, parse_rating
from vigor_jax.evaluation.bootstrap import ratio
from vigor_jax.evaluation.json_records import read_records
from vigor_jax.evaluation.judge.client import JudgeRequest
from vigor_jax.evaluation.judge.judge import Judge, JudgeResult, Spending, spending
from vigor_jax.evaluation.judge.prompt import fill

# A rating below this says that there is a hallucination.
HALLUCINATED_BELOW = 3


@dataclass(frozen=True)
class MmhalQuestion:
    """One question.

    Attributes:
        question_id: Place in the file, from 1.
        question_type: "attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic" or
            "other".
        image_id: OpenImages' name of the image.
        image_content: What is in it.
        question: "Who is sitting on the bench?"
        gt_answer: A human's answer.
    """

    question_id: int
    question_type: str
    image_id: str
    image_content: tuple[str, ...]
    question: str
    gt_answer: str


@dataclass(frozen=True)
class MmhalMetrics:
    """The figures.

    Attributes:
        score: Mean rating, in [0, 6].
        hallucination_rate: Ratings below 3 / ratings, in [0, 1].
        types: Mean rating of each type of question, in the order of the questions.
        judged: Answers that have a rating.
        malformed: Results without a rating; they are in none of the figures.
        results: All, in the order of the questions.
        spending: Tokens and cost.
    """

    score: float
    hallucination_rate: float
    types: dict[str, float]
    judged: int
    malformed: tuple[JudgeResult[int], ...]
    results: tuple[JudgeResult[int], ...]
    spending: Spending


def read_questions(path: Path) -> list[MmhalQuestion]:
    """Reads the benchmark's response template, filled or not: a JSON list, or one object a line.

    Raises:
        InputError: The file cannot be read, has no question, or a question is not as described.
    """
    keys = {"question_type": str, "image_id": str, "image_content": list, "question": str, "gt_answer": str}
    questions: list[MmhalQuestion] = []
    for place, record in read_records(path, keys):
        if not all(isinstance(name, str) for name in record["image_content"]):
            raise InputError(f"{place}: expected strings under 'image_content', got {record['image_content']!r}")
        record |= {"question_id": len(questions) + 1, "image_content": tuple(record["image_content"])}
        questions.append(MmhalQuestion(**{field.name: record[field.name] for field in fields(MmhalQuestion)}))
    if not questions:
        raise InputError(f"{path}: expected MMHal-Bench's questions, got an empty file")
    return questions


def asked(questions: Sequence[MmhalQuestion]) -> list[Asked]:
    """What saved answers are known by: the place of the question, or its image's id or file and its words."""
    return [Asked((str(one.question_id),), one.image_id, one.question) for one in questions]


def refuse_empty(answers: Sequence[str], source: str) -> None:
    """Refuses the benchmark's template as it is published.

    Raises:
        InputError: Every answer is empty.
    """
    if not any(answer.strip() for answer in answers):
        raise InputError(f"{source}: every answer is empty; fill in 'model_answer'")


def count(questions: Sequence[MmhalQuestion], ratings: Sequence[int | None]) -> dict[str, np.ndarray]:
    """Image → int64 [3]: sum of its ratings, hallucinations, ratings. An image without a rating (None) is left out.

    `np.array(list(....values()))` is for `bootstrap`.
    """
    counts: dict[str, np.ndarray] = {}
    for question, rating in zip(questions, ratings, strict=True):
        if rating is not None:
            row = np.array([rating, rating < HALLUCINATED_BELOW, 1], np.int64)
            counts[question.image_id] = counts.get(question.image_id, 0) + row
    return counts


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 3] → score and hallucination_rate, each float64 [...]; see `MmhalMetrics`."""
    total, hallucinated, ratings = np.moveaxis(np.asarray(counts), -1, 0)
    return {"score": ratio(total, ratings), "hallucination_rate": ratio(hallucinated, ratings)}


def score_mmhal(
    questions: Sequence[MmhalQuestion],
    answers: Sequence[str],
    judge: Judge,
    *,
    prompt: str = PROMPT,
    system: str = "",
) -> MmhalMetrics:
    """Has answers judged.

    Args:
        questions: At least one.
        answers: What the model said, one text a question, in the same order.
        judge: A model that reads is enough; GPT-4 in the paper.
        prompt: With `mmhal_prompt.PLACES`.
        system: Name of the model, for the file of replies.

    Raises:
        InputError: Not as many answers as questions, or no reply could be read, or as `Judge.ask_all`.
    """
    if not questions or len(questions) != len(answers):
        raise InputError(f"MMHal: expected an answer to each of {len(questions)} questions, got {len(answers)}")
    requests = [
        JudgeRequest("mmhal", str(question.question_id), fill(prompt, _texts(question, answer)), (system,))
        for question, answer in zip(questions, answers, strict=True)
    ]
    results = judge.ask_all(requests, parse_rating, desc="mmhal")
    ratings = [result.value for result in results]
    if all(rating is None for rating in ratings):
        raise InputError(
            f"MMHal: no reply of {judge.config.model} has a rating; the first is {results[0].replies[-1].text[:80]!r}"
        )
    total = sum(count(questions, ratings).values())
    by_type: dict[str, list[int]] = {}
    for question, rating in zip(questions, ratings, strict=True):
        if rating is not None:
            by_type.setdefault(question.question_type, []).append(rating)
    return MmhalMetrics(
        **{name: float(value) for name, value in rates(np.asarray(total)).items()},
        types={name: float(np.mean(values)) for name, values in by_type.items()},
        judged=sum(rating is not None for rating in ratings),
        malformed=tuple(result for result in results if result.value is None),
        results=tuple(results),
        spending=spending(results, judge.config),
    )


def _texts(question: MmhalQuestion, answer: str) -> dict[str, str]:
    return {
        "image_content": ", ".join(question.image_content),
        "question": question.question,
        "gt_answer": question.gt_answer,
        "model_answer": answer,
    }
