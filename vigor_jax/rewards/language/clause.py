"""A sentence as the rules for scopes walk through it: where a list of things ends, and where a clause does."""

from collections.abc import Callable, Sequence
from functools import cached_property

from vigor_jax.rewards.language.words import listed

_NOT_LISTED = listed("not listed")
_PAIRS = frozenset(("or", "nor", "and", "/", "&"))
_ENDS = frozenset((".", "!", "?", ";", ":", "(", ")", "[", "]", "—", "–", "-", "``", "''", '"', "*", "|", "\n"))
_TURNS = listed("turns")
_RELATIVES = frozenset(("who", "which", "that", "what", "where", "when", "how", "if", "as"))
_FINITE = frozenset(("VBZ", "VBP", "VBD", "MD"))
_MODIFIERS = ("JJ", "VBN", "VBG", "VBD", "RB", "CD", "NN")
# Heads that only say how things are denied: "no sign of a dog", "no type of furniture".
ABOUT = listed("about")
NEGATIONS = listed("none")


class Clause:
    """A sentence with tags.

    Attributes:
        words: Lower case, marks among them.
        is_noun: Whether a word is part of a thing's name.
    """

    def __init__(self, words: Sequence[str], is_noun: Sequence[bool], tags: Callable[[], Sequence[str]]):
        self.words, self.is_noun = words, is_noun
        self.size = len(words)
        self._make_tags = tags

    @cached_property
    def tags(self) -> Sequence[str]:
        """As the Penn Treebank has them; most cues turn out to be none before these are needed."""
        return self._make_tags()

    def word(self, place: int) -> str:
        """The word there, "" beyond the ends."""
        return self.words[place] if 0 <= place < self.size else ""

    def tag(self, place: int) -> str:
        """The tag there, "" beyond the ends."""
        return self.tags[place] if 0 <= place < self.size else ""

    def is_verb(self, place: int) -> bool:
        return self.tag(place).startswith("VB") or self.tag(place) == "MD"

    def noun_list(self, start: int) -> int:
        """The end of the nouns from `start`, without articles: "parked cars, people or a dog"."""
        place, seen = start, False
        while place < self.size:
            word, tag = self.words[place], self.tags[place]
            if self.is_noun[place] or (seen and tag.startswith("NN")):
                seen = True
            elif tag == "POS":
                seen = False
            elif word in _PAIRS or word == ",":
                following = self._next_in_list(place) if seen else 0
                if not following:
                    break
                place, seen = following, False
                continue
            elif word == "of" and self.word(place - 1) in ABOUT:
                seen = False
                if self.word(place + 1) in ("a", "an", "any"):
                    place += 1
            elif seen or not tag.startswith(_MODIFIERS) or word in _TURNS:
                break
            elif tag == "VBG" and self.word(place + 1) in ("a", "an", "any"):  # "without wearing a helmet"
                place += 1
            elif tag.startswith("NN"):
                seen = True
            place += 1
        return place

    def _next_in_list(self, place: int) -> int:
        """Where the next thing of a list begins after a mark or a conjunction; 0 if the list ends there."""
        joint = self.words[place]
        following = place + 1
        if joint == "," and self.word(following) in _PAIRS:
            joint = self.words[following]
            following += 1
        if self.word(following) in ("a", "an", "any", "no", "even", "other") and joint in ("or", "nor"):
            return following + 1
        end = self._bare(following)
        if end == following or self.word(following) in _NOT_LISTED:
            return 0
        if joint in ("or", "nor"):
            return following
        if joint == ",":
            return following if self._is_closed(end) else 0
        # "no cars and people walk": another clause
        return 0 if self.tag(end) in _FINITE and self.word(end) not in ("is", "are", "can") else following

    def _is_closed(self, place: int) -> bool:
        """Whether a list ends in "or", "nor" or "and" after what is at `place`."""
        while self.word(place) == "," and self.word(place + 1) not in _PAIRS:
            end = self._bare(place + 1)
            if end == place + 1:
                return False
            place = end
        return self.word(place) in _PAIRS or (self.word(place) == "," and self.word(place + 1) in _PAIRS)

    def _bare(self, place: int) -> int:
        """The end of adjectives and nouns from `place`."""
        while place < self.size and (self.is_noun[place] or self.tags[place].startswith(("JJ", "NN", "VBN"))):
            place += 1
        return place

    def clause_end(self, start: int) -> int:
        """Where what is said from `start` ends: at a mark, or where another clause begins."""
        for place in range(start, self.size):
            word = self.words[place]
            if word in _ENDS or word in _TURNS:
                return place
            if word == "," and not self._continues(place):
                return place
            if word == "and" and self._begins_clause(place + 1):
                return place
        return self.size

    def purpose_end(self, start: int) -> int:
        """Where what something is for ends: also before the clause's own verb, "a hook for coats hangs on the wall"."""
        end = self.clause_end(start)
        for place in range(start + 1, end):
            if self.word(place) in _RELATIVES:
                break
            if self.tag(place) in ("VBZ", "VBP", "MD") and (self.is_noun[place - 1] or self.tag(place - 1) == "NNS"):
                return place
        return end

    def _continues(self, comma: int) -> bool:
        """Whether a comma stands in a list that "or" ends: "observing, waiting, or talking", "a car, bus or truck"."""
        following = self.word(comma + 1)
        if following in ("or", "nor"):
            return True
        if not (self.tag(comma + 1).startswith(("VBG", "NN", "JJ", "DT")) and following not in _TURNS):
            return False
        for place in range(comma + 1, min(self.size, comma + 12)):
            word = self.words[place]
            if word in ("or", "nor"):
                return True
            if word in _ENDS or word in _TURNS or self.tags[place] in _FINITE or word in ("which", "who"):
                return False
        return False

    def _begins_clause(self, place: int) -> bool:
        """Whether a finite verb follows, right away or after a subject: "and is red", "and a dog sleeps"."""
        if self.tag(place) in _FINITE or self.word(place) == "there":
            return True
        if self.tag(place).startswith("VB") or self.tag(place) == "TO":
            return False
        while place < self.size and self.tags[place].startswith(("DT", "PRP", "JJ", "CD", "NN", "POS", "RB")):
            place += 1
        return self.tag(place) in _FINITE

    def clause_start(self, place: int) -> int:
        """Where the clause begins that `place` lies in."""
        while place and not (
            self.words[place - 1] in _ENDS
            or self.words[place - 1] in _TURNS
            or self.words[place - 1] in (",", "and", "that", "which", "who", "where", "or", "so")
        ):
            place -= 1
        return place
