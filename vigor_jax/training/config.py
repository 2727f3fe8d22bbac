"""What every training has as options, and those of supervised fine-tuning."""

import dataclasses
from pathlib import Path
from typing import Literal, TypeAlias

from vigor_jax import fingerprint
from vigor_jax.data.text.conversation import check_template
from vigor_jax.errors import InputError
from vigor_jax.models.lora_config import LoraConfig

DpoLoss: TypeAlias = Literal["sigmoid", "ipo", "hinge"]
Kl: TypeAlias = Literal["k1", "k3"]
# Most that the controller of the KL factor lets one step count for (Ziegler et al. 2019, section 2.2).
MOST_KL_ERROR = 0.2
# Of the diffusion whose noise images get (POVID).
NOISE_STEPS = 1000
# Keys of `models.layers.REMAT_POLICIES`, from the fastest to the smallest.
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Fine-tuning on any data; the defaults are LLaVA's and, where it speaks, ViGoR's (but for its 2 epochs).

    Attributes:
      images: where the images that the data names are: a folder, tar shards or Parquet (docs/images.md).
      skip_bad: leave rows out that cannot be trained on, with their number, rather than refuse the data.
      template: conversation format; by default `model.template`.
      epochs: passes over the data.
      batch_size: examples an update, over all devices.
      accumulate: parts that a batch is computed in, one after the other; the update stays the same.
      learning_rate: peak, reached after the warm-up, from where a cosine falls to 0.
      warmup_ratio: share of all updates in which the rate rises linearly from 0.
      weight_decay: decoupled, on everything but biases and norms.
      beta1: AdamW's decay of the mean gradient.
      beta2: AdamW's decay of the mean square.
      eps: AdamW's denominator floor.
      max_grad_norm: longer gradients are scaled down to this norm.
      bucket: lengths are padded to multiples of it, so that few shapes are ever compiled.
      freeze: what is not trained, each a beginning of dotted parameter paths or a regular expression for whole ones;
        with `lora` everything is, but the adapter and `lora.also`.
      lora: train a low-rank adapter in place of the weights: its options are rank, alpha, target, also and rslora
        (docs/lora.md).
      remat: what the decoder's layers keep for the backward pass, a key of `models.layers.REMAT_POLICIES`.
      seed: of the data's order.
      save_every: updates between checkpoints.
      keep: how many of the newest checkpoints stay.
      log_every: updates between TensorBoard points; `metrics/*.jsonl` has every update.
    """

    images: str | None = fingerprint.place(None)
    skip_bad: bool = fingerprint.neutral(False)
    template: str | None = None
    epochs: int = 1
    batch_size: int = 32
    accumulate: int = fingerprint.neutral(1)
    learning_rate: float = 2e-5
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    bucket: int = fingerprint.neutral(128)
    freeze: tuple[str, ...] = ("vision_tower",)
    lora: LoraConfig | None = fingerprint.optional()
    remat: str = fingerprint.neutral("full")
    seed: int = 0
    save_every: int = fingerprint.neutral(500)
    keep: int = fingerprint.neutral(2)
    log_every: int = fingerprint.neutral(10)

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "accumulate", "bucket", "save_every", "keep", "log_every")
        for names, holds, expected in (
            (counts, lambda value: value >= 1, "at least 1"),
            (("learning_rate", "eps", "max_grad_norm"), lambda value: value > 0, "more than 0"),
            (("weight_decay", "seed"), lambda value: value >= 0, "0 or more"),
            (("warmup_ratio",), lambda value: 0 <= value <= 1, "0 to 1"),
            (("beta1", "beta2"), lambda value: 0 <= value < 1, "0 to less than 1"),
            (("remat",), REMAT.__contains__, f"one of {', '.join(REMAT)}"),
        ):
            for name in names:
                if not holds(getattr(self, name)):
                    raise InputError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        check_template(self.template, "template")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"batch_size {self.batch_size} does not divide into accumulate {self.accumulate} equal parts; "
                "change either"
            )


@dataclasses.dataclass(frozen=True)
class SftConfig(TrainingConfig):
    """Supervised fine-tuning on conversations: what `TrainingConfig` says, and the following.

    Attributes:
      data: conversations in LLaVA's format.
      max_length: longest example in tokens, image tokens included; longer ones lose text at their end.
      loss_chunk: positions of a row whose logits may exist at a time.
      pack: examples that share a row, on the average, to spare padding; the update stays the same. 1 packs nothing.
    """

    data: Path | None = fingerprint.place(None)
    max_length: int = 2048
    loss_chunk: int = fingerprint.neutral(128)
    pack: int = fingerprint.neutral(1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_length", "loss_chunk", "pack"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)!r}")
        if self.batch_size % (self.accumulate * self.pack):
            raise InputError(
                f"batch_size {self.batch_size} does not divide into accumulate {self.accumulate} parts of rows of pack "
                f"{self.pack} examples; change one of them"
            )
