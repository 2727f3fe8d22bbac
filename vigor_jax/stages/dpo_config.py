"""Settings of the stage that learns from preferences."""

import dataclasses
from pathlib import Path
from typing import Literal

from vigor_jax import fingerprint
from vigor_jax.errors import InputError
from vigor_jax.training.config import NOISE_STEPS, DpoLoss, TrainingConfig


@dataclasses.dataclass(frozen=True)
class DpoConfig(TrainingConfig):
    """Direct preference optimization: what `TrainingConfig` says, and the following.

    Attributes:
      data: preferences in any form that docs/preferences.md names; by default those that the stage pair made.
      form: which of these forms; by default it is told from the file.
      batch_size: images an update, over all devices: a row has all responses to its image.
      learning_rate: peak, reached after the warm-up, from where a cosine falls to 0.
      max_length: most tokens of a row: the prompt and all responses to it, none of which is cut.
      loss: "sigmoid" is DPO, "ipo" and "hinge" are others, see `training.dpo.preference_loss`.
      beta: how much the policy is held to the model that training begins with.
      label_smoothing: share of pairs that are thought to be the wrong way around; of "sigmoid" alone.
      length_normalized: a response's score is the mean over its tokens rather than the sum.
      changed_weight: of tokens that the other response has not; RLHF-V's 5 lets corrections count more.
      pair_factor: of the loss of pairs.
      sft_factor: of the better response's cross-entropy, the mean over its tokens.
      image_factor: of the loss of the better response under its image against the same under another one.
      image_term: that other image. "cropped": a small part of the own one, as in mDPO. "noised": the own one under
        noise, and what the model would then say in place of each token is the worse response, as in POVID.
      crop: largest part of an image that "cropped" shows, as a share of its area.
      noise_step: of 1,000; how much noise "noised" adds.
      anchor_factor: of the loss that makes the better response more likely by itself, as in mDPO.
      anchor: that beta times the better response's score is to reach there.
    """

    data: Path | None = fingerprint.place(None)
    form: str | None = None
    learning_rate: float = 1e-6
    max_length: int = 2048
    loss: DpoLoss = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    length_normalized: bool = False
    changed_weight: float = 1.0
    pair_factor: float = 1.0
    sft_factor: float = 0.0
    image_factor: float = 0.0
    image_term: Literal["cropped", "noised"] = "cropped"
    crop: float = 0.2
    noise_step: int = 500
    anchor_factor: float = 0.0
    anchor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for names, holds, expected in (
            (("max_length",), lambda value: value >= 1, "at least 1"),
            (("beta", "changed_weight"), lambda value: value > 0, "more than 0"),
            (("label_smoothing",), lambda value: 0 <= value < 0.5, "0 to less than 0.5"),
            (("pair_factor", "sft_factor", "image_factor", "anchor_factor"), lambda value: value >= 0, "0 or more"),
            (("crop",), lambda value: 0 < value <= 1, "more than 0, at most 1"),
            (("noise_step",), lambda value: 0 <= value < NOISE_STEPS, f"0 to {NOISE_STEPS - 1}"),
        ):
            for name in names:
                if not holds(getattr(self, name)):
                    raise InputError(f"dpo.{name}: expected {expected}, got {getattr(self, name)!r}")
        if self.label_smoothing and self.loss != "sigmoid":
            raise InputError(f"dpo.label_smoothing is of the loss sigmoid; set it to 0 for {self.loss}")
        if not (self.pair_factor or self.sft_factor or self.image_factor or self.anchor_factor):
            raise InputError("dpo: all factors are 0, which leaves nothing to learn; set dpo.pair_factor")

    @property
    def shows_crops(self) -> bool:
        """Whether a part of each image is shown, too."""
        return self.image_factor > 0 and self.image_term == "cropped"

    @property
    def shows_noise(self) -> bool:
        """Whether each image is shown under noise, too."""
        return self.image_factor > 0 and self.image_term == "noised"
