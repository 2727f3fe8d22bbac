"""What every weight is called: our parameter paths, and the names of the two layouts on disk.

One canonical set of names stands between: those that llava-hf checkpoints have always had on disk
(`language_model.model.layers.0...`, `vision_tower.vision_model...`). `entries` ties them to our parameters; every
other spelling found on disk is first turned into the canonical one.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Literal, TypeAlias

from vigor_jax.models.llava import LlavaConfig

Layout: TypeAlias = Literal["llava-hf", "llava"]

# How a tensor on disk becomes ours: PyTorch keeps linear weights as [out, in] and convolutions as [out, in, h, w].
Axes: TypeAlias = tuple[int, ...]
KEEP_VECTOR: Axes = (0,)
KEEP: Axes = (0, 1)
LINEAR: Axes = (1, 0)
CONV: Axes = (2, 3, 1, 0)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor on disk.

    Attributes:
      name: canonical name on disk.
      path: our parameter, without the layer's number.
      layer: index into a tower's layers, None outside of them.
      axes: the permutation that turns the tensor on disk into ours.
    """

    name: str
    path: str
    layer: int | None
    axes: Axes

    @property
    def unstacked_path(self) -> str:
        """The parameter's path in a model whose layers are kept apart."""
        return self.path if self.layer is None else self.path.replace(".layers.", f".layers.{self.layer}.", 1)


_TEXT = {
    "embed_tokens": ("model.embed_tokens.weight", KEEP),
    "norm.scale": ("model.norm.weight", KEEP_VECTOR),
    "lm_head": ("lm_head.weight", LINEAR),
}
_TEXT_LAYER = {
    "input_layernorm.scale": ("input_layernorm.weight", KEEP_VECTOR),
    "post_attention_layernorm.scale": ("post_attention_layernorm.weight", KEEP_VECTOR),
    **{f"{name}.kernel": (f"self_attn.{name}.weight", LINEAR) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{f"{name}.kernel": (f"mlp.{name}.weight", LINEAR) for name in ("gate_proj", "up_proj", "down_proj")},
}
_VISION = {
    "class_embedding": ("embeddings.class_embedding", KEEP_VECTOR),
    "patch_embedding": ("embeddings.patch_embedding.weight", CONV),
    "position_embedding": ("embeddings.position_embedding.weight", KEEP),
}
_VISION_LINEAR = {
    **{name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
    **{name: f"mlp.{name}" for name in ("fc1", "fc2")},
}


def _norm(ours: str, theirs: str) -> dict[str, tuple[str, Axes]]:
    return {
        f"{ours}.scale": (f"{theirs}.weight", KEEP_VECTOR),
        f"{ours}.bias": (f"{theirs}.bias", KEEP_VECTOR),
    }


def _linear(ours: str, theirs: str) -> dict[str, tuple[str, Axes]]:
    return {f"{ours}.kernel": (f"{theirs}.weight", LINEAR), f"{ours}.bias": (f"{theirs}.bias", KEEP_VECTOR)}


_VISION |= _norm("pre_layrnorm", "pre_layrnorm") | _norm("post_layernorm", "post_layernorm")
_VISION_LAYER = _norm("layer_norm1", "layer_norm1") | _norm("layer_norm2", "layer_norm2")
for _ours, _theirs in _VISION_LINEAR.items():
    _VISION_LAYER |= _linear(_ours, _theirs)


def entries(config: LlavaConfig) -> list[Entry]:
    """Every tensor of the model, one entry each; names and (path, layer) pairs are both unique."""
    text, vision = "language_model", "vision_tower.vision_model"
    found = [Entry(f"{text}.{name}", f"{text}.{path}", None, axes) for path, (name, axes) in _TEXT.items()]
    found += [Entry(f"{vision}.{name}", f"vision_tower.{path}", None, axes) for path, (name, axes) in _VISION.items()]
    for i in range(config.text.num_layers):
        for path, (name, axes) in _TEXT_LAYER.items():
            found.append(Entry(f"{text}.model.layers.{i}.{name}", f"{text}.layers.{path}", i, axes))
    for i in range(config.vision.num_layers):
        for path, (name, axes) in _VISION_LAYER.items():
            found.append(Entry(f"{vision}.encoder.layers.{i}.{name}", f"vision_tower.layers.{path}", i, axes))
    for linear in ("linear_1", "linear_2") if config.projector == "mlp2x_gelu" else ("linear_1",):
        stem = f"multi_modal_projector.{linear}"
        found += [Entry(name, path, None, axes) for path, (name, axes) in _linear(stem, stem).items()]
    if config.text.tie_word_embeddings:
        found = [entry for entry in found if entry.path != "language_model.lm_head"]
    return found


# Buffers that old versions saved along; they are computed, not learned.
IGNORED = re.compile(r".*(\.rotary_emb\.inv_freq|\.position_ids)")

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


# What wrappers around a model leave in the names of its weights: torch.compile, FSDP and activation checkpointing
# anywhere, DistributedDataParallel and a PEFT model whose adapters are merged in front of all.
_WRAPPED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_WRAPPED_ALL = ("module.", "base_model.model.")


def unwrapped(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Names as they were before the model was wrapped.

    Returns:
      Name on disk → name of the model's own; what was taken away, in the order in which it was found.
    """
    found: dict[str, None] = {}
    plain = {name: name for name in names}
    while True:
        before = dict(plain)
        for name, inner in before.items():
            found |= dict.fromkeys(_WRAPPED.findall(inner))
            plain[name] = _WRAPPED.sub("", inner)
        for prefix in _WRAPPED_ALL:
            if plain and all(inner.startswith(prefix) for inner in plain.values()):
                found[prefix] = None
                plain = {name: inner.removeprefix(prefix) for name, inner in plain.items()}
        if plain == before:
            return plain, list(found)


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
