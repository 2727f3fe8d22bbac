"""How the reward model of preferences judges: the options."""

import dataclasses
from pathlib import Path

from vigor_jax import fingerprint
from vigor_jax.data.text.conversation import check_template
from vigor_jax.data.text.quality_question import find_question
from vigor_jax.errors import InputError

NAME = "preference_reward"


@dataclasses.dataclass(frozen=True)
class PreferenceRewardStreamConfig:
    """How a reward model of preferences judges.

    Attributes:
      model: the reward model: what the stage train_preference_reward exported, or weights with LLaVA-RLHF's file
        `reward_head`; a directory or a name on the Hub. By default the one that this run trains.
      base: the model that its adapter is for, if that names none that is here.
      batch_size: rows a batch, over all devices (the mesh may ask for a few more); a row holds an image and as many of
        its candidates as fit.
      max_length: most tokens of a row, questions included. The model's positions bound each path, not the row.
      bucket: rows are padded to multiples of it, so that few lengths are ever compiled.
      template: conversation format; by default `model.template`.
      question: what is asked behind each response, as in `train_preference_reward.question`. Weights that others have
        trained need the words that these have learned.
      captions: captions of the images, for a model that was trained with such.
    """

    model: str | Path | None = None
    base: str | Path | None = None
    batch_size: int = fingerprint.neutral(8)
    max_length: int = fingerprint.neutral(4096)
    bucket: int = fingerprint.neutral(128)
    template: str | None = None
    question: str = ""
    captions: Path | None = fingerprint.place(None)

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_length", "bucket"):
            if getattr(self, name) < 1:
                raise InputError(f"{NAME}.{name}: expected at least 1, got {getattr(self, name)}")
        check_template(self.template, f"{NAME}.template")
        find_question(self.question, with_captions=self.captions is not None, section=NAME)
