"""Attributes that captions claim as a reward: a CLIP says which color or material the crop of a thing's box shows.

No paper has this reward. It is the second way to judge attributes; the first, in `stream.py`, asks the detector.
"""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from vigor_jax import fingerprint
from vigor_jax.hf.clip.checkpoint import ClipCheckpoint
from vigor_jax.records import ScoreItem, Signal, Verdict
from vigor_jax.rewards.claims.attributes import attributed_phrases, rival_values
from vigor_jax.rewards.claims.claim import Attribute, Claim
from vigor_jax.rewards.claims.crops import ClipAttributesConfig, CropEvidence, JudgedCrops, crop, probabilities
from vigor_jax.rewards.claims.evidence import BoxTuples, Detected
from vigor_jax.rewards.claims.judge import Found, JudgeConfig, Truth, counted_boxes
from vigor_jax.rewards.claims.repair import Repairs
from vigor_jax.rewards.claims.reword_colors import COLOR
from vigor_jax.rewards.claims.signals import JudgedClaim, claim_signals
from vigor_jax.rewards.claims.stream import ClaimReader, ClaimsConfig
from vigor_jax.rewards.clip_towers import ClipTowers, Images, Points, read_pixels
from vigor_jax.rewards.phrases import PhrasesConfig
from vigor_jax.rewards.sentences import split_sentences

logger = logging.getLogger(__name__)

Box: TypeAlias = tuple[float, ...]

# Of what crops say, beyond `stream.RULES`; a change that makes other signals raises it.
CROP_RULES = 1
# The same things are named again and again. A point of ViT-L/14 takes 3 KB.
MOST_PHRASES = 50_000


class _Shown(NamedTuple):
    """A claim, where its thing was found, and the numbers of the crops that show it: one for each box that counts."""

    claim: Claim
    boxes: BoxTuples
    crops: list[int]


class _Asked(NamedTuple):
    """What is asked about an image: the claims of each text."""

    item: ScoreItem
    claims: dict[str, list[_Shown]]


class ClipAttributeStream:
    """A `RewardStream` of claims of attribute, judged by crops of the boxes of the stream `detector`.

    Signals are those of `ClaimStream`, with the probability of the claim as score.

    Args:
        checkpoint: The CLIP; its weights are loaded when the first crop is seen.
        config: What it is shown and asked, and when a claim is wrong.
        claims: How claims are read, and in `judge` which boxes of a thing count; `kinds` plays no part.
        phrases: How things are found, as the detector is asked for them.
        mesh: All devices.

    Raises:
        InputError: The CLIP has no scale; a word list or the tagger is missing.
    """

    name = "clip_attributes"
    needs = ("detector",)
    uses_devices = True

    def __init__(
        self,
        checkpoint: ClipCheckpoint,
        config: ClipAttributesConfig,
        claims: ClaimsConfig,
        phrases: PhrasesConfig,
        mesh: Mesh,
    ) -> None:
        self._config, self._boxes = config, claims.judge
        self._reader = ClaimReader(dataclasses.replace(claims, kinds=("attribute",)), phrases)
        self._words = self._reader.claims.attribute_words
        self._repairs = Repairs(self._reader.claims, JudgeConfig(), self._reader.phrases)
        # Padded, whatever the CLIP's own settings say: cutting the middle out would lose the ends of long things.
        self._preprocessing = dataclasses.replace(checkpoint.preprocessing, pad=True)
        self._scale = checkpoint.scale()
        self._towers = ClipTowers(checkpoint, mesh, config.batch_size)
        self._points: dict[str, np.ndarray] = {}  # of phrases
        made_of = [CROP_RULES, made_of_clip(checkpoint), self._reader.digest, claims.judge.iou, fingerprint.of(config)]
        self.digest = fingerprint.digest(fingerprint.plain(made_of))

    @property
    def compilations(self) -> int:
        """How often a tower was compiled so far."""
        return self._towers.compilations

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        """See `RewardStream.judge`; a batch of crops is read ahead.

        Raises:
            InputError: An image cannot be read; names it.
            FloatingPointError: A probability is not finite.
        """
        truths: Counter[Truth] = Counter()
        try:
            for item, claims in self.evidence(items):
                known = {text: self._signals(text, own) for text, own in claims.items()}
                truths.update(
                    each.evidence.truth(self._config) for own in claims.values() for each in own if each.boxes
                )
                yield [Verdict(item.image, i, self.name, known[text]) for i, text in enumerate(item.texts)]
        finally:  # who has all verdicts does not ask whether there are more
            if total := truths.total():
                right, wrong = (100 * truths[each] / total for each in (Truth.RIGHT, Truth.WRONG))
                logger.info("clip_attributes: %d claims, %.0f%% of them right, %.0f%% wrong", total, right, wrong)

    def evidence(self, items: Iterable[ScoreItem]) -> Iterator[tuple[ScoreItem, dict[str, list[JudgedCrops]]]]:
        """Each item with what crops say of the claims of each of its texts."""
        for batch in self._towers.embed_images(map(self._wanted, items)):
            every = (each.claim for asked, _ in batch for own in asked.claims.values() for each in own if each.crops)
            self._embed(dict.fromkeys(phrase for claim in every for phrase in self._phrases(claim)))
            for (item, claims), points in batch:
                if not np.isfinite(points).all():
                    raise FloatingPointError(f"{item.image}: the CLIP's points are not finite; are its weights sound?")
                yield item, {text: [self._judged(each, points) for each in own] for text, own in claims.items()}

    def _wanted(self, item: ScoreItem) -> Images[_Asked]:
        claims: dict[str, list[_Shown]] = {}  # an image's candidates are often equal
        numbers: dict[Box, int] = {}
        for text, verdict in zip(item.texts, item.verdicts["detector"], strict=True):
            if text not in claims:
                detected, sentences = Detected.of(verdict), split_sentences(text)
                found = self._reader(text, sentences, self._reader.phrases(text, sentences))
                claims[text] = [shown for claim in found if (shown := self._shown(claim, detected, numbers))]
        return Images(_Asked(item, claims), len(numbers), functools.partial(self._read, item, list(numbers)))

    def _shown(self, claim: Claim, detected: Detected, numbers: dict[Box, int]) -> _Shown | None:
        if isinstance(claim.value, Attribute) and claim.value.kind in self._config.skip:
            return None
        boxes = detected.boxes.get(claim.subject.phrase, ())
        counted = map(tuple, counted_boxes(Found(boxes), self._boxes).tolist())
        return _Shown(claim, boxes, [numbers.setdefault(box, len(numbers)) for box in counted])

    def _read(self, item: ScoreItem, boxes: Sequence[Box], wanted: Sequence[int]) -> list[np.ndarray]:
        def crops(image: Image.Image) -> Iterator[Image.Image]:
            return (crop(image, boxes[number], self._config.margin) for number in wanted)

        return read_pixels(item, self._preprocessing, crops)

    def _embed(self, phrases: Iterable[str]) -> None:
        """Sees to the points of phrases."""
        if len(self._points) > MOST_PHRASES:
            self._points.clear()
        new = [phrase for phrase in phrases if phrase not in self._points]
        if new:  # in rows of one length, so that a point does not depend on the other phrases
            texts = [self._config.text(phrase) for phrase in new]
            self._points |= zip(new, self._towers.embed_texts(texts, longest=True), strict=True)

    def _phrases(self, claim: Claim) -> Iterator[str]:
        """What a claim is compared with, and what its repairs would be."""
        for each in (claim, *self._repaired(claim)):
            own, rivals = attributed_phrases(each, self._words)
            yield from (own, *rivals)

    def _repaired(self, claim: Claim) -> list[Claim]:
        """A claim of color with each rival in place of the color."""
        value = claim.value
        if not isinstance(value, Attribute) or value.kind != COLOR:
            return []
        rivals = rival_values(value, self._words)
        return [dataclasses.replace(claim, value=dataclasses.replace(value, value=rival)) for rival in rivals]

    def _judged(self, shown: _Shown, points: Points) -> JudgedCrops:
        crops = points[shown.crops]
        evidence = self._evidence(shown.claim, crops)
        return JudgedCrops(shown.claim, shown.boxes, evidence, self._sure(shown.claim, evidence, crops))

    def _evidence(self, claim: Claim, crops: Points) -> CropEvidence:
        if not len(crops):
            return CropEvidence(np.zeros((0, 1)))
        own, rivals = attributed_phrases(claim, self._words)
        texts = np.stack([self._points[each] for each in (own, *rivals)])
        return CropEvidence(probabilities(crops, texts, self._scale))

    def _sure(self, claim: Claim, evidence: CropEvidence, crops: Points) -> dict[str, float]:
        """Of a wrong claim 0, and 1 of the rival that all crops show, if the claim would be right with it; else {}."""
        if evidence.truth(self._config) is not Truth.WRONG:
            return {}
        repaired = self._repaired(claim)
        if not repaired or evidence.rival is None:
            return {}
        if self._evidence(repaired[evidence.rival], crops).truth(self._config) is not Truth.RIGHT:
            return {}
        own, rivals = attributed_phrases(claim, self._words)
        return {own: 0.0, rivals[evidence.rival]: 1.0}

    def _signals(self, text: str, claims: Sequence[JudgedCrops]) -> tuple[Signal, ...]:
        judged = [
            JudgedClaim(each.claim, each.evidence.truth(self._config), each.evidence.score, each.boxes, each.scores)
            for each in claims
        ]
        return claim_signals(self._reader.read(text), judged, self._repairs)


def made_of_clip(checkpoint: ClipCheckpoint) -> str:
    """Names all that probabilities depend on of a CLIP.

    Raises:
        InputError: The CLIP has no scale.
    """
    return fingerprint.digest([checkpoint.digest(), checkpoint.scale()])
