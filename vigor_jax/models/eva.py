"""EVA-CLIP's vision transformer (Fang et al. 2023), of which BLIP-2 and InstructBLIP take all normalized tokens."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vigor_jax.models import layers
from vigor_jax.models.attention import Implementation, attention
from vigor_jax.models.clip import ACTIVATIONS, embed_patches
from vigor_jax.parallel.sharding import constrain_batch


@dataclasses.dataclass(frozen=True)
class EvaConfig:
    """Sizes of the tower; the defaults are ViT-g/14 at 224 pixels, without the last of its 40 layers."""

    hidden_size: int = 1408
    intermediate_size: int = 6144
    num_layers: int = 39
    num_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def forward_flops(self, *, images: int) -> float:
        """Of the tower, the patches' embedding included; see `training.flops`."""
        width, positions = self.hidden_size, self.num_patches + 1
        layer = width * (4 * width + 2 * self.intermediate_size)
        flops = images * positions * self.num_layers * (2.0 * layer + 4 * positions * width)
        return flops + images * self.num_patches * 2 * 3 * self.patch_size**2 * width


class EvaLayer(nnx.Module):
    """Pre-norm transformer block whose queries, keys and values come from one matrix."""

    def __init__(self, config: EvaConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        width, mlp = config.hidden_size, config.intermediate_size
        make = {"dtype": dtype, "rngs": rngs}
        self.layer_norm1 = layers.LayerNorm(width, config.layer_norm_eps, **make)
        self.qkv = layers.Linear((width, 3 * width), ("embed", "heads"), bias=config.qkv_bias, **make)
        self.projection = layers.Linear((width, width), ("heads", "embed"), bias=True, **make)
        self.layer_norm2 = layers.LayerNorm(width, config.layer_norm_eps, **make)
        self.fc1 = layers.Linear((width, mlp), ("embed", "mlp"), bias=True, **make)
        self.fc2 = layers.Linear((mlp, width), ("mlp", "embed"), bias=True, **make)
        self.num_heads = config.num_heads
        self.hidden_act = config.hidden_act

    def __call__(self, x: Float[Array, "B P D"], implementation: Implementation = "auto") -> Float[Array, "B P D"]:
        # Three parts of all heads each: where the matrix is split by heads, its product is shared out once more.
        q, k, v = (
            part.reshape(*x.shape[:2], self.num_heads, -1)
            for part in jnp.split(self.qkv(self.layer_norm1(x)), 3, axis=-1)
        )
        x = x + self.projection(attention(q, k, v, causal=False, implementation=implementation).reshape(x.shape))
        return x + self.fc2(ACTIVATIONS[self.hidden_act](self.fc1(self.layer_norm2(x))))


class EvaVision(nnx.Module):
    """The tower."""

    def __init__(self, config: EvaConfig, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> None:
        width, patch, positions = config.hidden_size, config.patch_size, config.num_patches + 1
        self.class_embedding = layers.param(rngs, (1, 1, width), (None, None, None), dtype)
        self.patch_embedding = layers.param(rngs, (patch, patch, 3, width), (None, None, None, "embed"), dtype)
        self.patch_bias = layers.param(rngs, (width,), (None,), dtype)
        self.position_embedding = layers.param(rngs, (1, positions, width), (None, None, "embed"), dtype)
        self.layers = layers.make_layers(
            lambda rngs: EvaLayer(config, dtype=dtype, rngs=rngs), config.num_layers, scan=scan, rngs=rngs
        )
        self.post_layernorm = layers.LayerNorm(width, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.config = config

    def embed(self, pixel_values: Float[Array, "B S S 3"]) -> Float[Array, "B P+1 D"]:
        """Class token and patches, row by row, with positions (hidden state 0)."""
        x = embed_patches(pixel_values, self.patch_embedding[...]) + self.patch_bias
        class_token = jnp.broadcast_to(self.class_embedding[...], (len(x), 1, x.shape[-1]))
        return constrain_batch(jnp.concatenate([class_token, x], 1) + self.position_embedding)

    def __call__(
        self, pixel_values: Float[Array, "B S S 3"], implementation: Implementation = "auto"
    ) -> Float[Array, "B P+1 D"]:
        """The hidden states of all tokens after the last layer, class token first, normalized."""
        x = self.embed(pixel_values.astype(self.class_embedding.dtype))
        x, _ = layers.apply_layers(
            self.layers, lambda layer, x, _: (layer(x, implementation), None), x, num_layers=self.config.num_layers
        )
        return self.post_layernorm(x)
