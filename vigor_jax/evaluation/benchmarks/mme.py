"""MME: two yes-or-no questions an image, in fourteen subtasks (Fu et al. 2023).

Reads the benchmark's folders and writes and reads result files as its own script `calculation.py` takes them, with
the figures that it prints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import Asked, Matched, match, tell_extra
from vigor_jax.evaluation.bootstrap import ratio
from vigor_jax.evaluation.saved_answers import read_saved
from vigor_jax.evaluation.wording import MME_SUFFIX

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = PERCEPTION + COGNITION

_IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")
# A result is one line with tabs between its fields. One space for each, as only the first characters are read.
_ONE_LINE = str.maketrans("\t\n\r", "   ")


@dataclass(frozen=True)
class MmeQuestion:
    """A question, and what a model said to it.

    Attributes:
        image: File name without its folder.
        question: With the benchmark's own "Please answer yes or no."
        truth: "yes" or "no".
        answer: The model's text, empty before it is asked.
        path: The image's file; none in what is read from results.
    """

    image: str
    question: str
    truth: Literal["yes", "no"]
    answer: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class SubtaskScore:
    """The figures of a subtask.

    Attributes:
        accuracy: Right answers / questions, in percent.
        accuracy_plus: Images with both answers right / images, in percent.
        images: How many there are, with two questions each.
        unparsed: Answers that are neither yes nor no; they are wrong.
    """

    accuracy: float
    accuracy_plus: float
    images: int
    unparsed: int

    @property
    def score(self) -> float:
        """accuracy + accuracy_plus, at most 200."""
        return self.accuracy + self.accuracy_plus


@dataclass(frozen=True)
class MmeMetrics:
    """The figures of MME.

    Attributes:
        subtasks: In the order of `SUBTASKS`, those that there are.
        perception: Sum of the ten subtasks' scores, at most 2000; None unless all ten are there.
        cognition: Sum of the four subtasks' scores, at most 800; None unless all four are there.
    """

    subtasks: dict[str, SubtaskScore]
    perception: float | None
    cognition: float | None


def read_subtasks(folder: Path, *, with_images: bool = True) -> dict[str, list[MmeQuestion]]:
    """Reads the benchmark: a folder a subtask, in it a text file an image.

    The text files are in `questions_answers_YN` and the images in `images`, or both are in the subtask's folder. A
    line is a question, a tab and Yes or No; an image has two. Folders that are called otherwise are left out.

    Args:
        folder: The benchmark's.
        with_images: Whether each image must be there; else one that is not goes by its name without suffix.

    Returns:
        Subtask → questions, the two of an image after one another, images in the order of their names.

    Raises:
        InputError: No subtask is there, an image is missing, or a file is not as described.
    """
    subtasks: dict[str, list[MmeQuestion]] = {}
    for subtask in SUBTASKS:
        texts, images = folder / subtask / "questions_answers_YN", folder / subtask / "images"
        if not texts.is_dir():
            texts = images = folder / subtask
        questions = [
            question for path in sorted(texts.glob("*.txt")) for question in _read_image(path, images, with_images)
        ]
        if questions:
            subtasks[subtask] = questions
    if not subtasks:
        raise InputError(f"{folder}: expected MME's folders ({', '.join(SUBTASKS)}) with text files, found none")
    return subtasks


def _read_image(path: Path, images: Path, needed: bool) -> list[MmeQuestion]:
    file = next(
        (images / (path.stem + suffix) for suffix in _IMAGE_SUFFIXES if (images / (path.stem + suffix)).is_file()), None
    )
    if file is None and needed:
        raise InputError(
            f"{path}: expected its image {images / path.stem} with {' or '.join(_IMAGE_SUFFIXES)}, found none"
        )
    questions = []
    for place, (question, truth) in _read_lines(path, "question, answer"):
        name = file.name if file else path.stem
        questions.append(MmeQuestion(name, question, _parse_truth(truth, place), path=file))
    if len(questions) != 2:
        raise InputError(f"{path}: expected two questions about an image, got {len(questions)}")
    return questions


def read_results(folder: Path) -> dict[str, list[MmeQuestion]]:
    """Reads `SUBTASK.txt` files: image, question, truth and answer a line, with tabs between them.

    Raises:
        InputError: There is no such file, or a line is not as described; names the line.
    """
    results: dict[str, list[MmeQuestion]] = {}
    for subtask in SUBTASKS:
        path = folder / f"{subtask}.txt"
        if path.is_file():
            results[subtask] = [
                MmeQuestion(image, question, _parse_truth(truth, place), answer)
                for place, (image, question, truth, answer) in _read_lines(path, "image, question, truth, answer")
            ]
    if not results:
        raise InputError(f"{folder}: expected result files such as {SUBTASKS[0]}.txt, found none")
    return results


def read_answers(
    paths: Sequence[Path], subtasks: Mapping[str, Sequence[MmeQuestion]]
) -> tuple[dict[str, list[MmeQuestion]], Matched]:
    """Reads saved answers to the benchmark's questions, of the subtasks of which there is at least one.

    A question goes by SUBTASK/IMAGE and its words, with or without "Please answer yes or no.", as LLaVA and lmms-eval
    have them.

    Raises:
        InputError: As `answer_matching.read_answers`.
    """
    asked = {
        subtask: [
            Asked((name,), name, words(question.question))
            for question in questions
            for name in [f"{subtask}/{question.image}"]
        ]
        for subtask, questions in subtasks.items()
    }
    answers = read_saved(paths)
    named = {(answer.id or answer.image or "").replace("\\", "/").split("/")[0] for answer in answers}
    # Where the subtask is told nowhere, all are meant.
    meant = {subtask: own for subtask, own in asked.items() if subtask in named} or asked
    source = ", ".join(map(str, paths))
    matched = match(answers, [one for own in meant.values() for one in own], source)
    tell_extra(matched.extra, source)
    texts = iter(matched.texts)
    return {subtask: [replace(q, answer=next(texts)) for q in subtasks[subtask]] for subtask in meant}, matched


def words(question: str) -> str:
    """A question without the benchmark's "Please answer yes or no."."""
    return question.strip().removesuffix(MME_SUFFIX).strip()


def write_results(folder: Path, results: Mapping[str, Sequence[MmeQuestion]]) -> None:
    """Writes what `read_results` and the benchmark's `calculation.py` read; tabs and line breaks become spaces."""
    folder.mkdir(parents=True, exist_ok=True)
    for subtask, questions in results.items():
        lines = [
            "\t".join(
                field.translate(_ONE_LINE)
                for field in (question.image, question.question, question.truth.capitalize(), question.answer)
            )
            for question in questions
        ]
        (folder / f"{subtask}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def answered(questions: Sequence[MmeQuestion], answers: Sequence[str]) -> list[MmeQuestion]:
    """The questions with a model's answers to them, in the same order."""
    return [replace(question, answer=answer) for question, answer in zip(questions, answers, strict=True)]


def parse_answer(text: str) -> Literal["yes", "no"] | None:
    """Reads an answer as MME's script does: "yes", else "no", anywhere in the first four characters, in any case.

    So "not sure" and "know" are no, and "It is" or a yes after four characters is neither (None).
    """
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def count(results: Mapping[str, Sequence[MmeQuestion]]) -> tuple[np.ndarray, np.ndarray]:
    """Counts for `bootstrap`.

    Returns:
        int64 [images, 14, 3], right answers, both answers right, 1, in the column of the image's subtask; and
        int64 [images], the index of that subtask, which are the strata.

    Raises:
        InputError: An unknown subtask, or questions that do not come in pairs about one image.
    """
    rows, strata = [], []
    for subtask, questions in results.items():
        if subtask not in SUBTASKS:
            raise InputError(f"MME: expected subtasks among {', '.join(SUBTASKS)}, got {subtask!r}")
        for first, second in _pairs(subtask, questions):
            right = sum(parse_answer(question.answer) == question.truth for question in (first, second))
            row = np.zeros((len(SUBTASKS), 3), np.int64)
            row[SUBTASKS.index(subtask)] = right, right == 2, 1
            rows.append(row)
            strata.append(SUBTASKS.index(subtask))
    return np.array(rows).reshape(-1, len(SUBTASKS), 3), np.array(strata, np.int64)


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 14, 3] → each score of a subtask that has images, and each sum that is complete, float64 [...]."""
    right, both, images = np.moveaxis(np.asarray(counts), -1, 0)
    scores = 100 * ratio(right, 2 * images) + 100 * ratio(both, images)
    found = {subtask: scores[..., i] for i, subtask in enumerate(SUBTASKS) if np.any(images[..., i])}
    for name, parts in (("perception", PERCEPTION), ("cognition", COGNITION)):
        if set(parts) <= found.keys():
            found[name] = np.sum([found[part] for part in parts], axis=0)
    return found


def compute_metrics(results: Mapping[str, Sequence[MmeQuestion]]) -> MmeMetrics:
    """The figures, from answered questions.

    Raises:
        InputError: As `count`.
    """
    total = count(results)[0].sum(0)
    sums = rates(total)
    subtasks = {}
    for subtask, (right, both, images) in zip(SUBTASKS, total.tolist(), strict=True):
        if images:
            unparsed = sum(parse_answer(question.answer) is None for question in results[subtask])
            subtasks[subtask] = SubtaskScore(100 * right / (2 * images), 100 * both / images, images, unparsed)
    perception, cognition = (float(sums[name]) if name in sums else None for name in ("perception", "cognition"))
    return MmeMetrics(subtasks, perception, cognition)


def _pairs(subtask: str, questions: Sequence[MmeQuestion]) -> list[tuple[MmeQuestion, MmeQuestion]]:
    pairs = list(zip(questions[::2], questions[1::2], strict=False))
    odd = next((first for first, second in pairs if first.image != second.image), None)
    if len(questions) % 2:
        odd = odd or questions[-1]
    if odd:
        raise InputError(
            f"MME, {subtask}: expected two questions after one another about each image, not so {odd.image}"
        )
    return pairs


def _parse_truth(text: str, place: str) -> Literal["yes", "no"]:
    truth = text.strip().lower()
    if truth not in ("yes", "no"):
        raise InputError(f"{place}: expected Yes or No as the right answer, got {text!r}")
    return "yes" if truth == "yes" else "no"


def _read_lines(path: Path, names: str) -> list[tuple[str, list[str]]]:
    """Each line's place and its fields, as many as `names` has."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a text file in UTF-8, cannot read it ({type(error).__name__})") from error
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) != len(names.split(", ")):
            raise InputError(f"{path}:{number}: expected {names} with tabs between them, got {len(fields)} fields")
        found.append((f"{path}:{number}", fields))
    return found
