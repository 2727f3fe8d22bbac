"""A whole CLIP's config.json ↔ `ClipPairConfig`."""

from pathlib import Path

from vigor_jax.errors import InputError
from vigor_jax.hf.config import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH, check_divides, to_clip, vision_config
from vigor_jax.json_fields import Fields, Json, read_json
from vigor_jax.models.clip import ACTIVATIONS, ClipPairConfig, ClipTextConfig

# What the first conversions say; the tokens end with 49407 all the same, which is the largest id.
_WRONG_END = 2


def read_config(directory: Path) -> ClipPairConfig:
    """The sizes of the CLIP in a directory, from its config.json alone.

    Raises:
      InputError: the file is missing or damaged, is another model's, or asks for something that this model does not
        have.
    """
    path = directory / "config.json"
    return from_hf(read_json(path), path)


def from_hf(config: Json, where: Path) -> ClipPairConfig:
    """A config.json; what it leaves out has CLIPConfig's default of transformers.

    Raises:
      InputError: as `read_config`.
    """
    fields = Fields(config, where)
    kind = fields.text("model_type", "clip")
    if kind != "clip":
        raise InputError(
            f"{where}: expected a whole CLIP (model_type clip), with a text tower and projections, got {kind!r}; give "
            "one such as openai/clip-vit-large-patch14-336"
        )
    # Where a file has both, transformers takes the second, with its defaults, whatever the first says.
    vision, text = (
        fields.object(f"{tower}_config_dict") or fields.object(f"{tower}_config") or Fields({}, where)
        for tower in ("vision", "text")
    )
    return ClipPairConfig(
        vision=vision_config(vision),
        text=_text_config(text),
        projection_dim=fields.integer("projection_dim", 512, least=1, most=MAX_WIDTH),
    )


def _text_config(fields: Fields) -> ClipTextConfig:
    fields.choice("model_type", ("clip_text_model",), "clip_text_model")
    width = fields.integer("hidden_size", 512, least=1, most=MAX_WIDTH)
    heads = fields.integer("num_attention_heads", 8, least=1, most=width)
    check_divides(fields, "hidden_size", width, "num_attention_heads", heads)
    end = fields.integer("eos_token_id", 49407, least=0, most=MAX_TOKENS)
    return ClipTextConfig(
        vocab_size=fields.integer("vocab_size", 49408, least=1, most=MAX_TOKENS),
        hidden_size=width,
        intermediate_size=fields.integer("intermediate_size", 2048, least=1, most=MAX_WIDTH),
        num_layers=fields.integer("num_hidden_layers", 12, least=1, most=MAX_LAYERS),
        num_heads=heads,
        max_position_embeddings=fields.integer("max_position_embeddings", 77, least=2, most=MAX_TOKENS),
        layer_norm_eps=fields.number("layer_norm_eps", 1e-5, least=0, most=1),
        hidden_act=fields.choice("hidden_act", tuple(ACTIVATIONS), "quick_gelu"),
        end_token_id=None if end == _WRONG_END else end,
    )


def to_hf(config: ClipPairConfig, dtype: str) -> Json:
    """A config.json with every field, which transformers 4.57 and 5 read alike."""
    text = config.text
    end = _WRONG_END if text.end_token_id is None else text.end_token_id
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "torch_dtype": dtype,
        "projection_dim": config.projection_dim,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "max_position_embeddings": text.max_position_embeddings,
            "layer_norm_eps": text.layer_norm_eps,
            "hidden_act": text.hidden_act,
            "projection_dim": config.projection_dim,
            "eos_token_id": end,
        },
        "vision_config": to_clip(config.vision) | {"projection_dim": config.projection_dim},
    }
