"""Noun groups of a tagged sentence: the nouns that name a thing, with the article, number and modifiers before them."""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from vigor_jax.records import Span
from vigor_jax.rewards.claims.claim import Thing
from vigor_jax.rewards.language.nouns import TaggedSentence
from vigor_jax.rewards.language.words import listed, singular
from vigor_jax.rewards.mentions import Phrase

_NEGATIONS = listed("none") | {"cannot", "never", "nor"}
_HEDGES = listed("hedges") | listed("seems")
_CLAUSE_ENDS = frozenset((",", ";", ":", ".", "(", ")", "while", "but", "whereas", "who", "which", "with"))
_DETERMINERS = ("DT", "PDT", "PRP$", "WDT")
# Between a hedge and what it hedges: "appears to be a man and two dogs".
_PASSED = frozenset(("to", "be", "been", "being", "have", "like", "and", "or", ",", "also", "both", "a", "an", "the"))
# What taggers take for plurals: "a chair sits inside".
_STANDS = listed("tag vbz")
_FINITE = frozenset(("VBZ", "VBP", "VBD", "MD"))


class NounGroup(NamedTuple):
    """Words [start, end) of a sentence.

    Attributes:
        start: Of the article, number or first modifier.
        noun: The first noun.
        end: Behind the last noun, the head.
        thing: What a detector can be asked for; None if the caption does not assert that it is there, or if the phrase
            does not end in the head.
    """

    start: int
    noun: int
    end: int
    thing: Thing | None


def asserted(phrases: Sequence[Phrase]) -> dict[int, tuple[str, Span]]:
    """The phrases that a caption asserts and where, by the letter behind them."""
    return {span.end: (phrase.text, span) for phrase in phrases for span in phrase.mentions}


class GroupedSentence:
    """A tagged sentence and its noun groups.

    Args:
        tagged: The sentence.
        mentions: See `asserted`.
        modifiers: Words that modify nouns, whatever their tag: colors and such.

    Attributes:
        lower: Words and marks in lower case.
        tags: Of the Penn Treebank.
        modifiers: As given.
        groups: In their order.
        ending: Groups by their end.
    """

    def __init__(
        self, tagged: TaggedSentence, mentions: Mapping[int, tuple[str, Span]], modifiers: Collection[str]
    ) -> None:
        self.tokens, _, self.lower, self.tags, is_noun = tagged
        self.is_noun = list(is_noun)
        self.modifiers = modifiers
        self.groups = self._find(mentions)
        self.ending = {group.end: group for group in self.groups}

    @cached_property
    def starting(self) -> dict[int, NounGroup]:
        """Groups by their start."""
        return {group.start: group for group in self.groups}

    def word(self, place: int) -> str:
        """The word there, "" beyond the ends."""
        return self.lower[place] if 0 <= place < len(self.lower) else ""

    def tag(self, place: int) -> str:
        """The tag there, "" beyond the ends."""
        return self.tags[place] if 0 <= place < len(self.tags) else ""

    def is_finite(self, place: int) -> bool:
        """Whether a finite verb is there."""
        return self.tag(place) in _FINITE and not self.is_noun[place]

    def span(self, start: int, end: int) -> Span:
        """The letters of words [start, end)."""
        return Span(self.tokens[start].start(), self.tokens[end - 1].end())

    def group_from(self, place: int) -> NounGroup | None:
        """The group that starts at `place`, or whose nouns come next after modifiers that stand there."""
        return next((group for group in self.groups if group.start <= place <= group.noun), None)

    def is_plural(self, group: NounGroup, same_plural: Collection[str]) -> bool:
        """Whether its head is a plural; of "sheep" it may be one."""
        head = self.lower[group.end - 1]
        return self.tags[group.end - 1] in ("NNS", "NNPS") or singular(head) != head or head in same_plural

    def clause_is_unsure(self, place: int) -> bool:
        """Whether the clause denies or only supposes what it says at `place`."""
        while place and (word := self.lower[place - 1]) not in _CLAUSE_ENDS:
            if word in _NEGATIONS or word in _HEDGES:
                return True
            place -= 1
        return False

    def clause_is_denied(self, place: int) -> bool:
        """Whether a negation stands before `place` in its clause."""
        while place and (word := self.lower[place - 1]) not in _CLAUSE_ENDS:
            if word in _NEGATIONS:
                return True
            place -= 1
        return False

    def group_is_supposed(self, group: NounGroup) -> bool:
        """Whether the group is what something seems to be: "what appears to be a red car and two bicycles"."""
        place = group.start
        while place:
            if self.lower[place - 1] in _HEDGES:
                return True
            if before := self.ending.get(place):
                place = before.start
            elif self.lower[place - 1] in _PASSED or self.tags[place - 1] == "RB":
                place -= 1
            else:
                return False
        return False

    def _find(self, mentions: Mapping[int, tuple[str, Span]]) -> list[NounGroup]:
        groups = []
        place, size, free = 0, len(self.lower), 0
        while place < size:
            if not self.is_noun[place]:
                place += 1
                continue
            noun = place
            while place < size and self.is_noun[place]:
                place += 1
            thing = self._thing(noun, place, mentions)
            if thing is None and place > noun + 1 and self.lower[place - 1] in _STANDS:
                self.is_noun[place - 1] = False
                place -= 1
                thing = self._thing(noun, place, mentions)
            if thing is None and place == noun + 1 and self.lower[noun] in self.modifiers:
                self.is_noun[noun] = False  # "a circle in red"
                continue
            groups.append(NounGroup(self._start(noun, free), noun, place, thing))
            free = place
        return groups

    def _thing(self, noun: int, end: int, mentions: Mapping[int, tuple[str, Span]]) -> Thing | None:
        found = mentions.get(self.tokens[end - 1].end())
        if found is None:
            return None
        return Thing(*found, singular(self.lower[end - 1]))

    def _start(self, noun: int, free: int) -> int:
        """Where the group of a noun starts, not before `free`."""
        place = noun
        while place > free:
            before = place - 1
            if self._modifies(before, place):
                place = before
            elif (joined := self._joined(before)) is not None and joined >= free and place < noun:
                place = joined
            else:
                break
        while place > free and (self.tags[place - 1] in _DETERMINERS or self.lower[place - 1] in ("both", "all")):
            place -= 1
        return place

    def _is_adjective(self, place: int) -> bool:
        if place < 0 or self.is_noun[place]:
            return False
        word = self.lower[place]
        return self.tags[place].startswith("JJ") or word in self.modifiers or ("-" in word and word[0].isalpha())

    def _modifies(self, place: int, following: int) -> bool:
        tag = self.tags[place]
        if self._is_adjective(place) or tag == "CD":
            return True
        if tag == "RB" and self.tag(following) == "VBN" and self.tag(place - 1) in (*_DETERMINERS, "CD", ","):
            return True  # "a large, beautifully painted statue"
        if tag in ("VBN", "VBG"):  # "two parked cars", but not "a man holding cars"
            before = self.tag(place - 1)
            if before == "RB":
                before = self.tag(place - 2)
            if before == "," and tag == "VBN":
                return self._is_adjective(place - 2 - (self.tags[place - 1] == "RB"))
            return before in _DETERMINERS or before == "CD" or before.startswith("JJ")
        return tag in ("RB", "RBR", "RBS") and self._is_adjective(following)

    def _joined(self, place: int) -> int | None:
        """The adjective before "and", "," or "-" at `place`, or before both of the former: "white, blue, and red"."""
        if self.lower[place] not in ("and", ",", "&", "-", "/"):
            return None
        if self.lower[place] == "and" and self.word(place - 1) == ",":
            place -= 1
        after = self._after_joint(place)
        is_modified = self._is_adjective(after) or self.tag(after) in ("VBN", "RB")
        return place - 1 if self._is_adjective(place - 1) and is_modified else None

    def _after_joint(self, place: int) -> int:
        return place + 2 if self.word(place + 1) == "and" else place + 1
