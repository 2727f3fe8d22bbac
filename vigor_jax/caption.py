"""Captions images with a LLaVA checkpoint, one JSON line a caption.

    python -m vigor_jax.caption --model DIR --images PLACE --out captions.jsonl --sampling.temperature 0

PLACE is an image, a folder, tar shards or Parquet, local or remote (docs/images.md).

A line has `image` (its path below the folder or in its shard), `prompt`, `text`, `mean_logprob`, `num_tokens` and
`finish_reason`, and `candidate` where several are drawn. The same command again continues where it stopped; the
settings stand next to the captions, in `captions.jsonl.settings.json`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vigor_jax import cli
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.parallel.config import Compiled, DistributedConfig, MeshConfig


@dataclasses.dataclass(frozen=True)
class CaptionCommand:
    """Options of the command.

    Attributes:
      model: a llava-hf directory or one of the original LLaVA code, or its name on the Hub (docs/checkpoints.md).
      images: one image; a folder, whose images are found however deep they lie; or shards (docs/images.md).
      out: JSON lines; captions in it are kept, and not made again.
      prompt: what is asked about each image.
      template: the conversation format that the model was trained with; by default "v1" for LLaVA, "instructblip" for
        InstructBLIP.
      vision_tower: directory, or name on the Hub, of the CLIP tower of an original checkpoint that does not bring it.
      adapter: a LoRA adapter that is put on top of the model: a folder, or its name on the Hub (docs/lora.md).
      dtype: type to compute in; by default float32 if the checkpoint is stored so, else bfloat16.
      sampling: how captions are drawn.
      mesh: how the devices are arranged; a model too large for one device is split over `tensor`.
      distributed: how processes find each other.
      compiled: where compiled programs are kept for the next command: a folder, by default in the user's cache
        (docs/performance.md); off: nowhere.
    """

    model: str | Path
    images: str
    out: Path
    prompt: str = "Describe this image in detail."
    template: Literal["v0", "llava_v0", "v1", "vicuna_v1", "llava_v1", "plain", "instructblip"] | None = None
    vision_tower: str | Path | None = None
    adapter: str | Path | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    sampling: SamplingConfig = dataclasses.field(default_factory=lambda: SamplingConfig(num_candidates=1))
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=-1, fsdp=1))
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    compiled: Compiled = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    cli.show_progress()
    caption(cli.parse(CaptionCommand, arguments, description=__doc__ or ""))


def caption(config: CaptionCommand) -> None:
    """Captions all images that `config.out` does not have yet.

    Raises:
      InputError: no images, or `config.out` was written with other settings.
    """
    from vigor_jax.data.images.store import open_images  # these bring JAX and Arrow, which --help need not wait for
    from vigor_jax.hf.load import open_checkpoint
    from vigor_jax.inference.predictor import Predictor, Question
    from vigor_jax.parallel.compilation_cache import keep_compiled
    from vigor_jax.parallel.sharding import join_processes, make_mesh

    join_processes(config.distributed)
    keep_compiled(config.compiled)
    images = open_images(config.images)
    questions = [Question(name, images.file(name), config.prompt) for name in images]
    checkpoint = open_checkpoint(config.model, config.vision_tower, config.adapter)
    predictor = Predictor(checkpoint, config.template, make_mesh(config.mesh), dtype=config.dtype)
    predictor.answer(questions, config.out, config.sampling, settings={"prompt": config.prompt})


if __name__ == "__main__":
    cli.run(main)
