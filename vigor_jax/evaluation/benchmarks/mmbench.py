"""MMBench (Liu et al. 2023): options are rotated, and an answer counts only if it is right each time."""

import base64
import binascii
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.answer_letters import LETTERS
from vigor_jax.evaluation.benchmarks.questions import ChoiceQuestion, choice_prompt

# A rotated copy of question 241 is 1000241, 2000241, ... in the files that have such copies.
ROTATION = 1_000_000
_COLUMNS = ("index", "question", "A", "B", "answer", "image")
_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"GI": ".gif", b"RI": ".webp", b"BM": ".bmp"}


def read_mmbench(path: Path, *, circular: bool = True) -> list[ChoiceQuestion]:
    """Reads a TSV file with answers (`mmbench_dev_*.tsv`, `MMBench_DEV_*.tsv`); those of the test split have none.

    Its columns: index, question, hint, A, B, C, D, answer, category, image (base64) and perhaps l2-category. A field
    that is empty, "nan" or "none" is missing; options end at the first that is missing. The hint is put in front of
    the question, as LLaVA-1.5 does. An image is called by the question's index, and is asked for in `image_bytes`.

    Args:
        path: The file.
        circular: All rotations of each question, in one `group`: the file's own copies, or made here where it has
            none; `questions.merge_groups` makes CircularEval's outcomes of them. Else each question once. A rotation
            also goes by the id 241#1, which is round 1 of LLaVA's `--all-rounds`.

    Raises:
        InputError: The file cannot be read, has no answers or is something else.
    """
    mains: list[ChoiceQuestion] = []
    copies: dict[str, list[ChoiceQuestion]] = {}
    rows: dict[str, tuple[str, dict[str, str]]] = {}
    for place, row in _rows(path):
        try:
            index = int(float(row["index"]))
        except ValueError as error:
            raise InputError(f"{place}: expected a number under 'index', got {row['index']!r}") from error
        main, text_only = str(index % ROTATION), {**row, "image": ""}
        if index < ROTATION:
            mains.append(_question(place, row, index))
            rows[main] = place, text_only
        else:
            copies.setdefault(main, []).append(_question(place, text_only, index))
    if not copies:
        copies = {question.question_id: _rotations(question, *rows[question.question_id]) for question in mains}
    images = {question.question_id: question for question in mains}
    if gone := [main for main in copies if main not in images]:
        raise InputError(f"{path}: question {gone[0]} is only there rotated; take the file as published")
    found = []
    for question in mains:
        # An image that several questions share can be the index of the one that brings it.
        owner = question if question.image else images.get((question.image_bytes or b"").decode("utf-8", "replace"))
        if owner is None or owner.image is None:
            raise InputError(f"{path}: expected an image in base64 under 'image' of question {question.question_id}")
        name = question.question_id
        group = [question, *copies.get(name, ())] if circular else [question]
        found += [
            replace(
                one,
                image=owner.image,
                image_bytes=owner.image_bytes,
                group=name if circular else "",
                other_ids=(f"{name}#{int(one.question_id) // ROTATION}",) if circular else (),
            )
            for one in group
        ]
    return found


def _rotations(question: ChoiceQuestion, place: str, row: dict[str, str]) -> list[ChoiceQuestion]:
    """The question with its options moved by one place, by two and so on: what was B is A, and what was A is last."""
    letters = LETTERS[: len(question.options)]
    found = []
    for shift in range(1, len(letters)):
        moved = {letter: row[letters[number + shift - len(letters)]] for number, letter in enumerate(letters)}
        answer = letters[letters.index(question.answer) - shift]
        index = int(question.question_id) + shift * ROTATION
        found.append(_question(place, {**row, **moved, "answer": answer}, index))
    return found


def once(questions: Sequence[ChoiceQuestion]) -> list[int]:
    """Where the questions stand that are not rotated, for the figures without rotations ("vanilla")."""
    return [place for place, question in enumerate(questions) if int(question.question_id) < ROTATION]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows, one after another: most of the file is images, and need not be in memory at once."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", restval="")
            if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
                why = "; the test split has no answers" if missing == ["answer"] else ""
                raise InputError(f"{path}: expected MMBench's TSV, found no column {missing[0]!r}{why}")
            for row in reader:
                yield f"{path}:{reader.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a TSV file in UTF-8, cannot read it ({error}); check the path") from error
    finally:
        csv.field_size_limit(before)


def _question(place: str, row: dict[str, str], index: int) -> ChoiceQuestion:
    options: list[str] = []
    for letter in LETTERS:
        if _is_missing(row.get(letter)):
            break
        options.append(row[letter])
    question = row["question"] if _is_missing(row.get("hint")) else f"{row['hint']}\n{row['question']}"
    kinds = {"category": row.get("category"), "l2_category": row.get("l2-category")}
    name, data = _image(place, row["image"], index)
    try:
        return ChoiceQuestion(
            question_id=str(index),
            image=name,
            prompt=choice_prompt(question, options),
            options=tuple(options),
            answer=row["answer"],
            categories={kind: (value,) for kind, value in kinds.items() if value and not _is_missing(value)},
            image_bytes=data,
            question=row["question"],
        )
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _image(place: str, text: str, index: int) -> tuple[str | None, bytes]:
    """Name and file of an image; no name, and the text as it is, where it only refers to another question's."""
    if len(text) < 64:
        return None, text.strip().encode()
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InputError(f"{place}: expected an image in base64 under 'image' ({error})") from error
    return f"{index}{_SUFFIXES.get(data[:2], '.jpg')}", data


def _is_missing(value: str | None) -> bool:
    return value is None or value.strip().lower() in ("", "nan", "none")
