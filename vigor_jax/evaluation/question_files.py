"""What surrounds a benchmark's questions: files of answers, and where the images are."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vigor_jax.data.images import SUFFIXES
from vigor_jax.errors import InputError
from vigor_jax.evaluation.json_records import read_json, read_records
from vigor_jax.evaluation.questions import ChoiceQuestion, Question
from vigor_jax.records import ImageFile

_TEXTS = ("answer", "text", "prediction")


def read_answers(path: Path, questions: Sequence[Question]) -> list[str]:
    """Reads saved answers, in the order of the questions.

    JSON lines, or a list of objects: `question_id` (GQA's `questionId`) or `image` and `prompt`, and `answer`, `text`
    (as LLaVA and this package write) or `prediction`. Or one object {id: answer} in a .json file, as for MM-Vet. The
    order does not matter.

    Raises:
        InputError: The file cannot be read, or does not answer each question once.
    """
    ids = {question.question_id for question in questions}
    by_id: dict[str, str] = {}
    by_prompt: dict[tuple[str, str], str] = {}
    for place, record in _records(path):
        text = next((record[key] for key in _TEXTS if key in record), None)
        if not isinstance(text, str):
            raise InputError(f"{place}: expected a string under {', '.join(_TEXTS)}, got {text!r}")
        key = record.get("question_id", record.get("questionId"))
        if key is None and "image" in record and "prompt" in record:
            by_prompt[str(record["image"]), str(record["prompt"])] = text
        elif str(key) not in ids:
            raise InputError(f"{place}: expected the answer to one of {len(ids)} questions; {key!r} is none of them")
        elif str(key) in by_id:
            raise InputError(f"{place}: question {key} is answered twice; keep one answer")
        else:
            by_id[str(key)] = text
    answers, missing = [], []
    for question in questions:
        answer = by_id.get(question.question_id, by_prompt.get((question.image or "", question.prompt)))
        if answer is None:
            missing.append(question.question_id)
        else:
            answers.append(answer)
    if missing:
        raise InputError(
            f"{path}: expected {len(questions)} answers, {len(missing)} are missing, the first to question {missing[0]}"
        )
    return answers


def _records(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    if Path(path).suffix == ".json" and isinstance(content := read_json(path), dict):
        return [(f"{path}, {key!r}", {"question_id": key, "answer": text}) for key, text in content.items()]
    return read_records(path, {})


def write_images(questions: Iterable[ChoiceQuestion], folder: Path) -> dict[str, Path]:
    """Makes files of the images that questions bring along; a file of the same size stays as it is.

    Returns:
        Image → file, as `Asker.ask` takes it.
    """
    paths: dict[str, Path] = {}
    for question in questions:
        if question.image is not None and question.image_bytes is not None and question.image not in paths:
            path = paths[question.image] = Path(folder) / question.image
            if not path.exists() or path.stat().st_size != len(question.image_bytes):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(question.image_bytes)
    return paths


def find_files(questions: Iterable[Question], images: Mapping[str, ImageFile]) -> dict[str, ImageFile]:
    """Image → file, as `Asker.ask` takes it; what is not there is left out.

    A name without a suffix, such as SEED-Bench's, may be a file's name as it is, or lack the suffix of an image.
    """
    paths: dict[str, ImageFile] = {}
    for name in dict.fromkeys(question.image for question in questions if question.image):
        if found := next((f"{name}{suffix}" for suffix in ("", *SUFFIXES) if f"{name}{suffix}" in images), None):
            paths[name] = images[found]
    return paths
