"""What a JSON file consists of: every path in it, its types, how often it is there, and what it may be.

Guesses go by names and values, are told as guesses, and end in a command that the user can correct.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vigor_jax.errors import InputError
from vigor_jax.feedback.public.parsed import short
from vigor_jax.feedback.public.rows import any_rows

_MOST_ROWS, _MOST_PATHS, _MOST_VALUES = 20_000, 200, 8
_LONG = 40  # letters: no name and no word has more
_NAMES = {
    "image": ("image", "img", "file_name", "filename", "coco"),
    "description": ("description", "response", "caption", "answer", "output", "hallucinated_text"),
    "text": ("text", "sentence", "content", "span"),
    "start": ("start", "begin", "offset"),
    "end": ("end", "stop"),
    "kind": ("label", "error", "kind", "class", "category", "type", "hallucination"),
    "creative": ("creativ",),
    "detail": ("detail",),
    "missing": ("missing", "omitted"),
}
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Node:
    """What stands at a path.

    Attributes:
      types: how often each stands there.
      values: short ones, by how often.
      example: the first that is not empty.
      longest: letters of the longest text.
    """

    def __init__(self) -> None:
        self.types: Counter[str] = Counter()
        self.values: Counter[str] = Counter()
        self.example: Any = None
        self.longest = 0

    def add(self, value: Any) -> None:
        kind = _TYPES.get(type(value), type(value).__name__)
        self.types[kind] += 1
        if self.example in (None, "", [], {}):
            self.example = value
        if isinstance(value, str):
            self.longest = max(self.longest, len(value))
        if not isinstance(value, list | dict) and len(str(value)) <= _LONG and len(self.values) < 1000:
            self.values[str(value)] += 1


_TYPES: dict[type, str] = {
    str: "text", int: "integer", float: "number", bool: "true/false", list: "list", dict: "object", type(None): "null",
}  # fmt: skip


def structure(rows: Iterable[Any]) -> tuple[int, dict[str, Node]]:
    """How many rows there are, and what stands at each path in them, in the order of appearance.

    Args:
      rows: values of JSON; those behind the first 20,000 are counted only.
    """
    nodes: dict[str, Node] = {}
    count = 0
    for row in rows:
        count += 1
        if count <= _MOST_ROWS:
            _walk(row, "", nodes)
    return count, nodes


def _walk(value: Any, path: str, nodes: dict[str, Node]) -> None:
    if path not in nodes and len(nodes) >= _MOST_PATHS:  # keys that are data, such as names of images
        return
    nodes.setdefault(path, Node()).add(value)
    if isinstance(value, Mapping):
        for key, each in value.items():
            _walk(each, f"{path}.{key}" if path else str(key), nodes)
    elif isinstance(value, list | tuple):
        for each in value:
            _walk(each, f"{path}[]", nodes)
    elif isinstance(value, str) and value.lstrip()[:1] in ("{", "["):  # JSON in a string, as RLHF-V has it
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            return
        _walk(inner, f"{path}(JSON)", nodes)


def guesses(nodes: Mapping[str, Node]) -> dict[str, str]:
    """Field → path, for what looks like it; the sentences are the list of objects that looks most like one."""
    found: dict[str, str] = {}
    lists = [path for path, node in nodes.items() if path.endswith("[]") and node.types["object"]]
    inner = {own: _named(nodes, own, ("text", "start", "end", "kind", "creative")) for own in lists}
    own = max(lists, key=lambda path: len(inner[path]), default="")
    if own and "kind" in inner[own]:
        found = {"sentences": own.removesuffix("[]"), **inner[own]}
    outer = {path: node for path, node in nodes.items() if not own or not path.startswith(own)}
    found |= _named(outer, "", ("image", "description", "detail", "missing"))
    for path, node in nodes.items():
        if any(value.lower().endswith(_SUFFIXES) for value in node.values):
            found.setdefault("image", path)
    if "description" not in found:
        texts = [path for path, node in outer.items() if path and node.types["text"] and "(JSON)" not in path]
        longest = max(texts, key=lambda path: nodes[path].longest, default="")
        if longest and nodes[longest].longest > _LONG and longest not in found.values():
            found["description"] = longest
    return found


def _named(nodes: Mapping[str, Node], own: str, fields: Iterable[str]) -> dict[str, str]:
    """The first path below another one whose last key is named and filled like a field, for each field."""
    found: dict[str, str] = {}
    for field in fields:
        for path, node in nodes.items():
            if not path.startswith(own) or path in ("", own) or path in found.values():
                continue
            leaf = path.rpartition(".")[2].lower()
            if not leaf.endswith("[]") and any(name in leaf for name in _NAMES[field]) and _fits(field, node):
                found[field] = path
                break
    return found


def _fits(field: str, node: Node) -> bool:
    wanted = {
        "image": ("text", "integer"), "description": ("text",), "text": ("text",),
        "start": ("integer",), "end": ("integer",), "kind": ("text", "list", "object", "true/false"),
        "creative": ("true/false", "integer"), "detail": ("integer",), "missing": ("list", "text"),
    }[field]  # fmt: skip
    return any(node.types[kind] for kind in wanted)


def suggested(found: Mapping[str, str]) -> dict[str, str]:
    """The guesses as `--map` takes them: what belongs to a sentence or a part is named from there."""
    if "sentences" not in found:
        return dict(found)
    own = f"{found['sentences']}[]."
    paths = {field: path.removeprefix(own) for field, path in found.items()}
    if "start" in paths and "end" in paths:
        paths["parts"] = paths.pop("sentences")
    return paths


def inspect(path: Path) -> str:
    """What a file consists of, for people.

    Raises:
      InputError: it cannot be read, or holds nothing.
    """
    rows, bad = [], []
    for row in any_rows(path):
        try:
            rows.append(row.record())
        except InputError as error:
            bad.append(f"{row.label}: {error}")
    if not rows:
        raise InputError(f"{path}: expected rows of JSON, got none{f'; {bad[0]}' if bad else ''}")
    count, nodes = structure(rows)
    found = guesses(nodes)
    taken = {where: field for field, where in found.items()}
    lines = [f"{path}: {count} rows"]
    lines += [f"bad: {len(bad)}, {bad[0]}"] if bad else []
    width = min(max(len(where) for where in nodes), 60)
    for where, node in nodes.items():
        if not where:
            continue
        types = ", ".join(f"{kind} {number}" for kind, number in node.types.most_common())
        guess = f"   <- {taken[where]}?" if where in taken else ""
        lines.append(f"  {where:<{width}}  {types}; {_shown(node)}{guess}")
    if len(nodes) >= _MOST_PATHS:
        lines.append(f"  and more; only {_MOST_PATHS} paths are shown")
    options = [part for field, where in suggested(found).items() for part in ("--map", f"{field}={where}")]
    command = shlex.join(["python", "-m", "vigor_jax.annotate", "read", str(path), *options])
    lines.append(f"a guess, to be corrected: {command} --out annotations.jsonl")
    return "\n".join(lines)


def _shown(node: Node) -> str:
    if node.values and len(node.values) <= _MOST_VALUES and sum(node.values.values()) > len(node.values):
        return ", ".join(f"{value!r} {number}" for value, number in node.values.most_common())
    if isinstance(node.example, list):
        return f"a list of {len(node.example)}"
    if isinstance(node.example, dict):
        return f"an object with {len(node.example)} keys"
    return f"for example {short(node.example)}"
