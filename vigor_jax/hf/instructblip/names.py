"""What InstructBLIP's weights are called: canonical are the names that transformers has always had on disk."""

from vigor_jax.hf.names import CONV, KEEP, KEEP_VECTOR, Axes, Entry, linear, norm, text_entries
from vigor_jax.models.eva import EvaConfig
from vigor_jax.models.instructblip import InstructBlipConfig
from vigor_jax.models.qformer import QFormerConfig

_KEEP_ALL: Axes = (0, 1, 2)

_VISION = {
    "class_embedding": ("embeddings.class_embedding", _KEEP_ALL),
    "position_embedding": ("embeddings.position_embedding", _KEEP_ALL),
    "patch_embedding": ("embeddings.patch_embedding.weight", CONV),
    "patch_bias": ("embeddings.patch_embedding.bias", KEEP_VECTOR),
    **norm("post_layernorm", "post_layernorm"),
}
_VISION_LAYER = {
    **norm("layer_norm1", "layer_norm1"),
    **linear("qkv", "self_attn.qkv"),
    **linear("projection", "self_attn.projection"),
    **norm("layer_norm2", "layer_norm2"),
    **linear("fc1", "mlp.fc1"),
    **linear("fc2", "mlp.fc2"),
}
_QFORMER = {
    "word_embeddings": ("embeddings.word_embeddings.weight", KEEP),
    "position_embeddings": ("embeddings.position_embeddings.weight", KEEP),
    **norm("norm", "embeddings.layernorm"),
}


def _attention(ours: str, theirs: str) -> dict[str, tuple[str, Axes]]:
    found: dict[str, tuple[str, Axes]] = {}
    for name in ("query", "key", "value"):
        found |= linear(f"{ours}.{name}", f"{theirs}.attention.{name}")
    return (
        found | linear(f"{ours}.output", f"{theirs}.output.dense") | norm(f"{ours}.norm", f"{theirs}.output.LayerNorm")
    )


def _mlp(ours: str, suffix: str) -> dict[str, tuple[str, Axes]]:
    found = linear(f"{ours}.fc1", f"intermediate{suffix}.dense") | linear(f"{ours}.fc2", f"output{suffix}.dense")
    return found | norm(f"{ours}.norm", f"output{suffix}.LayerNorm")


_QFORMER_LAYER = _attention("attention", "attention") | _mlp("text_mlp", "") | _mlp("query_mlp", "_query")
_LOOK = _attention("cross_attention", "crossattention")


def entries(config: InstructBlipConfig) -> list[Entry]:
    """Every tensor of the model, one entry each; names and (path, layer) pairs are both unique."""
    projector = "multi_modal_projector"
    found = [Entry("query_tokens", f"{projector}.qformer.query_tokens", None, _KEEP_ALL)]
    found += _vision_entries(config.vision)
    found += _qformer_entries(config.qformer, f"{projector}.qformer")
    names = linear(f"{projector}.language_projection", "language_projection").items()
    found += [Entry(name, path, None, axes) for path, (name, axes) in names]
    return [*found, *text_entries(config.text)]


def _vision_entries(config: EvaConfig) -> list[Entry]:
    found = [
        Entry(f"vision_model.{name}", f"vision_tower.{path}", None, axes) for path, (name, axes) in _VISION.items()
    ]
    for i in range(config.num_layers):
        for path, (name, axes) in _VISION_LAYER.items():
            if path != "qkv.bias" or config.qkv_bias:
                found.append(Entry(f"vision_model.encoder.layers.{i}.{name}", f"vision_tower.layers.{path}", i, axes))
    return found


def _qformer_entries(config: QFormerConfig, ours: str) -> list[Entry]:
    found = [Entry(f"qformer.{name}", f"{ours}.{path}", None, axes) for path, (name, axes) in _QFORMER.items()]
    for i in range(config.num_layers):
        block, place = divmod(i, config.cross_attention_frequency)
        for path, (name, axes) in (_QFORMER_LAYER if place else _QFORMER_LAYER | _LOOK).items():
            path = f"{ours}.layers.layer_{place}.{path}"
            found.append(Entry(f"qformer.encoder.layer.{i}.{name}", path, block, axes))
    return found
