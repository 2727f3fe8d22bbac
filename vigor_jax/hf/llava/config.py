"""LLaVA's config.json in both layouts ↔ `LlavaConfig`."""

import dataclasses
from pathlib import Path

from vigor_jax.data.images.preprocessing import Preprocessing
from vigor_jax.errors import InputError
from vigor_jax.hf import hub
from vigor_jax.hf.config import MAX_LAYERS, MAX_TOKENS, text_config, text_fields, to_clip, vision_config
from vigor_jax.json_fields import Fields, Json, exists, show
from vigor_jax.models.clip import ClipConfig
from vigor_jax.models.llava import LlavaConfig

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
    text = text_config(fields, ORIGINAL_MODEL_TYPES)
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


def find_tower(config: Json, directory: Path, vision_tower: str | Path | None) -> tuple[str, Path | None, ClipConfig]:
    """The tower that an original checkpoint names: its name, its directory if there is one, and its sizes.

    One that it brings, as an export of a run that trained it does, comes before `vision_tower`.

    Raises:
      InputError: it is neither known nor a directory.
    """
    path = directory / "config.json"
    fields = Fields(config, path)
    if not (named := fields.text("mm_vision_tower", "")):
        raise InputError(f"{fields.place('mm_vision_tower')} is empty; name the tower, or its directory")
    own = directory / "vision_tower"
    if Path(named).name == own.name and exists(own / "config.json"):
        places = [own]
    elif vision_tower:
        places = [hub.local_directory(vision_tower)]
    else:
        places = [Path(named), directory / named, own]
    tower = next((place for place in places if exists(place / "config.json")), None)
    if tower is None and not vision_tower and named not in KNOWN_TOWERS and is_fetched(named, directory):
        tower = hub.local_directory(named)
    if tower:
        return named, tower, vision_config(Fields.read(tower / "config.json"))
    if named in KNOWN_TOWERS and not vision_tower:
        return named, None, KNOWN_TOWERS[named]
    raise InputError(
        f"{path}: the vision tower {str(vision_tower or named)!r} is no directory with a config.json; "
        "give its directory as vision_tower, or ORG/NAME on the Hub"
    )


def is_fetched(named: str, directory: Path) -> bool:
    """Whether the tower of a checkpoint that is from the Hub is looked for there, too, as the original code does."""
    return hub.is_snapshot(directory) and hub.is_id(named)


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
        "text_config": {"model_type": "llama", "torch_dtype": dtype, **text_fields(text)},
        "vision_config": {"torch_dtype": dtype, **to_clip(vision)},
    }


def to_original(config: LlavaConfig, dtype: str, vision_tower: str, preprocessing: Preprocessing) -> Json:
    """The original layout's config.json. `mm_use_im_patch_token` must be said: absent, the original means true."""
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "torch_dtype": dtype,
        **text_fields(config.text),
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
