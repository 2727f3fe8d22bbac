"""Tiny random LLaVA checkpoints, made by transformers itself, for tests of everything that reads one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.tiny_tokenizer import build_tokenizer_dir


@dataclasses.dataclass(frozen=True)
class Tiny:
    """Sizes of a random model; everything the port must get right has a value to vary."""

    text_width: int = 64
    text_mlp: int = 96
    text_layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tied: bool = False
    vision_width: int = 32
    vision_mlp: int = 48
    vision_layers: int = 3
    vision_heads: int = 4
    image_size: int = 28
    patch_size: int = 14
    vision_act: str = "quick_gelu"
    linear_projector: bool = False
    feature_layer: int = -2
    full: bool = False
    vocab_size: int = 576
    image_token_id: int = 509

    @property
    def num_image_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2 + self.full


def build_model(tiny: Tiny, seed: int = 0) -> transformers.LlavaForConditionalGeneration:
    """A random model in float32 whose outputs are far from uniform."""
    torch.manual_seed(seed)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=tiny.vision_width,
            intermediate_size=tiny.vision_mlp,
            num_hidden_layers=tiny.vision_layers,
            num_attention_heads=tiny.vision_heads,
            image_size=tiny.image_size,
            patch_size=tiny.patch_size,
            hidden_act=tiny.vision_act,
            projection_dim=16,
        ),
        text_config=transformers.LlamaConfig(
            vocab_size=tiny.vocab_size,
            hidden_size=tiny.text_width,
            intermediate_size=tiny.text_mlp,
            num_hidden_layers=tiny.text_layers,
            num_attention_heads=tiny.heads,
            num_key_value_heads=tiny.kv_heads,
            head_dim=tiny.head_dim,
            rms_norm_eps=tiny.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": tiny.rope_theta},
            rope_theta=tiny.rope_theta,
            max_position_embeddings=512,
            tie_word_embeddings=tiny.tied,
        ),
        projector_hidden_act="linear" if tiny.linear_projector else "gelu",
        vision_feature_layer=tiny.feature_layer,
        vision_feature_select_strategy="full" if tiny.full else "default",
        image_token_index=tiny.image_token_id,
        image_seq_length=tiny.num_image_tokens,
        tie_word_embeddings=tiny.tied,
    )
    model = transformers.LlavaForConditionalGeneration(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Norms and biases away from 1 and 0, matrices wide enough that every layer matters.
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            else:
                # A table that gives the scores, too, gives them the spread that a matrix of its own does.
                embeds = "embed" in name and not (tiny.tied and "embed_tokens" in name)
                weight.copy_(torch.randn_like(weight) * (0.5 if embeds else 1.5 * weight.shape[-1] ** -0.5))
        if tiny.linear_projector:
            second = model.model.multi_modal_projector.linear_2
            second.weight.copy_(torch.eye(tiny.text_width))
            second.bias.zero_()
    return model


def build_checkpoint(
    directory: Path, tiny: Tiny = Tiny(), *, seed: int = 0, dtype: Any = torch.float32, **save: Any
) -> Path:
    """Saves a random model with a real small tokenizer and processor files as a llava-hf directory."""
    model = build_model(tiny, seed).to(dtype)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory, **save)
    write_processor(directory, tiny)
    return directory


def write_processor(directory: Path, tiny: Tiny, *, pad: bool = False) -> None:
    """Tokenizer and processor files as llava-hf directories have them."""
    build_tokenizer_dir(directory)
    size = tiny.image_size
    processor = {
        "image_processor_type": "LlavaImageProcessor" if pad else "CLIPImageProcessor",
        "do_pad": pad,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    settings = {
        "processor_class": "LlavaProcessor",
        "patch_size": tiny.patch_size,
        "vision_feature_select_strategy": "full" if tiny.full else "default",
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
    }
    (directory / "processor_config.json").write_text(json.dumps(settings))
