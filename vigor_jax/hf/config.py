"""The parts of a config.json that families share, LLaMA's and CLIP's ↔ our configs. Defaults are resolved on reading,
and every field is written on export, because the defaults of transformers have changed with its versions."""

from vigor_jax.errors import InputError
from vigor_jax.json_fields import Fields, Json, show
from vigor_jax.models.clip import ACTIVATIONS, ClipConfig
from vigor_jax.models.llama import LlamaConfig

# Beyond what any model has; a typing error must not make us build something huge before the weights are looked at.
MAX_LAYERS, MAX_WIDTH, MAX_IMAGE_SIZE = 1000, 1 << 20, 1 << 13
MAX_TOKENS = 1 << 30
MAX_ROPE_THETA = 1e12


def text_config(fields: Fields, model_types: tuple[str, ...] = ()) -> LlamaConfig:
    """LLaMA's fields; what a file leaves out has LlamaConfig's default of transformers.

    Args:
      fields: the object that holds them.
      model_types: that are right too, where these fields stand among those of a whole model.
    """
    fields.choice("model_type", ("llama", *model_types), "llama")
    fields.choice("hidden_act", ("silu",), "silu")
    for bias in ("attention_bias", "mlp_bias"):
        fields.choice(bias, (False,), False)
    width = fields.integer("hidden_size", 4096, least=1, most=MAX_WIDTH)
    heads = fields.integer("num_attention_heads", 32, least=1, most=width)
    check_divides(fields, "hidden_size", width, "num_attention_heads", heads)
    kv_heads = fields.integer("num_key_value_heads", heads, least=1, most=heads, null=True)
    check_divides(fields, "num_attention_heads", heads, "num_key_value_heads", kv_heads)
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
    check_divides(fields, "hidden_size", width, "num_attention_heads", heads)
    image = fields.integer("image_size", 224, least=1, most=MAX_IMAGE_SIZE)
    patch = fields.integer("patch_size", 32, least=1, most=image)
    check_divides(fields, "image_size", image, "patch_size", patch)
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


def check_divides(fields: Fields, what: str, whole: int, by: str, part: int) -> None:
    """Raises InputError if one size is no multiple of another."""
    if whole % part:
        raise InputError(f"{fields.place(what)} by {by} must divide, got {whole} and {part}")


def text_fields(text: LlamaConfig) -> Json:
    """Every field of LLaMA's, `rope_theta` where transformers 4.57 and 5 both know it."""
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
    """The `vision_config` of a config.json, and the config.json of a tower in a separate directory."""
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
