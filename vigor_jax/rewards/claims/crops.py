"""What crops of an image say of an attribute, by a CLIP: which crop, what it is compared with, right or wrong."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from vigor_jax import fingerprint
from vigor_jax.errors import InputError
from vigor_jax.rewards.claims.claim import Claim
from vigor_jax.rewards.claims.evidence import BoxTuples
from vigor_jax.rewards.claims.judge import Truth, any_of
from vigor_jax.rewards.language.words import article

PHRASE = "{}"


@dataclass(frozen=True)
class ClipAttributesConfig:
    """The CLIP that judges attributes, what it is shown and asked, and when a claim is right or wrong.

    Attributes:
        model: A whole CLIP, such as openai/clip-vit-large-patch14-336: a directory or its name on the Hub.
        template: The texts that a crop is compared with; {} stands for "a red car", "an orange car".
        margin: What is shown around a box on each side, as a fraction of its width or height; [0, 1].
        skip: Kinds of attributes (headings of `claims.words.attributes`) that a crop does not show.
        least_right: A claim is right from this probability on; (0, 1].
        most_wrong: It is wrong up to this one, if a rival is sure; [0, 1), less than `least_right`.
        least_rival: The probability from which on a rival is sure; (0, 1], more than `most_wrong`.
        batch_size: Crops, or texts, a pass, over all devices.
    """

    model: str | Path | None = fingerprint.place(None)
    template: str = f"a photo of {PHRASE}"
    margin: float = 0.1
    skip: tuple[str, ...] = ("size",)
    least_right: float = 0.5
    most_wrong: float = 0.05
    least_rival: float = 0.6
    batch_size: int = fingerprint.neutral(32)

    def __post_init__(self) -> None:
        if self.template.count(PHRASE) != 1:
            raise InputError(
                f"clip_attributes.template: expected a text with one {PHRASE}, which stands for the thing as claimed, "
                f"got {self.template!r}"
            )
        for name in ("margin", "least_right", "most_wrong", "least_rival"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"clip_attributes.{name}: expected a number from 0 to 1, got {getattr(self, name)}")
        for name in ("least_right", "least_rival"):
            if not getattr(self, name) > self.most_wrong:
                raise InputError(
                    f"clip_attributes.{name}: expected more than most_wrong, {self.most_wrong}, got "
                    f"{getattr(self, name)}"
                )
        if self.batch_size < 1:
            raise InputError(f"clip_attributes.batch_size must be at least 1, got {self.batch_size}")

    def check_given(self) -> None:
        """Raises InputError if the CLIP is not given."""
        if self.model is None:
            raise InputError(
                "clip_attributes.model is not given; name a CLIP, such as openai/clip-vit-large-patch14-336"
            )

    def text(self, phrase: str) -> str:
        """What a crop is compared with: "a photo of an orange car" for "orange car"."""
        return self.template.replace(PHRASE, f"{article(phrase)} {phrase}")


def crop(image: Image.Image, box_xyxy: Sequence[float], margin: float) -> Image.Image:
    """A box of an image with what is around it, in whole pixels outward, within the image and at least one pixel.

    Args:
        image: Upright.
        box_xyxy: Corners relative to the image.
        margin: As in the config.
    """
    left, top, right, bottom = box_xyxy
    first, last = _outward(left, right, margin, image.width)
    high, low = _outward(top, bottom, margin, image.height)
    return image.crop((first, high, last, low))


def _outward(start: float, end: float, margin: float, size: int) -> tuple[int, int]:
    around = margin * (end - start)
    first = min(max(math.floor((start - around) * size), 0), size - 1)
    return first, min(max(math.ceil((end + around) * size), first + 1), size)


@dataclass(frozen=True)
class CropEvidence:
    """What a CLIP says of a claim of attribute.

    Attributes:
        probabilities: Of each box those of the thing as claimed, and of its rivals: [N, 1 + R]; of a thing that was
            not found, N is 0.
    """

    probabilities: Float[np.ndarray, "N V"]

    def truth(self, config: ClipAttributesConfig) -> Truth:
        """Whether the claim is right: one box that is right is enough, and all must be wrong for a wrong claim."""
        if not len(self.probabilities) or self.probabilities.shape[1] < 2:
            return Truth.UNKNOWN
        claimed, rival = self.probabilities[:, 0], self.probabilities[:, 1:].max(axis=1)
        wrong = (claimed <= config.most_wrong) & (rival >= config.least_rival)
        return any_of(np.where(claimed >= config.least_right, 1, np.where(wrong, -1, 0)))

    @property
    def score(self) -> float:
        """The probability of the claim, of the box where it is the highest; 0 without a box."""
        return float(self.probabilities[:, 0].max(initial=0.0))

    @property
    def rival(self) -> int | None:
        """The number of the rival that is the most likely one in all boxes; None if they differ, or without any."""
        if self.probabilities.shape[1] < 2:
            return None
        best = set(self.probabilities[:, 1:].argmax(axis=1).tolist())
        return best.pop() if len(best) == 1 else None


def probabilities(
    crops: Float[np.ndarray, "N D"], texts: Float[np.ndarray, "V D"], scale: float
) -> Float[np.ndarray, "N V"]:
    """The softmax over texts of scaled cosines, as CLIP was trained with (Radford et al. 2021, section 3.1.2).

    Args:
        crops: Unit vectors.
        texts: The same of texts.
        scale: Of the CLIP.
    """
    # Not as a product of matrices, whose last digits depend on how many there are.
    logits = scale * (crops[:, None].astype(np.float64) * texts[None]).sum(axis=-1)
    each = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return each / each.sum(axis=-1, keepdims=True)


class JudgedCrops(NamedTuple):
    """A claim of attribute, and what crops say of it.

    Attributes:
        claim: The claim.
        boxes: Where its thing was found, if it was.
        evidence: What the crops say.
        scores: What a wrong claim is repaired by, see `WrongClaim`.
    """

    claim: Claim
    boxes: BoxTuples
    evidence: CropEvidence
    scores: Mapping[str, float]
