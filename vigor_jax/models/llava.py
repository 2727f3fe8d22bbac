"""LLaVA (Liu et al. 2023): CLIP patches, projected to the language model's width, stand among its tokens."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from vigor_jax.models import layers
from vigor_jax.models.attention import Implementation
from vigor_jax.models.clip import ACTIVATIONS, ClipConfig, ClipVision, normalize
from vigor_jax.models.llama import Llama, LlamaConfig
from vigor_jax.models.vlm import Part, Vlm
from vigor_jax.parallel.sharding import constrain_batch


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """The whole model; the defaults are LLaVA-1.5 7B.

    Attributes:
      vision: the image tower.
      text: the language model.
      projector: one linear layer (v1.0) or two with a GELU between them (v1.5).
      feature_layer: whose hidden state the patches are taken from: 0 is the embeddings, -1 the last layer, -2 (LLaVA's
        own choice) the one before it.
      feature_select: "patch" leaves the class token out, "full" keeps it.
      image_token_id: stands in `token_ids` once for every image feature; it may lie outside the vocabulary.
    """

    vision: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    text: LlamaConfig = dataclasses.field(default_factory=LlamaConfig)
    projector: Literal["linear", "mlp2x_gelu"] = "mlp2x_gelu"
    feature_layer: int = -2
    feature_select: Literal["patch", "full"] = "patch"
    image_token_id: int = 32000

    @property
    def num_image_tokens(self) -> int:
        return self.vision.num_patches + (self.feature_select == "full")

    @property
    def num_vision_layers(self) -> int:
        """Layers of the tower that do work."""
        count = self.vision.num_layers
        return self.feature_layer if self.feature_layer >= 0 else count + 1 + self.feature_layer

    def make(self, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> "Llava":
        return Llava(self, dtype=dtype, scan=scan, rngs=rngs)

    def forward_flops(self, *, rows: int, tokens: int, images: int) -> dict[Part, float]:
        weights = self.vision.hidden_size * self.text.hidden_size
        weights += (self.projector == "mlp2x_gelu") * self.text.hidden_size**2
        return {
            "vision_tower": self.vision.forward_flops(self.num_vision_layers, images=images),
            "multi_modal_projector": images * self.num_image_tokens * 2 * weights,
            "language_model": self.text.forward_flops(rows=rows, tokens=tokens),
        }


class Projector(nnx.Module):
    """Image features → embeddings of the language model."""

    def __init__(self, config: LlavaConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        vision, text = config.vision.hidden_size, config.text.hidden_size
        make = {"bias": True, "dtype": dtype, "rngs": rngs}
        self.linear_1 = layers.Linear((vision, text), (None, "embed"), **make)
        two = config.projector == "mlp2x_gelu"
        self.linear_2 = layers.Linear((text, text), ("embed", "mlp"), **make) if two else None

    def __call__(self, x: Float[Array, "B P I"]) -> Float[Array, "B P D"]:
        x = constrain_batch(self.linear_1(x.astype(self.linear_1.kernel.dtype)))
        return x if self.linear_2 is None else self.linear_2(ACTIVATIONS["gelu"](x))


class Llava(Vlm):
    """CLIP, a projector and LLaMA.

    Args:
      config: sizes.
      dtype: of the weights, and so of the computation; softmax, norms, rotary angles and logits are float32 always.
      scan: stack the layers' weights (training) or keep them apart (decoding), see `layers.make_layers`.
      rngs: seeds of a random initialization; `nnx.eval_shape` makes the model without one.
    """

    config: LlavaConfig

    def __init__(self, config: LlavaConfig, *, dtype: Any = jnp.float32, scan: bool = True, rngs: nnx.Rngs) -> None:
        self.vision_tower = ClipVision(config.vision, dtype=dtype, scan=scan, rngs=rngs)
        self.multi_modal_projector = Projector(config, dtype=dtype, rngs=rngs)
        self.language_model = Llama(config.text, dtype=dtype, scan=scan, rngs=rngs)
        self.config = config

    def encode_images(
        self,
        pixels: UInt8[Array, "B S S 3"],
        instructions: Int[Array, "B Q"] | None = None,
        implementation: Implementation = "auto",
    ) -> Float[Array, "B P D"]:
        """Projected patches, which are the same whatever is asked."""
        pixel_values = constrain_batch(normalize(pixels, self.config.vision))
        features = self.vision_tower(pixel_values, self.config.num_vision_layers, implementation)
        features = features[:, 1:] if self.config.feature_select == "patch" else features
        return constrain_batch(self.multi_modal_projector(constrain_batch(features)))
