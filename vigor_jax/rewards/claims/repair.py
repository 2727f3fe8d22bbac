"""Repairs wrong claims: a number, color or place word gives way to the right one, where that is sure (ours).

A repair is proposed word by word. The caption that it makes is then read again: its phrases and claims must be those of
before but for what was repaired, and that must be right by the same boxes and scores.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple, TypeAlias

from vigor_jax.errors import InputError
from vigor_jax.records import Edit, Span
from vigor_jax.rewards.claims.attributes import attributed_phrases
from vigor_jax.rewards.claims.claim import Attribute, Claim, Number, Place, Relation, Thing
from vigor_jax.rewards.claims.find import Claims, Reading
from vigor_jax.rewards.claims.judge import Found, JudgeConfig, Truth, judge, judge_attribute
from vigor_jax.rewards.claims.reword_colors import reword_color
from vigor_jax.rewards.claims.reword_numbers import reword_number
from vigor_jax.rewards.claims.reword_places import reword_place
from vigor_jax.rewards.claims.rewording import Wording
from vigor_jax.rewards.mentions import Phrase
from vigor_jax.rewards.phrases import Phrases
from vigor_jax.rewards.refine import write_edits
from vigor_jax.rewards.sentences import split_sentences

Edits: TypeAlias = tuple[Edit, ...]
_CONTRASTS = frozenset(("while", "whereas", "but", "though", "although"))


class WrongClaim(NamedTuple):
    """A claim that the judge finds wrong, with what it was judged by.

    Attributes:
        claim: The claim.
        subject: The boxes of its subject's phrase.
        scores: The detector's scores of attributed phrases, by the names of `attributed_phrases`.
    """

    claim: Claim
    subject: Found
    scores: Mapping[str, float]


class Repairs:
    """Finds what makes wrong claims right.

    Args:
        claims: Finds the claims of a caption.
        config: As the claims were judged with.
        phrases: Finds the phrases that the claims speak of; the nouns that `claims` reads where it is None.
    """

    def __init__(self, claims: Claims, config: JudgeConfig, phrases: Phrases | None = None) -> None:
        self._claims, self._config = claims, config
        self._phrases: Phrases = phrases or claims.nouns

    def __call__(self, reading: Reading, wrong: Sequence[WrongClaim]) -> list[Edits]:
        """Of each wrong claim what makes it right, in the order of the text; () where that is not sure.

        With all of them applied, nothing is left to repair.

        Args:
            reading: A caption, as `claims` and `phrases` read it.
            wrong: Wrong claims of it, each once.

        Returns:
            Edits of different claims are disjoint or equal; those of one claim lie in its sentence.
        """
        if not wrong:
            return []
        left_alone: set[Span] = set()
        while True:
            repairs, after = self._repair(reading, wrong, left_alone)
            again = self._still_repaired(reading, after, wrong, repairs)
            if not again:
                return repairs
            if again <= left_alone:
                return [() for _ in wrong]
            left_alone |= again

    def _repair(
        self, reading: Reading, wrong: Sequence[WrongClaim], left_alone: Collection[Span] = ()
    ) -> tuple[list[Edits], Reading]:
        """The repairs, with as many of a sentence as can be sure together, and the caption that they make."""
        homes = [_sentence_of(reading, each.claim) for each in wrong]
        proposed = _without_conflicts(
            [
                () if home in left_alone else self._propose(reading, each)
                for each, home in zip(wrong, homes, strict=True)
            ]
        )
        if after := self._checked(reading, wrong, proposed):
            return proposed, after
        kept = list(proposed)
        for home in dict.fromkeys(homes):
            own = _only(proposed, [each == home for each in homes])
            if not self._checked(reading, wrong, own):
                alone = {each for each in own if self._checked(reading, wrong, _only(own, [e == each for e in own]))}
                own = _only(own, [each in alone for each in own])
                if not self._checked(reading, wrong, own):
                    own = [() for _ in own]
            kept = [new if each == home else old for new, old, each in zip(own, kept, homes, strict=True)]
        if after := self._checked(reading, wrong, kept):
            return kept, after
        return [() for _ in wrong], reading

    def _still_repaired(
        self, reading: Reading, after: Reading, wrong: Sequence[WrongClaim], repairs: Sequence[Edits]
    ) -> set[Span]:
        """The sentences of a caption where a second round would repair more."""
        shift = _Shift(_all(repairs))
        left = [each for each, edits in zip(wrong, repairs, strict=True) if not edits and each.claim in reading.claims]
        if after is reading or not left:
            return set()
        again, _ = self._repair(after, [each._replace(claim=shift.claim(each.claim)) for each in left])
        return {_sentence_of(reading, each.claim) for each, edits in zip(left, again, strict=True) if edits}

    def _propose(self, reading: Reading, wrong: WrongClaim) -> Edits:
        claim = wrong.claim
        if claim not in reading.claims or isinstance(claim.value, Relation):
            return ()
        wording = Wording(reading, claim)
        if isinstance(claim.value, Number):
            return reword_number(wording, wrong.subject, self._config)
        if {each.value for each in reading.claims if _is_comparable(each, claim)} != {claim.value}:
            return ()  # "a red car and a blue car": two blue ones?
        if isinstance(claim.value, Place):
            return reword_place(wording, wrong.subject, self._config)
        return reword_color(wording, wrong.scores, self._claims.attribute_words, self._config)

    def _checked(self, reading: Reading, wrong: Sequence[WrongClaim], repairs: Sequence[Edits]) -> Reading | None:
        """The repaired caption, if it says the same but for what was repaired, and that is right."""
        edits = _all(repairs)
        if not edits:
            return reading
        shift = _Shift(edits)
        text = apply_edits(reading.text, edits)
        spans = list(map(shift, reading.spans))
        if split_sentences(text) != spans:
            return None
        phrases = self._phrases(text, spans)
        if phrases != list(map(shift.phrase, reading.phrases)):
            return None
        after = self._claims.read(text, spans, phrases)
        repaired = {each.claim: each for each, own in zip(wrong, repairs, strict=True) if own}
        left = list(after.claims)
        for claim in reading.claims:
            moved = shift.claim(claim)
            if claim in repaired:
                found = next((each for each in left if _is_comparable(each, moved, same_place=True)), None)
                if found is None and isinstance(claim.value, Number):  # "one dog" claims no number
                    continue
                if found is None or not self._is_right(found, repaired[claim]):
                    return None
                left.remove(found)
            elif moved in left:
                left.remove(moved)
            else:
                return None
        return None if left or _is_no_contrast(reading, after, shift) else after

    def _is_right(self, claim: Claim, wrong: WrongClaim) -> bool:
        if not isinstance(claim.value, Attribute):
            return judge(claim, wrong.subject, config=self._config) is Truth.RIGHT
        asked, rivals = attributed_phrases(claim, self._claims.attribute_words)
        known = [wrong.scores[rival] for rival in rivals if rival in wrong.scores]
        return asked in wrong.scores and judge_attribute(wrong.scores[asked], known, self._config) is Truth.RIGHT


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """A text with all of some edits, equal ones once.

    Raises:
        InputError: Two edits overlap, or one lies outside the text.
    """
    place, ordered = 0, sorted(set(edits))
    for span, new in ordered:
        if not 0 <= span.start <= span.end <= len(text):
            raise InputError(
                f"edits: expected places in a text of {len(text)} characters, got {span.start} to {span.end} for "
                f"{new!r}; score the candidates again"
            )
        if span.start < place:
            raise InputError(
                f"edits: expected places that do not overlap, got {span.start} to {span.end} for {new!r} after one "
                f"that ends at {place}; score the candidates again"
            )
        place = span.end
    return write_edits(text, Span(0, len(text)), ordered)


class _Shift:
    """Where things are in a text after edits."""

    def __init__(self, edits: Iterable[Edit]) -> None:
        self._edits = sorted(edits)

    def __call__(self, span: Span) -> Span:
        start, end = span
        for edit in self._edits:
            grows = len(edit.text) - (edit.span.end - edit.span.start)
            if edit.span.end <= span.start:
                start += grows
            if edit.span.start < span.end:
                end += grows
        return Span(start, end)

    def phrase(self, phrase: Phrase) -> Phrase:
        places = (phrase.mentions, phrase.denied, phrase.supposed)
        return Phrase(phrase.text, *(tuple(map(self, spans)) for spans in places))

    def claim(self, claim: Claim) -> Claim:
        value = claim.value
        if isinstance(value, Relation):
            value = dataclasses.replace(value, object=self._thing(value.object))
        return Claim(self._thing(claim.subject), self(claim.span), value)

    def _thing(self, thing: Thing) -> Thing:
        return dataclasses.replace(thing, span=self(thing.span))


def _is_no_contrast(before: Reading, after: Reading, shift: _Shift) -> bool:
    """Whether a sentence tells things apart by what has become equal: "one dog is here, while the cat is here"."""
    for home, sentence in zip(before.spans, before.sentences, strict=True):
        if _CONTRASTS.isdisjoint(sentence.lower):
            continue
        moved = shift(home)
        old = {str(claim.value) for claim in before.claims if claim.kind == "place" and _lies_in(claim, home)}
        new = {str(claim.value) for claim in after.claims if claim.kind == "place" and _lies_in(claim, moved)}
        if len(new) < len(old):
            return True
    return False


def _lies_in(claim: Claim, home: Span) -> bool:
    return home.start <= claim.span.start < home.end


def _all(repairs: Iterable[Edits]) -> list[Edit]:
    return sorted({edit for edits in repairs for edit in edits})


def _only(repairs: Sequence[Edits], wanted: Sequence[bool]) -> list[Edits]:
    return [edits if is_wanted else () for edits, is_wanted in zip(repairs, wanted, strict=True)]


def _without_conflicts(repairs: Sequence[Edits]) -> list[Edits]:
    """Without those that replace words of others otherwise, so that their order does not matter."""
    every = _all(repairs)
    bad = {
        edit
        for one, other in combinations(every, 2)
        if one.span.start < other.span.end and other.span.start < one.span.end
        for edit in (one, other)
    }
    return _only(repairs, [bad.isdisjoint(edits) for edits in repairs])


def _sentence_of(reading: Reading, claim: Claim) -> Span:
    """The sentence of a claim; its own words where that is none of the caption's."""
    return next((span for span in reading.spans if _lies_in(claim, span)), claim.span)


def _is_comparable(one: Claim, other: Claim, *, same_place: bool = False) -> bool:
    """Whether two claims are of one kind and about things of one name, or even the same words."""
    if one.kind != other.kind or one.subject.phrase != other.subject.phrase:
        return False
    if isinstance(one.value, Attribute) and isinstance(other.value, Attribute) and one.value.kind != other.value.kind:
        return False
    if same_place:
        overlaps = one.span.start < other.span.end and other.span.start < one.span.end
        return overlaps and one.subject == other.subject
    return True
