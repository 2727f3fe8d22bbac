"""Sentences of a caption as spans into it, so that later steps point into the text and never search it again."""

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from vigor_jax.data.text.box_text import strip_boxes
from vigor_jax.records import Span

if TYPE_CHECKING:  # NLTK takes a second to import, which commands that split nothing need not wait for
    from nltk.tokenize.punkt import PunktSentenceTokenizer

# A sentence never ends after these. "in.", "no." and "max." are left out: in captions they are words.
_ABBREVIATIONS = (
    "approx ave blvd ca capt cf col dept dr e.g fig gen gov hon i.e jr lt messrs mr mrs ms mt op prof rev sgt sr st "
    "univ viz vol vs cm ft hr hrs kg km lb lbs mm mph oz sq yd yds"
)
# These end a sentence unless it continues in lower case: plates, cups, etc. / "A dog!" says the boy.
_MAY_END = re.compile(r"(?:\b(?:etc|inc|ltd|corp|al)|\b(?:\w\.)+\w)\.$|[!?][\"'”’]$", re.IGNORECASE)
# To Punkt an ellipsis never ends a sentence.
_ELLIPSIS = re.compile(r"(?:\.{3,}|…)[\"'”’)]*\s+(?=[\"'“‘(]?[A-Z])")
_LIST_MARKER = re.compile(r"\(?(?:\d{1,3}|[A-Za-z]|[ivx]+)[.)]")
_LINE = re.compile(r"[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")


@cache
def _tokenizer() -> "PunktSentenceTokenizer":
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types = set(_ABBREVIATIONS.split())
    return PunktSentenceTokenizer(parameters)


def _starts(line: str) -> Iterator[int]:
    """Where the sentences of a line start."""
    previous = 0
    found = {start for start, _ in _tokenizer().span_tokenize(line)} | {
        ellipsis.end() for ellipsis in _ELLIPSIS.finditer(line)
    }
    for number, start in enumerate(sorted(found) or [0]):
        before = line[previous:start].strip()
        is_marker = number == 1 and _LIST_MARKER.fullmatch(before)
        continues = line[start].islower() and _MAY_END.search(before)
        if number == 0 or not (is_marker or continues):
            yield start
            previous = start


def split_sentences(text: str) -> list[Span]:
    """Splits a caption into sentences; the end of a line ends a sentence as well.

    Uses Punkt's rules with a fixed list of abbreviations, which needs no downloaded data. A box is part of
    the sentence before it, or of the first one, and changes nothing else.

    Returns:
        Spans in order, none of them empty, without white space at their ends. Whatever lies between them is white
        space; a text of nothing else, or of boxes alone, has no sentences.
    """
    if not (plain := strip_boxes(text)).boxes:
        return _split(text)
    starts = [plain.origin(start) for start, _ in _split(plain.text)]
    return [_trimmed(text, start, end) for start, end in pairwise([0, *starts[1:], len(text)])] if starts else []


def _split(text: str) -> list[Span]:
    spans = []
    for line in _LINE.finditer(text):
        offset, content = line.start(), line.group()
        _, *starts = _starts(content)
        parts = [_trimmed(text, offset + start, offset + end) for start, end in pairwise([0, *starts, len(content)])]
        spans += [span for span in parts if span.start < span.end]
    return spans


def _trimmed(text: str, start: int, end: int) -> Span:
    """A part of a text without the white space at its ends; empty if it has nothing else."""
    part = text[start:end]
    first = start + len(part) - len(part.lstrip())
    return Span(first, max(first, start + len(part.rstrip())))
