"""Human judgments of descriptions, sentence by sentence (ViGoR, section 3.2), as JSON lines.

One description a line:

    {"image": "a.jpg", "description": "A red car waits. A man waves.",
     "sentences": [{"text": "A red car waits.", "errors": ["attribute:color"]},
                   {"text": "A man waves.", "errors": [], "creative": true}],
     "detail": 3, "missing": ["the traffic light"]}

`creative`, `detail` and `missing` may be left out. An error is "object", "attribute", "relationship", "location" or
"conjecture"; "attribute:color" says which attribute.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import fsspec

from vigor_jax.data.records.bad_rows import BadRow
from vigor_jax.data.records.store import write_atomically
from vigor_jax.errors import InputError, nearest
from vigor_jax.records import AnnotatedSentence, Annotation, ErrorType, Span

_ERRORS: tuple[ErrorType, ...] = get_args(ErrorType)
_KINDS: dict[type, str] = {str: "a string", list: "a list", dict: "an object", bool: "true or false", int: "an integer"}


def read_annotations(path: str | Path) -> Iterator[Annotation]:
    """Reads descriptions with judgments; the sentences' texts become spans of the description.

    The texts must stand in the description in their order, with nothing but white space around them. Empty lines are
    left out.

    Args:
      path: JSON lines, UTF-8; local or remote.

    Raises:
      InputError: the file cannot be read, or a line is not as described; names the line.
    """
    for _, found in scan_annotations(path):
        if isinstance(found, BadRow):
            raise InputError(found.message)
        yield found


def scan_annotations(path: str | Path) -> Iterator[tuple[int, Annotation | BadRow]]:
    """Each line's number, from 1, and its annotation, or why it has none; empty lines are left out.

    Raises:
      InputError: the file cannot be read.
    """
    try:
        with fsspec.open(str(path), "rb") as file:
            for number, line in enumerate(file, 1):
                place = f"{path}:{number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    if text.strip():
                        yield number, _parse(text.rstrip(), place)
                except UnicodeDecodeError as error:
                    yield number, _bad(path, number, f": expected UTF-8, got {error.reason} at byte {error.start}")
                except InputError as error:
                    yield number, _bad(path, number, str(error).removeprefix(place))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: cannot read the annotations ({reason}); check the path") from error


def _bad(path: str | Path, number: int, told: str) -> BadRow:
    """`told` is what stands behind the place in a message."""
    return BadRow(number, f"line {number}", None, told.lstrip(":, "), f"{path}:{number}{told}")


def write_annotations(path: str | Path, annotations: Iterable[Annotation]) -> None:
    """Writes what `read_annotations` reads; local or remote; under another name until it is complete."""
    with write_atomically(path) as file:
        for annotation in annotations:
            file.write(json.dumps(annotation_record(annotation), ensure_ascii=False).encode() + b"\n")


def annotation_record(annotation: Annotation) -> dict[str, Any]:
    """What a line of the file says, as JSON has it; `parse_annotation` reads it."""
    return {
        "image": annotation.image,
        "description": annotation.description,
        "sentences": [
            {
                "text": annotation.description[slice(*sentence.span)],
                "errors": [_error_name(error, sentence.attribute) for error in sentence.errors],
                "creative": sentence.creative,
            }
            for sentence in annotation.sentences
        ],
        "detail": annotation.detail,
        "missing": list(annotation.missing),
    }


def _error_name(error: ErrorType, attribute: str) -> str:
    return f"attribute:{attribute}" if error == "attribute" and attribute else error


def _parse(text: str, place: str) -> Annotation:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: malformed JSON at column {error.colno} ({error.msg}); fix the line") from error
    except RecursionError as error:
        raise InputError(f"{place}: JSON nested too deeply for an annotation; fix the line") from error
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"{place}: malformed JSON ({error}); fix the line") from error
    return parse_annotation(line, place)


def parse_annotation(line: Any, place: str) -> Annotation:
    """The annotation that a line's JSON says.

    Args:
      line: what the JSON holds.
      place: of the line, for messages.

    Raises:
      InputError: it is not as described.
    """
    _check_keys(line, {"image": str, "description": str, "sentences": list}, {"detail": int, "missing": list}, place)
    for key in ("image", "description"):
        try:
            line[key].encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{place}: a lone surrogate (half of a \\u pair) under {key!r}: "
                f"{line[key][max(error.start - 20, 0) :][:40]!a}; repair its encoding"
            ) from error
    description = line["description"]
    if not description.strip():
        raise InputError(f"{place}: expected a description, got an empty one; remove the line")
    sentences = []
    end = 0
    for number, sentence in enumerate(line["sentences"], 1):
        where = f"{place}, sentence {number}"
        _check_keys(sentence, {"text": str, "errors": list}, {"creative": bool}, where)
        span = _locate(sentence["text"].strip(), description, end, where)
        errors, attribute = _parse_errors(sentence["errors"], where)
        sentences.append(AnnotatedSentence(span, errors, attribute, bool(sentence.get("creative"))))
        end = span.end
    if rest := description[end:].strip():
        raise InputError(f"{place}: no sentence covers {_short(rest)} at the end of the description; add it")
    missing = line.get("missing") or []
    for item in missing:
        if not isinstance(item, str):
            raise InputError(f"{place}: expected strings in 'missing', got {_short(item)}")
    return Annotation(line["image"], description, tuple(sentences), line.get("detail"), tuple(missing))


def _check_keys(found: Any, required: Mapping[str, type], optional: Mapping[str, type], place: str) -> None:
    """Refuses what is no object with these keys; an optional one may be null."""
    if not isinstance(found, dict):
        raise InputError(f"{place}: expected an object with {', '.join(required)}, got {_short(found)}")
    known = {**required, **optional}
    for key, value in found.items():
        if key not in known:
            raise InputError(f"{place}: unknown key {_short(key)}; {nearest(key, known, quoted=True)}")
        is_kind = isinstance(value, known[key]) and not (isinstance(value, bool) and known[key] is int)
        if not is_kind and (value is not None or key in required):
            raise InputError(f"{place}: expected {_KINDS[known[key]]} under {key!r}, got {_short(value)}")
    for key in required:
        if key not in found:
            raise InputError(f"{place}: expected the keys {', '.join(required)}, got none called {key!r}")


def _locate(sentence: str, description: str, start: int, place: str) -> Span:
    """Where a sentence stands; nothing but white space may lie between `start` and it."""
    if not sentence:
        raise InputError(f"{place}: expected a sentence under 'text', got an empty one; remove it")
    found = description.find(sentence, start)
    if found < 0:
        where = "before the sentence before it" if sentence in description else "not in the description"
        raise InputError(f"{place}: {_short(sentence)} is {where}; sentences are copied from it, in order")
    if skipped := description[start:found].strip():
        raise InputError(f"{place}: no sentence covers {_short(skipped)} before this one; add it")
    return Span(found, found + len(sentence))


def _parse_errors(found: Sequence[Any], place: str) -> tuple[tuple[ErrorType, ...], str]:
    """`["object", "attribute:color"]` → `("object", "attribute"), "color"`."""
    errors: list[ErrorType] = []
    attribute = ""
    for item in found:
        name, colon, detail = item.partition(":") if isinstance(item, str) else (item, "", "")
        error = next((known for known in _ERRORS if known == name), None)
        if error is None:
            raise InputError(f"{place}: unknown error type {_short(item)}; {nearest(str(name), _ERRORS, quoted=True)}")
        if error in errors:
            raise InputError(f"{place}: expected each error type once, got {error!r} twice")
        if colon and (error != "attribute" or not detail.strip()):
            raise InputError(f"{place}: expected 'attribute:WHICH' or one of {', '.join(_ERRORS)}, got {_short(item)}")
        errors.append(error)
        attribute = detail.strip() or attribute
    return tuple(errors), attribute


def _short(value: Any) -> str:
    """A value in few words, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
