"""CLIP's vision transformer (Radford et al. 2021), as LLaVA uses it: the hidden states of one layer, no pooling."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from vigor_jax.models import layers
from vigor_jax.models.attention import Implementation, attention
from vigor_jax.parallel.sharding import constrain_batch

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Sizes of the tower; the defaults are ViT-L/14 at 336 pixels."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def forward_flops(self, num_layers: int, *, images: int) -> float:
        """Of the first layers of the tower, the patches' embedding included; see `training.flops`."""
        width, positions = self.hidden_size, self.num_patches + 1
        layer = width * (4 * width + 2 * self.intermediate_size)
        flops = images * positions * num_layers * (2 * layer + 4 * positions * width)
        return flops + images * self.num_patches * 2 * 3 * self.patch_size**2 * width


class EncoderLayer(nnx.Module):
    """Pre-norm transformer block without a mask."""

    def __init__(self, config: ClipConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        width, mlp = config.hidden_size, config.intermediate_size
        make = {"bias": True, "dtype": dtype, "rngs": rngs}
        self.layer_norm1 = layers.LayerNorm(width, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.q_proj = layers.Linear((width, width), ("embed", "heads"), **make)
        self.k_proj = layers.Linear((width, width), ("embed", "heads"), **make)
        self.v_proj = layers.Linear((width, width), ("embed", "heads"), **make)
        self.out_proj = layers.Linear((width, width), ("heads", "embed"), **make)
        self.layer_norm2 = layers.LayerNorm(width, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.fc1 = layers.Linear((width, mlp), ("embed", "mlp"), **make)
        self.fc2 = layers.Linear((mlp, width), ("mlp", "embed"), **make)
        self.num_heads = config.num_heads
        self.hidden_act = config.hidden_act

    def __call__(self, x: Float[Array, "B P D"], implementation: Implementation = "auto") -> Float[Array, "B P D"]:
        y = self.layer_norm1(x)
        q, k, v = (
            proj(y).reshape(*y.shape[:2], self.num_heads, -1) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = x + self.out_proj(attention(q, k, v, causal=False, implementation=implementation).reshape(y.shape))
        return x + self.fc2(ACTIVATIONS[self.hidden_act](self.fc1(self.layer_norm2(x))))


class ClipVision(nnx.Module):
    """The tower. The layers after the chosen one and `post_layernorm` do no work; checkpoints have them, so we do."""

    def __init__(self, config: ClipConfig, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> None:
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = layers.param(rngs, (width,), (None,), dtype)
        self.patch_embedding = layers.param(rngs, (patch, patch, 3, width), (None, None, None, "embed"), dtype)
        self.position_embedding = layers.param(rngs, (config.num_patches + 1, width), (None, "embed"), dtype)
        self.pre_layrnorm = layers.LayerNorm(
            width, config.layer_norm_eps, dtype=dtype, rngs=rngs
        )  # CLIP's own spelling
        self.layers = layers.make_layers(
            lambda rngs: EncoderLayer(config, dtype=dtype, rngs=rngs), config.num_layers, scan=scan, rngs=rngs
        )
        self.post_layernorm = layers.LayerNorm(width, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.config = config

    def embed(self, pixel_values: Float[Array, "B S S 3"]) -> Float[Array, "B P+1 D"]:
        """Class token and patches, row by row, with positions, after the first norm (hidden state 0)."""
        batch, size, _, _ = pixel_values.shape
        patch, rows = self.config.patch_size, size // self.config.patch_size
        patches = pixel_values.reshape(batch, rows, patch, rows, patch, 3).swapaxes(2, 3)
        x = patches.reshape(batch, rows * rows, -1) @ self.patch_embedding.reshape(patch * patch * 3, -1)
        class_token = jnp.broadcast_to(self.class_embedding[...], (batch, 1, x.shape[-1]))
        return self.pre_layrnorm(constrain_batch(jnp.concatenate([class_token, x], 1) + self.position_embedding))

    def __call__(
        self, pixel_values: Float[Array, "B S S 3"], num_layers: int, implementation: Implementation = "auto"
    ) -> Float[Array, "B P+1 D"]:
        """Hidden states after the first `num_layers` layers, class token first, not normalized."""
        x = self.embed(pixel_values.astype(self.class_embedding.dtype))
        x, _ = layers.apply_layers(
            self.layers, lambda layer, x, _: (layer(x, implementation), None), x, num_layers=num_layers
        )
        return x


def normalize(pixels: UInt8[Array, "*B S S 3"], config: ClipConfig) -> Float[Array, "*B S S 3"]:
    """Gray levels 0-255 → float32 pixel values with CLIP's mean and deviation removed."""
    mean, std = jnp.asarray(config.image_mean), jnp.asarray(config.image_std)
    return (pixels.astype(jnp.float32) / 255.0 - mean) / std
