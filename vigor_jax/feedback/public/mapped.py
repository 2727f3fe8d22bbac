"""Any JSON file whose parts the user names: `--map description=caption --map sentences=labels ...`.

A path is keys with points between them; `[]` behind a key steps into its list, and `(JSON)` into JSON that is text.
What belongs to a sentence or to a part is named from there: `sentences=items[]`, `text=sentence.value`, `kind=is[]`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vigor_jax.errors import InputError, nearest
from vigor_jax.feedback.public.parsed import Mark, Parsed, Row, short, span_of
from vigor_jax.records import Span

# Of a row; then of a sentence, or of a part of the text.
FIELDS = (
    *("image", "description", "sentences", "parts", "detail", "missing"),
    *("text", "kind", "creative", "start", "end"),
)

RIGHT = "right"


def read_map(given: list[str]) -> dict[str, str]:
    """What `--map FIELD=PATH` says.

    Raises:
      InputError: a field is unknown, there twice or missing, or a path is empty.
    """
    found: dict[str, str] = {}
    for each in given:
        field, equals, path = each.partition("=")
        if not equals or not path:
            raise InputError(f"--map: expected FIELD=PATH, got {each!r}; fields are {', '.join(FIELDS)}")
        if field not in FIELDS:
            raise InputError(f"--map: unknown field {field!r}; {nearest(field, FIELDS, noun='field', quoted=True)}")
        if field in found:
            raise InputError(f"--map: {field} has two paths; give one")
        found[field] = path
    for field in ("image", "kind"):
        if field not in found:
            raise InputError(f"--map: {field} has no path; give --map {field}=PATH (annotate inspect shows the paths)")
    if ("sentences" in found) == ("parts" in found):
        raise InputError("--map: give either sentences=PATH, or parts=PATH, of the things that have a kind")
    needed = ("text",) if "sentences" in found else ("description",)
    for field in needed:
        if field not in found:
            raise InputError(f"--map: {field} has no path; give --map {field}=PATH")
    return found


def parse(row: Row, paths: Mapping[str, str]) -> Parsed:
    """What a row says.

    Raises:
      InputError: something is not where the paths say.
    """
    image = str(_one(row, paths["image"], (str, int)))
    detail = _one(row, paths["detail"], (int, type(None))) if "detail" in paths else None
    missing = tuple(str(each) for each in _values(row, paths["missing"])) if "missing" in paths else ()
    if "parts" in paths:
        text = str(_one(row, paths["description"], (str,)))
        marks = []
        for index, part in enumerate(_values(row, paths["parts"])):
            where = f"{paths['parts']}, part {index}"
            own = {key: _first(part, paths.get(key, key)) for key in ("start", "end", "text")}
            span = span_of(own, text, where)
            marks += [Mark(span, label) for label in _labels(part, paths["kind"]) or [RIGHT]]
        return Parsed((image,), text, tuple(marks), True, detail, missing)
    texts, kinds = [], []
    for item in _values(row, paths["sentences"]):
        texts.append(str(_one(item, paths["text"], (str,))).strip())
        labels = _labels(item, paths["kind"]) or [RIGHT]
        kinds.append([*labels, "creative"] if "creative" in paths and _first(item, paths["creative"]) else labels)
    text = str(_one(row, paths["description"], (str,))) if "description" in paths else " ".join(texts)
    spans, at = [], 0
    for sentence in texts:
        start = text.find(sentence, at)
        if start < 0 or text[at:start].strip() or not sentence:
            raise InputError(f"the sentence {short(sentence)} does not follow in the description")
        at = start + len(sentence)
        spans.append(Span(start, at))
    if rest := text[at:].strip():
        raise InputError(f"no sentence covers {short(rest)} at the end of the description")
    found = tuple(Mark(span, label) for span, labels in zip(spans, kinds, strict=True) for label in labels)
    return Parsed((image,), text, found, False, detail, missing, tuple(spans))


def _labels(item: Any, path: str) -> list[str]:
    """The words that say what is wrong with a thing; none if it is null, "" or an empty list."""
    found: list[str] = []
    for value in _values(item, path, optional=True):
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):  # kind → whether it is so
                found += [str(key) for key, so in each.items() if so]
            elif each is not None and each != "":
                found.append(str(each))
    return found


def _values(found: Any, path: str, *, optional: bool = False) -> Iterator[Any]:
    """What a path leads to; a list at its end is stepped into."""
    values = list(_walk(found, path.split("."), path, optional))
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    yield from values


def _walk(found: Any, steps: list[str], path: str, optional: bool) -> Iterator[Any]:
    if not steps:
        yield found
        return
    step, *rest = steps
    key, *ways = re.split(r"(?=\[\]|\(JSON\))", step)
    if key:
        if not isinstance(found, Mapping) or key not in found:
            if optional:
                return
            raise InputError(f"{path}: expected an object with {key!r}, got {short(found)}")
        found = found[key]
    for each in _stepped(found, ways, path):
        yield from _walk(each, rest, path, optional)


def _stepped(found: Any, ways: list[str], path: str) -> Iterator[Any]:
    """What is in a list (`[]`) or in JSON (`(JSON)`), and so on."""
    if not ways:
        yield found
        return
    way, *rest = ways
    if way == "(JSON)":
        try:
            found = [json.loads(found)]
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: expected JSON as text, got {short(found)}") from error
    if not isinstance(found, list):
        raise InputError(f"{path}: expected a list at '[]', got {short(found)}")
    for each in found:
        yield from _stepped(each, rest, path)


def _first(found: Any, path: str) -> Any:
    return next(_walk(found, path.split("."), path, True), None)


def _one(found: Any, path: str, kinds: tuple[type, ...]) -> Any:
    values = list(_walk(found, path.split("."), path, False))
    if len(values) != 1 or not isinstance(values[0], kinds) or isinstance(values[0], bool):
        expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise InputError(f"{path}: expected one {expected}, got {short(values[0] if len(values) == 1 else values)}")
    return values[0]
