"""Questions with one right answer: a letter among options, or a word or two.

What SEED-Bench, ScienceQA, GQA (`question_layouts.py`) and MMBench (`mmbench.py`) have in common: how LLaVA-1.5 puts
the questions, and the figures. MM-Vet, whose answers are judged, is in `mmvet.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import Asked
from vigor_jax.evaluation.benchmarks.answer_letters import LETTERS, LetterParser, normalize, parse_letter
from vigor_jax.evaluation.bootstrap import ratio
from vigor_jax.evaluation.protocol import Protocol
from vigor_jax.evaluation.wording import CHOICE, SHORT

CHOICE_REQUEST, SHORT_REQUEST = CHOICE, SHORT

# Kind of category ("subject") → the question's categories of this kind; mostly one.
Categories = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with options.

    Attributes:
        question_id: As the benchmark calls it.
        image: File name below the folder of images; None: the question is asked without one.
        prompt: All that a model is asked as LLaVA-1.5 asks it; see `worded` for other words.
        options: Their texts, A first.
        answer: The right letter.
        categories: What the figures are broken down by.
        image_bytes: The image's file, where the layout brings it along; `question_files.write_images` makes files.
        group: Questions of one group are one question put in several ways; see `merge_groups`. Empty: of none.
        question: The question without its options; empty where the layout does not say.
        other_ids: Its other names in tools.

    Raises:
        InputError: The answer is no option.
    """

    question_id: str
    image: str | None
    prompt: str
    options: tuple[str, ...]
    answer: str
    categories: Categories = field(default_factory=lambda: MappingProxyType({}))
    image_bytes: bytes | None = field(default=None, repr=False)
    group: str = ""
    question: str = ""
    other_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        letters = LETTERS[: len(self.options)]
        if len(self.options) > len(LETTERS) or len(self.answer) != 1 or self.answer not in letters:
            raise InputError(
                f"question {self.question_id}: expected one of its {len(self.options)} options (A to "
                f"{letters[-1:] or '?'}) as the answer, got {self.answer!r}"
            )


@dataclass(frozen=True)
class OpenQuestion:
    """A question that is answered in words.

    Attributes:
        question_id: As the benchmark calls it.
        image: File name below the folder of images.
        question: The prompt without what is added to it.
        prompt: All that a model is asked.
        answer: The right one.
        categories: What the figures are broken down by.
        other_ids: Its other names in tools.
    """

    question_id: str
    image: str
    question: str
    prompt: str
    answer: str
    categories: Categories = field(default_factory=lambda: MappingProxyType({}))
    other_ids: tuple[str, ...] = ()


Question = ChoiceQuestion | OpenQuestion


@dataclass(frozen=True)
class Outcome:
    """What came of a question, or of a group.

    Attributes:
        question_id: Of the question, or the group's name.
        image: The image's name; of a question without one, "question " and its id.
        right: Whether the answer is right.
        parsed: What was read out of the answer; None: nothing, and that is wrong.
        categories: Of the question.
        group: Of the question.
    """

    question_id: str
    image: str
    right: bool
    parsed: str | None
    categories: Categories
    group: str = ""


@dataclass(frozen=True)
class Share:
    """A part of the questions.

    Attributes:
        accuracy: right / questions, in [0, 1].
        right: Right answers.
        questions: How many there are.
    """

    accuracy: float
    right: int
    questions: int


@dataclass(frozen=True)
class QuestionMetrics:
    """The figures.

    Attributes:
        accuracy: right / questions, in [0, 1].
        right: Right answers.
        questions: How many there are.
        unparsed: Answers out of which nothing could be read.
        categories: Kind of category → category → its share; both in the order of the questions.
    """

    accuracy: float
    right: int
    questions: int
    unparsed: int
    categories: dict[str, dict[str, Share]]


def choice_prompt(question: str, options: Sequence[str]) -> str:
    """The question, a line for each option ("A. a dog"), and what LLaVA-1.5 asks for: the letter alone."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join((question, *lines, CHOICE_REQUEST))


def short_prompt(question: str) -> str:
    """The question, and what LLaVA-1.5 asks for: a word or a phrase."""
    return f"{question}\n{SHORT_REQUEST}"


def body(question: Question) -> str:
    """The question with its options, and no words that a protocol adds."""
    return question.prompt.removesuffix(f"\n{CHOICE}").removesuffix(f"\n{SHORT}")


def worded(question: Question, protocol: Protocol) -> Question:
    """The question with a prompt in other words than LLaVA-1.5's."""
    return replace(question, prompt=protocol.ask(body(question)))


def asked(questions: Sequence[Question]) -> list[Asked]:
    """What saved answers to questions are known by."""
    return [
        Asked(
            (one.question_id, *one.other_ids),
            one.image,
            one.question,
            body(one),
            one.options if isinstance(one, ChoiceQuestion) else (),
        )
        for one in questions
    ]


def outcomes(
    questions: Sequence[Question], answers: Sequence[str], parser: LetterParser = parse_letter
) -> list[Outcome]:
    """Compares answers with what is right.

    Args:
        questions: Of either kind.
        answers: What the model said, one text a question, in the same order.
        parser: `parse_letter` or `parse_letter_strict`; answers to open questions go through `normalize`.

    Raises:
        InputError: Not as many answers as questions.
    """
    if len(questions) != len(answers):
        raise InputError(f"questions: expected an answer to each of {len(questions)} questions, got {len(answers)}")
    found = []
    for question, text in zip(questions, answers, strict=True):
        if isinstance(question, ChoiceQuestion):
            parsed, right, group = parser(text, question.options), question.answer, question.group
        else:
            parsed, right, group = normalize(text) or None, normalize(question.answer), ""
        image = question.image or f"question {question.question_id}"
        found.append(Outcome(question.question_id, image, parsed == right, parsed, question.categories, group))
    return found


def merge_groups(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """One outcome a group, right if all of the group is; what is of no group stays.

    What was read is that of the group's first question, or None if of one of them nothing could be read.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.group or f"question {outcome.question_id}", []).append(outcome)
    merged = []
    for found in groups.values():
        first = found[0]
        parsed = None if any(outcome.parsed is None for outcome in found) else first.parsed
        right = all(outcome.right for outcome in found)
        merged.append(Outcome(first.group or first.question_id, first.image, right, parsed, first.categories))
    return merged


def count(outcomes: Iterable[Outcome]) -> dict[str, np.ndarray]:
    """Image → int64 [2]: right answers, questions. `np.array(list(....values()))` is for `bootstrap`."""
    counts: dict[str, np.ndarray] = {}
    for outcome in outcomes:
        counts[outcome.image] = counts.get(outcome.image, 0) + np.array([outcome.right, 1], np.int64)
    return counts


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 2] → accuracy, float64 [...]."""
    right, questions = np.moveaxis(np.asarray(counts), -1, 0)
    return {"accuracy": ratio(right, questions)}


def compute_metrics(outcomes: Sequence[Outcome]) -> QuestionMetrics:
    """The figures.

    Raises:
        InputError: There is no question.
    """
    if not outcomes:
        raise InputError("questions: expected at least one question, got none")
    kinds: dict[str, dict[str, list[bool]]] = {}
    for outcome in outcomes:
        for kind, names in outcome.categories.items():
            for name in names:
                kinds.setdefault(kind, {}).setdefault(name, []).append(outcome.right)
    total = _share([outcome.right for outcome in outcomes])
    return QuestionMetrics(
        total.accuracy,
        total.right,
        total.questions,
        unparsed=sum(outcome.parsed is None for outcome in outcomes),
        categories={kind: {name: _share(found) for name, found in names.items()} for kind, names in kinds.items()},
    )


def _share(right: Sequence[bool]) -> Share:
    return Share(sum(right) / len(right), sum(right), len(right))
