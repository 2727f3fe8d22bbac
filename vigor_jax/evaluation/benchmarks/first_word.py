"""Yes and no by the first word of an answer, for benchmarks whose own scripts take less, or leave it to a judge."""

from typing import Literal, TypeAlias

from vigor_jax.data.text.box_text import without_boxes

YesNo: TypeAlias = Literal["yes", "no"]


def read_answer(text: str) -> YesNo | None:
    """Yes or no by an answer's first word, in any case and without what follows it: "No, there is none." is no."""
    word = without_boxes(text).strip().split(maxsplit=1)
    first = word[0].strip(".,!:;\"'*").lower() if word else ""
    return "yes" if first == "yes" else "no" if first == "no" else None
