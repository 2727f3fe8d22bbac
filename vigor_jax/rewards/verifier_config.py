"""How the verifier, a CLIP, judges: the options."""

import dataclasses
import math
from pathlib import Path
from typing import Literal, TypeAlias

from vigor_jax import fingerprint
from vigor_jax.errors import InputError
from vigor_jax.rewards.clip_baselines import MarginSign, MarginUnit

Per: TypeAlias = Literal["word", "sentence", "caption"]


@dataclasses.dataclass(frozen=True)
class ClipStreamConfig:
    """The verifier, and how its scores become rewards.

    Attributes:
      model: a whole CLIP, such as openai/clip-vit-large-patch14-336: a directory or its name on the Hub.
      baselines: the file of `python -m vigor_jax.verifier`, made with the same model and words.
      entities: the object words, as `detection.phrases.entities` has them; by default the 80 categories of COCO.
      per: what is scored: each object word; or, as a control, each sentence, or the caption; of each as many tokens as
        the text tower reads (77).
      scale: what cosines are multiplied by.
      margin: distance from the mean scores of correct and of hallucinated words at which rewards begin (eq. 8).
      margin_unit: "absolute", in scores; "std", in standard deviations; "quantile", from 0 to 1: correct words from
        this quantile of theirs on are rewarded, hallucinated ones up to 1 minus it are punished.
      margin_sign: "-" moves the thresholds towards each other instead.
      pad: pad images to squares, as LLaVA-1.5 does, so that all of them is seen; false for the verifier's own way,
        which cuts the middle out.
      batch_size: images, or texts, a pass, over all devices.
    """

    model: str | Path | None = fingerprint.place(None)
    baselines: Path | None = fingerprint.place(None)
    entities: str | Path | None = fingerprint.place(None)
    per: Per = "word"
    scale: float = 250.0
    margin: float = 10.0
    margin_unit: MarginUnit = "absolute"
    margin_sign: MarginSign = "+"
    pad: bool = True
    batch_size: int = fingerprint.neutral(32)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"clip.batch_size must be at least 1, got {self.batch_size}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"clip.scale: expected a number above 0, got {self.scale}")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise InputError(f"clip.margin: expected 0 or more, got {self.margin}; clip.margin_sign turns it")
        if self.margin_unit == "quantile" and self.margin > 1:
            raise InputError(f"clip.margin: expected a quantile from 0 to 1, got {self.margin}")
        if self.margin_unit == "quantile" and self.margin_sign == "-":
            raise InputError("clip.margin_sign: '-' means nothing for a quantile; choose another clip.margin instead")

    def check_given(self) -> None:
        """Raises InputError if the verifier or its baselines are not given."""
        if self.model is None:
            raise InputError("clip.model is not given; name a CLIP, such as openai/clip-vit-large-patch14-336")
        if self.baselines is None:
            raise InputError("clip.baselines is not given; make the file with python -m vigor_jax.verifier")
