"""Which scores PPO's responses got from the streams, word by word, and how well they tell what is in the image."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.evaluation.auc import auc
from vigor_jax.evaluation.benchmarks.chair import read_annotations
from vigor_jax.evaluation.benchmarks.synonyms import Synonyms
from vigor_jax.records import Rollout, Span
from vigor_jax.rewards.entities import EntityPhrases, entities_file, make_entities
from vigor_jax.rewards.sentences import split_sentences

logger = logging.getLogger(__name__)

# What a verifier calls that which it scores in place of words.
_WHOLES = ("sentence", "caption")


class ObjectFiles(NamedTuple):
    """Where it is said what is in the images.

    Attributes:
      objects: COCO's instances, or {image: [object, ...]}; several files add to each other.
      synonyms: CHAIR's table of words for objects; None if each object is called by its name.
      entities: the verifier's list of object words, as `clip.entities`: a word that is no object means its category.
    """

    objects: tuple[Path, ...]
    synonyms: Path | None = None
    entities: str | None = None


class KnownObjects:
    """What is in images.

    Args:
      files: that say so.
      images: that are asked about.

    Raises:
      InputError: a file cannot be used.
    """

    def __init__(self, files: ObjectFiles, images: Sequence[str]) -> None:
        synonyms = Synonyms.read(files.synonyms) if files.synonyms else None
        annotations = read_annotations(files.objects, synonyms)
        found = {image: annotations.images.find(image) for image in images}
        names = {image: own[0] for image, own in found.items() if len(own) == 1}
        reference = annotations.reference(synonyms, images=set(names.values()))
        self._present = {image: reference.objects[name] for image, name in names.items()}
        self._synonyms, self._entities = reference.synonyms, _entities(files.entities)

    def __contains__(self, image: str) -> bool:
        return image in self._present

    def is_there(self, image: str, word: str) -> bool | None:
        """Whether what a word means is in an image; None if the word is none of the objects."""
        category = self._entities.forms.get(word.lower(), "") if self._entities else ""
        name = self._synonyms.canonical(word) or self._synonyms.canonical(category)
        return None if name is None else name in self._present[image]

    def words(self, text: str, within: Span) -> list[str]:
        """The object words that a part of a text asserts, by the verifier's list; one for each place, in no order."""
        found = self._entities(text, split_sentences(text)) if self._entities else []
        said = [(text[slice(*place)], each.text) for each in found for place in each.mentions if _is_in(place, within)]
        return [category if self._synonyms.canonical(word) is None else word for word, category in said]


class WordScores(NamedTuple):
    """What a stream says of the words of an iteration; a word that stands in several places counts in each.

    Of a verifier that scores sentences or captions (`clip.per`) each object word in them has that score, where it is
    known what is in images: the control of the FiSAO paper's figure 1.

    W words that have a score.

    Attributes:
      scores: as the stream gave them, float64 [W].
      worth: the signal's `positive` less its `negative`, float64 [W].
      responses: the number of the response that each is in, int [W].
      is_there: 1 where what the word means is in the image, 0 where not, -1 where that is not known; int [W].
      denied: words that are left out, as the response denies them.
      num_images: of the iteration.
      num_known: of these, images whose objects are known.
      num_responses: of the iteration.
    """

    scores: np.ndarray
    worth: np.ndarray
    responses: np.ndarray
    is_there: np.ndarray
    denied: int
    num_images: int
    num_known: int
    num_responses: int

    @property
    def is_known(self) -> np.ndarray:
        """Words of which it is known whether they are correct, bool [W]."""
        return self.is_there >= 0

    @property
    def caption_scores(self) -> np.ndarray:
        """For each known word the mean score of the known words of its response, in the order of the known words."""
        scores, (_, place) = self.scores[self.is_known], np.unique(self.responses[self.is_known], return_inverse=True)
        return (np.bincount(place, scores) / np.maximum(np.bincount(place), 1))[place]

    def auc(self, scores: np.ndarray) -> float | None:
        """How often a correct word has a higher score than a hallucinated one; None where either kind is missing.

        Args:
          scores: of the known words, in their order.
        """
        return auc(scores, self.is_there[self.is_known] == 1)


def word_scores(rollouts: Sequence[Rollout], stream: str, known: KnownObjects | None) -> WordScores:
    """What a stream says of the words of an iteration.

    Args:
      rollouts: of the iteration.
      stream: by name.
      known: what is in the images, if anything says so.
    """
    rows, denied = [], 0
    for number, rollout in enumerate(rollouts):
        for signal in (
            signal for verdict in rollout.verdicts if verdict.stream == stream for signal in verdict.signals
        ):
            places = max(len(signal.spans), 1)
            if signal.denied:
                denied += places
                continue
            words = [signal.label] * places
            if known and signal.label in _WHOLES and signal.spans in _wholes(rollout.text):
                words = known.words(rollout.text, signal.spans[0])
            for word in words:
                is_there = known.is_there(rollout.image, word) if known and rollout.image in known else None
                truth = -1 if is_there is None else int(is_there)
                rows.append((signal.score, signal.positive - signal.negative, number, truth))
    table = np.array(rows, float).reshape(-1, 4)
    table = table[np.isfinite(table).all(axis=1)]
    images = {rollout.image for rollout in rollouts}
    return WordScores(
        *(table[:, 0], table[:, 1], table[:, 2].astype(int), table[:, 3].astype(int)),
        denied=denied,
        num_images=len(images),
        num_known=sum(image in known for image in images) if known else 0,
        num_responses=len(rollouts),
    )


def streams_of(rollouts: Sequence[Rollout]) -> Iterator[str]:
    """Names of the streams, each once, in the order in which they judged."""
    yield from dict.fromkeys(verdict.stream for rollout in rollouts for verdict in rollout.verdicts)


def _wholes(text: str) -> list[tuple[Span, ...]]:
    """What is no word, as the spans of a signal: each sentence, and all of the text."""
    return [(span,) for span in (*split_sentences(text), Span(0, len(text)))]


def _is_in(place: Span, whole: Span) -> bool:
    return whole.start <= place.start < whole.end


def _entities(given: str | None) -> EntityPhrases | None:
    """What finds the verifier's words in a text, and knows their categories."""
    option = "clip.entities"
    try:
        return make_entities(given, option=option)
    except InputError as error:
        reason = error
    try:  # where the data of the tagger is not here: a few words that are no nouns count, too
        return EntityPhrases(entities_file(given, option))
    except InputError:  # the list may be on another machine
        logger.warning("%s; words count as objects by their own names only", reason)
        return None
