"""How the reward model judges: the options."""

import dataclasses
from typing import Literal

from vigor_jax import fingerprint
from vigor_jax.data.batches.tree_sequences import Per
from vigor_jax.data.text.conversation import check_template
from vigor_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class RewardModelConfig:
    """How candidates are judged.

    Attributes:
      batch_size: rows a batch, over all devices (the mesh may ask for a few more); a row holds an image and as many of
        its candidates as fit.
      max_length: most tokens of a row, questions included. The model's positions bound each path, not the row.
      bucket: rows are padded to multiples of it, so that few lengths are ever compiled.
      answer_tokens: most tokens of an answer.
      template: conversation format; by default `model.template`.
      question: what is asked; "" for the paper's words (for whole descriptions, those adapted).
      per: ask of every sentence, given those before it, or once of the whole description (the holistic ablation).
      badness: a sentence's penalty is 1 - p(good), p(good) = P("1") / (P("1") + P("0")); or 0 or 1, as the answer says.
    """

    batch_size: int = fingerprint.neutral(8)
    max_length: int = fingerprint.neutral(2048)
    bucket: int = fingerprint.neutral(128)
    answer_tokens: int = 24
    template: str | None = None
    question: str = ""
    per: Per = "sentence"
    badness: Literal["probability", "decoded"] = "probability"

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_length", "bucket", "answer_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"reward_model.{name} must be at least 1, got {getattr(self, name)}")
        check_template(self.template, "reward_model.template")
