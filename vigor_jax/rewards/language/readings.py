"""Which words of a tagged sentence are nouns: taggers err, and mostly where the words around show it."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

from vigor_jax.rewards.language.tagger import CACHE_SIZE
from vigor_jax.rewards.language.words import NEVER_NOUN, Matcher, listed, singular, split, wordnet

_HYPHENATED_ADJECTIVE = re.compile(r".+-(?:\w*(?:ed|ing)|like|shaped|style|sized|free|friendly|tier|level)")
_COLORS = listed("colors")
# Colors that are things as well. Before a noun the first of them are colors: an orange cat, but a rose bush.
_COLORS_ONLY = listed("colors only")
_COLOR_THINGS = _COLORS_ONLY | listed("color things")
_OF_ORANGE = listed("of orange")
_SHADES = listed("shades")
_IS = listed("is")
# "close to shore", "next to traffic": here "to" is no part of a verb.
_TO_A_PLACE = listed("to a place")
_UNITS = listed("units")
_FEET = frozenset(("feet", "foot", "ft"))
_AFTER_FEET = listed("after feet")
_NO_NOUNS = listed("interjections") | listed("tag in") | listed("tag rb")
# Plurals that stand before a noun: "sports ball".
_PLURAL_FIRST = listed("plural first")
_OF_COLOR = listed("of color")
# "A bed of rice", "a blanket of snow"; but "the bed of the truck".
_SPREAD = listed("spread")
_ONE = listed("one")
_SEVERAL = listed("several")
_FOLLOWS_VERB_TO = ("VBG", "VBN", "VBD", "VBZ", "VBP", "VB", "JJ", "NN", "NNS", "RB")
_CORRECTED_TAGS = frozenset(("CD", "TO"))
_CORRECTED_WORDS = _COLOR_THINGS | {"couple", "couples"}
_FINITE = frozenset(("VBZ", "VBP", "VBD", "MD"))
_CLAUSE_ENDS = frozenset((",", ".", ":", "CC", "``", "''"))
_CLAUSE_STARTS = frozenset(("while", "as", "when", "where", "that", "because", "and"))
_MODIFIERS = ("JJ", "VBN", "RB")


class Readings:
    """Finds the nouns of a tagged sentence.

    Args:
        nouns: Names that stay whole, whatever their words are tagged as.
        idioms: Running text in which the nouns do not mean things.
    """

    def __init__(self, nouns: Mapping[tuple[str, ...], str], idioms: Sequence[str]):
        self._match_noun = Matcher(nouns)
        self._single = frozenset(name[0] for name in nouns if len(name) == 1)
        self._pairs = frozenset(pair for name in nouns for pair in pairwise(name))
        self._match_idiom = Matcher({split(line): line for line in idioms})
        self._never, self._things = wordnet("no nouns") | _NO_NOUNS, wordnet("things")
        self._verbs = wordnet("verbs")
        self._reads_as_noun = lru_cache(CACHE_SIZE)(self._by_itself)

    def __call__(self, words: Sequence[str], lower: Sequence[str], tags: Sequence[str]) -> list[bool]:
        """Whether each word is part of a thing's name."""
        is_noun = list(map(self._reads_as_noun, words, tags))
        if not (_CORRECTED_TAGS.isdisjoint(tags) and _CORRECTED_WORDS.isdisjoint(lower)):
            for place, tag in enumerate(tags):
                if tag in _CORRECTED_TAGS or lower[place] in _CORRECTED_WORDS:
                    self._correct(place, lower, tags, is_noun)
        for start, end, _ in self._match_noun(lower):
            is_can = lower[end - 1] == "can" and tags[end : end + 1] == ["VB"]  # "the trash can be seen"
            if not is_can and (end - start > 1 or not tags[start].startswith("VB")):
                is_noun[start:end] = [True] * (end - start)
        for start, end, _ in self._match_idiom(lower):
            if not any(is_noun[end : end + 1]):
                is_noun[start:end] = [False] * (end - start)
        self._part_verbs(lower, tags, is_noun)
        if "of" in lower:
            self._leave_out_measures(lower, tags, is_noun)
        return is_noun

    def _leave_out_measures(self, lower: Sequence[str], tags: Sequence[str], is_noun: list[bool]) -> None:
        """ "A pop of bright color": what is of a color, or of any quality, is no thing; nor is a "bed of rice"."""
        for place in range(1, len(lower) - 1):
            if lower[place] != "of" or not is_noun[place - 1]:
                continue
            before = lower[place - 1]
            is_spread = before in _SPREAD and tags[place + 1] not in ("DT", "PRP$")
            if is_spread or (before in self._verbs and not _OF_COLOR.isdisjoint(lower[place + 1 : place + 4])):
                is_noun[place - 1] = False

    def _by_itself(self, word: str, tag: str) -> bool:
        if not word[0].isalpha() or len(word) < 2 or "." in word or word.endswith("ing"):
            return False
        if tag in ("NN", "NNS") or (tag in ("NNP", "NNPS") and word.islower()):
            return not ("-" in word and _HYPHENATED_ADJECTIVE.fullmatch(word)) and not self._is_other(word.lower())
        # No adjective is spelled like that; some verbs are.
        return (tag == "JJ" or (tag == "VB" and word not in self._verbs)) and singular(word.lower()) in self._things

    def _is_other(self, word: str) -> bool:
        if word in self._single:
            return False
        return word in self._never or bool(NEVER_NOUN.search(word) and word not in self._things)

    def _correct(self, place: int, lower: Sequence[str], tags: Sequence[str], is_noun: list[bool]) -> None:
        """Numbers with units, "to" with a verb, colors, and couples."""
        following = place + 1
        word = lower[place]
        if tags[place] == "CD":
            if following < len(lower) and (
                lower[following] in _UNITS or (lower[following] in _FEET and _word(lower, following + 1) in _AFTER_FEET)
            ):
                is_noun[following] = False
        elif tags[place] == "TO":
            if (
                following < len(lower)
                and _word(tags, following) in ("NN", "VB")
                and self._is_infinitive(place, lower, tags)
            ):
                is_noun[following] = False
        elif word in ("couple", "couples"):
            is_verb = _word(lower, following) in self._verbs and tags[following] == "NN"
            counts = _word(tags, following).startswith(("JJ", "CD", "NN")) and not is_verb
            is_noun[place] = not (counts or _word(lower, following) == "of")
        elif _is_color(place, lower, is_noun):
            is_noun[place] = False

    def _is_infinitive(self, place: int, lower: Sequence[str], tags: Sequence[str]) -> bool:
        """Whether a verb follows: "to board the bus", "waiting to board", but not "next to traffic"."""
        if _word(tags, place + 2) in ("DT", "PRP$"):
            return True
        return (
            lower[place + 1] in self._verbs
            and not _word(tags, place + 2).startswith("NN")
            and _word(lower, place - 1) not in _TO_A_PLACE
            and _word(tags, place - 1) in _FOLLOWS_VERB_TO
        )

    def _part_verbs(self, lower: Sequence[str], tags: Sequence[str], is_noun: list[bool]) -> None:
        """Takes out verbs that stand between or behind nouns: "dog drinks water", "a sheep stands", "skiers rest"."""
        for place, (first, second) in enumerate(pairwise(is_noun), 1):
            word, before = lower[place], lower[place - 1]
            if not (first and second and is_noun[place - 1]) or (before, word) in self._pairs:
                continue
            one = singular(word)
            if one == word:
                is_plural = singular(before) != before and before not in _PLURAL_FIRST
                if is_plural and word in self._verbs:
                    is_noun[place] = False
            elif one in self._verbs and word.endswith("s") and word not in _PLURAL_FIRST:
                stands_between = is_noun[place + 1 : place + 2] == [True]
                is_noun[place] = not (
                    stands_between or _is_one(place, lower, tags, is_noun) or _is_predicate(place, lower, tags, is_noun)
                )


def _is_one(place: int, lower: Sequence[str], tags: Sequence[str], is_noun: Sequence[bool]) -> bool:
    """Whether "a" or "each" stands before the noun before `place`, which is then no plural."""
    start = place
    while start and is_noun[start - 1]:
        start -= 1
    while start and _modifies(start - 1, lower, tags) and lower[start - 1] not in _SEVERAL:
        start -= 1
    return _word(lower, start - 1) in _ONE


def _is_predicate(place: int, lower: Sequence[str], tags: Sequence[str], is_noun: Sequence[bool]) -> bool:
    """Whether a word behind the subject is its clause's only finite verb: "the cat sleeps on the bed"."""
    start = _phrase_start(place, lower, tags, is_noun)
    in_group = _word(lower, start - 1) == "of" and start > 1 and is_noun[start - 2]
    if in_group:  # "a herd of zebras drinks"; "an assortment of street signs and cars makes" has its verb elsewhere
        start = _phrase_start(start - 1, lower, tags, is_noun)
    is_part = in_group and singular(lower[place - 1]) == lower[place - 1]
    for after in range(place + 1, len(tags)):
        if tags[after] in _FINITE:
            return False
        if not (is_part and lower[after] == "and") and (tags[after] in _CLAUSE_ENDS or lower[after] in _CLAUSE_STARTS):
            break
    before = start - 2
    return _word(tags, start - 1) in ("DT", "PRP$") and (
        before < 0 or tags[before] in _CLAUSE_ENDS or lower[before] in _CLAUSE_STARTS
    )


def _phrase_start(end: int, lower: Sequence[str], tags: Sequence[str], is_noun: Sequence[bool]) -> int:
    """Where the nouns before `end` begin, with what modifies them."""
    start = end
    while start and (is_noun[start - 1] or tags[start - 1] == "POS" or _modifies(start - 1, lower, tags)):
        start -= 1
    return start


def _modifies(place: int, lower: Sequence[str], tags: Sequence[str]) -> bool:
    return tags[place].startswith(_MODIFIERS) or lower[place] in _COLORS  # which are nouns to taggers


def _is_color(place: int, lower: Sequence[str], is_noun: Sequence[bool]) -> bool:
    """Whether a word such as "orange" is a color where it stands."""
    before, after = _word(lower, place - 1), _word(lower, place + 1)
    joints = ("and", "or", ",", "-", "/", "&")
    if after in joints and _word(lower, place + 2) in _COLORS:
        return True
    if before in joints and _word(lower, place - 2) in _COLORS:
        return True
    if before == "and" and _word(lower, place - 2) == "," and _word(lower, place - 3) in _COLORS:
        return True
    if after in ("color", "colour", "colors", "colored", "coloured", "hue", "tone", "in"):
        return after != "in" or _word(lower, place + 2) in ("color", "colour")
    if is_noun[place + 1 : place + 2] == [True]:
        return lower[place] in _COLORS_ONLY and after not in _OF_ORANGE
    return before in _IS or before in _SHADES or (before == "in" and lower[place] in _COLORS_ONLY)


def _word(words: Sequence[str], place: int) -> str:
    return words[place] if 0 <= place < len(words) else ""
