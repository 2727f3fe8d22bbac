"""Claims of relation: "a cup to the left of the plate", "above the sink, there is a mirror"."""

from collections.abc import Iterator
from typing import cast

from vigor_jax.rewards.claims.attachment import Attachment
from vigor_jax.rewards.claims.claim import Claim, Relation, RelationName
from vigor_jax.rewards.language.claim_words import PlaceWords, RelationWords
from vigor_jax.rewards.language.noun_groups import GroupedSentence


def find_relations(sentence: GroupedSentence, words: RelationWords, places: PlaceWords) -> Iterator[Claim]:
    """The claims of relation in a sentence, in order; of things of one name there are none, for boxes have no names."""
    attachment = None
    for start, end, name in words.match(sentence.lower):
        target = sentence.starting.get(end)
        if target and target.thing is None and sentence.word(target.end) == "of":  # "a pile of books"
            target = sentence.starting.get(target.end + 1)
        if target is None or target.thing is None or target.thing.head in words.boundless:
            continue
        if sentence.clause_is_unsure(start) or sentence.tag(target.end) == "POS":
            continue
        attachment = attachment or Attachment(sentence, places, words.holds)
        for group in attachment.subjects(start, target.end).groups:
            if group.thing and group.thing.phrase != target.thing.phrase and group.thing.head not in words.boundless:
                relation = Relation(cast(RelationName, name), target.thing)
                yield Claim(group.thing, sentence.span(start, end), relation)
