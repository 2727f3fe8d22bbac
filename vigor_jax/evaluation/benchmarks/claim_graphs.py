"""Graphs of captions by our own phrases and claims, where there is neither the authors' parser nor a judge.

Relations are those of claims: left, right, above, below, inside and on top, not "on" alone. Attributes are those of its
list: colors, materials, patterns, shapes and sizes. Figures from these compare with each other only.
"""

from collections.abc import Collection

from vigor_jax.evaluation.benchmarks.capture import Graph, Relation
from vigor_jax.rewards.claims import claim
from vigor_jax.rewards.claims.find import Claims
from vigor_jax.rewards.language.nouns import NounPhrases
from vigor_jax.rewards.sentences import split_sentences


class ClaimGraphs:
    """Makes graphs of captions.

    Args:
        stop_words: Objects that are left out.

    Raises:
        InputError: The tagger cannot be had.
    """

    def __init__(self, stop_words: Collection[str] = ()) -> None:
        self._phrases = NounPhrases()
        self._claims = Claims(self._phrases)
        self._stop_words = frozenset(stop_words)

    def __call__(self, text: str) -> Graph:
        """What a caption asserts: the last words of its phrases, and what its claims say of these."""
        spans = split_sentences(text)
        phrases = self._phrases(text, spans)
        objects = dict.fromkeys(phrase.text.split()[-1] for phrase in phrases if phrase.mentions)
        attributes: dict[str, dict[str, None]] = {}
        relations: dict[Relation, None] = {}
        for one in self._claims(text, spans, phrases):
            if isinstance(one.value, claim.Attribute):
                attributes.setdefault(one.subject.head, {})[one.value.value] = None
            elif isinstance(one.value, claim.Relation):
                relations[one.subject.head, one.value.name, one.value.object.head] = None
        return Graph(
            tuple(name for name in objects if name not in self._stop_words),
            {name: tuple(values) for name, values in attributes.items()},
            tuple(relations),
        )
