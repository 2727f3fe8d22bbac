"""The words that a judge is asked in: a text with named places, ours or one from a file, such as the published ones."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vigor_jax.errors import InputError


def read_prompt(path: Path, places: Sequence[str]) -> str:
    """Reads a prompt with the places {a}, {b}, ..., or {} as many times, which stand for these in their order.

    Other braces are left as they are.

    Raises:
        InputError: The file cannot be read or lacks a place.
    """
    try:
        prompt = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a prompt in UTF-8, cannot read it ({type(error).__name__})") from error
    missing = [name for name in places if f"{{{name}}}" not in prompt]
    if len(missing) == len(places) == prompt.count("{}"):
        for name in places:
            prompt = prompt.replace("{}", f"{{{name}}}", 1)
    elif missing:
        raise InputError(f"{path}: expected a prompt with {{{'}, {'.join(places)}}}; {{{missing[0]}}} is missing")
    return prompt


def version(prompt: str, path: Path | None) -> str:
    """What a protocol says of a prompt: whose it is, and the start of its SHA-256."""
    return f"{'file' if path else 'ours'}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


def fill(prompt: str, texts: Mapping[str, str]) -> str:
    """Puts texts into the places that are called as their keys; braces in the texts are left as they are."""
    return re.sub(rf"\{{({'|'.join(texts)})\}}", lambda match: texts[match[1]], prompt)
