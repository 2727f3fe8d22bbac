"""What a selection takes from the texts of candidates: whether they say anything, their sentences, and repetitions."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np

from vigor_jax.data.records.blocks import Block
from vigor_jax.records import Span
from vigor_jax.rewards.content import has_words
from vigor_jax.rewards.fusion import FusionConfig
from vigor_jax.rewards.repetitions import repetitions
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.stages.select_config import Repetitions


@dataclasses.dataclass(frozen=True)
class CandidateTexts:
    """Of the candidates of a block.

    Attributes:
      has_words: whether there are words enough, bool [R].
      repeated: row → its sentences that repeat an earlier one; only rows that have some, none if not looked for.
      repeats: how many sentences of each candidate repeat an earlier one, int [R].
      sentences: int [R], without repeated ones where those do not count; 1 where nothing depends on it.
    """

    has_words: np.ndarray
    repeated: Mapping[int, tuple[Span, ...]]
    repeats: np.ndarray
    sentences: np.ndarray

    @classmethod
    def of(
        cls, block: Block, fusion: FusionConfig, min_words: int, count_repetitions: Repetitions, *, look: bool
    ) -> Self:
        """Reads the column `text`; looks for repetitions where they count once, or if asked to."""
        texts = block.rows.column("text").to_pylist()
        look = look or count_repetitions == "once"
        found = [tuple(repetitions(text)) if look else () for text in texts]
        repeats = np.array(list(map(len, found)), np.int64)
        sentences = np.ones(len(texts), np.int64)
        if fusion.per == "sentence":
            sentences = np.array([len(split_sentences(text)) for text in texts], np.int64)
            sentences -= repeats if count_repetitions == "once" else 0
        return cls(
            has_words=np.array([has_words(text, min_words) for text in texts], bool),
            repeated={row: spans for row, spans in enumerate(found) if spans},
            repeats=repeats,
            sentences=sentences,
        )
