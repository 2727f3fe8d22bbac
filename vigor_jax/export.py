"""Takes a checkpoint home: a directory that transformers (`llava-hf`) or the original LLaVA code (`llava`) loads.

    python -m vigor_jax.export --checkpoint runs/NAME/checkpoints/sft --out DIR --layout llava-hf

A directory with a config.json is converted from one layout to the other. A LoRA adapter, trained here or elsewhere, is
written alone (`peft`, `llava-lora`) or merged into its base (docs/lora.md). A reward model of preferences brings its
head along, in the file `reward_head`. What a run has evaluated brings its card along, in README.md (docs/card.md).
"""

import dataclasses
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vigor_jax import cli
from vigor_jax.errors import InputError
from vigor_jax.hf.options import ExportConfig
from vigor_jax.parallel.config import Compiled, DistributedConfig


@dataclasses.dataclass(frozen=True)
class ExportCommand(ExportConfig):
    """Options of the command.

    Attributes:
      checkpoint: checkpoints of a training stage; or a LLaVA checkpoint of either layout or a LoRA adapter, a directory
        or its name on the Hub.
      out: a directory that does not exist yet or is empty.
      base: the checkpoint that training began with, or that the adapter is for, if it is no longer where it was: a
        directory or its name on the Hub.
      vision_tower: directory, or name on the Hub, of the CLIP tower of an original checkpoint that does not bring it.
      distributed: how processes find each other.
      compiled: where compiled programs are kept for the next command: a folder, by default in the user's cache
        (docs/performance.md); off: nowhere.
    """

    checkpoint: str | Path = dataclasses.field(kw_only=True)
    out: Path = dataclasses.field(kw_only=True)
    base: str | Path | None = None
    vision_tower: str | Path | None = None
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    compiled: Compiled = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    cli.show_progress()
    config = cli.parse(ExportCommand, arguments, description=__doc__ or "")
    from vigor_jax.parallel.compilation_cache import keep_compiled  # JAX, which --help need not wait for
    from vigor_jax.parallel.sharding import join_processes

    join_processes(config.distributed)
    keep_compiled(config.compiled)
    export_to(config)


def export_to(config: ExportCommand) -> None:
    """Writes the model to `config.out`.

    Raises:
      InputError: there is no such checkpoint, or `config.out` has something in it.
    """
    from vigor_jax.pipeline.export import export_any  # brings JAX, which --help need not wait for

    export_any(config, config.checkpoint, config.out, base=config.base, vision_tower=config.vision_tower)


def export_model(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    layout: Literal["llava-hf", "llava", "peft", "llava-lora"] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    base: str | os.PathLike[str] | None = None,
    vision_tower: str | os.PathLike[str] | None = None,
) -> Path:
    """Writes a model that transformers or the original LLaVA code loads.

    Args:
      checkpoint: checkpoints of a training stage, a LLaVA checkpoint of either layout, or a LoRA adapter.
      out: a directory that does not exist yet or is empty.
      layout: by default that of the checkpoint that training began with; where an adapter was trained, "peft".
      dtype: type that the weights are stored in; by default as they were.
      base: the checkpoint that training began with, or that the adapter is for, if it is no longer where it was.
      vision_tower: directory, or name on the Hub, of the CLIP tower of an original checkpoint that does not bring it.

    Returns:
      `out`.

    Raises:
      InputError: there is no such checkpoint, or `out` has something in it.
    """
    given: dict[str, str | None] = {"layout": layout, "dtype": dtype}
    places = {"checkpoint": checkpoint, "out": out, "base": base, "vision_tower": vision_tower}
    for name, place in places.items():
        if not isinstance(place, str | os.PathLike) and (place is not None or name in ("checkpoint", "out")):
            raise InputError(f"export: {name}: expected a path, got {type(place).__name__}")
        # A name on the Hub is a str, never a Path, and never begins with a dot.
        given[name] = place if isinstance(place, str | None) else os.path.join(".", place)
    arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
    export_to(cli.parse(ExportCommand, arguments, description=""))
    return Path(out)


class _Module(types.ModuleType):
    """`vigor_jax.export` is this module and, in the public API, a function: the module can be called as that."""

    def __call__(self, *args: Any, **kwargs: Any) -> Path:
        return export_model(*args, **kwargs)


sys.modules[__name__].__class__ = _Module

if __name__ == "__main__":
    cli.run(main)
