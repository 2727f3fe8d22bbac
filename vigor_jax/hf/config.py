"""config.json and preprocessor_config.json of both layouts ↔ our configs. Defaults are resolved on reading and every
field is written on export, because the defaults of transformers have changed with its versions."""

import dataclasses
from pathlib import Path

from vigor_jax.data.images.preprocessing import Preprocessing
from vigor_jax.errors import InputError
from vigor_jax.json_fields import Fields, Json, show
from vigor_jax.models.clip import ACTIVATIONS, ClipConfig
from vigor_jax.models.llama import LlamaConfig
from vigor_jax.models.llava import LlavaConfig

# Beyond what any model has; a typing error must not make us build something huge before the weights are looked at.
MAX_LAYERS, MAX_WIDTH, MAX_IMAGE_SIZE = 1000, 1 << 20, 1 << 13
MAX_TOKENS = 1 << 30
MAX_ROPE_THETA = 1e12

ORIGINAL_MODEL_TYPES = ("llava_llama", "llava")
# The towers that original checkpoints name instead of bringing them.
KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14": ClipConfig(image_size=224),
    "openai/clip-vit-large-patch14-336": ClipConfig(image_size=336),
}


def is_original(config: Json) -> bool:
    """Whether a config.json is of the original LLaVA layout: LLaMA's fields on top, no `text_config`."""
    return (
        config.get("model_type") in ORIGINAL_MODEL_TYPES and "text_config" not in config and "mm_vision_tower" in config
    )


def text_config(fields: Fields) -> LlamaConfig:
    """LLaMA's fields; what a file leaves out has LlamaConfig's default of transformers."""
    fields.choice("model_type", ("llama", *ORIGINAL_MODEL_TYPES), "llama")
    fields.choice("hidden_act", ("silu",), "silu")
    for bias in ("attention_bias", "mlp_bias"):
        fields.choice(bias, (False,), False)
    width = fields.integer("hidden_size", 4096, least=1, most=MAX_WIDTH)
    heads = fields.integer("num_attention_heads", 32, least=1, most=width)
    _check_divides(fields, "hidden_size", width, "num_attention_heads", heads)
    kv_heads = fields.integer("num_key_value_heads", heads, least=1, most=heads, null=True)
    _check_divides(fields, "num_attention_heads", heads, "num_key_value_heads", kv_heads)
    head_dim = fields.integer("head_dim", width // heads, least=1, most=MAX_WIDTH, null=True)
    if head_dim % 2:
        raise InputError(
            f"{fields.place('head_dim')} is {head_dim}, and rotary positions turn pairs; expected an even number"
        )
    return LlamaConfig(
        vocab_size=fields.integer("vocab_size", 32000, least=1, most=MAX_TOKENS),
        hidden_size=width,
        intermediate_size=fields.integer("intermediate_size", 11008, least=1, most=MAX_WIDTH),
        num_layers=fields.integer("num_hidden_layers", 32, least=1, most=MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6, least=0, most=1),
        rope_theta=_rope_theta(fields),
        max_position_embeddings=fields.integer("max_position_embeddings", 2048, least=1, most=MAX_TOKENS),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
    )


def _rope_theta(fields: Fields) -> float:
    """As transformers 5 reads it: `rope_scaling` before `rope_parameters`, and what is in them before what is on top.

    transformers 4 writes `rope_theta` on top, 5 into `rope_parameters`; a file converted from one to the other may
    have both, and then the one on top is what is left of the older.
    """
    found = [fields.object(key) for key in ("rope_scaling", "rope_parameters")]
    inside = next((rope for rope in found if rope is not None and rope.values), None)
    if inside is None:
        return fields.number("rope_theta", 10000.0, least=1, most=MAX_ROPE_THETA)
    kind = inside.text("rope_type", inside.text("type", "default"))
    if kind != "default":
        raise InputError(f"{fields.path}: rotary scaling {show(kind)} is not supported, only the default one")
    on_top = fields.number("rope_theta", 10000.0, least=1, most=MAX_ROPE_THETA, null="rope_theta" in inside)
    return inside.number("rope_theta", on_top, least=1, most=MAX_ROPE_THETA)


def vision_config(fields: Fields) -> ClipConfig:
    """CLIP's fields; what a file leaves out has CLIPVisionConfig's default of transformers."""
    fields = fields.object("vision_config") or fields  # a whole CLIP model's file
    fields.choice("model_type", ("clip_vision_model",), "clip_vision_model")
    fields.choice("num_channels", (3,), 3)
    width = fields.integer("hidden_size", 768, least=1, most=MAX_WIDTH)
    heads = fields.integer("num_attention_heads", 12, least=1, most=width)
    _check_divides(fields, "hidden_size", width, "num_attention_heads", heads)
    image = fields.integer("image_size", 224, least=1, most=MAX_IMAGE_SIZE)
    patch = fields.integer("patch_size", 32, least=1, most=image)
    _check_divides(fields, "image_size", image, "patch_size", patch)
    return ClipConfig(
        hidden_size=width,
        intermediate_size=fields.integer("intermediate_size", 3072, least=1, most=MAX_WIDTH),
        num_layers=fields.integer("num_hidden_layers", 12, least=1, most=MAX_LAYERS),
        num_heads=heads,
        image_size=image,
        patch_size=patch,
        layer_norm_eps=fields.number("layer_norm_eps", 1e-5, least=0, most=1),
        hidden_act=fields.choice("hidden_act", tuple(ACTIVATIONS), "quick_gelu"),
    )


def from_hf(config: Json, where: Path) -> LlavaConfig:
    """A llava-hf config.json. A linear activation is read as the v1.0 projector, which `load` then checks.

    Raises:
      InputError: a value has another type, is out of range, or asks for something that this model does not have.
    """
    fields = Fields(config, where)
    if config.get("model_type") == "llava_llama":
        raise InputError(f"{where}: mm_vision_tower is missing, which a LLaVA model of the original layout names")
    fields.choice("model_type", ("llava",), "llava")
    fields.choice("multimodal_projector_bias", (True,), True)
    vision, text = fields.object("vision_config"), fields.object("text_config")
    tower = ClipConfig() if vision is None else vision_config(vision)
    language = text_config(text or Fields({}, where))
    if fields.boolean("tie_word_embeddings", False):
        language = dataclasses.replace(language, tie_word_embeddings=True)
    activation = fields.choice("projector_hidden_act", ("gelu", "linear"), "gelu")
    select = fields.choice("vision_feature_select_strategy", ("default", "full"), "default")
    # Where a file has both, the second is what transformers takes.
    image = fields.integer("image_token_index", 32000, least=0, most=MAX_TOKENS)
    return LlavaConfig(
        vision=tower,
        text=language,
        projector="linear" if activation == "linear" else "mlp2x_gelu",
        feature_layer=_feature_layer(fields, "vision_feature_layer", tower),
        feature_select="full" if select == "full" else "patch",
        image_token_id=fields.integer("image_token_id", image, least=0, most=MAX_TOKENS),
    )


def from_original(config: Json, vision: ClipConfig, where: Path) -> LlavaConfig:
    """The original layout's config.json, with the tower's sizes from wherever the tower is.

    Raises:
      InputError: as `from_hf`.
    """
    fields = Fields(config, where)
    fields.choice("mm_use_im_start_end", (False,), False)
    if "mm_vision_select_layer" not in fields:
        raise InputError(f"{where}: mm_vision_select_layer is missing; LLaVA's own value is -2")
    text = text_config(fields)
    select = fields.choice("mm_vision_select_feature", ("patch", "cls_patch"), "patch")
    projector = fields.choice("mm_projector_type", ("linear", "mlp2x_gelu"), "linear")
    return LlavaConfig(
        vision=vision,
        text=text,
        projector="linear" if projector == "linear" else "mlp2x_gelu",
        feature_layer=_feature_layer(fields, "mm_vision_select_layer", vision),
        feature_select="full" if select == "cls_patch" else "patch",
        # The original puts -200 in an image's place; any id that no text can have does.
        image_token_id=text.vocab_size,
    )


def _feature_layer(fields: Fields, key: str, vision: ClipConfig) -> int:
    """The layer whose features are taken; transformers takes the list of one layer for that layer."""
    value = fields.values.get(key)
    if isinstance(value, list | tuple) and len(value) == 1:
        fields = Fields({**fields.values, key: value[0]}, fields.path)
    elif isinstance(value, list | tuple):
        raise InputError(f"{fields.place(key)} is {show(value)} layers and not supported, only one layer's number")
    layer = fields.integer(key, -2, least=-MAX_LAYERS, most=MAX_LAYERS)
    if not -vision.num_layers - 1 <= layer <= vision.num_layers:
        raise InputError(
            f"{fields.path}: vision feature layer {layer} is not among the tower's {vision.num_layers} layers"
        )
    return layer


def _check_divides(fields: Fields, what: str, whole: int, by: str, part: int) -> None:
    if whole % part:
        raise InputError(f"{fields.place(what)} by {by} must divide, got {whole} and {part}")


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
