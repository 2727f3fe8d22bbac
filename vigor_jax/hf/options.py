"""Which checkpoint is loaded, and how one is written: the options."""

import dataclasses
from pathlib import Path
from typing import Literal

from vigor_jax.data.text.conversation import DEFAULT_TEMPLATE, check_template


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The checkpoint to begin with.

    Attributes:
      path: a llava-hf directory or one of the original LLaVA code, or its name on the Hub (docs/checkpoints.md).
      vision_tower: directory, or name on the Hub, of the CLIP tower of an original checkpoint that does not bring it.
      dtype: type to compute in; what is trained is held in float32 in any case.
      template: the conversation format that it was trained with, a key of `data.text.conversation.TEMPLATES`.
      adapter: a LoRA adapter that is put on top of it: a folder of PEFT's or of the original LLaVA code's, or its name
        on the Hub (docs/lora.md).
    """

    path: str | Path
    vision_tower: str | Path | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    template: str = DEFAULT_TEMPLATE
    adapter: str | Path | None = None

    def __post_init__(self) -> None:
        check_template(self.template, "model.template")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """How a checkpoint is written.

    Attributes:
      layout: "llava-hf" for transformers, "llava" for the original code, or another one of the model's family; the base
        checkpoint's own by default. Where an adapter was trained, it is exported alone: as "peft" by default, or as
        "llava-lora" for the original code; another layout merges it into the weights.
      dtype: type of every tensor; by default each has the type it has in the base checkpoint.
      shard_bytes: largest size of one weights file.
    """

    layout: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    shard_bytes: int = 5_000_000_000
