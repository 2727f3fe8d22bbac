"""The Q-Former (Li et al. 2023, BLIP-2), with the instruction that InstructBLIP (Dai et al. 2023) lets it read.

Learned queries and the instruction's words are one sequence of a BERT. In every k-th layer the queries, and they alone,
look at the image; queries and words have feed-forwards of their own in each layer. What becomes of the queries are the
image's features.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vigor_jax.models import layers
from vigor_jax.models.attention import Implementation, attention, masked_attention
from vigor_jax.models.clip import ACTIVATIONS
from vigor_jax.parallel.sharding import constrain_batch, gather_fsdp


@dataclasses.dataclass(frozen=True)
class QFormerConfig:
    """Sizes; the defaults are InstructBLIP's.

    Attributes:
      vocab_size: of the instruction's tokens, BERT's.
      cross_attention_frequency: k: layers 0, k, 2k, ... look at the image. It divides `num_layers`.
      max_position_embeddings: longest instruction, in tokens.
      num_queries: features of an image.
      image_width: of the tower's features.
    """

    vocab_size: int = 30523
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    cross_attention_frequency: int = 2
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    num_queries: int = 32
    image_width: int = 1408

    @property
    def num_blocks(self) -> int:
        """Groups of `cross_attention_frequency` layers, the first of which looks at the image."""
        return self.num_layers // self.cross_attention_frequency

    def forward_flops(self, num_patches: int, *, images: int) -> float:
        """Of the queries alone: instructions are short; see `training.flops`."""
        width, queries = self.hidden_size, self.num_queries
        layer = 2 * queries * (4 * width**2 + 2 * width * self.intermediate_size) + 4 * queries**2 * width
        cross = 2 * (2 * queries * width**2 + 2 * num_patches * self.image_width * width)
        cross += 4 * queries * num_patches * width
        return float(images * (self.num_layers * layer + self.num_blocks * cross))


class QFormerAttention(nnx.Module):
    """BERT's: attention, then the norm of its sum with what went in.

    Args:
      config: sizes.
      context: width of what is looked at.
      dtype: of the weights.
      rngs: seeds.
    """

    def __init__(self, config: QFormerConfig, context: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        make = {"bias": True, "dtype": dtype, "rngs": rngs}
        self.query = layers.Linear((width, width), ("embed", "heads"), **make)
        self.key = layers.Linear((context, width), ("embed", "heads"), **make)
        self.value = layers.Linear((context, width), ("embed", "heads"), **make)
        self.output = layers.Linear((width, width), ("heads", "embed"), **make)
        self.norm = layers.LayerNorm(width, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.num_heads = config.num_heads

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Float[Array, "B S C"],
        mask: Bool[Array, "B T S"] | None,
        implementation: Implementation = "auto",
    ) -> Float[Array, "B T D"]:
        """`mask` says what of the context each token sees; None for all of it."""
        q, k, v = (
            project(y).reshape(*y.shape[:2], self.num_heads, -1)
            for project, y in ((self.query, x), (self.key, context), (self.value, context))
        )
        if mask is None:
            y = attention(q, k, v, causal=False, implementation=implementation)
        else:
            y = masked_attention(q, k, v, mask)
        return self.norm(self.output(y.reshape(x.shape)) + x)


class QFormerMlp(nnx.Module):
    """BERT's feed-forward, then the norm of its sum with what went in."""

    def __init__(self, config: QFormerConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        width, mlp = config.hidden_size, config.intermediate_size
        self.fc1 = layers.Linear((width, mlp), ("embed", "mlp"), bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = layers.Linear((mlp, width), ("mlp", "embed"), bias=True, dtype=dtype, rngs=rngs)
        self.norm = layers.LayerNorm(width, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.hidden_act = config.hidden_act

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.norm(self.fc2(ACTIVATIONS[self.hidden_act](self.fc1(x))) + x)


class QFormerLayer(nnx.Module):
    """One layer, with or without a look at the image."""

    def __init__(self, config: QFormerConfig, *, looks: bool, dtype: Any, rngs: nnx.Rngs) -> None:
        make = {"dtype": dtype, "rngs": rngs}
        self.attention = QFormerAttention(config, config.hidden_size, **make)
        self.cross_attention = QFormerAttention(config, config.image_width, **make) if looks else None
        self.query_mlp = QFormerMlp(config, **make)
        self.text_mlp = QFormerMlp(config, **make)
        self.num_queries = config.num_queries

    def __call__(
        self,
        x: Float[Array, "B T D"],
        image: Float[Array, "B P C"],
        mask: Bool[Array, "B T T"],
        implementation: Implementation = "auto",
    ) -> Float[Array, "B T D"]:
        x = self.attention(x, x, mask)
        queries, text = x[:, : self.num_queries], x[:, self.num_queries :]
        if self.cross_attention is not None:
            queries = self.cross_attention(queries, image, None, implementation)
        return jnp.concatenate([self.query_mlp(queries), self.text_mlp(text)], axis=1)


class QFormerBlock(nnx.Module):
    """A layer that looks at the image, and those up to the next: the unit that repeats, `layer_0`, `layer_1`, ..."""

    def __init__(self, config: QFormerConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        self.size = config.cross_attention_frequency
        for i in range(self.size):
            setattr(self, f"layer_{i}", QFormerLayer(config, looks=i == 0, dtype=dtype, rngs=rngs))

    def __call__(
        self, x: Array, image: Array, mask: Array, implementation: Implementation = "auto"
    ) -> Float[Array, "B T D"]:
        for i in range(self.size):
            x = getattr(self, f"layer_{i}")(x, image, mask, implementation)
        return x


class QFormer(nnx.Module):
    """The queries, what embeds an instruction, and the layers."""

    def __init__(self, config: QFormerConfig, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> None:
        width = config.hidden_size
        self.query_tokens = layers.param(rngs, (1, config.num_queries, width), (None, None, "embed"), dtype)
        self.word_embeddings = layers.param(rngs, (config.vocab_size, width), ("vocab", "embed"), dtype)
        self.position_embeddings = layers.param(rngs, (config.max_position_embeddings, width), (None, "embed"), dtype)
        self.norm = layers.LayerNorm(width, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.layers = layers.make_layers(
            lambda rngs: QFormerBlock(config, dtype=dtype, rngs=rngs), config.num_blocks, scan=scan, rngs=rngs
        )
        self.config = config

    def embed(self, instructions: Int[Array, "B Q"]) -> tuple[Float[Array, "B K+Q D"], Bool[Array, "B K+Q K+Q"]]:
        """Queries and words, of which words alone have positions; and what each sees: all but the padding."""
        batch, length = instructions.shape
        table = gather_fsdp(self.word_embeddings[...], ("vocab", "embed"))
        positions = jnp.take(self.position_embeddings[...], jnp.arange(length), axis=0, mode="clip")  # of padding, any
        words = jnp.take(table, instructions, axis=0, mode="clip") + positions
        queries = jnp.broadcast_to(self.query_tokens[...], (batch, *self.query_tokens.shape[1:]))
        x = self.norm(constrain_batch(jnp.concatenate([queries, words], axis=1)))
        exists = jnp.concatenate([jnp.ones(queries.shape[:2], bool), instructions >= 0], axis=1)
        return x, jnp.broadcast_to(exists[:, None], (batch, x.shape[1], x.shape[1]))

    def __call__(
        self,
        image: Float[Array, "B P C"],
        instructions: Int[Array, "B Q"] | None,
        implementation: Implementation = "auto",
    ) -> Float[Array, "B K D"]:
        """What becomes of the queries.

        Args:
          image: the tower's features.
          instructions: what is asked about each image, at most `max_position_embeddings` tokens, -1 behind it; None for
            queries alone.
          implementation: kernel of the attention without a mask.
        """
        if instructions is None:
            instructions = jnp.zeros((len(image), 0), jnp.int32)
        x, mask = self.embed(instructions)
        x, _ = layers.apply_layers(
            self.layers,
            lambda block, x, _: (block(x, image, mask, implementation), None),
            x,
            num_layers=self.config.num_blocks,
        )
        return x[:, : self.config.num_queries]
