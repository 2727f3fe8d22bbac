"""Reads the letter of an option, or a short answer, out of what a model says."""

import re
import unicodedata
from collections.abc import Callable, Sequence

LETTERS = "ABCDEFGHIJ"

LetterParser = Callable[[str, Sequence[str]], str | None]

_AROUND = " \t\r\n`\"'“”‘’.,:;!?()[]{}<>"
_STARTS, _ENDS = r"(?<!\w)(?<!\w['’])", r"(?!\w|['’]\w)"
# "a dog", but not "A because": a letter, and not the article, if such a word follows.
_NO_ARTICLE = r"(?!(?<=[aA])\s+(?!(?:because|since|as|is|and|or|but)\b)[a-z])"


def parse_letter(text: str, options: Sequence[str]) -> str | None:
    """Reads a letter out of an answer: the first of these rules that finds something decides.

    Full-width letters and brackets count as the plain ones, and markdown's * and _ are left out. Letters that are no
    option do not count; "a" and "A" before a word in lower case are articles.

    1. The whole answer is a letter, in either case, with brackets and punctuation around it at most: "b", "(B)", "B.".
    2. "Answer", "option" or "choice", then "is", ":" or nothing, then the letter: "The answer is B", "option (b)",
       "Answer: B, because A is wrong". Different letters so named are none, and so is "A or B".
    3. A line starts with a marked letter, or is nothing else: "B. dog", "(B) dog", "b) dog". Different letters are
       none, as where a model repeats the options.
    4. It is the text of exactly one option, but for case, outer white space and full stop.
    5. Exactly one letter stands alone in capitals, not after "not": "I think B".

    Args:
        text: The answer.
        options: Their texts, A first.

    Returns:
        A capital letter; None: nothing could be read.
    """
    text = unicodedata.normalize("NFKC", text).replace("*", "").replace("_", " ").strip()
    letters = LETTERS[: len(options)]
    either = f"[{letters}{letters.lower()}]" if letters else r"(?!)"
    core = text.strip(_AROUND)
    if re.fullmatch(either, core):
        return core.upper()

    several = rf"(?!\s*(?:,|/|&|\band\b|\bor\b)\s*[(\[]?{either}{_ENDS})"
    named = (
        r"\b(?i:answer|option|choice)\b(?:\s+is\b)?\s*[:=]?\s*(?:(?i:option|choice)\s+)?[(\[\"'“‘]*"
        rf"({either}){_ENDS}{_NO_ARTICLE}{several}"
    )
    marked = rf"^\s*(?:[(\[]\s*)?({either})\s*(?:[).\]:](?!\w\.)|$)"
    for pattern in (named, marked):
        if found := {letter.upper() for letter in re.findall(pattern, text, re.MULTILINE)}:
            return found.pop() if len(found) == 1 else None

    texts = [_plain(option) for option in options]
    if texts.count(_plain(text)) == 1:
        return letters[texts.index(_plain(text))]
    alone = set(re.findall(rf"{_STARTS}(?<!\bnot\s)([{letters}]){_ENDS}{_NO_ARTICLE}", text)) if letters else set()
    return alone.pop() if len(alone) == 1 else None


def parse_letter_strict(text: str, options: Sequence[str]) -> str | None:
    """Reads an answer as LLaVA's script for ScienceQA does: "B", "B. ..." or one "The answer is B.".

    The script knows five letters whatever the number of options: with three of them "D" and "E. ... The answer is A."
    are none, and "x. The answer is A." is A.
    """
    known = LETTERS[: max(5, len(options))]
    if text[:1] and text[0] in known and (len(text) == 1 or text[1:3] == ". "):
        letter = text[0]
    else:
        found = re.findall(r"The answer is ([A-Z]).", text)
        letter = found[0] if len(found) == 1 else ""
    return letter if letter and letter in LETTERS[: len(options)] else None


def parse_letter_alone(text: str, options: Sequence[str]) -> str | None:
    """Reads an answer as LLaVA's script for SEED-Bench does: the letter, and nothing else."""
    return text if len(text) == 1 and text in LETTERS[: len(options)] else None


def normalize(answer: str) -> str:
    """A short answer as it is compared: in lower case, without outer white space and final full stops.

    GQA's own script compares letter by letter; LLaVA's conversion for it does this to the model's answers first.
    """
    return answer.strip().rstrip(".").strip().lower()


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().rstrip(".").rstrip().casefold()
