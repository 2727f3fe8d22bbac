"""How much arithmetic a training step needs, and how much a chip can do."""

from collections.abc import Set

from vigor_jax.models.vlm import PARTS, VlmConfig

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


def train_flops(
    config: VlmConfig, trained: Set[str], *, rows: int, tokens: int, images: int, adapted: Set[str] = frozenset()
) -> float:
    """Floating-point operations of one forward and backward pass, recomputation not counted.

    A matrix of n weights costs 2n a token forward. Backward it costs 2n for the gradient of what went in,
    where something trained lies below, and 2n for its own, where it is trained itself. Attention adds 4 x width
    for every pair of positions forward; the decoder masks half of them. A frozen tower has no backward pass. A part
    with an adapter has a gradient of what goes in, none of its own matrices; the adapter's are not counted.

    Args:
      config: sizes.
      trained: which of `models.vlm.PARTS` are trained.
      rows: sequences in the batch, packed or not; the decoder's attention is reckoned as if all were of equal length.
      tokens: tokens in the batch, image tokens among them, padding not.
      images: images in the batch.
      adapted: which of those trained have only an adapter that is.
    """
    forward = config.forward_flops(rows=rows, tokens=tokens, images=images)
    total, below = 0.0, False
    for part in PARTS:
        total += forward[part] * (1 + (part in trained and part not in adapted) + (below or part in trained))
        below = below or part in trained
    return total


def forward_flops(config: VlmConfig, *, rows: int, tokens: int, images: int) -> float:
    """Floating-point operations of one forward pass; the arguments are those of `train_flops`."""
    forward = config.forward_flops(rows=rows, tokens=tokens, images=images)
    return sum(forward[part] for part in PARTS)
