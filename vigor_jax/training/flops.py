"""How much arithmetic a training step needs, and how much a chip can do."""

from collections.abc import Set

from vigor_jax.models.llava import LlavaConfig

# Dense bfloat16 FLOP/s of a chip, from data sheets; the first name that a `device_kind` contains counts.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 2307e12,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a chip; None where it is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_kind), None)


def train_flops(config: LlavaConfig, trained: Set[str], *, rows: int, tokens: int, images: int) -> float:
    """Floating-point operations of one forward and backward pass, recomputation not counted.

    A matrix of n weights costs 2n a token forward. Backward it costs 2n for the gradient of what went in,
    where something trained lies below, and 2n for its own, where it is trained itself. Attention adds 4 x width
    for every pair of positions forward; the decoder masks half of them. A frozen tower has no backward pass.

    Args:
      config: sizes.
      trained: which of "vision_tower", "multi_modal_projector" and "language_model" are trained.
      rows: sequences in the batch, packed or not; the decoder's attention is reckoned as if all were of equal length.
      tokens: tokens in the batch, image tokens among them, padding not.
      images: images in the batch.
    """
    tower, projector, decoder = _forward_parts(config, rows=rows, tokens=tokens, images=images)
    total, below = 0.0, False
    for name, forward in (
        ("vision_tower", tower),
        ("multi_modal_projector", projector),
        ("language_model", decoder),
    ):
        total += forward * (1 + (name in trained) + (below or name in trained))
        below = below or name in trained
    return total


def forward_flops(config: LlavaConfig, *, rows: int, tokens: int, images: int) -> float:
    """Floating-point operations of one forward pass; the arguments are those of `train_flops`."""
    return sum(_forward_parts(config, rows=rows, tokens=tokens, images=images))


def _forward_parts(config: LlavaConfig, *, rows: int, tokens: int, images: int) -> tuple[float, float, float]:
    """Of the tower, the projector and the decoder."""
    text, vision = config.text, config.vision
    query_width, kv_width = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    layer = text.hidden_size * (2 * query_width + 2 * kv_width + 3 * text.intermediate_size)
    decoder: float = tokens * 2 * (text.num_layers * layer + text.hidden_size * text.vocab_size)
    decoder += tokens * 2 * (tokens / max(rows, 1)) * query_width * text.num_layers

    width, positions = vision.hidden_size, vision.num_patches + 1
    layer = width * (4 * width + 2 * vision.intermediate_size)
    tower = images * positions * config.num_vision_layers * (2 * layer + 4 * positions * width)
    tower += images * vision.num_patches * 2 * 3 * vision.patch_size**2 * width

    weights = width * text.hidden_size + (config.projector == "mlp2x_gelu") * text.hidden_size**2
    projector = images * config.num_image_tokens * 2 * weights
    return tower, projector, decoder
