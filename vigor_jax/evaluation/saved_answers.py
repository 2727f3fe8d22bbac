"""Reads files of answers, whoever wrote them: this package, LLaVA, VCD, POPE's authors, lmms-eval, the COCO tools.

A file is JSON lines, a JSON list, or one object {id: answer}; plain or packed by gzip. What its keys mean:

    answer    model_answer, prediction, response, answer, text, caption: the first that is there, so that a right answer
              under "answer" next to a "prediction" is not taken for the model's
    id        question_id, questionId, index, id, qid; a string or a number
    image     image, image_id, image_name, image_path, image_file, image_source, imagename, file_name, imageId; a number
              is COCO's
    question  prompt, question, query, input, and "text" next to an "answer"

A line of lmms-eval's `--log_samples` has the answer under filtered_resps or resps, and the rest under doc, input or
within its figures. Which question an answer is to decides `answer_matching`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vigor_jax.errors import InputError
from vigor_jax.evaluation.json_records import parse, parse_lines, parse_list, read_text, short

TEXTS = ("model_answer", "prediction", "response", "answer", "text", "caption")
IDS = ("question_id", "questionId", "index", "id", "qid")
IMAGES = (
    "image", "image_id", "image_name", "image_path", "image_file", "image_source", "imagename", "file_name", "imageId",
)  # fmt: skip
QUESTIONS = ("prompt", "question", "query", "input", "text")
SPLITS = ("random", "popular", "adversarial")  # of POPE
_LOGGED = ("filtered_resps", "resps")
# An object of which one of these holds the list of answers, or a further object of them.
_HOLDERS = ("logs", "sentences", "imgToEval", "answers", "annotations", "predictions", "results")


@dataclass(frozen=True)
class SavedAnswer:
    """An answer of a file, with what its line says of its question.

    Attributes:
        place: Where it stands ("a.jsonl:3"), for messages.
        text: What the model said.
        id: The question's; None where there is none, as the next five.
        image: The image's name or number.
        question: What the model was asked, perhaps with words around it.
        number: The question's place in lmms-eval's data.
        round: Of LLaVA's `--all-rounds`: by how many places the options were moved.
        options: The options as they were shown.
        split: Of POPE: "random", "popular" or "adversarial".
    """

    place: str
    text: str
    id: str | None = None
    image: str | None = None
    question: str | None = None
    number: int | None = None
    round: int | None = None
    options: tuple[str, ...] | None = None
    split: str | None = None


def read_saved(paths: Iterable[Path]) -> list[SavedAnswer]:
    """The answers of one file or several, in their order; see the module's docstring.

    Raises:
        InputError: A file cannot be read, or is something else, or an answer is no text; names the place.
    """
    return [_parse(record, place) for path in paths for place, record in _records(Path(path))]


def name(value: Any) -> str | None:
    """An id or a name of an image as text: 5, 5.0, "5" and " 5 " are the same; None for what is neither."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return _whole(str(value)).strip() or None


def _whole(text: str) -> str:
    """A text without halves of characters, which JSON may spell ("\\ud83d") and no file can hold."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    text = read_text(path).strip()
    if text.startswith("["):
        found = parse_list(text, path)
    elif text.startswith("{") and _is_one(text):
        found = _unfold(parse(text, str(path)), path)
    else:
        found = parse_lines(text, path)
    if not found:
        raise InputError(f"{path}: expected answers, got an empty file")
    for place, record in found:
        if not isinstance(record, dict):
            raise InputError(f"{place}: expected an object with one of {', '.join(TEXTS)}, got {short(record)}")
    return found


def _is_one(text: str) -> bool:
    """Whether a text is one JSON document, and not a document a line."""
    first, _, rest = text.partition("\n")
    try:
        parse(first, "")
    except InputError:
        return True
    return not rest.strip()


def _unfold(content: dict[str, Any], path: Path) -> list[tuple[str, Any]]:
    if any(key in content for key in (*_LOGGED, *TEXTS)):
        return [(f"{path}:1", content)]
    for holder in _HOLDERS:
        if isinstance(held := content.get(holder), list):
            return [(f"{path}, {holder} {number}", item) for number, item in enumerate(held, 1)]
        if isinstance(held, dict):
            content = held
            break
    return [
        (f"{path}, {key!r}", {"question_id": key, **(item if isinstance(item, dict) else {"answer": item})})
        for key, item in content.items()
    ]


def _parse(record: dict[str, Any], place: str) -> SavedAnswer:
    key = next((key for key in TEXTS if key in record), None)
    logged = next((key for key in _LOGGED if key in record), None)
    text: Any
    if logged:  # its other keys are of lmms-eval's data, the right answer among them
        key, text = logged, record[logged]
        while isinstance(text, list) and text:
            text = text[0]
    elif key is None:
        raise InputError(f"{place}: expected the answer under one of {', '.join(TEXTS)}, got {short(sorted(record))}")
    else:
        text = record[key]
    if not isinstance(text, str):
        raise InputError(f"{place}: expected a string under {key!r}, got {short(text)}")
    # lmms-eval keeps what it knows of a question in its data, or since 0.7 only in what it counts.
    inner = [value for value in record.values() if isinstance(value, dict)] if logged else []
    sources = [record, *sorted(inner, key=lambda one: one is not record.get("doc"))]
    options = record.get("options")
    return SavedAnswer(
        place,
        _whole(text),
        id=_first(sources, IDS),
        image=_first(sources, IMAGES),
        question=next((_whole(one) for one in _values(sources, QUESTIONS, but=key) if isinstance(one, str)), None),
        number=record["doc_id"] if isinstance(record.get("doc_id"), int) else None,
        round=record["round_id"] if isinstance(record.get("round_id"), int) else None,
        options=tuple(map(str, options)) if isinstance(options, list) else None,
        split=next((one for one in _values(sources, ("category",)) if one in SPLITS), None),
    )


def _first(sources: Iterable[Mapping[str, Any]], keys: tuple[str, ...]) -> str | None:
    return next((found for value in _values(sources, keys) if (found := name(value)) is not None), None)


def _values(sources: Iterable[Mapping[str, Any]], keys: tuple[str, ...], but: str | None = None) -> Iterable[Any]:
    return (source[key] for source in sources for key in keys if key in source and key != but)
