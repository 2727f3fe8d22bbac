"""AMBER's own files: `annotations.json`, `relation.json`, `safe_words.txt` and `query/*.json` in its folder `data`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.amber import AmberImage, AmberQuestion, Kind, Words
from vigor_jax.evaluation.json_records import read_json, read_records, read_text, short

_KINDS: Mapping[str, Kind] = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}


class Amber(NamedTuple):
    """The benchmark.

    Attributes:
        images: To describe, in the order of their numbers.
        questions: With yes or no for an answer, in the order of their numbers.
        words: Which words are the same object.
    """

    images: list[AmberImage]
    questions: list[AmberQuestion]
    words: Words


def read_amber(folder: Path) -> Amber:
    """Reads the benchmark.

    Args:
        folder: The repository's `data`.

    Raises:
        InputError: A file is missing or not as described; names the place.
    """
    words = _read_words(folder)
    queries = _read_queries(folder / "query" / "query_all.json")
    images, questions = [], []
    path = folder / "annotations.json"
    for place, record in read_records(path, {"id": int, "type": str}):
        number, kind = record["id"], record["type"]
        if number not in queries:
            raise InputError(f"{place}: id {number} has no query in {folder / 'query' / 'query_all.json'}")
        image, query = queries[number]
        if kind == "generative":
            objects = (_objects(record, key, words, place) for key in ("truth", "hallu"))
            images.append(AmberImage(number, image, query, *objects))
        elif kind in _KINDS:
            truth = record.get("truth")
            if truth not in ("yes", "no"):
                raise InputError(f"{place}: expected 'yes' or 'no' under 'truth', got {short(truth)}")
            questions.append(AmberQuestion(number, image, query, _KINDS[kind], truth))
        else:
            raise InputError(f"{place}: expected a type of generative, {', '.join(_KINDS)}, got {kind!r}")
    if not images and not questions:
        raise InputError(f"{path}: expected AMBER's annotations, got none")
    return Amber(images, questions, words)


def _read_words(folder: Path) -> Words:
    path = folder / "relation.json"
    content = read_json(path)
    if not isinstance(content, dict) or not all(_is_names(names) for names in content.values()):
        raise InputError(f"{path}: expected {{object: [word, ...]}}, got something else")
    lines = read_text(folder / "safe_words.txt").split("\n")
    return Words({name: tuple(words) for name, words in content.items()}, frozenset(filter(None, lines)))


def _read_queries(path: Path) -> dict[int, tuple[str, str]]:
    keys = {"id": int, "image": str, "query": str}
    return {record["id"]: (record["image"], record["query"]) for _, record in read_records(path, keys)}


def _objects(record: Mapping[str, Any], key: str, words: Words, place: str) -> tuple[str, ...]:
    names = record.get(key)
    if not _is_names(names) or names is None:
        raise InputError(f"{place}: expected a list of objects under {key!r}, got {short(names)}")
    if unknown := [name for name in names if name not in words.associations]:
        raise InputError(f"{place}: {unknown[0]!r} under {key!r} is not in relation.json; take both from one version")
    return tuple(names)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
