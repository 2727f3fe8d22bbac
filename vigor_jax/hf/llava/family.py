"""LLaVA on disk: llava-hf checkpoints and those of the original code, which differ in everything but the tensors."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vigor_jax.data.images.preprocessing import Preprocessing
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError
from vigor_jax.hf import hub
from vigor_jax.hf.adapter import OTHERS
from vigor_jax.hf.family import Checkpoint, Export, Family
from vigor_jax.hf.image_settings import preprocessing_from_hf
from vigor_jax.hf.llava import config as llava_config
from vigor_jax.hf.llava import names
from vigor_jax.hf.llava.write import original_config, tower_place, write
from vigor_jax.hf.names import Entry
from vigor_jax.hf.other_folders import refuse_part
from vigor_jax.hf.weights.tensor_checks import Stored, canonical, check_tensors, stored_weights, tie
from vigor_jax.hf.weights.tensor_files import TensorReader
from vigor_jax.json_fields import Fields, Json, exists
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.models.lora import trained_parts
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import abstract_model


class LlavaFamily(Family):
    """LLaVA v1.0 and v1.5 of any sizes."""

    layouts = ("llava-hf", "llava")
    adapter_layouts = ("peft", "llava-lora")

    def read_config(self, config: Json, directory: Path, vision_tower: str | Path | None = None) -> LlavaConfig:
        path = directory / "config.json"
        if not llava_config.is_original(config):
            return llava_config.from_hf(config, path)
        _, _, vision = llava_config.find_tower(config, directory, vision_tower)
        return llava_config.from_original(config, vision, path)

    def entries(self, config: LlavaConfig) -> Sequence[Entry]:
        return names.entries(config)

    def canonical_name(self, name: str) -> str:
        return names.canonical_hf(name)

    def spellings(self, name: str, config: LlavaConfig) -> Iterator[str]:
        yield names.canonical_hf(name)
        yield names.canonical_original(name, config)

    def adapter_name(self, name: str, layout: str, config: LlavaConfig) -> str:
        return names.module_name(name) if layout == "peft" else names.original_name(name, config)

    def check_adapter(self, layout: str, checkpoint: Checkpoint, lora: LoraConfig) -> None:
        if layout != "llava-lora":
            return
        tower_place(checkpoint)
        changed = trained_parts(abstract_model(checkpoint.config), lora)
        if checkpoint.adapter:
            changed |= checkpoint.adapter.full_paths(checkpoint.entries)
        if any(path.startswith("vision_tower.") for path in changed):
            instead = " or ".join(each for each in (*checkpoint.adapter_layouts, *self.layouts) if each != layout)
            raise InputError(
                f"layout: {layout} holds no weights of the vision tower, which lora trains here; choose {instead}"
            )

    def adapter_config(self, export: Export) -> dict[str, Any]:
        return original_config(export)

    def open(self, config: Json, directory: Path, vision_tower: str | Path | None = None) -> Checkpoint:
        if llava_config.is_original(config):
            return self._open_original(config, directory, vision_tower)
        model = self.read_config(config, directory)
        stored = stored_weights(directory)
        refuse_part(stored, directory)
        tensors = canonical(stored, self.canonical_name, directory)
        if model.text.tie_word_embeddings:
            tie(tensors, directory)
        if model.projector == "linear":
            _take_identity(tensors, directory)
        check_tensors(tensors, model, self.entries, directory)
        preprocessing = self.preprocessing(directory, model.vision.image_size)
        tokenizer = Tokenizer.load(directory, whole_prompt=True)  # a prompt is one text for its processor
        return self.checkpoint(directory, "llava-hf", model, preprocessing, tokenizer, tensors)

    def open_below(
        self, adapter: Path, config: Json, directory: Path, vision_tower: str | Path | None = None
    ) -> Checkpoint:
        if not llava_config.is_original(config):
            return super().open_below(adapter, config, directory, vision_tower)
        return self._open_original(config, directory, vision_tower, adapter)

    def write(self, export: Export, directory: Path | None, out: Path) -> None:
        write(export, directory, out)

    def _open_original(
        self, config: Json, directory: Path, vision_tower: str | Path | None, adapter: Path | None = None
    ) -> Checkpoint:
        """A checkpoint in the original layout; or a language model alone, below an adapter that brings the rest."""
        whole = adapter or directory  # whose config.json says it all
        path = whole / "config.json"
        fields = Fields(config, path)
        named, tower, vision = llava_config.find_tower(config, whole, vision_tower)
        model = llava_config.from_original(config, vision, path)

        stored = stored_weights(directory)
        refuse_part(stored, directory, others=True)
        projector = adapter / OTHERS if adapter else directory / "mm_projector.bin"
        if not any("mm_projector" in name for name in stored) and exists(projector):
            reader = TensorReader.open_file(projector)
            found = (name for name in reader.names() if "mm_projector" in name)
            stored |= {name.removeprefix("base_model.model."): Stored(reader, name) for name in found}
        if not any(name.startswith(names.ORIGINAL_TOWER) for name in stored):
            if tower is None and not vision_tower and llava_config.is_fetched(named, whole):
                tower = hub.local_directory(named)
            if tower is None:
                raise InputError(
                    f"{whole}: neither the weights nor a directory hold the vision tower {named!r}; "
                    "give its directory as vision_tower, or ORG/NAME on the Hub"
                )
            stored |= {names.ORIGINAL_TOWER + name: tensor for name, tensor in _tower_tensors(tower).items()}
        tensors = canonical(stored, lambda name: names.canonical_original(name, model), directory)
        if model.text.tie_word_embeddings:
            tie(tensors, directory)
        check_tensors(tensors, model, self.entries, directory)

        pad = (
            fields.choice("image_aspect_ratio", ("square", "pad"), "square", null=True)  # "anyres" is of later models
            == "pad"
        )
        processor = tower and tower / "preprocessor_config.json"
        preprocessing = (
            preprocessing_from_hf(Fields.read(processor), vision.image_size)
            if processor and exists(processor)
            else Preprocessing(vision.image_size)
        )
        preprocessing = dataclasses.replace(preprocessing, pad=pad)
        tokenizer = Tokenizer.load(directory, model_first=True)  # the original code's is a slow one
        opened = self.checkpoint(directory, "llava", model, preprocessing, tokenizer, tensors)
        return dataclasses.replace(opened, is_whole=adapter is None)


def _tower_tensors(directory: Path) -> dict[str, Stored]:
    """The vision half of a CLIP checkpoint, which may bring the text half too."""
    stored = stored_weights(directory)
    vision = {name: tensor for name, tensor in stored.items() if name.startswith("vision_model.")}
    # transformers 5 leaves the prefix out when it saves a tower alone.
    return vision or {"vision_model." + name: tensor for name, tensor in stored.items()}


def _take_identity(tensors: dict[str, Stored], directory: Path) -> None:
    """Leaves the second layer out that llava-hf stores after v1.0's single one, which must change nothing.

    Raises:
      InputError: the second one changes something.
    """
    if names.IDENTITY_WEIGHT not in tensors or names.IDENTITY_BIAS not in tensors:
        return
    weight, bias = tensors.pop(names.IDENTITY_WEIGHT), tensors.pop(names.IDENTITY_BIAS)
    is_square = len(weight.shape) == 2 and weight.shape[0] == weight.shape[1]
    values = weight.read().astype(np.float32) if is_square else np.zeros((1, 1), np.float32)
    if not np.array_equal(values, np.eye(len(values))) or bias.read().astype(np.float32).any():
        raise InputError(
            f"{directory}: projector_hidden_act is linear, so {names.IDENTITY_WEIGHT} must be the identity, its bias "
            "zero; they are not, and only LLaVA v1.0's one linear layer is supported in this form"
        )
