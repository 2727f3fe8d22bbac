"""The objects that a caption mentions, found as OPERA's script finds them: words by their lemma, not their singular.

The script (github.com/shikiw/OPERA: chair.py) has the table and the steps of CHAIR's authors, but for one: NLTK tags
each word, and WordNet gives the lemma of that part of speech, a noun where the tag is no other. So verbs count: what
is seated is a chair, and what skis is a ski.
"""

from functools import cache, cached_property
from typing import Any

from vigor_jax.evaluation.benchmarks.synonyms import Synonyms
from vigor_jax.evaluation.nltk_data import need

_DATA = ("averaged_perceptron_tagger_eng", "wordnet")
# First letter of a tag of the Penn treebank → part of speech of WordNet.
_PARTS = {"J": "a", "V": "v", "N": "n", "R": "r"}


class LemmaSynonyms(Synonyms):
    """As `Synonyms`, but captions are read by lemmas.

    Raises:
        InputError: NLTK's data for it are not installed; when the first caption is read.
    """

    def _base_forms(self, tokens: list[str]) -> list[str]:
        return [self._lemma(word, _PARTS.get(tag[:1], "n")) for word, tag in self._tag(tokens)]

    @cached_property
    def _tag(self) -> Any:
        need(_DATA, "CHAIR by lemmas")
        import nltk

        return nltk.pos_tag

    @cached_property
    def _lemma(self) -> Any:
        from nltk.stem import WordNetLemmatizer

        return cache(WordNetLemmatizer().lemmatize)
