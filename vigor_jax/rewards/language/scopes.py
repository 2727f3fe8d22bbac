"""How far "no", "without", "possibly", "for children to" reach: what a sentence says of what each word names."""

from collections.abc import Callable, Sequence

from vigor_jax.rewards.language import denials, suppositions
from vigor_jax.rewards.language.clause import Clause
from vigor_jax.rewards.mentions import Factuality

_RULES = suppositions.RULES | denials.RULES


def factuality_at(
    lower: Sequence[str], is_noun: Sequence[bool], tags: Callable[[], Sequence[str]]
) -> list[Factuality] | None:
    """What a sentence says of what each of its words names; None where all is asserted.

    Where two rules apply the later kind of `Factuality` holds: "possibly without a helmet" only supposes.

    Args:
        lower: The words, lower case, marks among them.
        is_noun: Whether a word is part of a thing's name.
        tags: Gives the words' tags; is asked only if there is a cue.
    """
    if not has_cue(lower):
        return None
    factualities: list[Factuality] | None = None
    clause: Clause | None = None

    def mark(start: int, end: int, factuality: Factuality) -> None:
        nonlocal factualities
        factualities = factualities or [Factuality.ASSERTED] * len(lower)
        for place in range(start, min(end, len(lower))):
            factualities[place] = max(factualities[place], factuality)

    for place, word in enumerate(lower):
        if rule := _RULES.get(word):
            clause = clause or Clause(lower, is_noun, tags)
            rule(clause, place, mark)
    return factualities


def has_cue(lower: Sequence[str]) -> bool:
    """Whether there is any word that may deny or suppose something; a split "n't" may be "'" and "t"."""
    return not _CUES.isdisjoint(lower)


# A heading's colon says nothing without another cue.
_CUES = frozenset(_RULES) - {":"} | {"t"}
