"""What the rest of the package needs of a vision-language model, whatever its family. docs/extending.md adds one."""

import dataclasses
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from vigor_jax.models import layers
from vigor_jax.models.attention import Implementation
from vigor_jax.models.llama import Llama, LlamaConfig
from vigor_jax.parallel.sharding import constrain_batch

Part: TypeAlias = Literal["vision_tower", "multi_modal_projector", "language_model"]
# In the order of the forward pass. Each is an attribute of the model; paths of parameters begin with one of them.
PARTS: tuple[Part, ...] = ("vision_tower", "multi_modal_projector", "language_model")


class VisionConfig(Protocol):
    """What is asked of an image tower's sizes: a frozen dataclass, too."""

    @property
    def image_size(self) -> int:
        """Side of the square pictures that it takes, in pixels."""

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """Mean of a picture's red, green and blue, of 1."""

    @property
    def image_std(self) -> tuple[float, float, float]:
        """Their standard deviation."""


M_co = TypeVar("M_co", bound=nnx.Module, covariant=True)


class Sizes(Protocol[M_co]):
    """Sizes of any model: a frozen dataclass that makes it."""

    def __hash__(self) -> int: ...

    def make(self, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> M_co: ...


class VlmConfig(Protocol):
    """Sizes of a model: a frozen dataclass, whose fields tell one model from another.

    Attributes:
      text: the language model.
      vision: the image tower.
      image_token_id: stands in `token_ids` once for every image feature; it may lie outside the vocabulary.
      num_image_tokens: features of an image.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __hash__(self) -> int: ...

    @property
    def text(self) -> LlamaConfig: ...

    @property
    def vision(self) -> VisionConfig: ...

    @property
    def image_token_id(self) -> int: ...

    @property
    def num_image_tokens(self) -> int: ...

    def make(self, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> "Vlm":
        """A model of these sizes; the arguments are those of `Vlm`."""

    def forward_flops(self, *, rows: int, tokens: int, images: int) -> dict[Part, float]:
        """Floating-point operations of one forward pass by part; `training.flops` says how they are counted."""


class Vlm(nnx.Module):
    """A language model that sees: image features stand among its tokens. The policy and, with other weights, the reward
    model.

    A family makes the three `PARTS` and `config` in its `__init__(config, *, dtype, scan, rngs)`, and says in
    `encode_images` how pictures become features. Of the parameters, those of Linear layers in `language_model.layers`
    can be held in 8 bits, and any can be trained or frozen by the beginning of its path.

    Attributes:
      language_model: the decoder; what its layers keep for later tokens follows from `attend`.
      config: sizes.
    """

    language_model: Llama
    config: VlmConfig

    def encode_images(
        self,
        pixels: UInt8[Array, "B S S 3"],
        instructions: Int[Array, "B Q"] | None = None,
        implementation: Implementation = "auto",
    ) -> Float[Array, "B P D"]:
        """Images as `data.images.preprocessing` gives them → features of the decoder's width, one for each image token.

        Args:
          pixels: one image a row.
          instructions: what is asked about each image, in the tokens of `Tokenizer.instruction_ids`, -1 behind them; a
            family that reads no instruction ignores it, and is given None.
          implementation: attention kernel.
        """
        raise NotImplementedError

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
        instructions: Int[Array, "B I Q"] | None = None,
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
          instructions: what is asked about each image, as `encode_images` takes it.
          positions: rotary positions; 0, 1, ... by default.
          segment_ids: of packed rows, for the default attention, as `data.batches.packing.PackedTokens` has them.
          attend: as `Llama` takes it, keeping nothing; causal attention by default.
          remat: rematerialisation policy of the decoder layers.
          implementation: attention kernel.
        """
        features = None
        if pixels is not None:
            batch, images = pixels.shape[:2]
            asked = None if instructions is None else instructions.reshape(-1, instructions.shape[-1])
            features = self.encode_images(pixels.reshape(-1, *pixels.shape[2:]), asked, implementation)
            features = features.reshape(batch, images * features.shape[1], -1)
        x = constrain_batch(self.embed(token_ids, features))
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        hidden, _ = self.language_model(
            x, positions, attend, segment_ids=segment_ids, remat=remat, implementation=implementation
        )
        return constrain_batch(hidden)


def abstract_model(config: Sizes[M_co], *, dtype: Any = jnp.float32, scan: bool = True) -> M_co:
    """The model with shapes in place of weights."""
    return nnx.eval_shape(lambda: config.make(dtype=dtype, scan=scan, rngs=nnx.Rngs(0) if scan else _OneKey()))


class _OneKey(nnx.Rngs):
    """The same key again and again, which is enough for shapes.

    Counting keys takes nnx seconds where hundreds are drawn inside one trace: each time, JAX looks all of it through.
    """

    def params(self) -> Array:
        return jax.random.key(0)


def param_paths(state: nnx.State) -> dict[str, nnx.Variable]:
    """Parameters by dotted path, such as `language_model.layers.q_proj.kernel`."""
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
