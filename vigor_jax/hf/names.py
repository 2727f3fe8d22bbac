"""What weights are called: our parameter paths, and the names on disk.

A family of models has one canonical set of names, those of its checkpoints for transformers
(`language_model.model...`). Its `entries` ties them to our parameters; every other spelling found on disk is first
turned into the canonical one. Here is what families share: the language model, the parts of a table, and what wrappers
leave in names.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import TypeAlias

from vigor_jax.models.llama import LlamaConfig

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


def norm(ours: str, theirs: str) -> dict[str, tuple[str, Axes]]:
    """A LayerNorm: our path → name on disk."""
    return {f"{ours}.scale": (f"{theirs}.weight", KEEP_VECTOR), f"{ours}.bias": (f"{theirs}.bias", KEEP_VECTOR)}


def linear(ours: str, theirs: str) -> dict[str, tuple[str, Axes]]:
    """A linear layer with bias: our path → name on disk."""
    return {f"{ours}.kernel": (f"{theirs}.weight", LINEAR), f"{ours}.bias": (f"{theirs}.bias", KEEP_VECTOR)}


# Canonical names that every family has, for its language model is `language_model`.
EMBEDDINGS, OUTPUT = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
FINAL_NORM = "language_model.model.norm.weight"


def text_entries(config: LlamaConfig) -> list[Entry]:
    """Every tensor of the language model: those outside the layers, then layer by layer."""
    text = "language_model"
    found = [Entry(f"{text}.{name}", f"{text}.{path}", None, axes) for path, (name, axes) in _TEXT.items()]
    for i in range(config.num_layers):
        for path, (name, axes) in _TEXT_LAYER.items():
            found.append(Entry(f"{text}.model.layers.{i}.{name}", f"{text}.layers.{path}", i, axes))
    return [entry for entry in found if entry.name != OUTPUT or not config.tie_word_embeddings]


# Buffers that old versions saved along; they are computed, not learned.
IGNORED = re.compile(r".*(\.rotary_emb\.inv_freq|\.position_ids)")

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
