"""CLIP (Radford et al. 2021): its vision transformer, of which LLaVA takes the hidden states of one layer, and all of
it, which says how well a text fits an image."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num, UInt8

from vigor_jax.models import layers
from vigor_jax.models.attention import Implementation, attention
from vigor_jax.models.vlm import VisionConfig
from vigor_jax.parallel.sharding import constrain_batch, gather_fsdp

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


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """Sizes of the text transformer; the defaults are those of ViT-L/14's.

    Attributes:
      end_token_id: ends each text, and has its embedding. None for the largest id of the text, as transformers reads
        configs with the wrong `eos_token_id: 2`.
    """

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"
    end_token_id: int | None = 49407


@dataclasses.dataclass(frozen=True)
class ClipPairConfig:
    """Both towers, and the width of what they are projected to; the defaults are ViT-L/14 at 336 pixels."""

    vision: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    text: ClipTextConfig = dataclasses.field(default_factory=ClipTextConfig)
    projection_dim: int = 768

    def make(self, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> "Clip":
        return Clip(self, dtype=dtype, scan=scan, rngs=rngs)


class EncoderLayer(nnx.Module):
    """Pre-norm transformer block, of patches without a mask, of text with a causal one."""

    def __init__(
        self, config: ClipConfig | ClipTextConfig, *, dtype: Any, rngs: nnx.Rngs, causal: bool = False
    ) -> None:
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
        self.causal = causal

    def __call__(self, x: Float[Array, "B P D"], implementation: Implementation = "auto") -> Float[Array, "B P D"]:
        y = self.layer_norm1(x)
        q, k, v = (
            proj(y).reshape(*y.shape[:2], self.num_heads, -1) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = x + self.out_proj(attention(q, k, v, causal=self.causal, implementation=implementation).reshape(y.shape))
        return x + self.fc2(ACTIVATIONS[self.hidden_act](self.fc1(self.layer_norm2(x))))


class ClipVision(nnx.Module):
    """The tower. In a LLaVA the layers after the chosen one and `post_layernorm` do no work; checkpoints have them, so
    we do."""

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
        x = embed_patches(pixel_values, self.patch_embedding[...])
        class_token = jnp.broadcast_to(self.class_embedding[...], (len(x), 1, x.shape[-1]))
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


class ClipText(nnx.Module):
    """The text transformer."""

    def __init__(self, config: ClipTextConfig, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.token_embedding = layers.param(rngs, (config.vocab_size, width), ("vocab", "embed"), dtype)
        self.position_embedding = layers.param(rngs, (config.max_position_embeddings, width), (None, "embed"), dtype)
        self.layers = layers.make_layers(
            lambda rngs: EncoderLayer(config, dtype=dtype, rngs=rngs, causal=True),
            config.num_layers,
            scan=scan,
            rngs=rngs,
        )
        self.final_layer_norm = layers.LayerNorm(width, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.config = config

    def __call__(self, token_ids: Int[Array, "B T"], implementation: Implementation = "auto") -> Float[Array, "B D"]:
        """The normalized hidden state of each text's end token.

        Args:
          token_ids: texts with their end tokens, padded on the right with anything, T at most the number of positions.
            Of a text without an end token the result means nothing.
          implementation: attention kernel.
        """
        table = gather_fsdp(self.token_embedding[...], ("vocab", "embed"))
        x = constrain_batch(jnp.take(table, token_ids, axis=0, mode="clip"))
        x = x + self.position_embedding[: token_ids.shape[1]]
        x, _ = layers.apply_layers(
            self.layers, lambda layer, x, _: (layer(x, implementation), None), x, num_layers=self.config.num_layers
        )
        end = self.config.end_token_id
        places = (token_ids if end is None else token_ids == end).argmax(-1)  # the first one
        return self.final_layer_norm(jnp.take_along_axis(x, places[:, None, None], axis=1)[:, 0])


class Clip(nnx.Module):
    """Both towers and their projections: images and texts as points on one sphere.

    Args:
      config: sizes.
      dtype: of the weights, and so of the computation; norms, softmax and embeddings are float32 always.
      scan: see `layers.make_layers`.
      rngs: seeds of a random initialization.
    """

    def __init__(self, config: ClipPairConfig, *, dtype: Any = jnp.float32, scan: bool = True, rngs: nnx.Rngs) -> None:
        vision, text, width = config.vision.hidden_size, config.text.hidden_size, config.projection_dim
        self.vision_model = ClipVision(config.vision, dtype=dtype, scan=scan, rngs=rngs)
        self.text_model = ClipText(config.text, dtype=dtype, scan=scan, rngs=rngs)
        self.visual_projection = layers.Linear((vision, width), ("embed", None), bias=False, dtype=dtype, rngs=rngs)
        self.text_projection = layers.Linear((text, width), ("embed", None), bias=False, dtype=dtype, rngs=rngs)
        self.config = config

    def embed_images(
        self, pixels: UInt8[Array, "B S S 3"], implementation: Implementation = "auto"
    ) -> Float[Array, "B D"]:
        """Unit vectors in float32 of images as `data.images.preprocessing` gives them: all layers, the class token."""
        pixel_values = constrain_batch(normalize(pixels, self.config.vision))
        x = self.vision_model(pixel_values, self.config.vision.num_layers, implementation)
        return _unit(self.visual_projection(self.vision_model.post_layernorm(x[:, 0])))

    def embed_texts(self, token_ids: Int[Array, "B T"], implementation: Implementation = "auto") -> Float[Array, "B D"]:
        """Unit vectors in float32 of texts as `ClipText` takes them."""
        return _unit(self.text_projection(self.text_model(token_ids, implementation)))


def _unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def embed_patches(pixel_values: Float[Array, "B S S 3"], kernel: Float[Array, "H H 3 D"]) -> Float[Array, "B P D"]:
    """A convolution without bias whose steps are as wide as its kernel: the patches, row by row."""
    batch, size, _, _ = pixel_values.shape
    patch = len(kernel)
    rows = size // patch
    patches = pixel_values.reshape(batch, rows, patch, rows, patch, 3).swapaxes(2, 3)
    return patches.reshape(batch, rows * rows, -1) @ kernel.reshape(patch * patch * 3, -1)


def normalize(pixels: Num[Array, "*B S S 3"], config: VisionConfig) -> Float[Array, "*B S S 3"]:
    """Gray levels 0-255, whole or not → float32 pixel values with the tower's mean and deviation removed."""
    mean, std = jnp.asarray(config.image_mean), jnp.asarray(config.image_std)
    return (pixels.astype(jnp.float32) / 255.0 - mean) / std
