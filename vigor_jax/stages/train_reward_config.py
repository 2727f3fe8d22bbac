"""Training of the reward model: the options."""

import dataclasses
from pathlib import Path
from typing import Literal

from vigor_jax import fingerprint
from vigor_jax.data.batches.tree_sequences import Per
from vigor_jax.errors import InputError
from vigor_jax.training.config import ExampleTrainingConfig


@dataclasses.dataclass(frozen=True)
class TrainRewardConfig(ExampleTrainingConfig):
    """Fine-tuning of the reward model: what `ExampleTrainingConfig` says, and the following.

    Attributes:
      annotations: judged descriptions, see docs/artifacts.md.
      images: where the images that they name are: a folder, tar shards or Parquet (docs/images.md).
      epochs: passes over the data; the paper's 5.
      batch_size: rows an update, over all devices: images in branch form, sentences in separate form.
      max_length: most tokens of a row; an image whose descriptions do not fit gets several rows.
      held_out: share of the images that is not trained on but evaluated after each epoch, chosen by their names.
      form: "branches" is one row an image, "separate" one row a sentence; the loss is the same.
      balance: "weighted" weighs good and bad answers inversely to how many there are of each.
      per: judge every sentence, or the description as a whole (the holistic ablation).
      question: what is asked; "" for the paper's words.
    """

    annotations: Path | None = fingerprint.place(None)
    epochs: int = 5
    held_out: float = 0.05
    form: Literal["branches", "separate"] = "branches"
    balance: Literal["none", "weighted"] = "none"
    per: Per = "sentence"
    question: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out: expected 0 to less than 1, got {self.held_out}")
