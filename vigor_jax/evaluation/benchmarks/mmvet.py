"""MM-Vet: 218 open questions, each answer given a correctness from 0.0 to 1.0 by a judge that reads (Yu et al. 2023).

As for MMHal-Bench, the prompt says the same as the published one in our own words and without its worked examples, so
that figures compare with published ones loosely only (`--prompt` takes the published one: add the line
"{question} | {answer} | {prediction} |" to it); and a
reply without one clear number is asked for again and then left out, where the script makes it a 0.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.questions import OpenQuestion
from vigor_jax.evaluation.bootstrap import ratio
from vigor_jax.evaluation.json_records import read_json
from vigor_jax.evaluation.judge.client import JudgeRequest
from vigor_jax.evaluation.judge.judge import Judge, JudgeResult, MalformedReplyError, Spending, spending
from vigor_jax.evaluation.judge.prompt import fill

PROMPT = """\
You grade answers that a vision-language model gave to questions about images. You cannot see the image; the reference \
answer is right. Say how correct the answer is, as one number among 0.0, 0.1, 0.2, ..., 1.0: 0.0 is all wrong, 1.0 is \
all right.

In a reference, <AND> stands between parts that an answer must all have: one with half of them gets about 0.5. <OR> \
stands between alternatives: one of them is enough. Further true detail does no harm; what contradicts the reference \
does.

Question: {question}

Reference answer: {answer}

Answer to grade:
<answer>
{prediction}
</answer>

End with one line of this form:
Correctness: N
"""

PLACES = ("question", "answer", "prediction")
# A number, and what must not follow it: more of a number, a range ("0.0-1.0"), a scale other than 1 ("8/10").
_NUMBER = (
    r"(?P<number>-?[0-9]+(?:[.,][0-9]+)?)(?![0-9A-Za-z%]|[.,][0-9])(?!\s*(?:-|–|—|\bto\b|\bor\b)\s*[0-9])"
    r"(?!\s*(?:/|out of)\s*(?!1(?:\.0)?(?![0-9.]))[0-9])"
)
_MARKS = r"[\s*_`\"':：=(\[]*"
# "Correctness: 0.5", or as the published prompt gets it: the number alone, or first.
_NAMED = re.compile(rf"\bcorrectness\b(?:\s+score)?(?:\s+is)?{_MARKS}{_NUMBER}", re.IGNORECASE)
_FIRST = re.compile(rf"{_MARKS}{_NUMBER}[*_`\"')\].,;]*(?=\s|/|$)")


@dataclass(frozen=True)
class MmvetMetrics:
    """The figures.

    Attributes:
        score: Mean correctness, in [0, 1]; papers print it times 100.
        capabilities: Mean over the questions that need it, for each of rec, ocr, know, gen, spat and math that there
            is; a question needs one or several.
        integrations: Mean over the questions that need just these, by their names with "_" between them, in
            alphabetical order.
        judged: Answers with a correctness.
        malformed: Results without one; they are in none of the figures.
        results: All, in the order of the questions.
        spending: Tokens and cost.
    """

    score: float
    capabilities: dict[str, float]
    integrations: dict[str, float]
    judged: int
    malformed: tuple[JudgeResult[float], ...]
    results: tuple[JudgeResult[float], ...]
    spending: Spending


def read_mmvet(path: Path) -> list[OpenQuestion]:
    """Reads `mm-vet.json`: {id: {imagename, question, answer, capability}}. The prompt is the question alone.

    Categories: "capability" and "integration", see `MmvetMetrics`. `answer` has <AND> and <OR> as in the file.

    Raises:
        InputError: The file cannot be read or is something else.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: expected MM-Vet's object {{id: question}}, got something else")
    questions = []
    for name, record in content.items():
        try:
            capabilities = tuple(sorted({str(one) for one in record["capability"]}))
            image, question, answer = (str(record[key]) for key in ("imagename", "question", "answer"))
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path}, question {name}: not as the benchmark has it ({error!r}); take the file as published"
            ) from error
        kinds = {"capability": capabilities, "integration": ("_".join(capabilities),)}
        number = name.removeprefix("v1_")  # what LLaVA calls it
        questions.append(OpenQuestion(name, image, question, question, answer, kinds, (number,)))
    return questions


def parse_correctness(text: str) -> float:
    """Finds "Correctness: 0.5" in a reply, several times if the number stays the same, or a number it starts with.

    Raises:
        MalformedReplyError: There is none, or several differ, or it is not in [0, 1].
    """
    numbers = {float(match["number"].replace(",", ".")) for match in _NAMED.finditer(text)}
    if not numbers and (first := _FIRST.match(text)):
        numbers = {float(first["number"].replace(",", "."))}
    if len(numbers) != 1 or not 0 <= min(numbers) <= 1:
        raise MalformedReplyError("expected one correctness from 0.0 to 1.0")
    return numbers.pop()


def count(questions: Sequence[OpenQuestion], scores: Sequence[float | None]) -> dict[str, np.ndarray]:
    """Image → float64 [2]: sum of its answers' correctness, answers with one. None leaves an answer out.

    `np.array(list(....values()))` is for `bootstrap`.
    """
    counts: dict[str, np.ndarray] = {}
    for question, value in zip(questions, scores, strict=True):
        if value is not None:
            counts[question.image] = counts.get(question.image, 0) + np.array([value, 1.0])
    return counts


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 2] → score, float64 [...]; see `MmvetMetrics`."""
    total, answers = np.moveaxis(np.asarray(counts), -1, 0)
    return {"score": ratio(total, answers)}


def score_mmvet(
    questions: Sequence[OpenQuestion], answers: Sequence[str], judge: Judge, *, prompt: str = PROMPT, system: str = ""
) -> MmvetMetrics:
    """Has answers judged.

    Args:
        questions: At least one.
        answers: What the model said, one text a question, in the same order.
        judge: A model that reads is enough; GPT-4 in the paper.
        prompt: With `PLACES`.
        system: Name of the model, for the file of replies.

    Raises:
        InputError: Not as many answers as questions, or no reply could be read, or as `Judge.ask_all`.
    """
    if not questions or len(questions) != len(answers):
        raise InputError(f"MM-Vet: expected an answer to each of {len(questions)} questions, got {len(answers)}")
    requests = [
        JudgeRequest("mmvet", question.question_id, _fill(prompt, question, answer), (system,))
        for question, answer in zip(questions, answers, strict=True)
    ]
    results = judge.ask_all(requests, parse_correctness, desc="mmvet")
    found = [result.value for result in results]
    kinds: dict[str, dict[str, list[float]]] = {"capability": {}, "integration": {}}
    for question, value in zip(questions, found, strict=True):
        for kind, names in question.categories.items():
            for name in names:
                if value is not None:
                    kinds[kind].setdefault(name, []).append(value)
    judged = [value for value in found if value is not None]
    if not judged:
        raise InputError(
            f"MM-Vet: no reply of {judge.config.model} has a correctness; the first is "
            f"{results[0].replies[-1].text[:80]!r}"
        )
    means = {kind: {name: float(np.mean(values)) for name, values in names.items()} for kind, names in kinds.items()}
    return MmvetMetrics(
        score=float(np.mean(judged)),
        capabilities=means["capability"],
        integrations=means["integration"],
        judged=len(judged),
        malformed=tuple(result for result in results if result.value is None),
        results=tuple(results),
        spending=spending(results, judge.config),
    )


def _fill(prompt: str, question: OpenQuestion, prediction: str) -> str:
    # The published script puts spaces around these.
    answer = question.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    texts = {"question": question.question, "answer": answer, "prediction": prediction}
    return fill(prompt, texts)
