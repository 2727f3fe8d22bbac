"""Which model an evaluation command asks, and how: the options."""

import dataclasses
from pathlib import Path
from typing import Literal

from vigor_jax.evaluation.answer_sampling import AnswerSampling
from vigor_jax.parallel.config import Compiled, DistributedConfig, MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedModelConfig:
    """Which model is asked, and how.

    Attributes:
      model: a llava-hf directory or one of the original LLaVA code, or its name on the Hub (docs/checkpoints.md);
        without one, saved answers are scored.
      images: the images that the questions are about: a folder, tar shards or Parquet (docs/images.md).
      template: the conversation format that the model was trained with; by default "v1" for LLaVA, "instructblip" for
        InstructBLIP.
      vision_tower: directory, or name on the Hub, of the CLIP tower of an original checkpoint that does not bring it.
      adapter: a LoRA adapter that is put on top of the model: a folder, or its name on the Hub (docs/lora.md).
      dtype: type to compute in; by default float32 if the checkpoint is stored so, else bfloat16.
      sampling: how answers are drawn.
      mesh: how the devices are arranged.
      distributed: how processes find each other.
      compiled: where compiled programs are kept for the next command: a folder, by default in the user's cache
        (docs/performance.md); off: nowhere.
    """

    model: str | Path | None = None
    images: str | None = None
    template: Literal["v0", "llava_v0", "v1", "vicuna_v1", "llava_v1", "plain", "instructblip"] | None = None
    vision_tower: str | Path | None = None
    adapter: str | Path | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    sampling: AnswerSampling = dataclasses.field(default_factory=AnswerSampling)
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=-1, fsdp=1))
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    compiled: Compiled = None
