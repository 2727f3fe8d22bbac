"""HallusionBench: the same questions about a figure, about an edited one, and without any (Guan et al. 2024).

The figures are those of the authors' `evaluation.py`, from answers that are right, wrong or unclear. Who says which is
the judge's part, as there; or the first word of an answer, yes or no, without a judge. Its diagnosis (language
hallucination or visual illusion) takes a second judgment of each answer and is not made here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.first_word import read_answer
from vigor_jax.evaluation.bootstrap import ratio
from vigor_jax.evaluation.json_records import read_records, short
from vigor_jax.evaluation.judge.judge import MalformedReplyError

Outcome: TypeAlias = Literal["right", "wrong", "unclear"]

PROMPT = """\
You mark a pupil's answer to a question. You are told the question and the reference answer, which is right.

correct: the answer says the same as the reference, or does not contradict it.
incorrect: the answer contradicts the reference.
unclear: the answer does not commit itself.

Question: {question}

Reference answer: {reference}

Answer to mark: {answer}

Reply with one word: correct, incorrect or unclear.
"""
PLACES = ("question", "reference", "answer")
_WORDS: dict[str, Outcome] = {"correct": "right", "incorrect": "wrong", "unclear": "unclear"}
_KEYS = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id", "question", "gt_answer")


@dataclass(frozen=True)
class HallusionQuestion:
    """A question.

    Attributes:
        category: "VD", which only the figure answers, or "VS", to which a figure adds.
        subcategory: "chart", "illusion", ...
        visual_input: "0" has no figure, "1" the original one, "2" an edited one.
        set_id: What figures and questions belong together.
        figure_id: "0" is the original figure of VD, and no figure of VS.
        question_id: Of the words; the same words about several figures have the same.
        question: The words.
        truth: "1" yes, "0" no.
        reference: The right answer in a sentence.
        image: "VD/illusion/0_0.png"; None: without a figure.
        answer: What a model said, where the file has it.
    """

    category: str
    subcategory: str
    visual_input: str
    set_id: str
    figure_id: str
    question_id: str
    question: str
    truth: str
    reference: str
    image: str | None
    answer: str | None = None

    @property
    def id(self) -> str:
        """Names the question among all."""
        return "_".join([self.category, self.subcategory, self.set_id, self.figure_id, self.question_id])

    @property
    def set(self) -> str:
        """Names what belongs together."""
        return "_".join([self.category, self.subcategory, self.set_id])

    @property
    def may_be_unclear(self) -> bool:
        """Whether not to know is right, too: what a figure would add is not there."""
        return self.category == "VS" and self.figure_id == "0"


def read_questions(path: Path) -> list[HallusionQuestion]:
    """Reads `HallusionBench.json`, or the same with a model's answers under `model_prediction`.

    Raises:
        InputError: The file cannot be read, has no question or one twice, or a question is not as described.
    """
    questions: list[HallusionQuestion] = []
    ids: set[str] = set()
    for place, record in read_records(path, {"question": str}):
        missing = [key for key in _KEYS if not isinstance(record.get(key), str | int)]
        if missing:
            raise InputError(f"{place}: expected a string under {missing[0]!r}, got {short(record.get(missing[0]))}")
        own = {key: str(record[key]) for key in _KEYS}
        if own["gt_answer"] not in ("0", "1"):
            raise InputError(f"{place}: expected '0' or '1' under 'gt_answer', got {short(record['gt_answer'])}")
        if own["category"] not in ("VD", "VS") or own["visual_input"] not in ("0", "1", "2"):
            got = f"{own['category']!r} and {own['visual_input']!r}"
            raise InputError(f"{place}: expected VD or VS as 'category' and 0, 1 or 2 as 'visual_input', got {got}")
        name = f"{own['category']}/{own['subcategory']}/{own['set_id']}_{own['figure_id']}.png"
        file = record.get("filename")
        image = "/".join(PurePosixPath(file).parts[-3:]) if isinstance(file, str) and file else name
        said = record.get("model_prediction")
        question = HallusionQuestion(
            **{key: own[key] for key in _KEYS[:-1]},
            truth=own["gt_answer"],
            reference=str(record.get("gt_answer_details", "")),
            image=None if own["visual_input"] == "0" else image,
            answer=said if isinstance(said, str) else None,
        )
        if question.id in ids:
            raise InputError(f"{place}: question {question.id} is there twice; category to question_id name one")
        ids.add(question.id)
        questions.append(question)
    if not questions:
        raise InputError(f"{path}: expected HallusionBench's questions, got an empty file")
    return questions


def read_outcome(question: HallusionQuestion, answer: str) -> Outcome:
    """What an answer is by its first word: yes, no, or else unclear."""
    said = read_answer(answer)
    if said is None:
        return "unclear"
    return "right" if (said == "yes") == (question.truth == "1") else "wrong"


def texts(question: HallusionQuestion, answer: str) -> dict[str, str]:
    """What stands in the `PLACES` of a prompt."""
    return {"question": question.question, "reference": question.reference, "answer": answer}


def parse_reply(text: str) -> Outcome:
    """What a judge says of an answer: one of its three words.

    Raises:
        MalformedReplyError: There is none of them, or several. The authors' script takes what it cannot read for
            unclear, and "correct" next to "incorrect" for incorrect.
    """
    found = set(re.findall(r"\b(incorrect|correct|unclear)\b", text.lower()))
    if len(found) != 1:
        raise MalformedReplyError("expected one of correct, incorrect and unclear")
    return _WORDS[found.pop()]


def is_right(question: HallusionQuestion, outcome: Outcome) -> bool:
    """Whether an outcome counts."""
    return outcome == "right" or (outcome == "unclear" and question.may_be_unclear)


# The last axis of counts.
COUNTS = (
    "questions", "right", "figures", "figures_right", "figures_wrong", "pairs", "pairs_right", "easy", "easy_right",
    "hard", "hard_right", "yes", "said_yes", "wrong", "wrong_no",
)  # fmt: skip


def count(questions: Sequence[HallusionQuestion], outcomes: Sequence[Outcome]) -> dict[str, np.ndarray]:
    """Set → int64 [15], the sums of `COUNTS`; `np.array(list(....values()))` is for `bootstrap`.

    Figures and pairs belong to one set each. The script's easy and hard figures are of pairs, too: of the questions to
    a pair that have the original figure or none, and of those that have an edited one.

    Raises:
        InputError: Not as many outcomes as questions.
    """
    if len(questions) != len(outcomes):
        raise InputError(
            f"HallusionBench: expected an answer to each of {len(questions)} questions, got {len(outcomes)}"
        )
    sets: dict[str, list[tuple[HallusionQuestion, bool]]] = {}
    for question, outcome in zip(questions, outcomes, strict=True):
        sets.setdefault(question.set, []).append((question, is_right(question, outcome)))
    return {name: np.array(_row(own), np.int64) for name, own in sets.items()}


def _row(answered: Sequence[tuple[HallusionQuestion, bool]]) -> list[int]:
    figures = _groups([(q.figure_id, right) for q, right in answered if not q.may_be_unclear])
    pairs = _groups([(q.question_id, right) for q, right in answered])
    easy = _groups([(q.question_id, right) for q, right in answered if q.visual_input != "2"])
    hard = _groups([(q.question_id, right) for q, right in answered if q.visual_input == "2"])
    row = [len(answered), sum(right for _, right in answered)]
    row += [len(figures), sum(map(all, figures)), sum(not any(figure) for figure in figures)]
    for groups in (pairs, easy, hard):
        row += [len(groups), sum(map(all, groups))]
    # As the script has it, a right answer says what is true, and a wrong one the opposite.
    truths = [(question.truth == "1", right) for question, right in answered]
    row += [sum(yes for yes, _ in truths), sum(yes == right for yes, right in truths)]
    row += [sum(not right for _, right in truths), sum(not right and not yes for yes, right in truths)]
    return row


def _groups(named: Sequence[tuple[str, bool]]) -> list[list[bool]]:
    groups: dict[str, list[bool]] = {}
    for name, right in named:
        groups.setdefault(name, []).append(right)
    return list(groups.values())


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 15] → the figures, each float64 [...].

    a_acc: questions that are right. f_acc, f_inconsistent, f_wrong: figures whose questions are right all, some, none.
    q_acc: pairs, the same words about all figures of a set, that are right each time. easy, hard: as `count`. yes_diff:
    yes among the answers less yes among the truths. yes_wrong: of wrong answers, those that said yes.
    """
    of = dict(zip(COUNTS, np.moveaxis(np.asarray(counts), -1, 0), strict=True))
    figures = of["figures"]
    return {
        "a_acc": ratio(of["right"], of["questions"]),
        "f_acc": ratio(of["figures_right"], figures),
        "f_inconsistent": ratio(figures - of["figures_right"] - of["figures_wrong"], figures),
        "f_wrong": ratio(of["figures_wrong"], figures),
        "q_acc": ratio(of["pairs_right"], of["pairs"]),
        "easy": ratio(of["easy_right"], of["easy"]),
        "hard": ratio(of["hard_right"], of["hard"]),
        "yes_diff": ratio(of["said_yes"] - of["yes"], of["questions"]),
        "yes_wrong": ratio(of["wrong_no"], of["wrong"]),
    }
