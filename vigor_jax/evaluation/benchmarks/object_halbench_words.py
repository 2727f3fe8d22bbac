"""How Object HalBench finds words: its table, and base forms by NLTK's WordNet, or by spaCy as the script does."""

from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.object_halbench import Table, Tagged, counted, joined
from vigor_jax.evaluation.benchmarks.synonyms import PAIRS, tokens
from vigor_jax.evaluation.nltk_data import need
from vigor_jax.rewards.entities import LVIS, EntityPhrases
from vigor_jax.rewards.sentences import split_sentences

# Two words that CHAIR's script reads as one; SENTINEL has these, RLHF-V all two words of its table.
CHAIR_PAIRS = (
    "air plane", "baseball bat", "baseball glove", "bow tie", "cell phone", "fire hydrant", "hair drier", "hot dog",
    "laptop computer", "mobile phone", "motor bike", "motor cycle", "parking meter", "potted plant", "sports ball",
    "stop light", "stop sign", "street light", "suit case", "teddy bear", "tennis racket", "traffic light",
    "traffic signal", "wine glass",
)  # fmt: skip
# What a singular by rule makes of "wine glass".
_SLIP = {"wine glas": "wine glass"}


def read_table(path: Path, *, all_pairs: bool) -> Table:
    """Reads a table such as `synonyms_refine.txt`: one object a line, its name, then other words for it.

    Args:
        path: With ", " between words.
        all_pairs: Whether all names of two words are read as one, as RLHF-V does, or those of `CHAIR_PAIRS`.

    Raises:
        InputError: The file cannot be read or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"synonyms {path}: expected a text file in UTF-8, cannot read it ({error})") from error
    rows = [[name.strip() for name in line.strip().split(", ")] for line in lines if line.strip()]
    names = {name: row[0] for row in rows for name in row if name}
    if not names:
        raise InputError(f"synonyms {path}: expected one object a line, got an empty file")
    pairs = [name for name in names if len(name.split(" ")) == 2] if all_pairs else CHAIR_PAIRS
    return Table(names, {**{pair: pair for pair in pairs}, **PAIRS, **_SLIP})


class WordReader:
    """Reads captions and answers for words of the table, as the script does without a judge.

    Args:
        table: The words.

    Raises:
        InputError: NLTK's WordNet is not installed; when the first text is read.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def __call__(self, text: str) -> list[str]:
        """The words of a text in their base forms, with pairs as one, in order."""
        return joined([self._noun(token) for token in tokens(text)], self._table.pairs)

    def objects(self, caption: str) -> set[str]:
        """The objects that a reference caption names."""
        return {self._table.names[word] for word in counted(self(caption), self._table)}

    @cached_property
    def _noun(self) -> Any:
        need(("wordnet",), "Object HalBench")
        from nltk.stem import WordNetLemmatizer

        return cache(WordNetLemmatizer().lemmatize)


def nltk_tagged() -> Callable[[str], Tagged]:
    """Base forms and tags by NLTK: its tagger, and WordNet's lemma of a noun.

    Raises:
        InputError: NLTK's data for it are not installed.
    """
    need(("averaged_perceptron_tagger_eng", "wordnet"), "Object HalBench")
    import nltk
    from nltk.stem import WordNetLemmatizer

    noun = cache(WordNetLemmatizer().lemmatize)
    return cache(lambda phrase: [(noun(word), tag) for word, tag in nltk.pos_tag(tokens(phrase))])


def spacy_tagged(pipeline: str) -> Callable[[str], Tagged]:
    """Base forms and tags by a pipeline of spaCy; the script has en_core_web_trf.

    Raises:
        InputError: spaCy or the pipeline is not installed.
    """
    try:
        import spacy

        read = spacy.load(pipeline)
    except ImportError as error:
        raise InputError(f"--pipeline: spaCy is missing ({error}); pip install spacy") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"--pipeline: spaCy has no pipeline {pipeline}: `python -m spacy download {pipeline}`, or give its folder"
        ) from error
    return cache(lambda phrase: [(token.lemma_, token.tag_) for token in read(phrase)])


def entities() -> Callable[[str], list[str]]:
    """Finds objects by our own list of entities, LVIS's categories, instead of a judge."""
    find = EntityPhrases(LVIS)
    return lambda text: [one.text for one in find(text, split_sentences(text)) if one.mentions]
