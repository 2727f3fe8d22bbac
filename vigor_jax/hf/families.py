"""The families of models that are known, by what their config.json calls them. A new one is a row here."""

from pathlib import Path

from vigor_jax.hf.family import Family
from vigor_jax.hf.instructblip.family import InstructBlipFamily
from vigor_jax.hf.instructblip.lavis import is_lavis
from vigor_jax.hf.llava.family import LlavaFamily
from vigor_jax.json_fields import Fields, Json, read_json
from vigor_jax.models.vlm import VlmConfig

_LLAVA = LlavaFamily()
_INSTRUCTBLIP = InstructBlipFamily()
FAMILIES: dict[str, Family] = {"llava": _LLAVA, "llava_llama": _LLAVA, "instructblip": _INSTRUCTBLIP}
"""By `model_type`."""


def family_of(config: Json, path: Path) -> Family:
    """The family of a config.json; LLaVA's where it does not say, InstructBLIP's of a language model next to LAVIS's
    files.

    Raises:
      InputError: it is not known.
    """
    if is_lavis(config, path.parent):
        return _INSTRUCTBLIP
    return FAMILIES[Fields(config, path).choice("model_type", tuple(FAMILIES), "llava")]


def read_config(directory: Path, vision_tower: str | Path | None = None) -> VlmConfig:
    """The sizes of the model in a directory, from its config.json alone.

    Raises:
      InputError: as `Family.read_config`, or the file is missing or damaged.
    """
    path = directory / "config.json"
    config = read_json(path)
    return family_of(config, path).read_config(config, directory, vision_tower)
