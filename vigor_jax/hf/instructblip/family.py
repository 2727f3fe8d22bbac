"""InstructBLIP with Vicuna on disk: transformers' checkpoints, and LAVIS's files over a Vicuna, which are read only."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vigor_jax.data.images.preprocessing import Preprocessing
from vigor_jax.data.text.instructions import InstructionTokenizer
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError
from vigor_jax.hf.family import Checkpoint, Export, Family
from vigor_jax.hf.image_settings import BLIP, preprocessing_from_hf
from vigor_jax.hf.instructblip import lavis, names
from vigor_jax.hf.instructblip.config import IMAGE_KEYS, from_hf, max_positions
from vigor_jax.hf.instructblip.write import INSTRUCTION_FILES, INSTRUCTION_FOLDER, write
from vigor_jax.hf.names import Entry
from vigor_jax.hf.processor_files import IMAGE_TOKEN, SETTINGS_FILES, image_processor
from vigor_jax.hf.weights.tensor_checks import canonical, check_tensors, stored_weights, tie
from vigor_jax.json_fields import Fields, Json, exists
from vigor_jax.models.instructblip import InstructBlipConfig
from vigor_jax.models.lora import trained_parts
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import abstract_model


class InstructBlipFamily(Family):
    """InstructBLIP of any sizes whose language model is LLaMA."""

    layouts = ("instructblip",)
    template = "instructblip"
    files = (*SETTINGS_FILES, *INSTRUCTION_FILES)

    def read_config(self, config: Json, directory: Path, vision_tower: str | Path | None = None) -> InstructBlipConfig:
        if lavis.is_lavis(config, directory):
            return lavis.read_config(config, directory, lavis.tensors(directory))
        return from_hf(config, directory / "config.json")

    def entries(self, config: InstructBlipConfig) -> Sequence[Entry]:
        return names.entries(config)

    def check_adapter(self, layout: str, checkpoint: Checkpoint, lora: LoraConfig) -> None:
        changed = trained_parts(abstract_model(checkpoint.config), lora)
        if checkpoint.adapter:
            changed |= checkpoint.adapter.full_paths(checkpoint.entries)
        if any(path.endswith(".query_tokens") for path in changed):
            raise InputError(
                f"layout: {layout} holds modules, and the Q-Former's query_tokens, which lora.also trains here, are "
                f"none; choose {self.layouts[0]}, or name parts of multi_modal_projector without them, such as "
                "multi_modal_projector.language_projection"
            )

    def preprocessing(self, directory: Path, image_size: int) -> Preprocessing:
        return preprocessing_from_hf(image_processor(directory), image_size, BLIP)

    def instructions(self, directory: Path) -> InstructionTokenizer:
        folder = directory / INSTRUCTION_FOLDER
        path = folder / "tokenizer.json"
        if not exists(path) and exists(folder / "vocab.txt"):
            path = folder / "vocab.txt"
        if not exists(path):
            raise InputError(
                f"{path} is missing, with which the Q-Former reads instructions; copy {INSTRUCTION_FOLDER}/ from "
                "Salesforce/instructblip-vicuna-7b, or bert-base-uncased's tokenizer.json or vocab.txt there"
            )
        config = Fields.read(directory / "config.json")
        return InstructionTokenizer(path, max_positions(config.object("qformer_config")))

    def open(self, config: Json, directory: Path, vision_tower: str | Path | None = None) -> Checkpoint:
        if lavis.is_lavis(config, directory):
            return self._open_lavis(config, directory)
        model = self.read_config(config, directory)
        tensors = canonical(stored_weights(directory), self.canonical_name, directory)
        if model.text.tie_word_embeddings:
            tie(tensors, directory)
        check_tensors(tensors, model, self.entries, directory)
        preprocessing = self.preprocessing(directory, model.vision.image_size)
        tokenizer = Tokenizer.load(directory, whole_prompt=True)
        image = tokenizer.token_to_id(IMAGE_TOKEN)
        if image is not None and not any(config.get(key) is not None for key in IMAGE_KEYS):
            model = dataclasses.replace(model, image_token_id=image)
        tokenizer.images_first = True
        return self.checkpoint(directory, self.layouts[0], model, preprocessing, tokenizer, tensors)

    def write(self, export: Export, directory: Path | None, out: Path) -> None:
        write(export, directory)

    def _open_lavis(self, config: Json, directory: Path) -> Checkpoint:
        found = lavis.tensors(directory)
        model = lavis.read_config(config, directory, found)
        text = {f"language_model.{name}": tensor for name, tensor in stored_weights(directory).items()}
        tensors = canonical(text | found, self.canonical_name, directory)
        if model.text.tie_word_embeddings:
            tie(tensors, directory)
        check_tensors(tensors, model, self.entries, directory)
        edge = model.vision.image_size
        tokenizer = Tokenizer.load(directory, whole_prompt=True, model_first=True)  # LAVIS's is a slow one
        tokenizer.bos_id = tokenizer.unk_id = tokenizer.eos_id  # so does LAVIS: texts begin with </s>
        tokenizer.images_first = True
        preprocessing = Preprocessing(edge, stretch=(edge, edge))
        return self.checkpoint(directory, self.layouts[0], model, preprocessing, tokenizer, tensors)
