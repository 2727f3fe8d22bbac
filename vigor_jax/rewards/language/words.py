"""Words of captions: how a text is split into them, their singulars and plurals, and the word lists."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vigor_jax.errors import InputError
from vigor_jax.records import Span
from vigor_jax.rewards.language.tagger import CACHE_SIZE

if TYPE_CHECKING:
    import inflect

DATA = Path(__file__).parent

# Words, numbers and marks; "'s" and "n't" stand alone, as they do in the treebank that taggers learn from.
TOKEN = re.compile(
    r"(?:n['’]t|['’](?:s|re|ve|ll|d|m))\b|\w+(?:[-.]\w+)*?(?=n['’]t\b)|\w+(?:[-.]\w+)*|[^\w\s]", re.IGNORECASE
)
# Endings that nouns do not have.
NEVER_NOUN = re.compile(r".(?:[^aeiou]ly|eously|fully|ously|[^c]ably|less|eous|ious|some)$")

_QUOTES = re.compile(
    r"\"[^\"\n]{1,200}\"|“[^”\n]{1,200}”|‘[^’\n]{1,200}’(?!\w)|(?<!\w)'(?=\w)[^'\n]{1,80}(?:'\w+[^'\n]*)?(?<=[\w.!?])'(?!\w)"
)
_WRITES = re.compile(
    r"\b(?:says?|saying|reads?|reading|words?|text|letters?|lettering|written|writing|label(?:s|ed|led|ing)?|titled?|"
    r"named?|called|logo|message|inscription|inscribed|spell(?:s|ing)?|printed|caption|slogan|brand|phrase|marked|"
    r"signs?|displaying|displays|number)\b[^.\n]{0,30}$",
    re.IGNORECASE,
)
_WRITTEN = re.compile(
    r"[\s,]*(?:(?:is|are|that|which|clearly|also)\s+)*(?:written|printed|painted|displayed|inscribed|visible on|"
    r"sign|signs|logo|lettering|label|text|on (?:it|the sign|its|the front|a sign))\b",
    re.IGNORECASE,
)


def quoted_signs(text: str) -> list[Span]:
    """What a caption quotes from signs, labels and shirts: words that are seen, of things that may not be."""
    if not ('"' in text or "“" in text or "‘" in text or " '" in text):
        return []
    return [Span(*match.span()) for match in _QUOTES.finditer(text) if _is_on_sign(text, match)]


def _is_on_sign(text: str, quote: re.Match[str]) -> bool:
    start, end = quote.span()
    words = re.findall(r"\w+", quote.group())
    return bool(
        _WRITES.search(text[max(0, start - 60) : start])
        or _WRITTEN.match(text, end)
        or all(word[0].isupper() or word[0].isdigit() for word in words)
    )


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines in lower case, numbered from 1, without comments and empty ones.

    Raises:
        InputError: There is no such file, or it is not text in UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"word list {path}: expected a text file in UTF-8, got {error}") from error
    for number, line in enumerate(lines, 1):
        if content := line.partition("#")[0].strip():
            yield number, content.lower()


def wordnet(section: str) -> frozenset[str]:
    """A section of wordnet.txt; scripts/word_lists.py says what the sections are and makes them."""
    return _sections("wordnet.txt")[section]


def listed(section: str) -> frozenset[str]:
    """A section of cues.txt."""
    return _sections("cues.txt")[section]


def repair_words(section: str) -> frozenset[str]:
    """A section of repairs.txt."""
    return _sections("repairs.txt")[section]


@cache
def _sections(name: str) -> dict[str, frozenset[str]]:
    """The words of a file below their headings, "[heading]"."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for _, line in read_lines(DATA / name):
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        else:
            current += line.split()
    return {heading: frozenset(words) for heading, words in sections.items()}


@cache
def _inflect() -> "inflect.engine":
    import inflect  # takes seconds, which those who make no extractor need not wait

    return inflect.engine()


@cache
def _irregular() -> dict[str, str]:
    """Plurals, and words that only look so, with their singular."""
    derived = (entry.partition("=") for entry in wordnet("singular"))
    own = (line.split() for _, line in read_lines(DATA / "singulars.txt"))
    return {plural: singular or plural for plural, _, singular in derived} | dict(own)


@cache
def _irregular_plurals() -> dict[str, list[str]]:
    plurals_of: dict[str, list[str]] = {}
    for plural, singular in _irregular().items():
        if plural[0] == singular[0]:  # "folks" are no plural of "person"
            plurals_of.setdefault(singular, []).append(plural)
    return plurals_of


def plurals(name: str) -> tuple[str, ...]:
    """The plurals of a name by the rules of English: the last word in the plural."""
    return (_inflect().plural_noun(name) or name,)


def all_plurals(name: str) -> tuple[str, ...]:
    """The plurals by rule and those that follow none: "cactus" has "cactuses" and "cacti"."""
    first, space, last = name.rpartition(" ")
    irregular = [f"{first}{space}{plural}" for plural in _irregular_plurals().get(last, ())]
    return tuple(dict.fromkeys((*plurals(name), *irregular)))


@lru_cache(CACHE_SIZE)
def article(word: str) -> str:
    """What stands before a word: "a" or "an"."""
    return _inflect().a(word).partition(" ")[0]


@lru_cache(CACHE_SIZE)
def singular(word: str) -> str:
    """The singular of a plural; any other word stays as it is."""
    return _irregular().get(word) or regular_singular(word)


def regular_singular(word: str) -> str:
    """The singular by rule."""
    if word.endswith("men") and len(word) > 4:
        return f"{word[:-2]}an"
    if not word.endswith("s") or word.endswith(("ss", "us", "is")) or len(word) < 4:
        return word
    return _inflect().singular_noun(word) or word


def split(name: str, pattern: re.Pattern[str] = TOKEN) -> tuple[str, ...]:
    """The words and marks of a name."""
    return tuple(pattern.findall(name))


class Matcher:
    """Finds the longest sequences of words that are in a table, from left to right."""

    def __init__(self, table: Mapping[tuple[str, ...], str]):
        self._by_first: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for words in sorted(table, key=len, reverse=True):
            self._by_first.setdefault(words[0], []).append((words, table[words]))

    def __call__(self, words: Sequence[str]) -> Iterator[tuple[int, int, str]]:
        """`(start, end, value)` of each match `words[start:end]`."""
        if self._by_first.keys().isdisjoint(words):  # mostly, and this is the fast way to see it
            return
        free = 0
        for start, word in enumerate(words):
            if start < free or word not in self._by_first:
                continue
            for entry, value in self._by_first[word]:
                if tuple(words[start : start + len(entry)]) == entry:
                    free = start + len(entry)
                    yield start, free, value
                    break
