"""What AMBER looks at in a description: its nouns by NLTK, and which words spaCy's vectors say are nearly the same."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from vigor_jax.errors import InputError
from vigor_jax.evaluation.nltk_data import need

# Whether two words are nearly the same.
SimilarWords: TypeAlias = Callable[[str, str], bool]

_DATA = ("punkt_tab", "averaged_perceptron_tagger_eng", "wordnet")
SIMILARITY = 0.8


class NounReader:
    """Finds nouns as AMBER's script does: NLTK's words, tagged, those whose tag begins with NN in the singular.

    Raises:
      InputError: NLTK's data for it are not installed.
    """

    def __init__(self) -> None:
        import nltk
        from nltk.stem import WordNetLemmatizer

        need(_DATA, "AMBER")
        self._words, self._tag = nltk.word_tokenize, nltk.pos_tag
        self._singular = functools.cache(WordNetLemmatizer().lemmatize)

    def __call__(self, text: str) -> list[str]:
        """The nouns of a text, in order."""
        return [self._singular(word) for word, tag in self._tag(self._words(text)) if tag.startswith("NN")]


def same_words(first: str, second: str) -> bool:
    """Equality, for want of vectors."""
    return first == second


def similar_words(vectors: str | Path) -> SimilarWords:
    """Words whose vectors have a cosine above `SIMILARITY`, as the script has it.

    Args:
      vectors: A pipeline of spaCy with vectors: its name, `en_core_web_lg` in the script, or its folder.

    Raises:
      InputError: spaCy or the pipeline is not installed, or it has no vectors.
    """
    try:
        import spacy
    except ImportError as error:
        raise InputError(
            "--vectors: spaCy is not installed: `pip install spacy`, or leave it out to compare words as they are"
        ) from error
    try:
        pipeline = spacy.load(vectors)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--vectors: spaCy has no pipeline {vectors}: `python -m spacy download {vectors}`, or give its folder"
        ) from error
    if not len(pipeline.vocab.vectors):
        raise InputError(f"--vectors: {vectors} has no vectors; AMBER's script uses en_core_web_lg")
    parsed = functools.cache(pipeline.make_doc)

    @functools.cache
    def similar(first: str, second: str) -> bool:
        if first == second:
            return True
        one, other = parsed(first), parsed(second)
        # Of words without a vector spaCy warns, and calls them different.
        return bool(one.vector_norm and other.vector_norm and one.similarity(other) > SIMILARITY)

    return similar
