"""InstructBLIP's config.json ↔ `InstructBlipConfig`. What a file leaves out has the default of transformers."""

from pathlib import Path

from vigor_jax.errors import InputError
from vigor_jax.hf.config import (
    MAX_IMAGE_SIZE,
    MAX_LAYERS,
    MAX_TOKENS,
    MAX_WIDTH,
    check_divides,
    text_config,
    text_fields,
)
from vigor_jax.json_fields import Fields, Json, show
from vigor_jax.models.clip import ACTIVATIONS
from vigor_jax.models.eva import EvaConfig
from vigor_jax.models.instructblip import InstructBlipConfig
from vigor_jax.models.qformer import QFormerConfig

MODEL_TYPE = "instructblip"
IMAGE_KEYS = ("image_token_index", "image_token_id")  # where a file has both, the second is what transformers takes
MAX_POSITIONS = 512  # of BERT


def from_hf(config: Json, where: Path) -> InstructBlipConfig:
    """A config.json of transformers. One of before 4.46 names no image token: features stand in front of the text, as
    they do with one, and here get an id that no text can have.

    Raises:
      InputError: a value has another type, is out of range, or asks for something that this model does not have.
    """
    fields = Fields(config, where)
    fields.choice("model_type", (MODEL_TYPE,), MODEL_TYPE)
    text = fields.object("text_config") or Fields({}, where)
    kind = text.text("model_type", "opt")
    if kind != "llama":
        named = "Flan-T5" if kind == "t5" else f"a language model of type {show(kind)}"
        raise InputError(
            f"{text.place('model_type')} {show(kind)}: InstructBLIP with {named} is not supported, only with Vicuna; "
            "take Salesforce/instructblip-vicuna-7b or -13b"
        )
    language = text_config(text)
    vision = _vision_config(fields.object("vision_config") or Fields({}, where))
    qformer = _qformer_config(fields.object("qformer_config") or Fields({}, where), fields, vision)
    image = None
    for key in IMAGE_KEYS:
        image = fields.integer(key, image, least=0, most=MAX_TOKENS, null=True)
    return InstructBlipConfig(
        vision=vision,
        qformer=qformer,
        text=language,
        image_token_id=language.vocab_size if image is None else image,
    )


def _vision_config(fields: Fields) -> EvaConfig:
    fields.choice("model_type", ("instructblip_vision_model",), "instructblip_vision_model")
    width = fields.integer("hidden_size", 1408, least=1, most=MAX_WIDTH)
    heads = fields.integer("num_attention_heads", 16, least=1, most=width)
    check_divides(fields, "hidden_size", width, "num_attention_heads", heads)
    image = fields.integer("image_size", 224, least=1, most=MAX_IMAGE_SIZE)
    patch = fields.integer("patch_size", 14, least=1, most=image)
    check_divides(fields, "image_size", image, "patch_size", patch)
    return EvaConfig(
        hidden_size=width,
        intermediate_size=fields.integer("intermediate_size", 6144, least=1, most=MAX_WIDTH),
        num_layers=fields.integer("num_hidden_layers", 39, least=1, most=MAX_LAYERS),
        num_heads=heads,
        image_size=image,
        patch_size=patch,
        layer_norm_eps=fields.number("layer_norm_eps", 1e-6, least=0, most=1),
        hidden_act=fields.choice("hidden_act", tuple(ACTIVATIONS), "gelu"),
        qkv_bias=fields.boolean("qkv_bias", True),
    )


def _qformer_config(fields: Fields, whole: Fields, vision: EvaConfig) -> QFormerConfig:
    fields.choice("model_type", ("instructblip_qformer",), "instructblip_qformer")
    fields.choice("position_embedding_type", ("absolute",), "absolute")
    width = fields.integer("hidden_size", 768, least=1, most=MAX_WIDTH)
    heads = fields.integer("num_attention_heads", 12, least=1, most=width)
    check_divides(fields, "hidden_size", width, "num_attention_heads", heads)
    count = fields.integer("num_hidden_layers", 12, least=1, most=MAX_LAYERS)
    frequency = fields.integer("cross_attention_frequency", 2, least=1, most=MAX_LAYERS)
    check_divides(fields, "num_hidden_layers", count, "cross_attention_frequency", frequency)
    return QFormerConfig(
        vocab_size=fields.integer("vocab_size", 30522, least=1, most=MAX_TOKENS),
        hidden_size=width,
        intermediate_size=fields.integer("intermediate_size", 3072, least=1, most=MAX_WIDTH),
        num_layers=count,
        num_heads=heads,
        cross_attention_frequency=frequency,
        max_position_embeddings=max_positions(fields),
        layer_norm_eps=fields.number("layer_norm_eps", 1e-12, least=0, most=1),
        hidden_act=fields.choice("hidden_act", tuple(ACTIVATIONS), "gelu"),
        num_queries=whole.integer("num_query_tokens", 32, least=1, most=MAX_TOKENS),
        image_width=vision.hidden_size,
    )


def max_positions(qformer: Fields | None) -> int:
    """Longest instruction, in tokens, as the `qformer_config` says."""
    key = "max_position_embeddings"
    return MAX_POSITIONS if qformer is None else qformer.integer(key, MAX_POSITIONS, least=1, most=MAX_TOKENS)


def to_hf(config: InstructBlipConfig, dtype: str) -> Json:
    """A config.json that transformers 4.57 and 5 read alike: every field, and `rope_theta` where both know it."""
    vision, qformer, text = config.vision, config.qformer, config.text
    return {
        "architectures": ["InstructBlipForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "image_token_index": config.image_token_id,
        "num_query_tokens": qformer.num_queries,
        "vision_config": {
            "model_type": "instructblip_vision_model",
            "torch_dtype": dtype,
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": vision.hidden_act,
            "layer_norm_eps": vision.layer_norm_eps,
            "qkv_bias": vision.qkv_bias,
        },
        "qformer_config": {
            "model_type": "instructblip_qformer",
            "torch_dtype": dtype,
            "vocab_size": qformer.vocab_size,
            "hidden_size": qformer.hidden_size,
            "intermediate_size": qformer.intermediate_size,
            "num_hidden_layers": qformer.num_layers,
            "num_attention_heads": qformer.num_heads,
            "max_position_embeddings": qformer.max_position_embeddings,
            "cross_attention_frequency": qformer.cross_attention_frequency,
            "encoder_hidden_size": qformer.image_width,
            "hidden_act": qformer.hidden_act,
            "layer_norm_eps": qformer.layer_norm_eps,
        },
        "text_config": {"model_type": "llama", "torch_dtype": dtype, **text_fields(text)},
    }
