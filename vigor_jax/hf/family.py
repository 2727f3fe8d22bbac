"""What opening, loading and exporting a checkpoint needs to know of the family that its model belongs to."""

import abc
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from vigor_jax.data.images.preprocessing import Preprocessing
from vigor_jax.data.text.conversation import DEFAULT_TEMPLATE, Template
from vigor_jax.data.text.instructions import InstructionTokenizer
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError
from vigor_jax.hf import hub
from vigor_jax.hf.adapter import Adapter
from vigor_jax.hf.image_settings import preprocessing_from_hf
from vigor_jax.hf.names import FINAL_NORM, Entry
from vigor_jax.hf.processor_files import (
    IMAGE_TOKEN,
    SETTINGS_FILES,
    copy_files,
    image_processor,
    image_token,
    write_chat_template,
    write_json,
    write_tokenizer,
)
from vigor_jax.hf.weights.merged import Rounding, merged_tensors, write_tensors
from vigor_jax.hf.weights.safetensors_file import LazyTensor
from vigor_jax.hf.weights.tensor_checks import (
    Stored,
    add_to_digest,
    canonical,
    check_tensors,
    stored_weights,
    tie,
)
from vigor_jax.json_fields import Json, read_json
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import VlmConfig


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, checked: every tensor the model needs is there with its shape, and nothing else is.

    Attributes:
      family: what kind of model it is.
      directory: where it is.
      layout: one of the family's.
      config: sizes of the model.
      preprocessing: what its images go through.
      tokenizer: its tokenizer.
      tensors: canonical name (`Family.entries`) → place on disk.
      adapter: a LoRA adapter on top of these weights, never merged into them.
      is_whole: whether `directory` has the whole model; else it is a language model alone, and the adapter brings the
        rest.
    """

    family: "Family"
    directory: Path
    layout: str
    config: VlmConfig
    preprocessing: Preprocessing
    tokenizer: Tokenizer
    tensors: Mapping[str, Stored]
    adapter: Adapter | None = None
    is_whole: bool = True

    @property
    def origin(self) -> str:
        """Where it came from: its directory, or `ORG/NAME@COMMIT` if that is in the cache of the Hub."""
        return hub.origin(self.directory)

    @property
    def newest(self) -> Path:
        """Where what was trained last is: the adapter's directory, or its own."""
        return self.adapter.directory if self.adapter else self.directory

    @property
    def described_in(self) -> Path:
        """Where the config.json of the whole model is."""
        return self.directory if self.is_whole or self.adapter is None else self.adapter.directory

    @property
    def adapter_layouts(self) -> Sequence[str]:
        """In which an adapter on it can be written; on a language model alone, one that brings the rest again."""
        return self.family.adapter_layouts[0 if self.is_whole else 1 :]

    @property
    def entries(self) -> Sequence[Entry]:
        """Every tensor of the model, without its adapter."""
        return self.family.entries(self.config)

    @property
    def dtype(self) -> np.dtype:
        """The type its language model is stored in."""
        return self.tensors[FINAL_NORM].dtype

    def digest(self) -> str:
        """Names the checkpoint: SHA-256 of its sizes and of a few rows of every tensor, without reading the rest."""
        total = hashlib.sha256(repr(self.preprocessing).encode())
        if not self.tokenizer.restarts_after_image:
            total.update(b"text continues after an image")  # earlier versions tokenized it otherwise
        matrices: Mapping[str, Stored] = {}
        if self.adapter:
            total.update(f"adapter {self.adapter.lora.scale}".encode())
            matrices = self.adapter.tensors
        add_to_digest(total, {**self.tensors, **matrices})
        return total.hexdigest()


@dataclasses.dataclass(frozen=True)
class Export:
    """What is to be written, and how.

    Attributes:
      checkpoint: the checkpoint that training began with.
      params: what was trained, by dotted path, layers stacked or apart.
      layout: one of the family's.
      dtype: of every tensor; None keeps the type that each has in `checkpoint`.
      shard_bytes: largest size of one weights file.
      template: conversation format that the model was trained with; None if it is not known.
      lora: sizes of the adapter among `params`, if there is one.
      rounding: counts what merging it costs.
    """

    checkpoint: Checkpoint
    params: Mapping[str, jax.Array]
    layout: str
    dtype: np.dtype | None
    shard_bytes: int
    template: Template | None
    lora: LoraConfig | None = None
    rounding: Rounding = dataclasses.field(default_factory=Rounding)

    def tensors(self, vocab_size: int) -> Iterator[tuple[str, LazyTensor]]:
        """Every tensor under its canonical name, made when it is written, with this many rows of the vocabulary."""
        scale = self.lora.scale if self.lora else 0.0
        return merged_tensors(
            self.checkpoint.entries, self.checkpoint.tensors, self.params, self.dtype, vocab_size, scale, self.rounding
        )


class Family(abc.ABC):
    """A kind of model on disk. What is not abstract holds for a family with one layout, that of transformers.

    Attributes:
      layouts: names of its layouts, for `export.layout`.
      adapter_layouts: the same for adapters; those after the first have the config.json of the whole model.
      template: conversation format of its models, where none is given.
      files: small files next to the weights, other than config.json and the tokenizer's, that an export takes over.
    """

    layouts: ClassVar[tuple[str, ...]]
    adapter_layouts: ClassVar[tuple[str, ...]] = ("peft",)
    template: ClassVar[str] = DEFAULT_TEMPLATE
    files: ClassVar[tuple[str, ...]] = SETTINGS_FILES

    @abc.abstractmethod
    def read_config(self, config: Json, directory: Path, vision_tower: str | Path | None = None) -> VlmConfig:
        """The model's sizes.

        Args:
          config: content of config.json.
          directory: where that is, for messages and for files that it names.
          vision_tower: directory of an image tower that the checkpoint does not bring.

        Raises:
          InputError: a value has another type, is out of range, or asks for something that this model does not have.
        """

    @abc.abstractmethod
    def entries(self, config: Any) -> Sequence[Entry]:
        """Every tensor of a model of these sizes, in the order of an export; those of the language model are
        `names.text_entries`."""

    def canonical_name(self, name: str) -> str:
        """A tensor's name in any spelling → the one in `entries`; what is not recognized stays as it is."""
        return name

    def spellings(self, name: str, config: Any) -> Iterator[str]:
        """What a tensor that an adapter names may be in `entries`, the likeliest first; for a model of these sizes."""
        yield self.canonical_name(name)

    def adapter_name(self, name: str, layout: str, config: Any) -> str:
        """A canonical name → what an adapter in a layout calls the tensor, without PEFT's prefix."""
        return name

    def check_adapter(self, layout: str, checkpoint: Checkpoint, lora: LoraConfig) -> None:  # noqa: B027 (most can)
        """Refuses an adapter that a layout cannot hold.

        Args:
          layout: one of `adapter_layouts`.
          checkpoint: what the adapter is for.
          lora: its sizes.

        Raises:
          InputError: it cannot.
        """

    def adapter_config(self, export: Export) -> dict[str, Any]:
        """The config.json next to an adapter whose layout has one."""
        raise NotImplementedError

    def preprocessing(self, directory: Path, image_size: int) -> Preprocessing:
        """What pictures go through before a tower that takes them `image_size` pixels wide.

        Raises:
          InputError: a setting that is not supported or makes no sense.
        """
        return preprocessing_from_hf(image_processor(directory), image_size)

    def instructions(self, directory: Path) -> InstructionTokenizer | None:
        """Makes the tokens of an instruction that `encode_images` reads; None if it reads none."""
        return None

    def open(self, config: Json, directory: Path, vision_tower: str | Path | None = None) -> Checkpoint:
        """Opens a checkpoint without reading its weights; the arguments are those of `read_config`.

        Raises:
          InputError: as `load.open_checkpoint`.
        """
        sizes = self.read_config(config, directory, vision_tower)
        tensors = canonical(stored_weights(directory), self.canonical_name, directory)
        if sizes.text.tie_word_embeddings:
            tie(tensors, directory)
        check_tensors(tensors, sizes, self.entries, directory)
        preprocessing = self.preprocessing(directory, sizes.vision.image_size)
        tokenizer = Tokenizer.load(directory, whole_prompt=True)
        return self.checkpoint(directory, self.layouts[0], sizes, preprocessing, tokenizer, tensors)

    def open_below(
        self, adapter: Path, config: Json, directory: Path, vision_tower: str | Path | None = None
    ) -> Checkpoint:
        """Opens a language model alone, below an adapter that has the config.json of the whole model.

        Args:
          adapter: folder of the adapter.
          config: content of its config.json.
          directory: of the language model.
          vision_tower: as `read_config`.

        Raises:
          InputError: the family has no such adapters; or as `open`.
        """
        raise InputError(
            f"{directory} is a language model alone, and {adapter} an adapter that does not bring the rest; give the "
            "whole model that the adapter was made for"
        )

    def checkpoint(
        self,
        directory: Path,
        layout: str,
        config: Any,
        preprocessing: Preprocessing,
        tokenizer: Tokenizer,
        tensors: Mapping[str, Stored],
    ) -> Checkpoint:
        """The parts of a checkpoint together, once they fit each other.

        Raises:
          InputError: they do not.
        """
        mean, deviation = preprocessing.scaled_mean, preprocessing.scaled_std
        vision = dataclasses.replace(config.vision, image_mean=mean, image_std=deviation)
        config = dataclasses.replace(config, vision=vision)
        tokenizer.instructions = self.instructions(directory)
        tokenizer.check_rows(config.text.vocab_size)
        image = tokenizer.token_to_id(IMAGE_TOKEN)
        if layout == self.layouts[0] and image is not None and image != config.image_token_id:
            raise InputError(
                f"{directory}: config.json puts images at token {config.image_token_id}, the tokenizer's <image> is "
                f"{image} and these must be the same; take both files from one checkpoint"
            )
        return Checkpoint(self, directory, layout, config, preprocessing, tokenizer, tensors)

    def write(self, export: Export, directory: Path | None, out: Path) -> None:
        """Writes an export: the weights, config.json, and every file that opening it again reads.

        Args:
          export: what to write.
          directory: where to; None in a process that does not write, and only gathers the weights with the others.
          out: what `directory` will be called when it is complete.
        """
        source = export.checkpoint
        tensors = export.tensors(source.config.text.vocab_size)
        kind = write_tensors(directory, tensors, lambda name: name, export.shard_bytes)
        if directory is None:
            return
        config = read_json(source.directory / "config.json")
        write_json(directory / "config.json", config | {"dtype" if "dtype" in config else "torch_dtype": kind})
        copy_files(source.directory, directory, self.files)
        write_tokenizer(source.directory, source.tokenizer, directory)
        if export.template:
            write_chat_template(export.template, source.tokenizer, image_token(source.directory), directory)
