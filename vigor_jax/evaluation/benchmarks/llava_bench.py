"""LLaVA-Bench, in the wild and COCO: a judge scores each answer next to GPT-4's (Liu et al. 2023).

The figure is the sum of the model's scores by that of GPT-4's. The judge sees no image but is told what is in it: by a
text, or by captions and boxes. Departures from the published scripts: the prompt is in our own words (`--rule` takes
the published file); a reply without two scores is asked for again and then left out, where the script gives both
answers -1.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import Asked
from vigor_jax.evaluation.bootstrap import ratio
from vigor_jax.evaluation.image_names import ImageNames
from vigor_jax.evaluation.json_records import read_json, read_records, short
from vigor_jax.evaluation.judge.judge import MalformedReplyError
from vigor_jax.evaluation.judge.prompt import fill

CATEGORIES = ("conv", "detail", "complex")
NAMES = {"conv": "conversation", "detail": "detail", "complex": "reasoning"}

PROMPT = """\
Two assistants have answered a question about an image. You cannot see the image; under Context you are told what is in
it. Score each answer from 1 to 10 for being helpful, relevant, accurate and detailed; more is better. Do not let the
order of the answers count.

First write one line with the two scores alone, that of Assistant 1, a space, that of Assistant 2. Then explain them.
"""

# As the published script puts a question together, in front of the category's prompt.
_FRAME = """\
[Context]
{context}

[Question]
{question}

[{role} 1]
{reference}

[End of {role} 1]

[{role} 2]
{answer}

[End of {role} 2]

[System]
{prompt}

"""
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)(?:/10)?"
_SCORES = re.compile(rf"\W*{_NUMBER}[\s,]+{_NUMBER}\W*")


@dataclass(frozen=True)
class LlavaBenchQuestion:
    """A question.

    Attributes:
        id: The benchmark's number.
        image: File name.
        question: The words.
        category: One of `CATEGORIES`.
    """

    id: str
    image: str
    question: str
    category: str


@dataclass(frozen=True)
class Context:
    """What the judge is told of an image.

    Attributes:
        text: Captions, and boxes behind them.
        has_boxes: Whether there are any, as in the COCO variant.
    """

    text: str
    has_boxes: bool


@dataclass(frozen=True)
class Rule:
    """What the judge is asked to do with the answers to the questions of a category.

    Attributes:
        prompt: The task.
        role: What those that answered are called.
    """

    prompt: str
    role: str


def read_questions(path: Path) -> list[LlavaBenchQuestion]:
    """Reads `questions.jsonl` (in the wild) or `qa90_questions.jsonl` (COCO).

    Raises:
        InputError: The file cannot be read, has no question or an id twice, or a question is not as described.
    """
    questions: list[LlavaBenchQuestion] = []
    for place, record in read_records(path, {"image": str, "text": str, "category": str}):
        called, category = record.get("question_id"), record["category"]
        if isinstance(called, bool) or not isinstance(called, int | str):
            raise InputError(f"{place}: expected a number under 'question_id', got {short(called)}")
        if category not in CATEGORIES:
            raise InputError(f"{place}: expected one of {', '.join(CATEGORIES)} under 'category', got {category!r}")
        questions.append(LlavaBenchQuestion(str(called), record["image"], record["text"], category))
    if len({one.id for one in questions}) < len(questions):
        raise InputError(f"{path}: expected different question_ids, got some twice")
    if not questions:
        raise InputError(f"{path}: expected LLaVA-Bench's questions, got an empty file")
    return questions


def asked(questions: Sequence[LlavaBenchQuestion]) -> list[Asked]:
    """What saved answers are known by."""
    return [Asked((one.id,), one.image, one.question) for one in questions]


def read_contexts(path: Path, questions: Sequence[LlavaBenchQuestion]) -> dict[str, Context]:
    """Image → what the judge is told of it, from `context.jsonl` or COCO's `caps_boxes_coco2014_val_80.jsonl`.

    Raises:
        InputError: The file cannot be read, an image is as nothing of that, or a question's image is not there.
    """
    found = {record["image"]: _context(record, place) for place, record in read_records(path, {"image": str})}
    names = ImageNames(found)
    contexts = {}
    for question in questions:
        known = names.find(question.image)
        if len(known) != 1:
            raise InputError(
                f"{path}: expected a line about image {question.image} of question {question.id}, got none"
            )
        contexts[question.image] = found[known[0]]
    return contexts


def _context(record: Mapping[str, Any], place: str) -> Context:
    said = record.get("captions", record.get("caption"))
    captions = [said] if isinstance(said, str) else said
    boxes = record.get("instances", [])
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise InputError(f"{place}: expected a text or texts under 'caption' or 'captions', got {short(said)}")
    known = isinstance(boxes, list) and all(
        isinstance(box, dict) and {"category", "bbox"} <= box.keys() for box in boxes
    )
    if not known:
        raise InputError(f"{place}: expected boxes with 'category' and 'bbox' under 'instances', got {short(boxes)}")
    lines = [f"{box['category']}: {box['bbox']}" for box in boxes]
    return Context("\n".join(captions) + ("\n\n" + "\n".join(lines) if lines else ""), bool(lines))


def read_rules(path: Path) -> dict[str, Rule]:
    """The published words by category, from LLaVA's `rule.json`.

    Those called `llava_bench_conv` are for the benchmark in the wild, those called `conv` for COCO, whose contexts have
    boxes.

    Raises:
        InputError: The file cannot be read or lacks a category.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected {{category: {{role, prompt}}}}, got something else")
    rules = {}
    for name, rule in content.items():
        if isinstance(rule, dict) and isinstance(rule.get("prompt"), str) and isinstance(rule.get("role"), str):
            rules[name] = Rule(rule["prompt"], rule["role"])
    return rules


def prompt(
    question: LlavaBenchQuestion, context: Context, reference: str, answer: str, rules: Mapping[str, Rule] | None = None
) -> str:
    """All that the judge is asked about an answer.

    Args:
        question: What was asked.
        context: What is in the image.
        reference: GPT-4's answer, Assistant 1.
        answer: The model's, Assistant 2.
        rules: The published words; by default our own.

    Raises:
        InputError: The rules lack the category.
    """
    name = question.category if context.has_boxes else f"llava_bench_{question.category}"
    if rules is not None and name not in rules:
        raise InputError(f"--rule: expected a rule called {name!r} with 'role' and 'prompt', got {', '.join(rules)}")
    rule = rules[name] if rules else Rule(PROMPT, "Assistant")
    texts = {
        "context": context.text, "question": question.question, "role": rule.role, "reference": reference,
        "answer": answer, "prompt": rule.prompt,
    }  # fmt: skip
    return fill(_FRAME, texts)


def parse_scores(text: str) -> tuple[float, float]:
    """Reads the scores of the reference and of the answer from a reply's first line with any words: "8 7", "8, 7.5".

    Raises:
        MalformedReplyError: These are no two numbers, or one is not from 1 to 10.
    """
    first = next((line for line in text.split("\n") if line.strip()), "")
    found = _SCORES.fullmatch(first.strip())
    scores = [float(number) for number in found.groups()] if found else []
    if len(scores) != 2 or not all(1 <= score <= 10 for score in scores):
        raise MalformedReplyError("expected a first line with two scores from 1 to 10")
    return scores[0], scores[1]


def count(
    questions: Sequence[LlavaBenchQuestion], scores: Sequence[tuple[float, float] | None]
) -> dict[str, np.ndarray]:
    """Image → float64 [3, 3], by category the sums of the references' and the answers' scores, and their number."""
    counts: dict[str, np.ndarray] = {}
    for question, pair in zip(questions, scores, strict=True):
        if pair is not None:
            own = counts.setdefault(question.image, np.zeros((len(CATEGORIES), 3)))
            own[CATEGORIES.index(question.category)] += (*pair, 1)
    return counts


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 3, 3] → the relative scores, answers / references, over all and by category, float64 [...]."""
    total = counts.sum(-2)
    found = {"relative": ratio(total[..., 1], total[..., 0])}
    for place, name in enumerate(CATEGORIES):
        if np.any(counts[..., place, 2]):
            found[NAMES[name]] = ratio(counts[..., place, 1], counts[..., place, 0])
    return found
