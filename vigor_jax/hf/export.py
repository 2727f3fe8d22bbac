"""Writes a checkpoint that others load: for transformers, or in another layout of the model's family.

Weights that were not trained are copied from the base checkpoint bit for bit; trained ones are rounded to the type
their tensor has there. So an export differs from its base in what was learned and in nothing else.
"""

import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vigor_jax.data.text.conversation import Template
from vigor_jax.disk import check_room, naming
from vigor_jax.errors import InputError
from vigor_jax.hf.family import Checkpoint, Export
from vigor_jax.hf.options import ExportConfig
from vigor_jax.hf.processor_files import write_json
from vigor_jax.hf.reward_head import FILE as HEAD_FILE
from vigor_jax.hf.reward_head import RewardHead, write_head
from vigor_jax.hf.weights.merged import Rounding
from vigor_jax.hf.write_adapter import write_adapter
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.parallel.processes import is_first

logger = logging.getLogger(__name__)


def export_checkpoint(
    checkpoint: Checkpoint,
    params: Mapping[str, jax.Array],
    out: Path,
    *,
    layout: str | None = None,
    dtype: Any = None,
    shard_bytes: int = ExportConfig.shard_bytes,
    more_files: Callable[[Rounding], Mapping[str, dict[str, Any]]] | None = None,
    template: Template | None = None,
    lora: LoraConfig | None = None,
    head: RewardHead | None = None,
) -> None:
    """Writes the checkpoint; the directory appears under its name only when it is complete.

    Every process must call this with the same arguments; process 0 writes.

    Args:
      checkpoint: the checkpoint that training began with.
      params: what was trained, by dotted path, layers stacked or apart; anything else is copied from `checkpoint`.
      out: a directory that does not exist or is empty.
      layout: of the output; the source's own by default, of an adapter PEFT's.
      dtype: of every tensor in the output; by default each keeps the type it has in `checkpoint`.
      shard_bytes: largest size of one weights file.
      more_files: JSON objects to put next to the weights, by file name; is told what rounding cost.
      template: conversation format that the model was trained with; a llava-hf export gets a chat template that writes
        it. By default the source's own chat template is copied, if it has one.
      lora: sizes of the adapter among `params`, if there is one; that of `checkpoint` is taken if nothing was trained.
      head: of a reward model, which gets a file next to the weights.

    Raises:
      InputError: `out` has something in it, the disk has no room for the checkpoint, or its family has no such layout.
    """
    if checkpoint.adapter and lora is None:
        lora, own = checkpoint.adapter.lora, checkpoint.adapter.read(checkpoint.entries)
        params = {**{path: jnp.asarray(value) for path, value in own.items()}, **params}
    layout = find_layout(layout, checkpoint, lora)
    is_merged = layout in checkpoint.family.layouts
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"export: {out} exists already; remove it or choose another directory")
    stored = [checkpoint.tensors[entry.name] for entry in checkpoint.entries] if is_merged else params.values()
    sizes = (math.prod(each.shape) * np.dtype(dtype or each.dtype).itemsize for each in stored)
    check_room(out, sum(sizes), "the exported model" if is_merged else "the exported adapter")
    kind = None if dtype is None else np.dtype(dtype)
    export = Export(checkpoint, params, layout, kind, shard_bytes, template, lora)
    with naming(out):
        _write(export, out, more_files or (lambda _: {}), head)
    if (share := export.rounding.share) is not None:
        kind = export.dtype or checkpoint.dtype
        advice = "" if round(100 * share) >= 99 else "; dtype float32, or the layout peft, loses nothing"
        logger.info(
            "export: the adapter is merged into weights of %s, in which %.0f%% of its update survived the rounding%s",
            kind.name, 100 * share, advice,
        )  # fmt: skip


def find_layout(layout: str | None, checkpoint: Checkpoint, lora: LoraConfig | None) -> str:
    """The layout that something is written in.

    Args:
      layout: as a user gave it.
      checkpoint: what training begins with.
      lora: the adapter, which can be written alone, if there is one.

    Raises:
      InputError: it cannot be written in that layout.
    """
    family = checkpoint.family
    alone = tuple(checkpoint.adapter_layouts) if lora else ()
    layout = layout or (*alone, checkpoint.layout)[0]
    if layout in family.adapter_layouts and not lora:
        raise InputError(
            f"layout: {layout} is for adapters, and none was trained here; give {' or '.join(family.layouts)}"
        )
    if layout not in (known := family.layouts + alone):
        raise InputError(f"layout: {checkpoint.directory} can be written as {' or '.join(known)}, got {layout!r}")
    if lora and layout in alone:
        family.check_adapter(layout, checkpoint, lora)
    return layout


def _write(
    export: Export,
    out: Path,
    more_files: Callable[[Rounding], Mapping[str, dict[str, Any]]],
    head: RewardHead | None,
) -> None:
    partial = out.with_name(f".{out.name}.partial")
    writes = is_first()
    if writes:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    family = export.checkpoint.family
    write = family.write if export.layout in family.layouts else write_adapter
    write(export, partial if writes else None, out)
    if writes:
        for name, value in more_files(export.rounding).items():
            write_json(partial / name, value)
        if head:
            write_head(head, partial / HEAD_FILE)
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
