"""Captions images with a LLaVA checkpoint, one JSON line a caption.

    python -m vigor_jax.caption --model DIR --images DIR_OR_FILE --out captions.jsonl --sampling.temperature 0

A line has `image` (its path below the folder), `prompt`, `text`, `mean_logprob`, `num_tokens` and `finish_reason`, and
`candidate` where several are drawn. The same command again goes on where it was stopped; the settings stand beside the
captions, in `captions.jsonl.settings.json`.
"""

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from vigor_jax import cli
from vigor_jax.data.conversation import TEMPLATES, encode_prompt
from vigor_jax.data.images import Preprocessing, find_images, load_image, preprocess
from vigor_jax.decoding import NOT_IN_RESULTS
from vigor_jax.errors import InputError
from vigor_jax.hf.load import load_llava, open_checkpoint
from vigor_jax.sampling import Completion, Request, Sampler, SamplingConfig
from vigor_jax.sharding import DistributedConfig, MeshConfig, join_processes, make_mesh

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CaptionCommand:
    """Options of the command.

    Attributes:
      model: a llava-hf directory, or one of the original LLaVA code.
      images: one image, or a folder, whose images are found however deep they lie.
      out: JSON lines; captions that are there already are kept, and not made again.
      prompt: what is asked about each image.
      template: the conversation format that the model was trained with.
      vision_tower: directory of the CLIP tower of an original checkpoint that does not bring it.
      dtype: type to compute in; by default float32 if the checkpoint is stored so, else bfloat16.
      sampling: how captions are drawn.
      mesh: how the devices are arranged; a model too large for one device is split over `tensor`.
      distributed: how processes find each other.
    """

    model: Path
    images: Path
    out: Path
    prompt: str = "Describe this image in detail."
    template: Literal["v0", "llava_v0", "v1", "vicuna_v1", "llava_v1", "plain"] = "v1"
    vision_tower: Path | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    sampling: SamplingConfig = dataclasses.field(default_factory=lambda: SamplingConfig(num_candidates=1))
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=-1, fsdp=1))
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    config = cli.parse(CaptionCommand, arguments, description=__doc__ or "")
    join_processes(config.distributed)
    caption(config)


def caption(config: CaptionCommand) -> None:
    """Captions all images that `config.out` does not have yet.

    Raises:
      InputError: no images, or `config.out` was written with other settings.
    """
    images = find_images(config.images)
    source = open_checkpoint(config.model, config.vision_tower)
    is_writer = jax.process_index() == 0
    done = _resume(config) if is_writer else set()
    todo = np.array([name not in done for name in images])
    if jax.process_count() > 1:  # only the writer need see the file
        todo = multihost_utils.broadcast_one_to_all(todo)
    names = [name for name, wanted in zip(images, todo, strict=True) if wanted]

    dtype = config.dtype or ("float32" if source.dtype == np.float32 else "bfloat16")
    if dtype == "float16" and jax.default_backend() != "gpu":
        raise InputError(f"dtype float16 needs a GPU, and this is a {jax.default_backend()}; take bfloat16 or float32")
    mesh, template = make_mesh(config.mesh), TEMPLATES[config.template]
    prompt_ids = encode_prompt(
        source.tokenizer,
        template,
        config.prompt,
        image_token_id=source.config.image_token_id,
        num_image_tokens=source.config.num_image_tokens,
    )
    requests = (
        Request(name, prompt_ids, partial(_pixels, images[name], source.preprocessing), config.prompt) for name in names
    )
    with tqdm(
        total=len(images), initial=len(images) - len(names), unit="image", dynamic_ncols=True, disable=not is_writer
    ) as bar:
        if not names:
            return
        model = load_llava(source, mesh=mesh, dtype=dtype, scan=False)
        sampler = Sampler(model, source.tokenizer, config.sampling, mesh, template.stop)
        if not is_writer:
            for _ in sampler.generate(requests):
                pass
            return
        with config.out.open("ab") as out:
            for completions in sampler.generate(requests):
                # One write an image, so that what a kill can leave half-written is the last image at most.
                out.write("".join(_line(completion, config) for completion in completions).encode())
                out.flush()
                bar.update()


def _pixels(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    return preprocess(load_image(path), preprocessing)


def _line(completion: Completion, config: CaptionCommand) -> str:
    several = config.sampling.num_candidates > 1
    record = {
        "image": completion.image_id,
        "prompt": config.prompt,
        **({"candidate": completion.candidate} if several else {}),
        "text": completion.text,
        "mean_logprob": completion.mean_logprob,
        "num_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def _settings(config: CaptionCommand) -> dict[str, Any]:
    """What decides on the captions, by the names of the options."""
    sampling = {f"sampling.{name}": value for name, value in dataclasses.asdict(config.sampling).items()}
    return {
        "model": str(config.model.resolve()),
        **{name: getattr(config, name) for name in ("prompt", "template", "dtype")},
        **{name: value for name, value in sampling.items() if name.split(".")[1] not in NOT_IN_RESULTS},
    }


def _resume(config: CaptionCommand) -> set[str]:
    """The images whose captions are complete; what a kill left behind them is cut off.

    The settings are written before the first caption, and must be the same ever after.
    """
    settings, beside = _settings(config), config.out.with_name(config.out.name + ".settings.json")
    if not config.out.exists() or not config.out.stat().st_size:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return set()
    if not beside.exists():
        raise InputError(
            f"{config.out} exists and was not written by this command ({beside.name} is missing); choose another --out"
        )
    before = json.loads(beside.read_text(encoding="utf-8"))
    if before != settings:
        changed = [
            f"{key} {before.get(key)!r} is now {value!r}" for key, value in settings.items() if before.get(key) != value
        ]
        raise InputError(f"{config.out} was written with other settings ({'; '.join(changed)}); choose another --out")

    done, end, offset = set(), 0, 0
    lines = config.out.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        offset += len(line)
        try:
            name = json.loads(line)["image"]
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise InputError(
                    f"{config.out}:{number}: expected a caption as JSON; mend or remove the line"
                ) from None
            break
        if line.endswith(b"\n") and number % config.sampling.num_candidates == 0:
            done.add(name)
            end = offset
    os.truncate(config.out, end)
    return done


if __name__ == "__main__":
    cli.run(main)
