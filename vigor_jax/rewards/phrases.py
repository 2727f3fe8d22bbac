"""The things that a caption mentions, as phrases for a detector, each with every place where it is mentioned.

Two extractors: `NounPhrases` takes the nouns that a tagger finds (ViGoR, section 3.1), less those in a list of nouns
that no detector can see; `EntityPhrases` takes the names in a list of categories, and needs no data.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from vigor_jax.errors import InputError
from vigor_jax.records import Span
from vigor_jax.rewards.tagger import CACHE_SIZE, cached_tag, load_tagger

if TYPE_CHECKING:
    import inflect

_DATA = Path(__file__).parent


@dataclass(frozen=True)
class Phrase:
    """Something a caption mentions.

    Attributes:
        text: Lower case, the last word in the singular: "traffic light".
        mentions: Where the caption has it, in order; each lies within one sentence.
    """

    text: str
    mentions: tuple[Span, ...]


class Phrases(Protocol):
    """Finds the phrases of a caption."""

    def __call__(self, text: str, sentences: Sequence[Span]) -> list[Phrase]:
        """Phrases in the order of their first mention, each once."""
        ...


@dataclass(frozen=True)
class PhrasesConfig:
    """How phrases are found.

    Attributes:
        extractor: "nltk" for the nouns of a part-of-speech tagger, "entities" for the names in a list.
        non_visual: Nouns that are not phrases, one a line (see `non_visual.txt`, the default, for the format).
        entities: Categories, one a line, synonyms separated by commas, the first is the name that is returned.
            Default: the 80 categories of COCO.
        tagger: Folder with a tagger as NLTK writes it (`averaged_perceptron_tagger_eng.weights.json`,
            `...tagdict.json`, `...classes.json`). Default: where NLTK keeps its data.
        download: Whether NLTK may download its tagger if it is not there.
    """

    extractor: Literal["nltk", "entities"] = "nltk"
    non_visual: Path | None = None
    entities: Path | None = None
    tagger: Path | None = None
    download: bool = False


def make_phrases(config: PhrasesConfig) -> Phrases:
    """The extractor that a config asks for.

    Raises:
        InputError: A file or the tagger's data is missing or cannot be read.
    """
    if config.extractor == "entities":
        return EntityPhrases(config.entities)
    return NounPhrases(config.non_visual, config.tagger, download=config.download)


# Words, numbers and marks; "'s" and "n't" stand alone, as they do in the treebank that taggers learn from.
_TOKEN = re.compile(
    r"(?:n['’]t|['’](?:s|re|ve|ll|d|m))\b|\w+(?:[-.]\w+)*?(?=n['’]t\b)|\w+(?:[-.]\w+)*|[^\w\s]", re.IGNORECASE
)
_NAME_WORD = re.compile(r"\w+")
_HYPHENATED_ADJECTIVE = re.compile(r".+-(?:\w*(?:ed|ing)|like|shaped|style|sized|free|friendly|tier|level)")


@cache
def _inflect() -> "inflect.engine":
    import inflect  # takes seconds, which those who make no extractor need not wait

    return inflect.engine()


def _plural(name: str) -> str:
    return _inflect().plural_noun(name) or name


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines numbered from 1, without comments and empty ones."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"word list {path}: expected a text file in UTF-8, got {error}") from error
    for number, line in enumerate(lines, 1):
        if content := line.partition("#")[0].strip():
            yield number, content.lower()


@cache
def _irregular() -> dict[str, str]:
    return dict(line.split() for _, line in _read_lines(_DATA / "singulars.txt"))


@lru_cache(CACHE_SIZE)
def _singular(word: str) -> str:
    if irregular := _irregular().get(word):
        return irregular
    if not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    return _inflect().singular_noun(word) or word


def _split(name: str, pattern: re.Pattern[str] = _TOKEN) -> tuple[str, ...]:
    return tuple(pattern.findall(name))


class _Matcher:
    """Finds the longest sequences of words that are in a table, from left to right."""

    def __init__(self, table: Mapping[tuple[str, ...], str]):
        self._by_first: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for words in sorted(table, key=len, reverse=True):
            self._by_first.setdefault(words[0], []).append((words, table[words]))

    def __call__(self, words: Sequence[str]) -> Iterator[tuple[int, int, str]]:
        """`(start, end, value)` of each match `words[start:end]`."""
        free = 0
        for start, word in enumerate(words):
            if start < free or word not in self._by_first:
                continue
            for entry, value in self._by_first[word]:
                if tuple(words[start : start + len(entry)]) == entry:
                    free = start + len(entry)
                    yield start, free, value
                    break


def _as_in_treebank(token: re.Match[str]) -> str:
    """A word in the spelling that taggers know: quotation marks that open are not those that close."""
    word = token.group()
    if word in '"“”':
        opens = word == "“" or (word == '"' and token.string[token.end() : token.end() + 1].isalnum())
        return "``" if opens else "''"
    return word.replace("’", "'")


def _gather(found: Iterator[tuple[str, Span]]) -> list[Phrase]:
    mentions: dict[str, list[Span]] = {}
    for phrase, span in found:
        mentions.setdefault(phrase, []).append(span)
    return [Phrase(phrase, tuple(spans)) for phrase, spans in mentions.items()]


class EntityPhrases:
    """Finds the names in a list of categories: the longest one at a place, whole words, any case, singular or plural.

    Args:
        path: One category a line, synonyms separated by commas; a phrase's text is the first. A name that is in two
            lines belongs to the first. Default: COCO's 80 categories.

    Raises:
        InputError: The list cannot be read, is empty, or has an empty name (with its line).
    """

    def __init__(self, path: Path | None = None):
        path = path or _DATA / "entities_coco.txt"
        table: dict[tuple[str, ...], str] = {}
        for number, line in _read_lines(path):
            names = [" ".join(name.split()) for name in line.split(",")]
            for name in names:
                words = _split(name, _NAME_WORD)
                if not words:
                    raise InputError(
                        f"{path}, line {number}: expected names separated by commas, got an empty one in {line!r}"
                    )
                table.setdefault(words, names[0])
                table.setdefault(_split(_plural(name), _NAME_WORD), names[0])
        if not table:
            raise InputError(f"{path}: expected one category a line, got none")
        self._match = _Matcher(table)

    def __call__(self, text: str, sentences: Sequence[Span]) -> list[Phrase]:
        """See `Phrases`."""
        return _gather(found for sentence in sentences for found in self._find(text, sentence))

    def _find(self, text: str, sentence: Span) -> Iterator[tuple[str, Span]]:
        tokens = list(_NAME_WORD.finditer(text, *sentence))
        # Marks between two words part them; a hyphen does not, for "hot-dog" is a hot dog.
        words: list[str] = []
        places: list[Span] = []
        for before, token in zip([None, *tokens], tokens, strict=False):
            if before and text[before.end() : token.start()].strip() not in ("", "-"):
                words.append("")
                places.append(Span(token.start(), token.start()))
            words.append(token.group().lower())
            places.append(Span(*token.span()))
        for start, end, name in self._match(words):
            span = Span(places[start].start, places[end - 1].end)
            # "deer-like" is no deer
            if not (_is_hyphen(text, span.start - 1, -1) or _is_hyphen(text, span.end, 1)):
                yield name, span


def _is_hyphen(text: str, place: int, step: int) -> bool:
    beyond = place + step
    return 0 <= place < len(text) and text[place] == "-" and 0 <= beyond < len(text) and text[beyond].isalnum()


class NounPhrases:
    """Finds the nouns that a part-of-speech tagger sees, compounds as one phrase.

    Rules, for a wrong phrase costs a penalty that nothing in the caption deserves:
        - Nouns that follow one another without a mark between them are one phrase. Adjectives and numbers are no part
          of it, except in the fixed compounds of `nouns.txt` ("hot dog", "potted plant").
        - A noun in the list of non-visual ones is no phrase, and no compound that ends in it is. A word that the list
          marks with "-" is cut from both ends of a compound instead: "beach scene" is "beach".
        - Groups and measures are in that list: "a group of people" is "person".
        - The last word goes to the singular; "people", "persons" and "individuals" are all "person".
        - Capitalised proper nouns are left out, for no detector knows "Delta"; the first word of a sentence is read
          as if it were not capitalised.
        - Words in -ing are nouns only if `nouns.txt` has them.

    The arguments are those of `PhrasesConfig`.

    Raises:
        InputError: A word list or the tagger's data is missing or cannot be read.
    """

    def __init__(self, non_visual: Path | None = None, tagger: Path | None = None, *, download: bool = False):
        self._arguments = (non_visual, tagger)
        self._nouns: dict[tuple[str, ...], str] = {}
        for _, name in _read_lines(_DATA / "nouns.txt"):
            self._nouns |= {_split(name): name, _split(_plural(name)): name}
        self._match_noun = _Matcher(self._nouns)
        lines = [line for _, line in _read_lines(non_visual or _DATA / "non_visual.txt")]
        self._trimmed = frozenset(line[1:].strip() for line in lines if line.startswith("-"))
        self._non_visual = self._trimmed.union(lines, map(_singular, lines))
        self._match_idiom = _Matcher({_split(line): line for line in lines if len(line.split()) > 1})
        self._tag = cached_tag(load_tagger(tagger, download=download))
        self._normalise = lru_cache(CACHE_SIZE)(self._trim)

    def __reduce__(self) -> tuple[type["NounPhrases"], tuple[Path | None, Path | None]]:
        """Worker processes build their own from the same files."""
        return NounPhrases, self._arguments

    def __call__(self, text: str, sentences: Sequence[Span]) -> list[Phrase]:
        """See `Phrases`."""
        return _gather(found for sentence in sentences for found in self._find(text, sentence))

    def _find(self, text: str, sentence: Span) -> Iterator[tuple[str, Span]]:
        tokens = list(_TOKEN.finditer(text, *sentence))
        words = [_as_in_treebank(token) for token in tokens]
        first = next((i for i, word in enumerate(words) if word[0].isalpha()), None)
        if first is not None and words[first].istitle() and words[first] != "I":
            words[first] = words[first].lower()
        tags = self._tag(words)
        lower = [word.lower() for word in words]
        is_noun = self._nouns_among(words, lower, tags)
        start = 0
        while start < len(words):
            end = start
            while end < len(words) and is_noun[end]:
                end += 1
            if end > start and (trimmed := self._normalise(tuple(lower[start:end]))):
                phrase, first_kept, num_kept = trimmed
                kept = tokens[start + first_kept : start + first_kept + num_kept]
                yield phrase, Span(kept[0].start(), kept[-1].end())
            start = max(end, start + 1)

    def _nouns_among(self, words: list[str], lower: list[str], tags: list[str]) -> list[bool]:
        is_noun = [
            (tag in ("NN", "NNS") or (tag in ("NNP", "NNPS") and word.islower()))
            and word[0].isalpha()
            and len(word) > 1
            and "." not in word  # "i.e."
            and not word.endswith("ing")
            and not ("-" in word and _HYPHENATED_ADJECTIVE.fullmatch(word))
            and not (before == "TO" and after in ("DT", "PRP$"))  # "to board the bus"
            for word, tag, before, after in zip(words, tags, ["", *tags], [*tags[1:], ""], strict=False)
        ]
        for start, end, _ in self._match_noun(lower):
            is_can = lower[end - 1] == "can" and tags[end : end + 1] == ["VB"]  # "the trash can be seen"
            if not is_can and (end - start > 1 or not tags[start].startswith("VB")):
                is_noun[start:end] = [True] * (end - start)
        for start, end, _ in self._match_idiom(lower):
            if not any(is_noun[end : end + 1]):
                is_noun[start:end] = [False] * (end - start)
        return is_noun

    def _trim(self, words: tuple[str, ...]) -> tuple[str, int, int] | None:
        """A run of nouns → its phrase, the first word that is kept, and how many are; None if nothing visual is."""
        start, end = 0, len(words)
        while start < end and words[start:end] not in self._nouns:
            if self._is_trimmed(words[end - 1]):
                end -= 1
            elif self._is_trimmed(words[start]):
                start += 1
            else:
                break
        if start == end:
            return None
        head = words[end - 1]
        if head == "glasses" and end - start > 1:
            singular = "glasses" if words[end - 2] in ("eye", "reading", "safety", "sun") else "glass"
        else:
            singular = _singular(head)
        phrase = " ".join((*words[start : end - 1], singular))
        is_compound = end - start > 1 and words[start:end] in self._nouns  # "power line" is a thing, whatever "line" is
        if phrase in self._non_visual or (not is_compound and {head, singular} & self._non_visual):
            return None
        return phrase, start, end - start

    def _is_trimmed(self, word: str) -> bool:
        return word in self._trimmed or _singular(word) in self._trimmed
