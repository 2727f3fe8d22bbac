"""LLaVA (Liu et al. 2023): CLIP patches, projected to the language model's width, stand among its tokens."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from vigor_jax.models import layers
from vigor_jax.models.attention import Implementation
from vigor_jax.models.clip import ACTIVATIONS, ClipConfig, ClipVision, normalize
from vigor_jax.models.llama import Llama, LlamaConfig
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


class Llava(nnx.Module):
    """The policy and, with other weights, the reward model.

    Args:
      config: sizes.
      dtype: of the weights, and so of the computation; softmax, norms, rotary angles and logits are float32 always.
      scan: stack the layers' weights (training) or keep them apart (decoding), see `layers.make_layers`.
      rngs: seeds of a random initialisation; `nnx.eval_shape` makes the model without one.
    """

    def __init__(self, config: LlavaConfig, *, dtype: Any = jnp.float32, scan: bool = True, rngs: nnx.Rngs) -> None:
        self.vision_tower = ClipVision(config.vision, dtype=dtype, scan=scan, rngs=rngs)
        self.multi_modal_projector = Projector(config, dtype=dtype, rngs=rngs)
        self.language_model = Llama(config.text, dtype=dtype, scan=scan, rngs=rngs)
        self.config = config

    def encode_images(
        self, pixels: UInt8[Array, "B S S 3"], implementation: Implementation = "auto"
    ) -> Float[Array, "B P D"]:
        """Images as `data.images.preprocessing` gives them → projected features, one for each image token."""
        pixel_values = constrain_batch(normalize(pixels, self.config.vision))
        features = self.vision_tower(pixel_values, self.config.num_vision_layers, implementation)
        features = features[:, 1:] if self.config.feature_select == "patch" else features
        return constrain_batch(self.multi_modal_projector(constrain_batch(features)))

    def embed(self, token_ids: Int[Array, "B T"], features: Float[Array, "B F D"] | None) -> Float[Array, "B T D"]:
        """Token embeddings, with a row's features in order in the places of its image tokens.

        `F` is the number of features a row may have at most; a row without images ignores them.
        """
        x = self.language_model.embed(token_ids)
        if features is None:
            return x
        is_image = token_ids == self.config.image_token_id
        index = jnp.clip(jnp.cumsum(is_image, 1) - 1, 0, features.shape[1] - 1)
        placed = jnp.take_along_axis(features.astype(x.dtype), index[..., None], axis=1)
        return jnp.where(is_image[..., None], placed, x)

    def __call__(
        self,
        token_ids: Int[Array, "B T"],
        pixels: UInt8[Array, "B I S S 3"] | None = None,
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        attend: layers.Attend | None = None,
        remat: str = "none",
        implementation: Implementation = "auto",
    ) -> Float[Array, "B T D"]:
        """Hidden states of right-padded sequences (`language_model.logits` turns them into scores).

        Args:
          token_ids: each image's tokens already repeated, as `data.text.conversation` writes them.
          pixels: I images a row; rows with fewer are filled up with anything.
          positions: rotary positions; 0, 1, ... by default.
          segment_ids: of packed rows, for the default attention, as `data.batches.packing.PackedTokens` has them.
          attend: as `Llama` takes it, keeping nothing; causal attention by default.
          remat: rematerialisation policy of the decoder layers.
          implementation: attention kernel.
        """
        features = None
        if pixels is not None:
            batch, images = pixels.shape[:2]
            features = self.encode_images(pixels.reshape(-1, *pixels.shape[2:]), implementation)
            features = features.reshape(batch, images * features.shape[1], -1)
        x = constrain_batch(self.embed(token_ids, features))
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        hidden, _ = self.language_model(
            x, positions, attend, segment_ids=segment_ids, remat=remat, implementation=implementation
        )
        return constrain_batch(hidden)


def abstract_llava(config: LlavaConfig, *, dtype: Any = jnp.float32, scan: bool = True) -> Llava:
    """The model with shapes in place of weights."""
    return nnx.eval_shape(lambda: Llava(config, dtype=dtype, scan=scan, rngs=nnx.Rngs(0) if scan else _OneKey()))


class _OneKey(nnx.Rngs):
    """The same key again and again, which is enough for shapes.

    Counting keys takes nnx seconds where hundreds are drawn inside one trace: each time, JAX looks all of it through.
    """

    def params(self) -> Array:
        return jax.random.key(0)


def param_paths(state: nnx.State) -> dict[str, nnx.Variable]:
    """Parameters by dotted path, such as `language_model.layers.q_proj.kernel`."""
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
