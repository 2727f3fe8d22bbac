"""Writes LLaVA: llava-hf for transformers, or the original layout."""

import dataclasses
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.hf.config import to_clip
from vigor_jax.hf.family import Checkpoint, Export
from vigor_jax.hf.image_settings import preprocessing_to_hf
from vigor_jax.hf.llava.config import KNOWN_TOWERS, to_hf, to_original
from vigor_jax.hf.llava.names import IDENTITY_BIAS, IDENTITY_WEIGHT, ORIGINAL_TOWER, original_name
from vigor_jax.hf.llava.processor_files import write_hf_files, write_original_files
from vigor_jax.hf.llava.vocabulary import Vocabulary, exported_vocabulary
from vigor_jax.hf.processor_files import write_json
from vigor_jax.hf.weights.merged import write_tensors
from vigor_jax.hf.weights.safetensors_file import LazyTensor
from vigor_jax.json_fields import read_json
from vigor_jax.models.clip import ClipConfig
from vigor_jax.models.llava import LlavaConfig

logger = logging.getLogger(__name__)


def write(export: Export, directory: Path | None, out: Path) -> None:
    """Writes an export in its layout; the arguments are those of `Family.write`."""
    checkpoint = export.checkpoint
    if export.layout == "llava" and not checkpoint.tokenizer.restarts_after_image:
        logger.warning(
            "export: the original code puts a token before the text that follows an image, which the tokenizer of %s "
            "does not: it will ask this model otherwise than it was trained; the layout llava-hf asks as trained",
            checkpoint.directory,
        )
    vocabulary = exported_vocabulary(checkpoint, export.layout)
    config = vocabulary.config
    tensors = export.tensors(config.text.vocab_size)
    if export.layout == "llava-hf":
        if config.projector == "linear":
            tensors = _with_identity(tensors, config)
        kind = write_tensors(directory, tensors, lambda name: name, export.shard_bytes)
        if directory is not None:
            write_json(directory / "config.json", _hf_json(checkpoint, vocabulary, kind))
            write_hf_files(checkpoint, vocabulary, directory, export.template)
    else:
        original = _write_original(export, config, tensors, directory, out)
        if directory is not None:
            write_json(directory / "config.json", original)
            write_original_files(checkpoint, vocabulary, directory)


def _with_identity(tensors: Iterator[tuple[str, LazyTensor]], config: LlavaConfig) -> Iterator[tuple[str, LazyTensor]]:
    """v1.0's linear projector in llava-hf's two slots: itself, then a layer that changes nothing (bit-exact)."""
    size = config.text.hidden_size
    for name, value in tensors:
        yield name, value
        if name == "multi_modal_projector.linear_1.bias":
            yield IDENTITY_WEIGHT, LazyTensor((size, size), value.dtype, functools.partial(np.eye, size))
            yield IDENTITY_BIAS, LazyTensor((size,), value.dtype, functools.partial(np.zeros, size))


def _hf_json(checkpoint: Checkpoint, vocabulary: Vocabulary, kind: str) -> dict[str, Any]:
    value = to_hf(vocabulary.config, kind, vocabulary.pad_id)
    value["text_config"] |= {
        "bos_token_id": checkpoint.tokenizer.bos_id,
        "eos_token_id": checkpoint.tokenizer.eos_id,
        "pad_token_id": vocabulary.pad_id,
    }
    return value


def original_config(export: Export) -> dict[str, Any]:
    """The original layout's config.json of a model whose weights are elsewhere.

    Raises:
      InputError: as `tower_place`.
    """
    checkpoint, place = export.checkpoint, tower_place(export.checkpoint)
    if checkpoint.layout == "llava":
        return read_json(checkpoint.described_in / "config.json") | {"mm_vision_tower": place}
    kind = np.dtype(export.dtype or checkpoint.dtype).name
    return to_original(exported_vocabulary(checkpoint, "llava").config, kind, place, checkpoint.preprocessing)


def tower_place(checkpoint: Checkpoint) -> str:
    """What the original layout's config.json calls the vision tower of a model whose weights are elsewhere.

    Raises:
      InputError: it is none that the original code finds by name.
    """
    if checkpoint.layout == "llava":
        named = str(read_json(checkpoint.described_in / "config.json")["mm_vision_tower"])
        below = checkpoint.described_in / named  # a folder there is found from elsewhere by its whole path only
        return named if Path(named).exists() or not below.exists() else str(below.resolve())
    config = checkpoint.config
    assert isinstance(config, LlavaConfig)
    sizes = dataclasses.replace(config.vision, image_mean=ClipConfig.image_mean, image_std=ClipConfig.image_std)
    if (known := next((name for name, tower in KNOWN_TOWERS.items() if tower == sizes), None)) is None:
        raise InputError(
            f"layout: llava-lora names the vision tower by its place on the Hub, which {checkpoint.directory} does not "
            "tell; begin with the model in the original layout, or choose peft"
        )
    return known


def _write_original(
    export: Export, config: LlavaConfig, tensors: Iterator[tuple[str, LazyTensor]], directory: Path | None, out: Path
) -> dict[str, Any]:
    """Weights in the original layout, and its config.json. The tower goes where the source had it: among the weights
    if it was there, else into a separate directory."""
    checkpoint, shard_bytes = export.checkpoint, export.shard_bytes
    rename = functools.partial(original_name, config=config)
    before = read_json(checkpoint.described_in / "config.json") if checkpoint.layout == "llava" else {}
    inside = any(stored.name.startswith(ORIGINAL_TOWER) for stored in checkpoint.tensors.values())
    tower: list[tuple[str, LazyTensor]] = []

    def without_tower() -> Iterator[tuple[str, LazyTensor]]:
        for name, value in tensors:
            if inside or not name.startswith("vision_tower."):
                yield name, value
            else:
                tower.append((name.removeprefix("vision_tower."), value))

    kind = write_tensors(directory, without_tower(), rename, shard_bytes)
    place = str(before.get("mm_vision_tower", ""))
    of_tower = directory / "vision_tower" if directory and not inside else None
    if of_tower:
        of_tower.mkdir()
    write_tensors(of_tower, iter(tower), lambda name: name, shard_bytes)
    if of_tower:
        write_json(of_tower / "config.json", to_clip(config.vision))
        image_processor = preprocessing_to_hf(dataclasses.replace(checkpoint.preprocessing, pad=False))
        write_json(of_tower / "preprocessor_config.json", image_processor)
    trained = any(path.startswith("vision_tower.") for path in export.params)
    if not inside and (trained or place not in KNOWN_TOWERS):
        # The original code looks for a path that exists; ours also finds the directory next to the weights.
        place = str((out / "vision_tower").resolve())
    after = to_original(config, kind, place, checkpoint.preprocessing)
    return after | {key: before[key] for key in before if key not in after}
