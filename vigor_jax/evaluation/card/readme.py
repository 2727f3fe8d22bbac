"""Puts a card into a model's README.md: its figures into the metadata, its tables between two marks.

What else is in the file stays as it is, to the byte; a later card takes the place of the earlier one.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from vigor_jax.disk import naming
from vigor_jax.evaluation.card.card import Card
from vigor_jax.evaluation.card.markdown import to_markdown
from vigor_jax.evaluation.card.model_index import is_own, to_model_index

README = "README.md"
BEGIN = "<!-- vigor_jax.card: what is between these two lines is replaced by the next evaluation -->"
END = "<!-- vigor_jax.card: end -->"

logger = logging.getLogger(__name__)

_FRONT = re.compile(r"\A(\ufeff?\s*---[ \t]*\r?\n)(.*?)(^---[ \t]*(?:\r?\n|\Z))", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(rf"(?:\r?\n)?{re.escape(BEGIN)}.*?{re.escape(END)}(?:\r?\n)?", re.DOTALL)
_KEY = re.compile(r"""["']?model-index["']?\s*:""")
_NEXT_KEY = re.compile(r"""[#\w"'}\]].*""")


def write_readme(folder: Path, card: Card, name: str, metadata: Mapping[str, Any]) -> Path:
    """Writes a card into the README.md of a model's folder, which is made if it is not there.

    Args:
        folder: Of the model.
        card: Its last model is this one.
        name: Of the model.
        metadata: Of a new file, in addition to the figures.
    """
    path = folder / README
    before = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else new_readme(name, metadata)
    with naming(path):
        path.write_bytes(with_card(before, card, name).encode("utf-8", "surrogateescape"))
    return path


def new_readme(name: str, metadata: Mapping[str, Any]) -> str:
    """A README.md without a card."""
    front = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True) if metadata else ""
    return f"---\n{front}---\n\n# {name}\n"


def with_card(text: str, card: Card, name: str) -> str:
    """A README.md with a card, at the place of an earlier one or else at the end."""
    newline = "\r\n" if "\r\n" in text else "\n"
    block = newline.join([BEGIN, "", *to_markdown(card).splitlines(), "", END])
    if (found := _BLOCK.search(text)) is not None:
        text = f"{text[: found.start()]}{newline}{block}{newline}{text[found.end() :]}"
    else:
        text = f"{text}{'' if text.endswith(newline) or not text else newline}{newline}{block}{newline}"
    return _with_index(text, to_model_index(card, name), newline)


def without_card(text: str) -> str:
    """A README.md as it is without a card."""
    newline = "\r\n" if "\r\n" in text else "\n"
    return _with_index(_BLOCK.sub("", text), [], newline)


def _with_index(text: str, index: list[dict[str, Any]], newline: str) -> str:
    """With our results in `model-index`, instead of earlier ones of ours and after those of others."""
    front = _FRONT.match(text)
    if front is None:
        return f"---{newline}{_dumped(index, newline)}---{newline}{newline}{text}" if index else text
    try:
        metadata = yaml.safe_load(front[2]) or {}
        theirs = metadata.get("model-index") or []
        merged = _merged(theirs, index)
    except (yaml.YAMLError, AttributeError, TypeError, KeyError, ValueError):  # the last of a date such as 2024-13-01
        logger.warning("%s: the metadata is no YAML as the Hub reads it, and gets no figures; fix it", README)
        return text
    if merged == theirs:
        return text
    kept, is_ours = [], False
    for line in front[2].splitlines(keepends=True):
        is_ours = bool(_KEY.match(line)) or (is_ours and not _NEXT_KEY.match(line))
        kept += [] if is_ours else [line]
    lines = "".join(kept) + (_dumped(merged, newline) if merged else "")
    return f"{front[1]}{lines}{front[3]}{text[front.end() :]}"


def _merged(theirs: list[dict[str, Any]], index: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of others and, under the first name, ours."""
    models = [{**model, "results": [one for one in model["results"] if not is_own(one)]} for model in theirs]
    if index:
        first = models[0] if models else {"name": index[0]["name"], "results": []}
        models = [{**first, "results": [*first["results"], *index[0]["results"]]}, *models[1:]]
    return [model for model in models if model["results"]]


def _dumped(index: list[dict[str, Any]], newline: str) -> str:
    if not index:
        return ""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # a reader of YAML may know no aliases
            return True

    text = yaml.dump({"model-index": index}, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return newline.join(text.splitlines()) + newline
