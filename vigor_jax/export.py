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
from vigor_jax.hf import reward_head
from vigor_jax.hf.export import export_checkpoint
from vigor_jax.hf.hub import local_directory
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.options import ExportConfig
from vigor_jax.hf.other_folders import refuse_adapter
from vigor_jax.hf.peft import is_adapter
from vigor_jax.inference.response_rewards import HEAD
from vigor_jax.json_fields import Fields
from vigor_jax.parallel.config import DistributedConfig, MeshConfig
from vigor_jax.parallel.processes import is_first
from vigor_jax.parallel.sharding import join_processes, make_mesh
from vigor_jax.stages.export import export
from vigor_jax.stages.exported_readme import carry_card_of
from vigor_jax.stages.stage import EXPORT
from vigor_jax.training.checkpoint import latest_step, read_record, saved_params
from vigor_jax.training.heads import head_paths


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
    """

    checkpoint: str | Path = dataclasses.field(kw_only=True)
    out: Path = dataclasses.field(kw_only=True)
    base: str | Path | None = None
    vision_tower: str | Path | None = None
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    cli.show_progress()
    config = cli.parse(ExportCommand, arguments, description=__doc__ or "")
    join_processes(config.distributed)
    export_to(config)


def export_to(config: ExportCommand) -> None:
    """Writes the model to `config.out`.

    Raises:
      InputError: there is no such checkpoint, or `config.out` has something in it.
    """
    checkpoint = local_directory(config.checkpoint)
    if is_adapter(checkpoint) or (checkpoint / "config.json").exists():
        on_base = is_adapter(checkpoint) and config.base is not None
        source = (
            open_checkpoint(config.base or "", config.vision_tower, checkpoint)
            if on_base
            else open_checkpoint(checkpoint, config.vision_tower)
        )
        has_head = reward_head.head_file(source.newest) is not None
        export_checkpoint(
            source,
            {},
            config.out,
            layout=config.layout,
            dtype=config.dtype,
            shard_bytes=config.shard_bytes,
            head=reward_head.read_head(source.newest, source.config.text.hidden_size) if has_head else None,
        )
        if is_first() and checkpoint.name == EXPORT:
            carry_card_of(checkpoint.parent, config.out)
        return
    step = latest_step(checkpoint)
    if step is None:
        refuse_adapter(checkpoint)
        raise InputError(
            f"{checkpoint}: neither a LLaVA checkpoint (config.json) nor one of a training stage; "
            "give runs/NAME/checkpoints/sft or a model's directory"
        )
    record = Fields(read_record(checkpoint, step), checkpoint / str(step) / "record" / "record.json")
    base = local_directory(config.base or record.text("base", "") or "unknown")
    if not base.is_dir():
        raise InputError(f"export: the base checkpoint {base} is not there; say where it is now with --base")
    # A language model alone was trained with what an adapter brings.
    above = None if config.base else record.text("adapter", None)
    if above and not local_directory(above).is_dir():
        raise InputError(f"export: the adapter {above} that training continued is not there; give its folder as --base")
    source = open_checkpoint(base, config.vision_tower, above)
    head = HEAD if head_paths(HEAD) <= saved_params(checkpoint, step) else ""
    export(config, source, checkpoint, config.out, make_mesh(MeshConfig()), head=head)
    if is_first():
        carry_card_of(checkpoint.resolve().parents[1], config.out, checkpoint.name, step)


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
