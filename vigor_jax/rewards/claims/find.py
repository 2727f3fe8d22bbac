"""The claims of a caption, by tags, short grammars and word lists that a user may replace.

A false claim costs a caption what it does not deserve, so a reading that is not sure gives none.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from vigor_jax.data.text.box_text import blank_boxes
from vigor_jax.records import Span
from vigor_jax.rewards.claims.attributes import find_attributes
from vigor_jax.rewards.claims.claim import Claim, Number
from vigor_jax.rewards.claims.numbers import find_numbers
from vigor_jax.rewards.claims.places import find_places
from vigor_jax.rewards.claims.relations import find_relations
from vigor_jax.rewards.language.claim_words import attribute_words, number_words, place_words, relation_words
from vigor_jax.rewards.language.noun_groups import GroupedSentence, asserted
from vigor_jax.rewards.language.nouns import NounPhrases
from vigor_jax.rewards.language.words import quoted_signs
from vigor_jax.rewards.mentions import Phrase

# "A", "another" and numbers bring things into a caption; "the" speaks of those that are there already.
_INTRODUCES = frozenset(("a", "an", "another", "other", "some", "several", "more", "one", "additional"))


@dataclass(frozen=True)
class ClaimWordsConfig:
    """Word lists of claims; each replaces the one of its name, which shows the format, in `rewards/language`.

    Attributes:
        numbers: Instead of `claim_numbers.txt`.
        places: Instead of `claim_places.txt`.
        relations: Instead of `claim_relations.txt`.
        attributes: Instead of `claim_attributes.txt`; its headings are the kinds.
    """

    numbers: Path | None = None
    places: Path | None = None
    relations: Path | None = None
    attributes: Path | None = None


class Reading(NamedTuple):
    """A caption as its claims are found.

    Attributes:
        text: The caption.
        spans: Its sentences.
        phrases: Its phrases.
        sentences: The sentences, read.
        introduced: How often it brings in things of each phrase: "a dog", "two dogs".
        claims: In the order of their words.
    """

    text: str
    spans: tuple[Span, ...]
    phrases: tuple[Phrase, ...]
    sentences: tuple[GroupedSentence, ...]
    introduced: Counter[str]
    claims: tuple[Claim, ...]


class Claims:
    """Finds the claims of captions.

    Args:
        nouns: Reads sentences; whatever finds the phrases, claims need a tagger.
        config: The word lists.

    Attributes:
        nouns: As given.
        attribute_words: The list of attributes, for `attributed_phrases`.

    Raises:
        InputError: A list cannot be read.
    """

    def __init__(self, nouns: NounPhrases, config: ClaimWordsConfig | None = None) -> None:
        config = config or ClaimWordsConfig()
        self.nouns = nouns
        self._numbers = number_words(config.numbers)
        self._places = place_words(config.places)
        self._relations = relation_words(config.relations)
        self.attribute_words = attribute_words(config.attributes)
        self._modifiers = self.attribute_words.values.keys() | self.attribute_words.shades

    def __call__(self, text: str, sentences: Sequence[Span], phrases: Sequence[Phrase]) -> list[Claim]:
        """The claims of a caption in the order of their words.

        Args:
            text: The caption.
            sentences: Of `split_sentences`.
            phrases: Of an extractor; claims speak of those that the caption asserts.
        """
        return list(self.read(text, sentences, phrases).claims)

    def read(self, text: str, sentences: Sequence[Span], phrases: Sequence[Phrase]) -> Reading:
        """The claims of a caption with the sentences that they were found in; arguments as for a call."""
        claims: list[Claim] = []
        introduced: Counter[str] = Counter()
        read = tuple(self._sentences(text, sentences, phrases))
        for sentence in read:
            introduced.update(_introduced(sentence))
            claims += find_numbers(sentence, self._numbers, self._places)
            claims += find_places(sentence, self._places, self._numbers)
            claims += find_relations(sentence, self._relations, self._places)
            claims += find_attributes(sentence, self.attribute_words, self._places)
        claims = sorted((_narrowed(claim, introduced) for claim in claims), key=lambda claim: (claim.span, claim.kind))
        return Reading(text, tuple(sentences), tuple(phrases), read, introduced, tuple(claims))

    def attributes(self, text: str, sentences: Sequence[Span], phrases: Sequence[Phrase]) -> list[Claim]:
        """Those of a call that are of attributes, in less time."""
        read = self._sentences(text, sentences, phrases)
        claims = [claim for each in read for claim in find_attributes(each, self.attribute_words, self._places)]
        return sorted(claims, key=lambda claim: claim.span)

    def _sentences(self, text: str, spans: Sequence[Span], phrases: Sequence[Phrase]) -> Iterator[GroupedSentence]:
        plain, mentions = blank_boxes(text), asserted(phrases)
        quoted = quoted_signs(plain)
        for span in spans:
            yield GroupedSentence(self.nouns.read(plain, span, quoted), mentions, self._modifiers)


def _introduced(sentence: GroupedSentence) -> list[str]:
    """The things that a sentence brings in: "a dog", "two dogs"."""
    return [
        group.thing.phrase
        for group in sentence.groups
        if group.thing
        and any(
            sentence.tags[place] == "CD" or sentence.lower[place] in _INTRODUCES
            for place in range(group.start, group.noun)
        )
    ]


def _narrowed(claim: Claim, introduced: Counter[str]) -> Claim:
    """A number of things of which the caption brings in more elsewhere."""
    if isinstance(claim.value, Number) and introduced[claim.subject.phrase] > 1 and not claim.value.narrowed:
        return replace(claim, value=replace(claim.value, narrowed=True))
    return claim
