"""What LLaVA's weights are called: canonical are the names that llava-hf checkpoints have always had on disk
(`language_model.model.layers.0...`, `vision_tower.vision_model...`)."""

import re

from vigor_jax.hf.clip.names import vision_entries
from vigor_jax.hf.names import Entry, linear, text_entries
from vigor_jax.models.llava import LlavaConfig

# llava-hf has no slot for v1.0's single linear layer: it is stored before a second one that changes nothing.
IDENTITY_WEIGHT, IDENTITY_BIAS = "multi_modal_projector.linear_2.weight", "multi_modal_projector.linear_2.bias"


def entries(config: LlavaConfig) -> list[Entry]:
    """Every tensor of the model, one entry each; names and (path, layer) pairs are both unique."""
    text = text_entries(config.text)
    vision = vision_entries(config.vision, "vision_tower.vision_model", "vision_tower")
    # In this order they stand in the files of an export.
    found = [entry for entry in text if entry.layer is None]
    found += [entry for entry in vision if entry.layer is None]
    found += [entry for entry in text if entry.layer is not None]
    found += [entry for entry in vision if entry.layer is not None]
    for layer in ("linear_1", "linear_2") if config.projector == "mlp2x_gelu" else ("linear_1",):
        stem = f"multi_modal_projector.{layer}"
        found += [Entry(name, path, None, axes) for path, (name, axes) in linear(stem, stem).items()]
    return found


# Spellings of llava-hf checkpoints, by the version of transformers that wrote them.
_HF_SPELLINGS = (
    (re.compile(r"model\.(?=language_model\.|multi_modal_projector\.|vision_tower\.)"), ""),
    (re.compile(r"lm_head\."), "language_model.lm_head."),
    (re.compile(r"language_model\.(?!model\.|lm_head\.)"), "language_model.model."),
    (re.compile(r"vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
)


def canonical_hf(name: str) -> str:
    """A name in any llava-hf spelling → the canonical one; what is not recognised stays as it is."""
    for pattern, replacement in _HF_SPELLINGS:
        name = pattern.sub(replacement, name, count=1) if pattern.match(name) else name
    return name


_MODULES = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


def module_name(name: str) -> str:
    """A canonical name → what transformers 4.52 and later call the parameter in memory, by which adapters go."""
    for canonical, inner in _MODULES:
        if name.startswith(canonical):
            return inner + name.removeprefix(canonical)
    raise AssertionError(name)


ORIGINAL_TOWER = "model.vision_tower.vision_tower."


def _original_prefixes(config: LlavaConfig) -> tuple[tuple[str, str], ...]:
    """(canonical, original) beginnings of names; the longer original beginnings first."""
    first = "model.mm_projector." if config.projector == "linear" else "model.mm_projector.0."
    return (
        ("vision_tower.", ORIGINAL_TOWER),
        ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("multi_modal_projector.linear_1.", first),
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model."),
    )


def canonical_original(name: str, config: LlavaConfig) -> str:
    """A name of the original LLaVA layout → the canonical one."""
    for canonical, original in _original_prefixes(config):
        if name.startswith(original):
            return canonical + name.removeprefix(original)
    return name


def original_name(name: str, config: LlavaConfig) -> str:
    """A canonical name → the original layout's; inverse of `canonical_original`."""
    for canonical, original in _original_prefixes(config):
        if name.startswith(canonical):
            return original + name.removeprefix(canonical)
    raise AssertionError(name)
