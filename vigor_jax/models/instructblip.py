"""InstructBLIP (Dai et al. 2023): what a Q-Former finds in an image for an instruction stands before the text."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from vigor_jax.models import layers
from vigor_jax.models.attention import Implementation
from vigor_jax.models.clip import normalize
from vigor_jax.models.eva import EvaConfig, EvaVision
from vigor_jax.models.llama import Llama, LlamaConfig
from vigor_jax.models.qformer import QFormer, QFormerConfig
from vigor_jax.models.vlm import Part, Vlm
from vigor_jax.parallel.sharding import constrain_batch


@dataclasses.dataclass(frozen=True)
class InstructBlipConfig:
    """The whole model; the defaults are InstructBLIP with Vicuna 7B.

    Attributes:
      vision: the image tower.
      qformer: the Q-Former.
      text: the language model.
      image_token_id: stands in `token_ids` once for every image feature; it may lie outside the vocabulary.
    """

    vision: EvaConfig = dataclasses.field(default_factory=EvaConfig)
    qformer: QFormerConfig = dataclasses.field(default_factory=QFormerConfig)
    text: LlamaConfig = dataclasses.field(
        default_factory=lambda: LlamaConfig(vocab_size=32064, rms_norm_eps=1e-6, max_position_embeddings=2048)
    )
    image_token_id: int = 32001

    @property
    def num_image_tokens(self) -> int:
        return self.qformer.num_queries

    def make(self, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> "InstructBlip":
        return InstructBlip(self, dtype=dtype, scan=scan, rngs=rngs)

    def forward_flops(self, *, rows: int, tokens: int, images: int) -> dict[Part, float]:
        projection = images * self.num_image_tokens * 2 * self.qformer.hidden_size * self.text.hidden_size
        return {
            "vision_tower": self.vision.forward_flops(images=images),
            "multi_modal_projector": self.qformer.forward_flops(self.vision.num_patches + 1, images=images)
            + projection,
            "language_model": self.text.forward_flops(rows=rows, tokens=tokens),
        }


class QFormerProjector(nnx.Module):
    """The Q-Former, and a linear layer to the language model's width."""

    def __init__(self, config: InstructBlipConfig, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> None:
        shape = (config.qformer.hidden_size, config.text.hidden_size)
        self.qformer = QFormer(config.qformer, dtype=dtype, scan=scan, rngs=rngs)
        self.language_projection = layers.Linear(shape, (None, "embed"), bias=True, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        image: Float[Array, "B P C"],
        instructions: Int[Array, "B Q"] | None,
        implementation: Implementation = "auto",
    ) -> Float[Array, "B K D"]:
        image = image.astype(self.language_projection.kernel.dtype)
        return self.language_projection(constrain_batch(self.qformer(image, instructions, implementation)))


class InstructBlip(Vlm):
    """EVA's ViT-g, a Q-Former and LLaMA.

    Args:
      config: sizes.
      dtype: of the weights, and so of the computation; softmax, norms, rotary angles and logits are float32 always.
      scan: stack the layers' weights (training) or keep them apart (decoding), see `layers.make_layers`.
      rngs: seeds of a random initialization; `nnx.eval_shape` makes the model without one.
    """

    config: InstructBlipConfig

    def __init__(self, config: InstructBlipConfig, *, dtype: Any = jnp.float32, scan: bool = True, rngs: nnx.Rngs):
        self.vision_tower = EvaVision(config.vision, dtype=dtype, scan=scan, rngs=rngs)
        self.multi_modal_projector = QFormerProjector(config, dtype=dtype, scan=scan, rngs=rngs)
        self.language_model = Llama(config.text, dtype=dtype, scan=scan, rngs=rngs)
        self.config = config

    def encode_images(
        self,
        pixels: UInt8[Array, "B S S 3"],
        instructions: Int[Array, "B Q"] | None = None,
        implementation: Implementation = "auto",
    ) -> Float[Array, "B K D"]:
        """What the Q-Former's queries find for each instruction."""
        pixel_values = constrain_batch(normalize(pixels, self.config.vision))
        image = constrain_batch(self.vision_tower(pixel_values, implementation))
        return constrain_batch(self.multi_modal_projector(image, instructions, implementation))
