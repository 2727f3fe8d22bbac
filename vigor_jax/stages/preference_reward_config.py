"""Training of a reward model on preferences: the options."""

import dataclasses
from pathlib import Path

from vigor_jax import fingerprint
from vigor_jax.data.text.quality_question import find_question
from vigor_jax.errors import InputError
from vigor_jax.training.config import TrainingConfig

NAME = "train_preference_reward"


@dataclasses.dataclass(frozen=True)
class PreferenceRewardConfig(TrainingConfig):
    """Training of a reward model on preferences: what `TrainingConfig` says, and the following.

    Attributes:
      data: preferences, see docs/preferences.md; by default those that the stage pair made.
      form: how the file is written; by default it is found out.
      max_length: most tokens of a row: image, prompt and all responses, with the question behind each.
      held_out: share of the images that is not trained on but evaluated after each epoch, chosen by their names.
      question: what is asked behind each response, with {captions} where captions of the image stand, and {answer}
        where the assistant's answer begins; "" for our words, "none" asks nothing.
      captions: a file of captions of the images, which the model is told (factual augmentation): `{image: [caption,
        ...]}`, or JSON lines of `image` and `captions`.
      regularization: of the rewards' distance from 0.
    """

    data: Path | None = fingerprint.place(None)
    form: str | None = None
    max_length: int = 4096
    held_out: float = 0.05
    question: str = ""
    captions: Path | None = fingerprint.place(None)
    regularization: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < 1:
            raise InputError(f"max_length: expected at least 1, got {self.max_length!r}")
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out: expected 0 to less than 1, got {self.held_out}")
        if not self.regularization >= 0:
            raise InputError(f"regularization: expected 0 or more, got {self.regularization}")
        find_question(self.question, with_captions=self.captions is not None, section=NAME)
