"""Writes a checkpoint that others load: llava-hf for transformers, or the original LLaVA layout.

Weights that were not trained are copied from the base checkpoint bit for bit; trained ones are rounded to the type
their tensor has there. So an export differs from its base in what was learned and in nothing else.
"""

import dataclasses
import functools
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from vigor_jax.data.text.conversation import Template
from vigor_jax.disk import check_room, naming
from vigor_jax.errors import InputError
from vigor_jax.hf import config as hf_config
from vigor_jax.hf import names
from vigor_jax.hf.image_settings import preprocessing_to_hf
from vigor_jax.hf.load import IDENTITY_BIAS, IDENTITY_WEIGHT, Checkpoint
from vigor_jax.hf.names import Layout
from vigor_jax.hf.processor_files import write_hf_files, write_json, write_original_files
from vigor_jax.hf.vocabulary import Vocabulary, exported_vocabulary
from vigor_jax.hf.weights.tensor_files import TensorWriter
from vigor_jax.json_fields import read_json
from vigor_jax.models.llava import LlavaConfig

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """How a checkpoint is written.

    Attributes:
      layout: "llava-hf" for transformers, "llava" for the original code; the base checkpoint's own by default.
      dtype: type of every tensor; by default each has the type it has in the base checkpoint.
      shard_bytes: largest size of one weights file.
    """

    layout: Layout | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    shard_bytes: int = 5_000_000_000


VOCAB_TENSORS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


def export_checkpoint(
    checkpoint: Checkpoint,
    params: Mapping[str, jax.Array],
    out: Path,
    *,
    layout: Layout | None = None,
    dtype: Any = None,
    shard_bytes: int = ExportConfig.shard_bytes,
    more_files: Mapping[str, dict[str, Any]] | None = None,
    template: Template | None = None,
) -> None:
    """Writes the checkpoint; the directory appears under its name only when it is complete.

    Every process must call this with the same arguments; process 0 writes.

    Args:
      checkpoint: the checkpoint that training began with.
      params: what was trained, by dotted path, layers stacked or apart; anything else is copied from `checkpoint`.
      out: a directory that does not exist or is empty.
      layout: of the output; the source's own by default.
      dtype: of every tensor in the output; by default each keeps the type it has in `checkpoint`.
      shard_bytes: largest size of one weights file.
      more_files: JSON objects to put beside the weights, by file name.
      template: conversation format that the model was trained with; a llava-hf export gets a chat template that writes
        it. By default the source's own chat template is copied, if it has one.

    Raises:
      InputError: `out` has something in it, or the disk has no room for the checkpoint.
    """
    layout = layout or checkpoint.layout
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"export: {out} exists already; remove it or choose another directory")
    stored = [checkpoint.tensors[entry.name] for entry in names.entries(checkpoint.config)]
    sizes = (math.prod(each.shape) * np.dtype(dtype or each.dtype).itemsize for each in stored)
    check_room(out, sum(sizes), "the exported model")
    with naming(out):
        _write(checkpoint, params, out, layout, dtype, shard_bytes, more_files or {}, template)


def _write(
    checkpoint: Checkpoint,
    params: Mapping[str, jax.Array],
    out: Path,
    layout: Layout,
    dtype: Any,
    shard_bytes: int,
    more_files: Mapping[str, dict[str, Any]],
    template: Template | None,
) -> None:
    partial = out.with_name(f".{out.name}.partial")
    writes = jax.process_index() == 0
    if writes:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    if layout == "llava" and not checkpoint.tokenizer.restarts_after_image:
        logger.warning(
            "export: the original code puts a token before the text that follows an image, which the tokenizer of %s "
            "does not: it will ask this model otherwise than it was trained; the layout llava-hf asks as trained",
            checkpoint.directory,
        )
    vocabulary = exported_vocabulary(checkpoint, layout)
    config = vocabulary.config
    tensors = _tensors(checkpoint, params, config, None if dtype is None else np.dtype(dtype))
    if layout == "llava-hf":
        if config.projector == "linear":
            tensors = _with_identity(tensors, config)
        kind = _write_weights(partial if writes else None, tensors, lambda name: name, shard_bytes)
        if writes:
            write_json(partial / "config.json", _hf_json(checkpoint, vocabulary, kind))
            write_hf_files(checkpoint, vocabulary, partial, template)
    else:
        tower = _write_original(checkpoint, params, config, tensors, partial if writes else None, out, shard_bytes)
        if writes:
            write_json(partial / "config.json", tower)
            write_original_files(checkpoint, vocabulary, partial)
    if writes:
        for name, value in more_files.items():
            write_json(partial / name, value)
        if out.exists():
            out.rmdir()
        os.replace(partial, out)


def _tensors(
    checkpoint: Checkpoint, params: Mapping[str, jax.Array], config: LlavaConfig, dtype: np.dtype | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor as it will be on disk, under its canonical name, one at a time."""
    for entry in names.entries(checkpoint.config):
        stored = checkpoint.tensors[entry.name]
        if entry.path in params:
            value = _fetch(params[entry.path], entry.layer, entry.axes)
        elif entry.unstacked_path in params:
            value = _fetch(params[entry.unstacked_path], None, entry.axes)
        else:
            value = stored.read()
        if entry.name in VOCAB_TENSORS:
            value = _fit_vocabulary(value, config.text.vocab_size)
        yield entry.name, np.ascontiguousarray(value.astype(dtype or stored.dtype, copy=False))


def _fetch(value: jax.Array, layer: int | None, axes: names.Axes) -> np.ndarray:
    """One layer of a parameter on this host, gathered from wherever its parts are, its axes as on disk."""
    sharding = value.sharding
    if isinstance(sharding, NamedSharding):
        value = _gather(NamedSharding(sharding.mesh, P()), layer is not None)(value, layer)
    elif layer is not None:
        value = value[layer]
    return np.asarray(_turn_back(axes, value.sharding)(value))


@functools.cache
def _gather(sharding: NamedSharding, one_layer: bool) -> Callable[[jax.Array, int | None], jax.Array]:
    return jax.jit(lambda value, layer: value[layer] if one_layer else value, out_shardings=sharding)


@functools.cache
def _turn_back(axes: names.Axes, sharding: Sharding) -> Callable[[jax.Array], jax.Array]:
    """On the device, where it is ten times faster than NumPy; apart from `_gather`, or XLA on CPU is no faster."""
    return jax.jit(lambda value: value.transpose(np.argsort(axes)), out_shardings=sharding)


def _fit_vocabulary(value: np.ndarray, rows: int) -> np.ndarray:
    """Cuts rows off, or appends the mean row, which is what both codes give a token that was never seen."""
    missing = rows - value.shape[0]
    if missing <= 0:
        return value[:rows]
    mean = value.astype(np.float32).mean(0, keepdims=True).astype(value.dtype)
    return np.concatenate([value, np.repeat(mean, missing, axis=0)])


def _with_identity(tensors: Iterator[tuple[str, np.ndarray]], config: LlavaConfig) -> Iterator[tuple[str, np.ndarray]]:
    """v1.0's linear projector in llava-hf's two slots: itself, then a layer that changes nothing (bit-exact)."""
    for name, value in tensors:
        yield name, value
        if name == "multi_modal_projector.linear_1.bias":
            yield IDENTITY_WEIGHT, np.eye(config.text.hidden_size, dtype=value.dtype)
            yield IDENTITY_BIAS, np.zeros(config.text.hidden_size, value.dtype)


def _write_weights(
    directory: Path | None,
    tensors: Iterator[tuple[str, np.ndarray]],
    rename: Callable[[str], str],
    shard_bytes: int,
) -> str:
    """Writes the tensors and returns the type's name; a process that does not write walks along for the gathering."""
    kind = "float32"
    if directory is None:
        for _ in tensors:
            pass
        return kind
    with TensorWriter(directory, shard_bytes) as writer:
        for name, value in tensors:
            if name == "language_model.model.norm.weight":
                kind = value.dtype.name
            writer.add(rename(name), value)
    return kind


def _hf_json(checkpoint: Checkpoint, vocabulary: Vocabulary, kind: str) -> dict[str, Any]:
    value = hf_config.to_hf(vocabulary.config, kind, vocabulary.pad_id)
    value["text_config"] |= {
        "bos_token_id": checkpoint.tokenizer.bos_id,
        "eos_token_id": checkpoint.tokenizer.eos_id,
        "pad_token_id": vocabulary.pad_id,
    }
    return value


def _write_original(
    checkpoint: Checkpoint,
    params: Mapping[str, jax.Array],
    config: LlavaConfig,
    tensors: Iterator[tuple[str, np.ndarray]],
    directory: Path | None,
    out: Path,
    shard_bytes: int,
) -> dict[str, Any]:
    """Weights in the original layout, and its config.json. The tower goes where the source had it: among the weights
    if it was there, else into a directory of its own."""
    rename = functools.partial(names.original_name, config=config)
    before = read_json(checkpoint.directory / "config.json") if checkpoint.layout == "llava" else {}
    inside = any(stored.name.startswith(names.ORIGINAL_TOWER) for stored in checkpoint.tensors.values())
    tower: list[tuple[str, np.ndarray]] = []

    def without_tower() -> Iterator[tuple[str, np.ndarray]]:
        for name, value in tensors:
            if inside or not name.startswith("vision_tower."):
                yield name, value
            else:
                tower.append((name.removeprefix("vision_tower."), value))

    kind = _write_weights(directory, without_tower(), rename, shard_bytes)
    place = str(before.get("mm_vision_tower", ""))
    if not inside and directory is not None:
        (directory / "vision_tower").mkdir()
        with TensorWriter(directory / "vision_tower", shard_bytes) as writer:
            for name, value in tower:
                writer.add(name, value)
        write_json(directory / "vision_tower" / "config.json", hf_config.to_clip(config.vision))
        image_processor = preprocessing_to_hf(dataclasses.replace(checkpoint.preprocessing, pad=False))
        write_json(directory / "vision_tower" / "preprocessor_config.json", image_processor)
    trained = any(path.startswith("vision_tower.") for path in params)
    if not inside and (trained or place not in hf_config.KNOWN_TOWERS):
        # The original code looks for a path that exists; ours also finds the directory beside the weights.
        place = str((out / "vision_tower").resolve())
    after = hf_config.to_original(config, kind, place, checkpoint.preprocessing)
    return after | {key: before[key] for key in before if key not in after}
