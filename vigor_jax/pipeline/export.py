"""Takes home what a training stage left, or converts a checkpoint from one layout to another."""

from pathlib import Path

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
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.processes import is_first
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.stages.export import export
from vigor_jax.stages.exported_readme import carry_card_of
from vigor_jax.stages.stage import EXPORT
from vigor_jax.training.checkpoint import latest_step, read_record, saved_params
from vigor_jax.training.heads import head_paths


def export_any(
    config: ExportConfig,
    name: str | Path,
    out: Path,
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
) -> None:
    """Writes a model.

    Args:
      config: how.
      name: checkpoints of a training stage; or a checkpoint of any layout or a LoRA adapter, a directory or its name on
        the Hub.
      out: a directory that does not exist yet or is empty.
      base: the checkpoint that training began with, or that the adapter is for, if it is no longer where it was.
      vision_tower: of an original LLaVA checkpoint that does not bring it.

    Raises:
      InputError: there is no such checkpoint, or `out` has something in it.
    """
    checkpoint = local_directory(name)
    if is_adapter(checkpoint) or (checkpoint / "config.json").exists():
        on_base = is_adapter(checkpoint) and base is not None
        source = (
            open_checkpoint(base or "", vision_tower, checkpoint)
            if on_base
            else open_checkpoint(checkpoint, vision_tower)
        )
        has_head = reward_head.head_file(source.newest) is not None
        export_checkpoint(
            source,
            {},
            out,
            layout=config.layout,
            dtype=config.dtype,
            shard_bytes=config.shard_bytes,
            head=reward_head.read_head(source.newest, source.config.text.hidden_size) if has_head else None,
        )
        if is_first() and checkpoint.name == EXPORT:
            carry_card_of(checkpoint.parent, out)
        return
    step = latest_step(checkpoint)
    if step is None:
        refuse_adapter(checkpoint)
        raise InputError(
            f"{checkpoint}: neither a LLaVA checkpoint (config.json) nor one of a training stage; "
            "give runs/NAME/checkpoints/sft or a model's directory"
        )
    record = Fields(read_record(checkpoint, step), checkpoint / str(step) / "record" / "record.json")
    below = local_directory(base or record.text("base", "") or "unknown")
    if not below.is_dir():
        raise InputError(f"export: the base checkpoint {below} is not there; say where it is now with --base")
    # A language model alone was trained with what an adapter brings.
    above = None if base else record.text("adapter", None)
    if above and not local_directory(above).is_dir():
        raise InputError(f"export: the adapter {above} that training continued is not there; give its folder as --base")
    source = open_checkpoint(below, vision_tower, above)
    head = HEAD if head_paths(HEAD) <= saved_params(checkpoint, step) else ""
    export(config, source, checkpoint, out, make_mesh(MeshConfig()), head=head)
    if is_first():
        carry_card_of(checkpoint.resolve().parents[1], out, checkpoint.name, step)
