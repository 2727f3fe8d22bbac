"""The phrases of a caption that are nouns to a part-of-speech tagger."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from vigor_jax.data.text.box_text import blank_boxes
from vigor_jax.records import Span
from vigor_jax.rewards.language.readings import Readings
from vigor_jax.rewards.language.scopes import factuality_at
from vigor_jax.rewards.language.tagger import CACHE_SIZE, cached_tag, load_tagger
from vigor_jax.rewards.language.words import (
    DATA,
    TOKEN,
    listed,
    plurals,
    quoted_signs,
    read_lines,
    singular,
    split,
    wordnet,
)
from vigor_jax.rewards.mentions import Factuality, Phrase, gather

# Cut from compounds as groups and measures are ("pizza pieces"), except where they are what the compound is: "tea set".
_HEADS = frozenset(("set", "sets", "supplies"))
_DRINKS = listed("drinks")
_WORN = listed("worn")
_SENTENCES_KEPT = 2**8  # those of the captions that are being read


def tell_glasses(lower: list[str]) -> None:
    """Names those that one drinks from "glass", whose plural the other ones have."""
    for place, word in enumerate(lower):
        around = set(lower[max(0, place - 6) : place + 6])
        is_pair = lower[max(0, place - 2) : place] == ["pair", "of"]
        is_full = lower[place + 1 : place + 2] == ["of"] or (around & (_DRINKS - {"of"}) and not around & _WORN)
        if word == "glasses" and is_full and not is_pair:
            lower[place] = "glass"


def _lower_after_colon(words: list[str]) -> None:
    is_first = False
    for place, word in enumerate(words):
        if word == ":":
            is_first = True
        elif is_first and word[0].isalpha():
            if word.istitle() and word != "I":
                words[place] = word.lower()
            is_first = False


class TaggedSentence(NamedTuple):
    """A sentence as a tagger reads it; one entry a word or mark.

    Attributes:
        tokens: Their places in the text.
        words: In the spelling that taggers know.
        lower: In lower case.
        tags: Of the Penn Treebank.
        is_noun: Whether it is part of a thing's name.
    """

    tokens: list[re.Match[str]]
    words: list[str]
    lower: list[str]
    tags: list[str]
    is_noun: list[bool]


_SPELLED_OTHERWISE = frozenset(['"', "“", "”", "n’t", *(f"’{end}" for end in ("", "s", "re", "ve", "ll", "d", "m"))])


def _as_in_treebank(token: re.Match[str]) -> str:
    """A word in the spelling that taggers know: quotation marks that open are not those that close."""
    word = token.group()
    if word in '"“”':
        opens = word == "“" or (word == '"' and token.string[token.end() : token.end() + 1].isalnum())
        return "``" if opens else "''"
    return word.replace("’", "'")


class NounPhrases:
    """Finds the nouns that a part-of-speech tagger sees, compounds as one phrase.

    Rules, for a wrong phrase costs a penalty that nothing in the caption deserves:
        - Nouns that follow one another without a mark between them are one phrase. Adjectives and numbers are no part
          of it, except in the fixed compounds of `nouns.txt` ("hot dog", "potted plant").
        - A noun in the list of non-visual ones is no phrase, and no compound that ends in it is. A word that the list
          marks with "-" is cut from both ends of a compound instead: "beach scene" is "beach".
        - Groups and measures are in that list: "a group of people" is "person".
        - The last word goes to the singular; "people", "persons" and "individuals" are all "person".
        - Capitalized proper nouns are left out, for no detector knows "Delta"; the first word of a sentence is read
          as if it were not capitalized.
        - Words in -ing are nouns only if `nouns.txt` has them.
        - Where a tagger errs by what surrounds a word, `readings.py` corrects it.

    The arguments are those of `PhrasesConfig`.

    Raises:
        InputError: A word list or the tagger's data is missing or cannot be read.
    """

    def __init__(self, non_visual: Path | None = None, tagger: Path | None = None, *, download: bool = False):
        self._arguments = (non_visual, tagger)
        self._nouns: dict[tuple[str, ...], str] = {}
        for _, name in read_lines(DATA / "nouns.txt"):
            self._nouns |= {split(name): name, **{split(plural): name for plural in plurals(name)}}
        lines = [line for _, line in read_lines(non_visual or DATA / "non_visual.txt")]
        self._trimmed = frozenset(line[1:].strip() for line in lines if line.startswith("-"))
        self._non_visual = self._trimmed.union(lines, map(singular, lines))
        self._abstract = frozenset() if non_visual else wordnet("abstract")
        self._readings = Readings(self._nouns, [line for line in lines if len(line.split()) > 1])
        self._tag = cached_tag(load_tagger(tagger, download=download))
        self._normalize = lru_cache(CACHE_SIZE)(self._trim)
        self._read = lru_cache(_SENTENCES_KEPT)(self._tagged)

    def __reduce__(self) -> tuple[type["NounPhrases"], tuple[Path | None, Path | None]]:
        """Worker processes build their own from the same files."""
        return NounPhrases, self._arguments

    def __call__(self, text: str, sentences: Sequence[Span]) -> list[Phrase]:
        """See `Phrases`."""
        text = blank_boxes(text)
        quoted = quoted_signs(text)
        return gather(found for sentence in sentences for found in self._find(text, sentence, quoted))

    def heads(self, text: str, sentence: Span) -> frozenset[int]:
        """Where nouns of a sentence end that may be what a thing's name ends in.

        The last of the nouns that follow one another, and those before words that are cut from compounds: "pizza" of
        "pizza slices", but not "train" of "train station". Words in -ing count if they are tagged as nouns.
        """
        tokens, _, lower, tags, is_noun = self.read(text, sentence)
        ends = set()
        is_head = True
        for place in reversed(range(len(tokens))):
            noun = is_noun[place] or (lower[place].endswith("ing") and tags[place] in ("NN", "NNS"))
            if noun and is_head:
                ends.add(tokens[place].end())
            is_head = not noun or (is_head and self._is_trimmed(lower[place]))
        return frozenset(ends)

    def read(self, text: str, sentence: Span, quoted: Sequence[Span] = ()) -> TaggedSentence:
        """Tags a sentence; what it quotes from signs is no thing's name.

        Whoever reads a caption asks for each sentence more than once, for phrases and for claims: the answer is shared
        and must not be changed.
        """
        return self._read(text, sentence, tuple(quoted))

    def _tagged(self, text: str, sentence: Span, quoted: tuple[Span, ...]) -> TaggedSentence:
        tokens = list(TOKEN.finditer(text, *sentence))
        words = [token.group() for token in tokens]
        if not _SPELLED_OTHERWISE.isdisjoint(words):
            words = list(map(_as_in_treebank, tokens))
        first = next((i for i, word in enumerate(words) if word[0].isalpha()), None)
        if first is not None and words[first].istitle() and words[first] != "I":
            words[first] = words[first].lower()
        if ":" in words:  # "Background: Trees" begins twice
            _lower_after_colon(words)
        tags = self._tag(words)
        lower = [word.lower() for word in words]
        if "glasses" in lower:
            tell_glasses(lower)
        is_noun = self._readings(words, lower, tags)
        if quoted:
            is_noun = [
                noun and not any(start <= token.start() < end for start, end in quoted)
                for noun, token in zip(is_noun, tokens, strict=True)
            ]
        return TaggedSentence(tokens, words, lower, tags, is_noun)

    def _find(self, text: str, sentence: Span, quoted: Sequence[Span]) -> Iterator[tuple[str, Span, Factuality]]:
        tokens, words, lower, tags, is_noun = self.read(text, sentence, quoted)
        factualities = factuality_at(lower, is_noun, lambda: tags)
        start = 0
        while start < len(words):
            end = start
            while end < len(words) and is_noun[end]:
                end += 1
            if end > start and (trimmed := self._normalize(tuple(lower[start:end]))):
                phrase, first_kept, num_kept = trimmed
                begin, stop = start + first_kept, start + first_kept + num_kept
                factuality = max(factualities[begin:stop]) if factualities else Factuality.ASSERTED
                if factuality is not Factuality.QUOTED:
                    yield phrase, Span(tokens[begin].start(), tokens[stop - 1].end()), factuality
            start = max(end, start + 1)

    def _trim(self, words: tuple[str, ...]) -> tuple[str, int, int] | None:
        """A run of nouns → its phrase, the first word that is kept, and how many are; None if nothing visual is."""
        start, end = 0, len(words)
        while start < end and words[start:end] not in self._nouns:
            if words[end - 1] in _HEADS and end - start > 1 and not self._is_trimmed(words[end - 2]):
                break
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
            one = "glasses" if words[end - 2] in ("eye", "reading", "safety", "sun") else "glass"
        else:
            one = singular(head)
        phrase = " ".join((*words[start : end - 1], one))
        # "power line" is a thing, whatever "line" is
        is_compound = any(words[first:end] in self._nouns for first in range(start, end - 1))
        is_compound = is_compound or (end - start > 1 and head in _HEADS)
        if phrase in self._non_visual:
            return None
        if not is_compound and ({head, one} & self._non_visual or one in self._abstract):
            return None
        return phrase, start, end - start

    def _is_trimmed(self, word: str) -> bool:
        return word in self._trimmed or singular(word) in self._trimmed
