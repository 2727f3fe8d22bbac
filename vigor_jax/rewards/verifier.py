"""How well the object words of a caption fit its image, as a CLIP sees it: FiSAO's scores, before they are scaled."""

import collections
import dataclasses
import functools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from vigor_jax import fingerprint
from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.hf.clip.checkpoint import ClipCheckpoint
from vigor_jax.percent import percent
from vigor_jax.records import ScoreItem, Span
from vigor_jax.rewards.clip_towers import ClipTowers, Images, Points, read_pixels
from vigor_jax.rewards.entities import EntityPhrases, make_entities
from vigor_jax.rewards.language.words import singular
from vigor_jax.rewards.phrases import RULES
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.rewards.verifier_config import ClipStreamConfig, Per

logger = logging.getLogger(__name__)


class Scored(NamedTuple):
    """Something in a text, and how well it fits the image.

    Attributes:
      label: the word, as the list of entities spells it; or "sentence", "caption".
      category: of the word; the label for others.
      spans: where it stands.
      cosine: in [-1, 1].
    """

    label: str
    category: str
    spans: tuple[Span, ...]
    cosine: float


class _Named(NamedTuple):
    """What `Scored` is made of: the text to embed in place of the cosine."""

    label: str
    category: str
    spans: tuple[Span, ...]
    text: str


class ClipVerifier:
    """Scores what texts say against their images.

    Args:
      checkpoint: the CLIP; its weights are loaded when the first score is wanted.
      config: how to score.
      mesh: all devices; batches are split over `data` x `fsdp`.

    Attributes:
      made_of: names all that cosines depend on.
    """

    def __init__(self, checkpoint: ClipCheckpoint, config: ClipStreamConfig, mesh: Mesh) -> None:
        self._config, self._tokenizer = config, checkpoint.tokenizer
        self._preprocessing = dataclasses.replace(
            checkpoint.preprocessing, pad=config.pad or checkpoint.preprocessing.pad
        )
        self._entities = read_entities(config)
        self._names: dict[tuple[str, ...], str] = {}  # of a form's words, as the list spells it
        for form in self._entities.forms:
            self._names.setdefault(_words(form), form)
        self.made_of = made_of(checkpoint, config, self._entities)
        self._checkpoint = checkpoint
        self._towers = ClipTowers(checkpoint, mesh, config.batch_size)
        self._words: dict[str, np.ndarray] = {}
        self._read_texts: collections.Counter[Per] = collections.Counter()
        self._cut_texts: collections.Counter[Per] = collections.Counter()
        self._told: set[Per] = set()

    @property
    def compilations(self) -> int:
        """How often a tower was compiled so far."""
        return self._towers.compilations

    def score(self, items: Iterable[ScoreItem], per: Per | None = None) -> Iterator[list[list[Scored]]]:
        """What each text of each item says, in the order of the first spans; nothing of an empty text.

        With several processes, each gives the same items and gets all the scores, but reads only the images of its
        rows.

        Args:
          items: texts and images; a batch is read ahead.
          per: in place of the config's.

        Raises:
          InputError: an image cannot be read; names it.
          FloatingPointError: a score is not finite.
        """
        per = per or self._config.per
        named = self._namer(per)
        wanted = (Images(item, 1, functools.partial(self._read, item)) for item in items)
        for batch in self._towers.embed_images(wanted):
            yield from self._score_batch(batch, named, per)

    def tell_cut(self, per: Per) -> None:
        """Logs once how many of the sentences or captions so far are longer than what the text tower reads."""
        total, cut = self._read_texts[per], self._cut_texts[per]
        if cut and per not in self._told:
            self._told.add(per)
            logger.warning(
                "clip: %d of %d %ss (%s%%) are longer than the %d tokens that the verifier reads; their ends are not "
                "judged", cut, total, per, percent(cut / total), self._checkpoint.config.text.max_position_embeddings,
            )  # fmt: skip

    def _score_batch(
        self, batch: Sequence[tuple[ScoreItem, Points]], named: Any, per: Per
    ) -> Iterator[list[list[Scored]]]:
        found = [[named(text) for text in item.texts] for item, _ in batch]
        if per != "word":
            whole = [each.text for texts in found for own in texts for each in own]
            self._read_texts[per] += len(whole)
            self._cut_texts[per] += sum(map(self._tokenizer.is_cut, whole))
        wanted = list(dict.fromkeys(each.text for texts in found for own in texts for each in own))
        column = {text: number for number, text in enumerate(wanted)}
        texts_embedded = self._embed(wanted)
        # Not as a product of matrices, whose last digits depend on how many words the batch has.
        table = [(texts_embedded * point).sum(-1) for _, (point,) in batch]
        for (item, _), row, texts in zip(batch, table, found, strict=True):
            if not np.isfinite(row).all():
                raise FloatingPointError(f"{item.image}: the verifier's scores are not finite; are its weights sound?")
            yield [
                [Scored(each.label, each.category, each.spans, float(row[column[each.text]])) for each in own]
                for own in texts
            ]

    def _namer(self, per: Per) -> Any:
        """What finds in a text the parts to be scored."""
        if per == "word":
            if not self._words:  # all of them once, or those that a later batch brings would run the tower each time
                names = tuple(self._entities.forms)
                self._words = dict(zip(names, self._towers.embed_texts(names), strict=True))
            return self._words_of
        if per == "sentence":
            return lambda text: [
                _Named(per, per, (span,), without_boxes(text[slice(*span)])) for span in split_sentences(text)
            ]
        return lambda text: (
            [_Named(per, per, (Span(0, len(text)),), without_boxes(text))] if split_sentences(text) else []
        )

    def _words_of(self, text: str) -> list[_Named]:
        """The object words that a text asserts, each once; "dogs" is the word "dog"."""
        spans: dict[tuple[str, str], list[Span]] = {}
        for phrase in self._entities(text, split_sentences(text)):
            for span in phrase.mentions:
                word = self._word(text[slice(*span)], phrase.text)
                spans.setdefault((word, phrase.text), []).append(span)
        found = [_Named(word, category, tuple(own), word) for (word, category), own in spans.items()]
        return sorted(found, key=lambda each: each.spans[0])

    def _word(self, said: str, category: str) -> str:
        """The name of a category that a text says, in the singular if the list has that."""
        words = _words(said)
        names = (self._names.get(form) for form in ((*words[:-1], singular(words[-1])), words))
        return next((name for name in names if name and self._entities.forms[name] == category), category)

    def _embed(self, texts: Sequence[str]) -> Points:
        if not texts:
            return self._towers.no_points()
        known = [self._words[text] for text in texts if text in self._words]
        return np.stack(known) if len(known) == len(texts) else self._towers.embed_texts(texts, longest=True)

    def _read(self, item: ScoreItem, _: Sequence[int]) -> list[np.ndarray]:
        return read_pixels(item, self._preprocessing)


def read_entities(config: ClipStreamConfig) -> EntityPhrases:
    """What finds the object words of a text.

    Raises:
      InputError: the list cannot be read.
    """
    return make_entities(config.entities, option="clip.entities")


def _words(text: str) -> tuple[str, ...]:
    """The words of a name, whatever stands between them."""
    return tuple(re.findall(r"[^\W_]+", text.lower()))


def made_of(checkpoint: ClipCheckpoint, config: ClipStreamConfig, entities: EntityPhrases) -> dict[str, Any]:
    """Names all that a verifier's cosines depend on: weights, tokenizer and images; words and how they are found."""
    return {
        "verifier": checkpoint.digest(),
        "entities": fingerprint.digest([entities.forms, RULES]),
        "per": config.per,
        "pad": config.pad,
    }
