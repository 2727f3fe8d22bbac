"""Forms with one better and one worse answer in a row: TRL's, RLHF-V's, RLAIF-V's and SENTINEL's."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vigor_jax.data.preferences.parsed import Parsed, Row, listed, name_of, pair, short, text, text_or_none
from vigor_jax.data.text.conversation import IMAGE_PLACEHOLDER
from vigor_jax.errors import InputError


class _Message(NamedTuple):
    role: str
    text: str


def trl(row: Row) -> Parsed:
    """TRL's preference type with or without images, standard (text) or conversational (messages).

    Of messages, those with which both answers begin are the prompt's, too. A prompt that ends with the assistant's
    words is a context: the answers continue it.
    """
    name = name_of(row, "id", "idx")
    if isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str):
        return pair(row, row["chosen"], row["rejected"], text(row, "prompt"), name=name)
    given = row.get("prompt")
    if given is None or isinstance(given, list | tuple):
        prompt = _messages(row, "prompt") if given else []
    else:
        prompt = [_Message("user", text(row, "prompt"))]
    chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if common == len(chosen) == len(rejected):
        raise InputError("'chosen' and 'rejected' are equal; nothing is to be learned from them")
    prompt += chosen[:common]
    answers = chosen[common:], rejected[common:]
    for key, rest in zip(("chosen", "rejected"), answers, strict=True):
        if [message.role for message in rest] != ["assistant"]:
            raise InputError(
                f"expected one message of the assistant under {key!r} behind what both have, got "
                f"{', '.join(message.role for message in rest) or 'none'}"
            )
    context = prompt.pop().text if prompt and prompt[-1].role == "assistant" else ""
    for index, message in enumerate(prompt):
        if message.role != ("user", "assistant")[index % 2]:
            raise InputError(
                f"message {index} of the prompt is by {message.role!r}; expected user and assistant in alternation"
            )
    if not prompt:
        raise InputError("'prompt' is missing")
    *history, question = (message.text for message in prompt)
    (good,), (bad,) = answers
    return pair(row, good.text, bad.text, question, context=context, history=tuple(history), name=name)


def _messages(row: Row, key: str) -> list[_Message]:
    found = []
    for index, message in enumerate(listed(row, key)):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"{key}, message {index}: expected an object with role and content, got {short(message)}")
        if message["role"] not in ("user", "assistant"):
            raise InputError(
                f"{key}, message {index}: expected the role user or assistant, got {short(message['role'])}; a "
                "conversation's system text comes with the template"
            )
        content = message.get("content")
        if isinstance(content, list | tuple):
            content = _joined(content, message["role"] == "user", f"{key}, message {index}")
        if not isinstance(content, str):
            raise InputError(f"{key}, message {index}: expected text or parts under 'content', got {short(content)}")
        found.append(_Message(message["role"], content))
    return found


def _joined(parts: Sequence[Any], may_show: bool, where: str) -> str:
    """Parts as one text, a line each; an image is where it stands."""
    found = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image" and may_show:
            found.append(IMAGE_PLACEHOLDER)
        elif kind == "text" and isinstance(part.get("text"), str):
            found.append(part["text"])
        else:
            raise InputError(f"{where}: expected parts of type text{' or image' * may_show}, got {short(part)}")
    return "\n".join(found)


def rlhf_v(row: Row) -> Parsed:
    """RLHF-V's: question, chosen and rejected are JSON in one column."""
    value = row.get("text")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"expected JSON with question, chosen and rejected under 'text', got {short(value)}"
            ) from error
    if not isinstance(value, Mapping):
        raise InputError(f"expected JSON with question, chosen and rejected under 'text', got {short(value)}")
    name = name_of(row, "idx", "id")
    return pair(row, text(value, "chosen"), text(value, "rejected"), text(value, "question"), name=name)


def rlaif_v(row: Row) -> Parsed:
    """RLAIF-V's: question, chosen and rejected are columns."""
    return pair(row, text(row, "chosen"), text(row, "rejected"), text(row, "question"), name=name_of(row, "idx", "id"))


def sentinel(row: Row) -> Parsed:
    """SENTINEL's: two sentences behind the ones before, which one space divides from them.

    Three layouts: what its data generation writes (`y_win`, `y_lose`, `image_path`), what it trains LLaVA-1.5 with
    (lists of pairs under the images' numbers in Visual Genome, without a path), and what it gives LLaMA-Factory
    (`instruction`, `chosen`, `rejected`, `images`). Without any context (null) the answers are whole; a sentence does
    not end its answer, as in SENTINEL's training, here also where the context is still empty.
    """
    if "instruction" in row:
        question, chosen, rejected = text(row, "instruction"), text(row, "chosen"), text(row, "rejected")
    else:
        win, lose = ("win", "lose") if "y_win" not in row and "win" in row else ("y_win", "y_lose")
        question, chosen, rejected = text(row, "question"), text(row, win), text(row, lose)
    context = text_or_none(row, "context")
    if context:
        chosen, rejected = f" {chosen}", f" {rejected}"
    number = name_of(row, "image_id")
    # Where Visual Genome has it: in two folders, which its archives are unpacked to.
    images = tuple(f"{folder}{number}.jpg" for folder in ("", "VG_100K/", "VG_100K_2/")) if number else ()
    return pair(
        row, chosen, rejected, question,
        whole=context is None, context=context or "", name=name_of(row, "id"), images=images,
    )  # fmt: skip
