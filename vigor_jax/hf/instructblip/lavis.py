"""InstructBLIP as LAVIS, its original code, has it: a Vicuna's folder with LAVIS's `.pth` files in it.

One file has the Q-Former, its queries, the projection and the tower's last norm (`instruct_blip_vicuna7b_trimmed.pth`);
the tower's layers are in the same file or in another (`eva_vit_g.pth`). LAVIS's code fixes what shapes do not tell.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vigor_jax.errors import InputError, some
from vigor_jax.hf.config import text_config
from vigor_jax.hf.weights.stored_tensor import StoredTensor
from vigor_jax.hf.weights.tensor_checks import Stored
from vigor_jax.hf.weights.tensor_files import TensorReader
from vigor_jax.hf.weights.torch_bin import torch_tensors
from vigor_jax.json_fields import Fields, Json
from vigor_jax.models.eva import EvaConfig
from vigor_jax.models.instructblip import InstructBlipConfig
from vigor_jax.models.qformer import QFormerConfig

_EVA = "visual_encoder."
_EVA_PARTS = ("cls_token", "pos_embed", "patch_embed.", "blocks.")
_LAST_BLOCK = EvaConfig.num_layers - 1  # the tower's own file may have one more, which LAVIS leaves out
# What LAVIS saves along, and does not use.
_UNUSED = re.compile(r"Qformer\.cls\..*|.*\.position_ids|temp")

_SPELLINGS = (
    (re.compile(r"visual_encoder\.cls_token"), "vision_model.embeddings.class_embedding"),
    (re.compile(r"visual_encoder\.pos_embed"), "vision_model.embeddings.position_embedding"),
    (re.compile(r"visual_encoder\.patch_embed\.proj\."), "vision_model.embeddings.patch_embedding."),
    (re.compile(r"visual_encoder\.blocks\.(\d+)\.norm([12])\."), r"vision_model.encoder.layers.\1.layer_norm\2."),
    (
        re.compile(r"visual_encoder\.blocks\.(\d+)\.attn\.proj\."),
        r"vision_model.encoder.layers.\1.self_attn.projection.",
    ),
    (re.compile(r"visual_encoder\.blocks\.(\d+)\.attn\."), r"vision_model.encoder.layers.\1.self_attn."),
    (re.compile(r"visual_encoder\.blocks\.(\d+)\.mlp\."), r"vision_model.encoder.layers.\1.mlp."),
    (re.compile(r"ln_vision\."), "vision_model.post_layernorm."),
    (re.compile(r"Qformer\.bert\.embeddings\.LayerNorm\."), "qformer.embeddings.layernorm."),
    (re.compile(r"Qformer\.bert\.(.*attention)\.self\."), r"qformer.\1.attention."),
    (re.compile(r"Qformer\.bert\."), "qformer."),
    (re.compile(r"llm_proj\."), "language_projection."),
    (re.compile(r"llm_model\."), "language_model."),
)


@dataclasses.dataclass(frozen=True)
class _QkvBias(StoredTensor):
    """The biases of queries and values as one with that of the keys between them, which is zero."""

    query: StoredTensor
    value: StoredTensor

    def read(self, index: tuple[slice, ...] | None = None) -> np.ndarray:
        query, value = self.query.read(), self.value.read()
        return np.concatenate([query, np.zeros_like(query), value])[index or ()]

    def read_into(self, out: np.ndarray, index: tuple[slice, ...] | None = None) -> None:
        out[...] = self.read(index)


def is_lavis(config: Json, directory: Path) -> bool:
    """Whether a folder is a language model's, and has files of LAVIS."""
    return config.get("model_type") == "llama" and bool(_files(directory))


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*.pth") if not path.name.startswith("consolidated."))  # Meta's


def tensors(directory: Path) -> dict[str, Stored]:
    """The tensors of all `.pth` files, by their canonical names.

    Raises:
      InputError: a file is damaged, holds something else, or two hold the same.
    """
    found: dict[str, Stored] = {}
    for path in _files(directory):
        TensorReader.open_file(path)  # with its refusals
        here = dict(_canonical(torch_tensors(path), path))
        if twice := sorted(here.keys() & found.keys()):
            raise InputError(f"{path} holds {some(twice, 2)}, which another .pth there holds too; remove one")
        reader = TensorReader((path,), here)
        found |= {name: Stored(reader, name) for name in here}
    return found


def _canonical(stored: Mapping[str, StoredTensor], path: Path) -> Iterator[tuple[str, StoredTensor]]:
    is_tower = any(name.startswith("blocks.") for name in stored)  # the tower's own file
    own = {name: tensor for name, tensor in stored.items() if not _UNUSED.fullmatch(name)}
    if is_tower:
        own = {_EVA + name: tensor for name, tensor in own.items() if name.startswith(_EVA_PARTS) and _is_used(name)}
    for name, tensor in own.items():
        if name.endswith(".attn.v_bias"):
            continue  # comes with the queries'
        if name.endswith(".attn.q_bias"):
            value = own.get(other := name.replace("q_bias", "v_bias"))
            if value is None or value.shape != tensor.shape:
                raise InputError(f"{path} has no {other} that fits {name}; copy the file again")
            size, name = 3 * tensor.shape[0], name.replace("q_bias", "qkv.bias")
            tensor = _QkvBias(tensor.path, tensor.offset, tensor.dtype, (size,), (1,), tensor, value)
        for pattern, replacement in _SPELLINGS:
            if pattern.match(name):
                name = pattern.sub(replacement, name, count=1)
                break
        yield name, tensor


def _is_used(name: str) -> bool:
    block = re.match(r"blocks\.(\d+)\.", name)
    return block is None or int(block[1]) <= _LAST_BLOCK


def read_config(config: Json, directory: Path, found: Mapping[str, Stored]) -> InstructBlipConfig:
    """The sizes: the language model's from its config.json, the others from shapes.

    Args:
      config: content of config.json.
      directory: where that is.
      found: what `tensors` gives.

    Raises:
      InputError: as `text_config`, or a tensor is missing that tells a size.
    """
    text = text_config(Fields(config, directory / "config.json"))

    def shape(name: str, count: int) -> tuple[int, ...]:
        if name not in found or len(found[name].shape) != count:
            named = some([path.name for path in _files(directory)])
            raise InputError(
                f"{directory}: {named} hold no {name} of {count} axes; an InstructBLIP of LAVIS is a Vicuna's folder "
                "with instruct_blip_vicuna*_trimmed.pth and eva_vit_g.pth in it"
            )
        return found[name].shape

    width, _, patch, _ = shape("vision_model.embeddings.patch_embedding.weight", 4)
    _, positions, _ = shape("vision_model.embeddings.position_embedding", 3)
    vision = EvaConfig(
        hidden_size=width,
        intermediate_size=shape("vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_layers=_count(found, r"vision_model\.encoder\.layers\.(\d+)\."),
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        qkv_bias="vision_model.encoder.layers.0.self_attn.qkv.bias" in found,
    )
    qformer = QFormerConfig(
        vocab_size=shape("qformer.embeddings.word_embeddings.weight", 2)[0],
        hidden_size=shape("query_tokens", 3)[2],
        intermediate_size=shape("qformer.encoder.layer.0.intermediate.dense.weight", 2)[0],
        num_layers=_count(found, r"qformer\.encoder\.layer\.(\d+)\."),
        max_position_embeddings=shape("qformer.embeddings.position_embeddings.weight", 2)[0],
        num_queries=shape("query_tokens", 3)[1],
        image_width=width,
    )
    # LAVIS puts features in front of the text's embeddings; here they stand in the places of an id that no text has.
    return InstructBlipConfig(vision=vision, qformer=qformer, text=text, image_token_id=text.vocab_size)


def _count(found: Mapping[str, Stored], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in found if (match := re.match(pattern, name))), default=-1)
