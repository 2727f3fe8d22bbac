"""What the rewordings of claims share: which words a claim is, and edits that keep a text's own spelling."""

from vigor_jax.records import Edit
from vigor_jax.rewards.claims.claim import Claim
from vigor_jax.rewards.claims.find import Reading
from vigor_jax.rewards.language.noun_groups import GroupedSentence


class Wording:
    """The words of a claim where they stand.

    Args:
        reading: The caption.
        claim: One of its claims.

    Attributes:
        reading: As given.
        claim: As given.
        sentence: The one that makes the claim.
        start: Its first word there.
        end: Behind its last word.
        words: These, in lower case.
    """

    def __init__(self, reading: Reading, claim: Claim) -> None:
        self.reading, self.claim = reading, claim
        place = next(i for i, span in enumerate(reading.spans) if span.start <= claim.span.start < span.end)
        self.sentence: GroupedSentence = reading.sentences[place]
        self.later = reading.sentences[place + 1 :]
        self.start = next(i for i, token in enumerate(self.sentence.tokens) if token.start() >= claim.span.start)
        self.end = next(
            (i for i, token in enumerate(self.sentence.tokens) if token.start() >= claim.span.end),
            len(self.sentence.tokens),
        )
        self.words = tuple(self.sentence.lower[self.start : self.end])

    def edit(self, start: int, end: int, new: str) -> Edit:
        """`new` in place of words [start, end); it begins with a capital letter where they do."""
        span = self.sentence.span(start, end)
        return Edit(span, as_written(self.reading.text[slice(*span)], new))


def as_written(old: str, new: str) -> str:
    """A word in lower case with the capitals of the one that it replaces."""
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new
