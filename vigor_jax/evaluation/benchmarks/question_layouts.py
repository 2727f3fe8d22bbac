"""SEED-Bench (Li et al. 2023), ScienceQA (Lu et al. 2022) and GQA (Hudson and Manning 2019), as they are published."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.answer_letters import LETTERS, parse_letter_strict
from vigor_jax.evaluation.benchmarks.questions import (
    CHOICE_REQUEST,
    ChoiceQuestion,
    OpenQuestion,
    choice_prompt,
    short_prompt,
)
from vigor_jax.evaluation.json_records import read_json, read_records, read_text

T = TypeVar("T")

_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}


def read_seed(path: Path, data_type: Literal["image", "video", "all"] = "image") -> list[ChoiceQuestion]:
    """Reads `SEED-Bench.json` (or `SEED-Bench_v2_level1_2_3.json`, of which it takes what is about one image).

    Categories: "type", by the name that the file has for `question_type_id`, and of both kinds together "data".

    Args:
        path: The file.
        data_type: Questions about images (dimensions 1 to 9), whose files are called as `data_id`, mostly without a
            suffix; about videos, for which LLaVA shows one frame: a file called as the `question_id`; or all.

    Raises:
        InputError: The file cannot be read or is something else.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("questions"), list):
        raise InputError(f"{path}: expected SEED-Bench's JSON object with 'questions', got something else")
    types = {number: name for name, number in content.get("question_type", {}).items()}
    images, videos = ("image", "Single Image"), ("video",)
    wanted = {"image": images, "video": videos, "all": images + videos}[data_type]

    def parse(_: str, record: dict[str, Any]) -> ChoiceQuestion:
        options = tuple(str(record[f"choice_{letter}"]) for letter in "abcd")
        number = record["question_type_id"]
        is_video = record["data_type"] in videos
        kinds = {"type": (types.get(number, str(number)),)}
        return ChoiceQuestion(
            question_id=str(record["question_id"]),
            image=str(record["question_id"] if is_video else record["data_id"]),
            prompt=choice_prompt(record["question"].strip(), options),
            options=options,
            answer=record["answer"],
            categories=kinds | ({"data": ("video" if is_video else "image",)} if data_type == "all" else {}),
            question=record["question"].strip(),
        )

    records = enumerate(content["questions"], 1)
    return _parse_all(path, [(f"{n}", one) for n, one in records if _get(one, "data_type") in wanted], parse)


def read_scienceqa(
    problems: Path, splits: Path, split: str = "test", *, text_only: bool = False
) -> list[ChoiceQuestion]:
    """Reads ScienceQA's `problems.json` and `pid_splits.json`.

    A prompt has "Context: " and the hint in front of the question if there is a hint, as LLaVA-1.5 is asked. An image
    is called `ID/image.png`, below the folder of its split.

    Categories, as in the paper: "subject" (NAT, SOC, LAN), "context" (TXT: a hint, IMG: an image, NO: neither) and
    "grade" (G1-6, G7-12).

    Args:
        problems: The first file.
        splits: The second.
        split: "test", "val", "train", "minitest" or "minival".
        text_only: Also the questions without an image; what papers call SQA-I has none of these.

    Raises:
        InputError: A file cannot be read or is something else, or has no such split.
    """
    content, names = read_json(problems), read_json(splits)
    if not isinstance(names, dict) or not isinstance(names.get(split), list):
        known = ", ".join(names) if isinstance(names, dict) else "no JSON object"
        raise InputError(f"{splits}: expected the ids of split {split!r}, got {known}")
    if not isinstance(content, dict):
        raise InputError(f"{problems}: expected an object {{id: problem}}, got something else")
    if gone := [name for name in names[split] if name not in content]:
        raise InputError(f"{problems}: problem {gone[0]} of split {split!r} is missing; take both files of one release")

    def parse(name: str, record: dict[str, Any]) -> ChoiceQuestion:
        hint, options = record["hint"].strip(), tuple(str(choice) for choice in record["choices"])
        has_image = record["image"] is not None
        grade = int(record["grade"].removeprefix("grade"))
        context = (("TXT",) if hint else ()) + (("IMG",) if has_image else ())
        question = f"Context: {hint}\n{record['question']}" if hint else record["question"]
        return ChoiceQuestion(
            question_id=name,
            image=f"{name}/{record['image']}" if has_image else None,
            prompt=choice_prompt(question, options),
            options=options,
            answer=LETTERS[record["answer"]],
            categories={
                "subject": (_SUBJECTS.get(record["subject"], record["subject"]),),
                "context": context or ("NO",),
                "grade": ("G1-6" if grade <= 6 else "G7-12",),
            },
            question=record["question"].strip(),
        )

    records = [(name, content[name]) for name in names[split]]
    return _parse_all(problems, [one for one in records if text_only or _get(one[1], "image") is not None], parse)


def is_llava_scienceqa(path: Path) -> bool:
    """Whether a file is ScienceQA as LLaVA stores it: a list or JSON lines, and not an object {id: problem}."""
    start = read_text(path)[:1000].lstrip()
    return start.startswith("[") or bool(re.match(r'\{\s*"(?:id|image|conversations)"\s*:', start))


def read_scienceqa_llava(path: Path, *, text_only: bool = False) -> list[ChoiceQuestion]:
    """Reads ScienceQA as LLaVA stores it (`llava_test_CQM-A.json`): `id`, `image` and a conversation.

    The prompt is the file's, with the request for a letter behind it; options are found in it, "A. text" in lines or
    "(A) text" in one. The right letter is that of "The answer is A." in the second turn. Categories: with `text_only`
    "context", IMG for questions with an image (the script's IMG-Accuracy), else TXT.

    Args:
        path: A JSON list, or an object a line.
        text_only: As for `read_scienceqa`.

    Raises:
        InputError: The file cannot be read or is something else.
    """

    def parse(name: str, record: dict[str, Any]) -> ChoiceQuestion:
        prompt = record["conversations"][0]["value"].replace("<image>", "").strip()
        options = re.findall(r"^[A-J]\. (.*)$", prompt, re.MULTILINE)
        if not options:
            options = [text.strip() for text in re.split(r"\([A-J]\) ", prompt)[1:]]
        answer = record["conversations"][1]["value"].strip().removeprefix("Answer: ")
        return ChoiceQuestion(
            question_id=name,
            image=record.get("image"),
            prompt=f"{prompt}\n{CHOICE_REQUEST}",
            options=tuple(options),
            answer=parse_letter_strict(answer, options) or answer,
            categories={"context": ("IMG" if record.get("image") else "TXT",)} if text_only else {},
            question=_last_line(prompt),
        )

    records = [(record["id"], record) for _, record in read_records(path, {"id": str, "conversations": list})]
    return _parse_all(path, [one for one in records if text_only or one[1].get("image")], parse)


def _last_line(prompt: str) -> str:
    """The line before the options, which is the question."""
    lines = re.split(r"^(?:[A-J]\. |Options: )", prompt, maxsplit=1, flags=re.MULTILINE)[0].strip().split("\n")
    return lines[-1].removeprefix("Question: ").strip()


def read_gqa(path: Path) -> list[OpenQuestion]:
    """Reads GQA's `testdev_balanced_questions.json`, or another file of questions with their answers.

    Categories: "kind" ("open" for structural type "query", else "binary", as its script has them), "structural" and
    "semantic". The image of `imageId` n1 is called n1.jpg.

    Raises:
        InputError: The file cannot be read or is something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object {{id: question}}, got something else")

    def parse(name: str, record: dict[str, Any]) -> OpenQuestion:
        types = record["types"]
        return OpenQuestion(
            question_id=name,
            image=f"{record['imageId']}.jpg",
            question=record["question"],
            prompt=short_prompt(record["question"]),
            answer=record["answer"],
            categories={
                "kind": ("open" if types["structural"] == "query" else "binary",),
                "structural": (types["structural"],),
                "semantic": (types["semantic"],),
            },
        )

    return _parse_all(path, list(content.items()), parse)


def _get(record: Any, key: str) -> Any:
    return record.get(key) if isinstance(record, dict) else None


def _parse_all(path: Path, records: Sequence[tuple[str, Any]], parse: Callable[[str, dict[str, Any]], T]) -> list[T]:
    questions = []
    for name, record in records:
        try:
            questions.append(parse(name, record))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise InputError(
                f"{path}, question {name}: not as the benchmark has it ({error!r}); take the file as published"
            ) from error
    if not questions:
        raise InputError(f"{path}: expected questions, found none of the kind asked for")
    return questions
