"""Sentences of a caption that say again, word for word, what an earlier one has said."""

import re
from collections.abc import Sequence

from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.records import Span
from vigor_jax.rewards.sentences import split_sentences

# "1.", "2)", "(a)", "-" and "•" before a sentence; quotes and brackets around it, and the marks that end it.
_MARKERS = re.compile(r"^(?:\(?(?:\d{1,3}|[a-z]|[ivx]+)[.)]\s+|[-*•–—>#\"'“”‘’«»(\[]+\s*)+")
_END = " .!?…,;:\"'“”‘’«»)]*"
# For a quick look: without spaces and such, in pieces between whatever may end or begin a sentence or a list marker.
_SQUEEZED: dict[int, str | None] = {code: None for code in range(0x3001) if chr(code).isspace()}
_SQUEEZED |= dict.fromkeys(map(ord, "-*•–—>#\"'“”‘’«»,;:"))
_SQUEEZED |= dict.fromkeys(map(ord, ".!?…()[]\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), "\n")


def repetitions(text: str, sentences: Sequence[Span] | None = None) -> list[Span]:
    """The sentences of a text that repeat an earlier one: but for case, spacing, list markers, boxes, and
    marks at the end.

    Args:
      text: a caption.
      sentences: those to compare, in order; by default all of it.
    """
    if sentences is None:
        sentences = split_sentences(text) if _may_repeat(text) else []
    seen: set[str] = set()
    found = []
    for span in sentences:
        key = _key(text[slice(*span)])
        if key and key in seen:
            found.append(span)
        seen.add(key)
    return found


def _may_repeat(text: str) -> bool:
    """False where no sentence is there twice, for then its last piece would be: far quicker than splitting."""
    text = without_boxes(text)
    pieces = [piece for piece in text.casefold().translate(_SQUEEZED).split("\n") if piece]
    return len(set(pieces)) < len(pieces)


def _key(sentence: str) -> str:
    """What two sentences share that are word for word the same; "" for one without words."""
    return _MARKERS.sub("", " ".join(without_boxes(sentence).casefold().split())).rstrip(_END)
