"""What the parsers of forms share: typed access to a row, and what they make of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from vigor_jax.data.text.conversation import Turn
from vigor_jax.errors import InputError

Row: TypeAlias = Mapping[str, Any]

# Columns of ours that say what a form has no place for; others ignore them.
CONTEXT_LENGTH, WHOLE = "vigor_context_length", "vigor_whole"

_ROLES: dict[str, Literal["human", "gpt"]] = {"human": "human", "gpt": "gpt"}


class Parsed(NamedTuple):
    """A row as its form has it, not checked yet; attributes as of `vigor_jax.records.Preference`.

    Attributes:
      images: names that its image may have, the first that exists is meant; empty if the row says it otherwise.
      left_out: responses that were left out, by the reason.
    """

    prompt: str
    responses: tuple[str, ...]
    ratings: tuple[float, ...] = (1.0, 0.0)
    context: str = ""
    whole: bool = True
    history: tuple[str, ...] = ()
    name: str = ""
    images: tuple[str, ...] = ()
    left_out: Mapping[str, int] = Counter()


class Skipped(Exception):  # noqa: N818 (no error)
    """A row that says nothing to learn from and is no mistake; its one argument is the reason, in the plural."""


def text(row: Row, key: str) -> str:
    """A value that is text.

    Raises:
      InputError: it is missing or something else.
    """
    value = row.get(key)
    if value is None:
        raise InputError(f"{key!r} is missing")
    if not isinstance(value, str):
        raise InputError(f"expected text under {key!r}, got {short(value)}")
    return value


def text_or_none(row: Row, key: str) -> str | None:
    """A value that is text, or missing.

    Raises:
      InputError: it is something else.
    """
    return None if row.get(key) is None else text(row, key)


def listed(row: Row, key: str, default: Sequence[Any] | None = None) -> Sequence[Any]:
    """A value that is a list, or missing if there is a default.

    Raises:
      InputError: it is missing without a default, or something else.
    """
    value = default if row.get(key) is None else row[key]
    if value is None:
        raise InputError(f"{key!r} is missing")
    if not isinstance(value, list | tuple):
        raise InputError(f"expected a list under {key!r}, got {short(value)}")
    return value


def name_of(row: Row, *keys: str) -> str:
    """The first of some keys that is text or a number, as text; "" if none is."""
    for key in keys:
        value = row.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
    return ""


def turns(row: Row, key: str) -> list[Turn]:
    """LLaVA's turns: human and gpt in alternation, human first; LLaVA skips a first turn by gpt, and so does this.

    Raises:
      InputError: they are something else.
    """
    found = []
    for index, turn in enumerate(listed(row, key)):
        if not isinstance(turn, Mapping):
            raise InputError(f"{key}, turn {index}: expected an object with from and value, got {short(turn)}")
        speaker = turn.get("from")
        if speaker not in _ROLES:
            raise InputError(f"{key}, turn {index}: expected 'human' or 'gpt' under 'from', got {short(speaker)}")
        if not isinstance(turn.get("value"), str):
            raise InputError(f"{key}, turn {index}: expected text under 'value', got {short(turn.get('value'))}")
        found.append(Turn(_ROLES[speaker], turn["value"]))
    if found and found[0].role == "gpt":
        del found[0]
    for index, each in enumerate(found):
        if each.role != ("human", "gpt")[index % 2]:
            raise InputError(f"{key}: two turns by {each.role!r} follow each other; human and gpt alternate")
    return found


def pair(row: Row, chosen: str, rejected: str, prompt: str, *, whole: bool = True, **others: Any) -> Parsed:
    """A better and a worse answer to a prompt, which may have a common beginning that the row counts.

    Raises:
      InputError: the beginning is not common, or the row's own columns are no number and no truth value.
    """
    length = row.get(CONTEXT_LENGTH) or 0
    if not isinstance(length, int) or length < 0:
        raise InputError(f"expected a number of letters under {CONTEXT_LENGTH!r}, got {short(length)}")
    if chosen[:length] != rejected[:length]:
        raise InputError(f"the answers differ within the first {length} letters, which {CONTEXT_LENGTH!r} calls common")
    context = others.pop("context", "") + chosen[:length]
    answers = chosen[length:], rejected[length:]
    return Parsed(prompt, answers, whole=ends(row, whole), context=context, **others)


def ends(row: Row, default: bool) -> bool:
    """Whether answers end with their responses, as a column of ours says it."""
    value = row.get(WHOLE)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InputError(f"expected true or false under {WHOLE!r}, got {short(value)}")
    return value


def short(value: Any) -> str:
    """A value in few words, on one line."""
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
