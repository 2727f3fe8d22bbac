"""A second kind of model, for tests: queries look at patches, and what they look for depends on the instruction."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vigor_jax.models import layers
from vigor_jax.models.llama import Llama, LlamaConfig
from vigor_jax.models.vlm import Part, Vlm
from vigor_jax.parallel.sharding import constrain_batch


@dataclasses.dataclass(frozen=True)
class ToyEyesConfig:
    width: int = 24
    num_layers: int = 2
    image_size: int = 28
    patch_size: int = 7
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    vision: ToyEyesConfig
    text: LlamaConfig
    image_token_id: int
    num_image_tokens: int = 3
    num_words: int = 40

    def make(self, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> "Toy":
        return Toy(self, dtype=dtype, scan=scan, rngs=rngs)

    def forward_flops(self, *, rows: int, tokens: int, images: int) -> dict[Part, float]:
        eyes = self.vision
        patches = (eyes.image_size // eyes.patch_size) ** 2
        return {
            "vision_tower": images * patches * 2 * eyes.width * (3 * eyes.patch_size**2 + eyes.num_layers * eyes.width),
            "multi_modal_projector": images * self.num_image_tokens * 2 * eyes.width * self.text.hidden_size,
            "language_model": self.text.forward_flops(rows=rows, tokens=tokens),
        }


class Block(nnx.Module):
    def __init__(self, width: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        self.fc = layers.Linear((width, width), ("embed", "mlp"), bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jnp.tanh(self.fc(x))


class Eyes(nnx.Module):
    def __init__(self, config: ToyEyesConfig, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> None:
        patch, width = config.patch_size, config.width
        self.patches = layers.param(rngs, (patch, patch, 3, width), (None, None, None, "embed"), dtype)
        self.layers = layers.make_layers(
            lambda rngs: Block(width, dtype=dtype, rngs=rngs), config.num_layers, scan=scan, rngs=rngs
        )
        self.config = config

    def __call__(self, pixels: jax.Array) -> jax.Array:
        config, patch = self.config, self.config.patch_size
        x = (pixels.astype(jnp.float32) / 255 - jnp.asarray(config.image_mean)) / jnp.asarray(config.image_std)
        batch, side = x.shape[0], x.shape[1] // patch
        x = x.reshape(batch, side, patch, side, patch, 3).swapaxes(2, 3).reshape(batch, side * side, -1)
        x = x.astype(self.patches.dtype) @ self.patches.reshape(-1, config.width)
        return layers.apply_layers(self.layers, lambda layer, x, _: (layer(x), None), x, num_layers=config.num_layers)[
            0
        ]


class Queries(nnx.Module):
    def __init__(self, config: ToyConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        width = config.vision.width
        self.queries = layers.param(rngs, (config.num_image_tokens, width), (None, "embed"), dtype)
        self.words = layers.param(rngs, (config.num_words, width), (None, "embed"), dtype)
        self.out = layers.Linear((width, config.text.hidden_size), (None, "embed"), bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, patches: jax.Array, instructions: jax.Array | None) -> jax.Array:
        queries = jnp.broadcast_to(self.queries[...], (patches.shape[0], *self.queries.shape))
        if instructions is not None:
            said = self.words[...][jnp.maximum(instructions, 0)] * (instructions >= 0)[..., None]
            queries = queries + said.sum(1, keepdims=True)
        looks = jax.nn.softmax((queries @ patches.swapaxes(1, 2)).astype(jnp.float32)).astype(patches.dtype)
        return self.out(queries + looks @ patches)


class Toy(Vlm):
    config: ToyConfig

    def __init__(self, config: ToyConfig, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> None:
        self.vision_tower = Eyes(config.vision, dtype=dtype, scan=scan, rngs=rngs)
        self.multi_modal_projector = Queries(config, dtype=dtype, rngs=rngs)
        self.language_model = Llama(config.text, dtype=dtype, scan=scan, rngs=rngs)
        self.config = config

    def encode_images(
        self, pixels: jax.Array, instructions: jax.Array | None = None, implementation: Any = "auto"
    ) -> jax.Array:
        patches = constrain_batch(self.vision_tower(pixels))
        return constrain_batch(self.multi_modal_projector(patches, instructions))
