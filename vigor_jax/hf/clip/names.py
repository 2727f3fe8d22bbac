"""What CLIP's weights are called, in a separate checkpoint and inside of others."""

from vigor_jax.hf.names import CONV, KEEP, KEEP_VECTOR, LINEAR, Axes, Entry, linear, norm
from vigor_jax.models.clip import ClipConfig, ClipPairConfig, ClipTextConfig

_Table = dict[str, tuple[str, Axes]]

_VISION: _Table = {
    "class_embedding": ("embeddings.class_embedding", KEEP_VECTOR),
    "patch_embedding": ("embeddings.patch_embedding.weight", CONV),
    "position_embedding": ("embeddings.position_embedding.weight", KEEP),
    **norm("pre_layrnorm", "pre_layrnorm"),
    **norm("post_layernorm", "post_layernorm"),
}
_TEXT: _Table = {
    "token_embedding": ("embeddings.token_embedding.weight", KEEP),
    "position_embedding": ("embeddings.position_embedding.weight", KEEP),
    **norm("final_layer_norm", "final_layer_norm"),
}
_LAYER: _Table = norm("layer_norm1", "layer_norm1") | norm("layer_norm2", "layer_norm2")
for _name in ("q_proj", "k_proj", "v_proj", "out_proj"):
    _LAYER |= linear(_name, f"self_attn.{_name}")
for _name in ("fc1", "fc2"):
    _LAYER |= linear(_name, f"mlp.{_name}")


def vision_entries(config: ClipConfig, theirs: str, ours: str) -> list[Entry]:
    """Every tensor of a vision tower: those outside the layers, then layer by layer.

    Args:
      config: its sizes.
      theirs: begins the names on disk.
      ours: begins the paths of parameters.
    """
    return _entries(_VISION, config.num_layers, theirs, ours)


def text_entries(config: ClipTextConfig, theirs: str, ours: str) -> list[Entry]:
    """The same of a text tower."""
    return _entries(_TEXT, config.num_layers, theirs, ours)


def entries(config: ClipPairConfig) -> list[Entry]:
    """Every tensor of a whole CLIP; the scale of its training, `logit_scale`, is none of the model's here."""
    found = vision_entries(config.vision, "vision_model", "vision_model")
    found += text_entries(config.text, "text_model", "text_model")
    for name in PROJECTIONS:
        found.append(Entry(f"{name}.weight", f"{name}.kernel", None, LINEAR))
    return found


PROJECTIONS = ("visual_projection", "text_projection")
LOGIT_SCALE = "logit_scale"


def _entries(table: _Table, num_layers: int, theirs: str, ours: str) -> list[Entry]:
    found = [Entry(f"{theirs}.{name}", f"{ours}.{path}", None, axes) for path, (name, axes) in table.items()]
    for i in range(num_layers):
        for path, (name, axes) in _LAYER.items():
            found.append(Entry(f"{theirs}.encoder.layers.{i}.{name}", f"{ours}.layers.{path}", i, axes))
    return found
