"""Training of the reward model: the options."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from vigor_jax import fingerprint
from vigor_jax.data.batches.tree_sequences import Per
from vigor_jax.errors import InputError
from vigor_jax.training.config import TrainingConfig


@dataclasses.dataclass(frozen=True)
class AnnotationSource:
    """One of several files of judged descriptions.

    Attributes:
      name: in logs, tables and reports.
      annotations: the file, see docs/artifacts.md.
      images: where the images that it names are; by default `train_reward.images`.
      weight: of each of its answers in the loss: one of weight 2 counts as two of weight 1.
    """

    name: str
    annotations: Path = fingerprint.place()
    images: str | None = fingerprint.place(None)
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (self.name.strip() and self.name.isprintable()):
            raise InputError(f"sources: expected a name on one line, got {self.name!r}")
        if not 0 < self.weight < math.inf:
            raise InputError(f"sources: expected a weight of more than 0 for {self.name}, got {self.weight}")


@dataclasses.dataclass(frozen=True)
class TrainRewardConfig(TrainingConfig):
    """Fine-tuning of the reward model: what `TrainingConfig` says, and the following.

    Attributes:
      annotations: judged descriptions, see docs/artifacts.md.
      images: where the images that they name are: a folder, tar shards or Parquet (docs/images.md).
      sources: several files of judged descriptions in place of `annotations`, each with name, annotations, images and
        weight (docs/training.md).
      epochs: passes over the data; the paper's 5.
      batch_size: rows an update, over all devices: images in branch form, sentences in separate form.
      max_length: most tokens of a row; an image whose descriptions do not fit gets several rows.
      held_out: share of the images that is not trained on but evaluated after each epoch, chosen by their names; with
        several sources by the names alone, without folders, so that an image is held out in all of them.
      form: "branches" is one row an image, "separate" one row a sentence; the loss is the same.
      balance: "weighted" weighs good and bad answers inversely to how many there are of each.
      per: judge every sentence, or the description as a whole (the holistic ablation).
      question: what is asked; "" for the paper's words.
    """

    annotations: Path | None = fingerprint.place(None)
    sources: tuple[AnnotationSource, ...] = fingerprint.optional(())
    epochs: int = 5
    max_length: int = 2048
    held_out: float = 0.05
    form: Literal["branches", "separate"] = "branches"
    balance: Literal["none", "weighted"] = "none"
    per: Per = "sentence"
    question: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out: expected 0 to less than 1, got {self.held_out}")
        if self.max_length < 1:
            raise InputError(f"max_length: expected at least 1, got {self.max_length!r}")
        if self.sources and self.annotations:
            raise InputError("annotations, sources: one file or several of judged descriptions; give one of the two")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise InputError(f"sources: expected each name once, got {', '.join(names)}")

    @property
    def files(self) -> tuple[Path, ...]:
        """Of all judged descriptions."""
        own = (self.annotations,) if self.annotations else ()
        return tuple(source.annotations for source in self.sources) or own
