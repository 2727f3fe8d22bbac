"""How far "no", "without", "possibly", "for children to" reach: what a sentence claims at each word."""

from collections.abc import Callable, Sequence

from vigor_jax.rewards.claims import Claim
from vigor_jax.rewards.language import denials, suppositions
from vigor_jax.rewards.language.clause import Clause

_RULES = suppositions.RULES | denials.RULES


def claims_at(lower: Sequence[str], is_noun: Sequence[bool], tags: Callable[[], Sequence[str]]) -> list[Claim] | None:
    """What a sentence claims of what each of its words names; None where all is asserted.

    Where two rules apply the later kind of `Claim` holds: "possibly without a helmet" only supposes.

    Args:
        lower: The words, lower case, marks among them.
        is_noun: Whether a word is part of a thing's name.
        tags: Gives the words' tags; is asked only if there is a cue.
    """
    if not has_cue(lower):
        return None
    claims: list[Claim] | None = None
    clause: Clause | None = None

    def mark(start: int, end: int, claim: Claim) -> None:
        nonlocal claims
        claims = claims or [Claim.ASSERTED] * len(lower)
        for place in range(start, min(end, len(lower))):
            claims[place] = max(claims[place], claim)

    for place, word in enumerate(lower):
        if rule := _RULES.get(word):
            clause = clause or Clause(lower, is_noun, tags)
            rule(clause, place, mark)
    return claims


def has_cue(lower: Sequence[str]) -> bool:
    """Whether there is any word that may deny or suppose something; a split "n't" may be "'" and "t"."""
    return not _CUES.isdisjoint(lower)


# A heading's colon says nothing without another cue.
_CUES = frozenset(_RULES) - {":"} | {"t"}
