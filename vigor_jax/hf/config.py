"""config.json and preprocessor_config.json of both layouts ↔ our configs. Defaults are resolved on reading and every
field is written on export, because the defaults of transformers have changed with its versions."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from vigor_jax.data.images import Preprocessing
from vigor_jax.errors import InputError
from vigor_jax.models.clip import ACTIVATIONS, ClipConfig
from vigor_jax.models.llama import LlamaConfig
from vigor_jax.models.llava import LlavaConfig

Json = dict[str, Any]

ORIGINAL_MODEL_TYPES = ("llava_llama", "llava")
# The towers that original checkpoints name instead of bringing them.
KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14": ClipConfig(image_size=224),
    "openai/clip-vit-large-patch14-336": ClipConfig(image_size=336),
}


def read_json(path: Path) -> Json:
    """A JSON object from a file.

    Raises:
      InputError: the file is missing, or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; a checkpoint directory needs it") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); copy it from the checkpoint again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def is_original(config: Json) -> bool:
    """Whether a config.json is of the original LLaVA layout: LLaMA's fields on top, no `text_config`."""
    return (
        config.get("model_type") in ORIGINAL_MODEL_TYPES and "text_config" not in config and "mm_vision_tower" in config
    )


def _expect(config: Json, where: Path, **allowed: Any) -> None:
    for key, values in allowed.items():
        if key in config and config[key] not in values:
            raise InputError(f"{where}: {key} {config[key]!r} is not supported, only {' or '.join(map(repr, values))}")


def text_config(config: Json, where: Path) -> LlamaConfig:
    """LLaMA's fields; what a file leaves out has LlamaConfig's default of transformers."""
    _expect(
        config, where,
        model_type=("llama", *ORIGINAL_MODEL_TYPES), hidden_act=("silu",), attention_bias=(False,), mlp_bias=(False,),
    )  # fmt: skip
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or rope
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise InputError(f"{where}: rotary scaling {kind!r} is not supported, only the default one")
    width, heads = config.get("hidden_size", 4096), config.get("num_attention_heads", 32)
    return LlamaConfig(
        vocab_size=config.get("vocab_size", 32000),
        hidden_size=width,
        intermediate_size=config.get("intermediate_size", 11008),
        num_layers=config.get("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or width // heads,
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(config.get("rope_theta", rope.get("rope_theta", 10000.0))),
        max_position_embeddings=config.get("max_position_embeddings", 2048),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
    )


def vision_config(config: Json, where: Path) -> ClipConfig:
    """CLIP's fields; what a file leaves out has CLIPVisionConfig's default of transformers."""
    config = config.get("vision_config", config)  # a whole CLIP model's file
    _expect(
        config, where,
        model_type=("clip_vision_model",), hidden_act=tuple(ACTIVATIONS), num_channels=(3,),
    )  # fmt: skip
    return ClipConfig(
        hidden_size=config.get("hidden_size", 768),
        intermediate_size=config.get("intermediate_size", 3072),
        num_layers=config.get("num_hidden_layers", 12),
        num_heads=config.get("num_attention_heads", 12),
        image_size=config.get("image_size", 224),
        patch_size=config.get("patch_size", 32),
        layer_norm_eps=config.get("layer_norm_eps", 1e-5),
        hidden_act=config.get("hidden_act", "quick_gelu"),
    )


def from_hf(config: Json, where: Path) -> LlavaConfig:
    """A llava-hf config.json. A linear activation is read as the v1.0 projector, which `load` then checks."""
    _expect(
        config, where,
        model_type=("llava",), projector_hidden_act=("gelu", "linear"), multimodal_projector_bias=(True,),
        vision_feature_select_strategy=("default", "full"),
    )  # fmt: skip
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise InputError(f"{where}: vision_feature_layer {layer!r} is not supported, only one layer's number")
    vision = vision_config(config["vision_config"], where) if config.get("vision_config") else ClipConfig()
    text = text_config(config.get("text_config") or {}, where)
    if config.get("tie_word_embeddings"):
        text = dataclasses.replace(text, tie_word_embeddings=True)
    return _checked(
        LlavaConfig(
            vision=vision,
            text=text,
            projector="linear" if config.get("projector_hidden_act", "gelu") == "linear" else "mlp2x_gelu",
            feature_layer=layer,
            feature_select="full" if config.get("vision_feature_select_strategy") == "full" else "patch",
            image_token_id=config.get("image_token_index") or config.get("image_token_id") or 32000,
        ),
        where,
    )


def from_original(config: Json, vision: ClipConfig, where: Path) -> LlavaConfig:
    """The original layout's config.json, with the tower's sizes from wherever the tower is."""
    _expect(
        config, where,
        mm_projector_type=("linear", "mlp2x_gelu"), mm_vision_select_feature=("patch", "cls_patch"),
        mm_use_im_start_end=(False,),
    )  # fmt: skip
    if "mm_vision_select_layer" not in config:
        raise InputError(f"{where}: mm_vision_select_layer is missing; LLaVA's own value is -2")
    text = text_config(config, where)
    return _checked(
        LlavaConfig(
            vision=vision,
            text=text,
            projector=config.get("mm_projector_type", "linear"),
            feature_layer=config["mm_vision_select_layer"],
            feature_select="full" if config.get("mm_vision_select_feature") == "cls_patch" else "patch",
            # The original puts -200 in an image's place; any id that no text can have does.
            image_token_id=text.vocab_size,
        ),
        where,
    )


def _checked(config: LlavaConfig, where: Path) -> LlavaConfig:
    vision, text = config.vision, config.text
    if not 0 <= config.num_vision_layers <= vision.num_layers:
        raise InputError(
            f"{where}: vision feature layer {config.feature_layer} is not among the tower's {vision.num_layers} layers"
        )
    for what, whole, part in (
        ("vision image_size by patch_size", vision.image_size, vision.patch_size),
        ("vision hidden_size by num_attention_heads", vision.hidden_size, vision.num_heads),
        ("num_attention_heads by num_key_value_heads", text.num_heads, text.num_kv_heads),
    ):
        if whole % part:
            raise InputError(f"{where}: {what} must divide, got {whole} and {part}")
    return config


def to_hf(config: LlavaConfig, dtype: str, pad_token_id: int) -> Json:
    """A config.json that transformers 4.57 and 5 read alike: every field, and `rope_theta` where both know it."""
    text, vision = config.text, config.vision
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "torch_dtype": dtype,
        "image_token_index": config.image_token_id,
        "image_seq_length": config.num_image_tokens,
        "pad_token_id": pad_token_id,
        "projector_hidden_act": "linear" if config.projector == "linear" else "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": config.feature_layer,
        "vision_feature_select_strategy": "full" if config.feature_select == "full" else "default",
        "tie_word_embeddings": text.tie_word_embeddings,
        "text_config": {"model_type": "llama", "torch_dtype": dtype, **_text_fields(text)},
        "vision_config": {"torch_dtype": dtype, **to_clip(vision)},
    }


def to_original(config: LlavaConfig, dtype: str, vision_tower: str, preprocessing: Preprocessing) -> Json:
    """The original layout's config.json. `mm_use_im_patch_token` must be said: absent, the original means true."""
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "torch_dtype": dtype,
        **_text_fields(config.text),
        "mm_vision_tower": vision_tower,
        "mm_hidden_size": config.vision.hidden_size,
        "mm_projector_type": config.projector,
        "mm_vision_select_layer": config.feature_layer,
        "mm_vision_select_feature": "cls_patch" if config.feature_select == "full" else "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad" if preprocessing.pad else "square",
        "tokenizer_model_max_length": config.text.max_position_embeddings,
        "tokenizer_padding_side": "right",
        "use_cache": True,
    }


def _text_fields(text: LlamaConfig) -> Json:
    return {
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "head_dim": text.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "max_position_embeddings": text.max_position_embeddings,
        "tie_word_embeddings": text.tie_word_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
    }


def to_clip(vision: ClipConfig) -> Json:
    """The `vision_config` of a llava-hf config.json, and the config.json of a tower in a directory of its own."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "num_channels": 3,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": vision.hidden_act,
        "layer_norm_eps": vision.layer_norm_eps,
        "projection_dim": 768,
    }
