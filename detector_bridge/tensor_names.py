"""One table of GroundingDINO's tensor names, original and in transformers, read both ways."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from detector_bridge.backends.torch_backend import check_keys

_SWIN, _SWIN_TO = "backbone.0", "model.backbone.conv_encoder.model"
_BLOCK, _BLOCK_TO = f"{_SWIN}.layers.#.blocks.#", f"{_SWIN_TO}.encoder.layers.#.blocks.#"
_ENC, _ENC_TO = "transformer.encoder", "model.encoder.layers.#"
_DEC, _DEC_TO = "transformer.decoder.layers.#", "model.decoder.layers.#"
# Original name, name in transformers. "#" is a number, alike on both sides; what follows a name is kept.
NAMES = (
    (f"{_SWIN}.patch_embed.proj", f"{_SWIN_TO}.embeddings.patch_embeddings.projection"),
    (f"{_SWIN}.patch_embed.norm", f"{_SWIN_TO}.embeddings.norm"),
    (f"{_BLOCK}.norm1", f"{_BLOCK_TO}.layernorm_before"),
    (f"{_BLOCK}.norm2", f"{_BLOCK_TO}.layernorm_after"),
    (f"{_BLOCK}.attn.relative_position_bias_table", f"{_BLOCK_TO}.attention.self.relative_position_bias_table"),
    (f"{_BLOCK}.attn.proj", f"{_BLOCK_TO}.attention.output.dense"),
    (f"{_BLOCK}.mlp.fc1", f"{_BLOCK_TO}.intermediate.dense"),
    (f"{_BLOCK}.mlp.fc2", f"{_BLOCK_TO}.output.dense"),
    (f"{_SWIN}.layers.#.downsample", f"{_SWIN_TO}.encoder.layers.#.downsample"),
    *((f"{_SWIN}.norm{i}", f"{_SWIN_TO}.hidden_states_norms.stage{i + 1}") for i in range(4)),
    ("bert", "model.text_backbone"),
    ("feat_map", "model.text_projection"),
    ("input_proj", "model.input_proj_vision"),
    (f"{_ENC}.layers.#.self_attn", f"{_ENC_TO}.deformable_layer.self_attn"),
    (f"{_ENC}.layers.#.norm1", f"{_ENC_TO}.deformable_layer.self_attn_layer_norm"),
    (f"{_ENC}.layers.#.norm2", f"{_ENC_TO}.deformable_layer.final_layer_norm"),
    (f"{_ENC}.layers.#.linear1", f"{_ENC_TO}.deformable_layer.fc1"),
    (f"{_ENC}.layers.#.linear2", f"{_ENC_TO}.deformable_layer.fc2"),
    (f"{_ENC}.text_layers.#.self_attn.out_proj", f"{_ENC_TO}.text_enhancer_layer.self_attn.out_proj"),
    (f"{_ENC}.text_layers.#.norm1", f"{_ENC_TO}.text_enhancer_layer.layer_norm_before"),
    (f"{_ENC}.text_layers.#.norm2", f"{_ENC_TO}.text_enhancer_layer.layer_norm_after"),
    (f"{_ENC}.text_layers.#.linear1", f"{_ENC_TO}.text_enhancer_layer.fc1"),
    (f"{_ENC}.text_layers.#.linear2", f"{_ENC_TO}.text_enhancer_layer.fc2"),
    (f"{_ENC}.fusion_layers.#.gamma_v", f"{_ENC_TO}.fusion_layer.vision_param"),
    (f"{_ENC}.fusion_layers.#.gamma_l", f"{_ENC_TO}.fusion_layer.text_param"),
    (f"{_ENC}.fusion_layers.#.layer_norm_v", f"{_ENC_TO}.fusion_layer.layer_norm_vision"),
    (f"{_ENC}.fusion_layers.#.layer_norm_l", f"{_ENC_TO}.fusion_layer.layer_norm_text"),
    *(
        (f"{_ENC}.fusion_layers.#.attn.{kind}{short}_proj", f"{_ENC_TO}.fusion_layer.attn.{kind}{long}_proj")
        for kind in ("", "values_", "out_")
        for short, long in (("v", "vision"), ("l", "text"))
    ),
    (f"{_DEC}.cross_attn", f"{_DEC_TO}.encoder_attn"),
    (f"{_DEC}.norm1", f"{_DEC_TO}.encoder_attn_layer_norm"),
    (f"{_DEC}.ca_text.out_proj", f"{_DEC_TO}.encoder_attn_text.out_proj"),
    (f"{_DEC}.catext_norm", f"{_DEC_TO}.encoder_attn_text_layer_norm"),
    (f"{_DEC}.self_attn.out_proj", f"{_DEC_TO}.self_attn.out_proj"),
    (f"{_DEC}.norm2", f"{_DEC_TO}.self_attn_layer_norm"),
    (f"{_DEC}.linear1", f"{_DEC_TO}.fc1"),
    (f"{_DEC}.linear2", f"{_DEC_TO}.fc2"),
    (f"{_DEC}.norm3", f"{_DEC_TO}.final_layer_norm"),
    ("transformer.decoder.norm", "model.decoder.layer_norm"),
    ("transformer.decoder.ref_point_head", "model.decoder.reference_points_head"),
    ("transformer.level_embed", "model.level_embed"),
    ("transformer.tgt_embed", "model.query_position_embeddings"),
    ("transformer.enc_output", "model.enc_output"),
    ("transformer.enc_output_norm", "model.enc_output_norm"),
    ("transformer.enc_out_bbox_embed", "model.encoder_output_bbox_embed"),
    ("bbox_embed", "bbox_embed"),
)
# One tensor there, three of its thirds here: "@" is each of these in turn.
_THIRDS = ("query", "key", "value")
FUSED = tuple(
    (f"{fused}{joint}{part}", f"{split}.@.{part}")
    for fused, joint, split in (
        (f"{_BLOCK}.attn.qkv", ".", f"{_BLOCK_TO}.attention.self"),
        (f"{_ENC}.text_layers.#.self_attn.in_proj", "_", f"{_ENC_TO}.text_enhancer_layer.self_attn"),
        (f"{_DEC}.ca_text.in_proj", "_", f"{_DEC_TO}.encoder_attn_text"),
        (f"{_DEC}.self_attn.in_proj", "_", f"{_DEC_TO}.self_attn"),
    )
    for part in ("weight", "bias")
)
# Tensors that no score depends on: indices either library computes, BERT's unused head, labels used in training, a
# norm that transformers 5 adds to its Swin and passes by; and the decoder's second copy of the box heads.
UNUSED = re.compile(
    r"bert\.pooler\..*|.*\.position_ids|.*relative_position_index|label_enc\..*"
    r"|.*conv_encoder\.model\.swin\.layernorm\..*"
    r"|(transformer|model)\.decoder\.bbox_embed\..*"
)
# Where all decoder layers share one box head, only the first says anything.
_LATER_HEADS = re.compile(r"bbox_embed\.(?!0\.)")


def tensors_to_transformers(tensors: Mapping[str, Tensor], share_heads: bool, where: Path) -> dict[str, Tensor]:
    """Original tensors under the names of transformers, fused ones cut in three.

    Args:
      tensors: by original name.
      share_heads: whether all decoder layers have one box head, of which transformers stores one.
      where: for the error.

    Raises:
      InputError: names every tensor that has no counterpart.
    """
    converted: dict[str, Tensor] = {}
    unmapped = []
    for key, tensor in tensors.items():
        if _is_unused(key, share_heads):
            continue
        if renamed := _rename(key, NAMES):
            converted[renamed] = tensor
        elif renamed := _rename(key, FUSED):
            converted |= zip((renamed.replace("@", third) for third in _THIRDS), tensor.chunk(3), strict=True)
        else:
            unmapped.append(key)
    check_keys(where, {"unknown": unmapped})
    return {key: tensor.contiguous().clone() for key, tensor in converted.items()}


def tensors_to_original(
    tensors: Mapping[str, Tensor], share_heads: bool, decoder_layers: int, where: Path
) -> dict[str, Tensor]:
    """The inverse: thirds joined, and the box heads of all decoder layers, twice, as the original stores them.

    Raises:
      InputError: names every tensor that has no counterpart.
    """
    converted: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    unmapped = []
    names, fused = ([(theirs, ours) for ours, theirs in table] for table in (NAMES, FUSED))
    for key, tensor in tensors.items():
        if _is_unused(key, share_heads):
            continue
        third = next((third for third in _THIRDS if f".{third}." in key), "")
        if renamed := _rename(key, names):
            converted[renamed] = tensor
        elif renamed := _rename(key.replace(f".{third}.", ".@."), fused):
            thirds.setdefault(renamed, {})[third] = tensor
        else:
            unmapped.append(key)
    check_keys(where, {"unknown": unmapped, "incomplete": [key for key, parts in thirds.items() if len(parts) < 3]})
    converted |= {key: torch.cat([parts[third] for third in _THIRDS]) for key, parts in thirds.items()}
    for layer in range(decoder_layers):
        for part in [key for key in converted if key.startswith("bbox_embed.0.")]:
            head = part.replace(".0.", f".{layer}.", 1)
            converted.setdefault(head, converted[part])
            converted[f"transformer.decoder.{head}"] = converted[head]
    return converted


def _is_unused(key: str, share_heads: bool) -> bool:
    """Whether a tensor says nothing that the others do not."""
    return bool(UNUSED.fullmatch(key) or (share_heads and _LATER_HEADS.match(key)))


def _rename(key: str, table: Iterable[tuple[str, str]]) -> str | None:
    """The name on the other side of a table, or None."""
    for name, other in table:
        pattern = re.escape(name).replace(re.escape("#"), r"(\d+)") + r"((?:\..+)?)"
        if match := re.fullmatch(pattern, key):
            *numbers, rest = match.groups()
            for number in numbers:
                other = other.replace("#", number, 1)
            return other + rest
    return None
