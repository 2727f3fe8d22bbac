"""The things that a caption mentions, as phrases for a detector, each with every place where it is mentioned.

Two extractors: `NounPhrases` takes the nouns that a tagger finds (ViGoR, section 3.1), less those in a list of nouns
that no detector can see; `EntityPhrases` takes the names in a list of categories: a short list needs no data, LVIS's
long one needs the tagger. Both tell what a caption asserts from what it denies ("no people") and from what it only
supposes ("possibly a school").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from vigor_jax import fingerprint
from vigor_jax.records import Span
from vigor_jax.rewards.entities import EntityPhrases, entities_file, make_entities
from vigor_jax.rewards.language.nouns import NounPhrases
from vigor_jax.rewards.mentions import Phrase

__all__ = ["RULES", "EntityPhrases", "NounPhrases", "Phrase", "Phrases", "PhrasesConfig", "made_of", "make_phrases"]

# Of the rules and word lists in this folder; a change that makes other phrases of a caption raises it, so that verdicts
# of before are not mixed with those of after.
RULES = 2


class Phrases(Protocol):
    """Finds the phrases of a caption."""

    def __call__(self, text: str, sentences: Sequence[Span]) -> list[Phrase]:
        """Phrases in the order of their first place, each once."""
        ...


@dataclass(frozen=True)
class PhrasesConfig:
    """How phrases are found.

    Attributes:
        extractor: "nltk" for the nouns of a part-of-speech tagger, "entities" for the names in a list.
        negated: What becomes of a thing that the caption denies ("no people"): "check" that it is not there, which
            costs a penalty and the sentence if it is; "skip" it; "ask" for it as if it were asserted, as in the paper.
        hypothetical: What becomes of a thing that the caption only supposes ("possibly a school"): "skip" it, or "ask"
            for it as if it were asserted, as the paper does.
        non_visual: Nouns that are not phrases, one a line (see `non_visual.txt`, the default, for the format).
        entities: Which categories: "coco" for COCO's 80, the default, which need no tagger; "lvis" for LVIS's and
            COCO's, 1,196, whose names count where the tagger reads them as nouns; or a file with one category a line,
            synonyms separated by commas, the first is the name that is returned.
        tagger: Folder with a tagger as NLTK writes it (`averaged_perceptron_tagger_eng.weights.json`,
            `...tagdict.json`, `...classes.json`). Default: where NLTK keeps its data.
        download: Whether NLTK may download its tagger if it is not there.
    """

    extractor: Literal["nltk", "entities"] = "nltk"
    negated: Literal["check", "skip", "ask"] = "check"
    hypothetical: Literal["skip", "ask"] = "skip"
    non_visual: Path | None = None
    entities: str | Path | None = None
    tagger: Path | None = None
    download: bool = fingerprint.neutral(False)


def make_phrases(config: PhrasesConfig) -> Phrases:
    """The extractor that a config asks for.

    Raises:
        InputError: A file or the tagger's data is missing or cannot be read.
    """
    if config.extractor == "entities":
        return make_entities(config.entities, config.non_visual, config.tagger, download=config.download)
    return NounPhrases(config.non_visual, config.tagger, download=config.download)


def made_of(config: PhrasesConfig) -> list[str | int]:
    """All that the phrases of a caption depend on, with digests of the files."""
    files = config.non_visual, entities_file(config.entities), config.tagger
    return [RULES, config.extractor, config.negated, config.hypothetical, *map(fingerprint.content, files)]
