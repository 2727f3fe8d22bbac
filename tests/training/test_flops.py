"""The count of a training step's operations against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny_llava import Tiny, build_model
from vigor_jax.hf.llava import config as llava_config
from vigor_jax.training.flops import peak_flops, train_flops

MODULES = frozenset({"vision_tower", "multi_modal_projector", "language_model"})


def counted_by_torch(tiny: Tiny, trained: frozenset[str]) -> tuple[float, float]:
    """Operations of our formula and of torch, for 3 rows of 40 tokens with an image each."""
    model = build_model(tiny)
    model.set_attn_implementation("eager")
    config = llava_config.from_hf(model.config.to_dict(), "config.json")
    for name, weight in model.named_parameters():
        module = "language_model" if "lm_head" in name else name.split(".")[1]
        weight.requires_grad_(module in trained)
    token_ids = torch.randint(3, 500, (3, 40))
    token_ids[:, 2 : 2 + config.num_image_tokens] = config.image_token_id
    pixel_values = torch.randn(3, 3, tiny.image_size, tiny.image_size)
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=token_ids, pixel_values=pixel_values, labels=token_ids).loss
        if trained:
            loss.backward()
    # torch's eager attention computes the masked half too.
    masked = 120 * 2 * 40 * config.text.num_heads * config.text.head_dim * config.text.num_layers
    theirs = counter.get_total_flops() - masked * (3 if trained else 1)
    return train_flops(config, trained, rows=3, tokens=120, images=3), theirs


# torch computes the whole tower, so the features are taken from its last layer here.
TINIES = [Tiny(feature_layer=-1), Tiny(feature_layer=-1, kv_heads=1, heads=2, full=True)]


@pytest.mark.parametrize("tiny", TINIES, ids=["a", "b"])
def test_forward_equals_torch(tiny):
    ours, theirs = counted_by_torch(tiny, frozenset())
    assert ours == theirs


@pytest.mark.parametrize("tiny", TINIES, ids=["a", "b"])
@pytest.mark.parametrize("trained", [MODULES - {"vision_tower"}, MODULES], ids=["usual", "all"])
def test_training_equals_torch(tiny, trained):
    ours, theirs = counted_by_torch(tiny, trained)
    assert theirs < ours < 1.01 * theirs  # torch spares the gradient of what goes into the first trained matrix


def test_seven_billion_parameters():
    """6 x parameters x tokens, plus attention, is the rule of thumb."""
    config = llava_config.LlavaConfig()
    flops = train_flops(config, MODULES - {"vision_tower"}, rows=1, tokens=2048, images=0)
    assert flops == pytest.approx(6 * 6.6e9 * 2048, rel=0.07)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("cpu", None),
    ],
)
def test_peak_by_device_kind(kind, peak):
    assert peak_flops(kind) == peak
