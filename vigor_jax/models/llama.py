"""LLaMA (Touvron et al. 2023) and Vicuna, its fine-tuned form: the language half of LLaVA."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vigor_jax.models import layers
from vigor_jax.models.attention import Implementation, attention
from vigor_jax.parallel.sharding import constrain_batch, gather_fsdp


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the language model; the defaults are Vicuna 7B v1.5."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 4096
    tie_word_embeddings: bool = False

    def forward_flops(self, *, rows: int, tokens: int) -> float:
        """Of the decoder and its output head, of `tokens` tokens in `rows` equal sequences; see `training.flops`."""
        query_width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = self.hidden_size * (2 * query_width + 2 * kv_width + 3 * self.intermediate_size)
        flops: float = tokens * 2 * (self.num_layers * layer + self.hidden_size * self.vocab_size)
        return flops + tokens * 2 * (tokens / max(rows, 1)) * query_width * self.num_layers


class DecoderLayer(nnx.Module):
    """Pre-norm block: rotary grouped-query attention, then a gated MLP. The caller says what is attended to."""

    def __init__(self, config: LlamaConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        width, mlp = config.hidden_size, config.intermediate_size
        query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        make = {"bias": False, "dtype": dtype, "rngs": rngs}
        self.input_layernorm = layers.RMSNorm(width, config.rms_norm_eps, dtype=dtype, rngs=rngs)
        self.q_proj = layers.Linear((width, query_width), ("embed", "heads"), **make)
        self.k_proj = layers.Linear((width, kv_width), ("embed", "heads"), **make)
        self.v_proj = layers.Linear((width, kv_width), ("embed", "heads"), **make)
        self.o_proj = layers.Linear((query_width, width), ("heads", "embed"), **make)
        self.post_attention_layernorm = layers.RMSNorm(width, config.rms_norm_eps, dtype=dtype, rngs=rngs)
        self.gate_proj = layers.Linear((width, mlp), ("embed", "mlp"), **make)
        self.up_proj = layers.Linear((width, mlp), ("embed", "mlp"), **make)
        self.down_proj = layers.Linear((mlp, width), ("mlp", "embed"), **make)
        self.head_dim = config.head_dim

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rotation: Float[Array, "2 B T 1 H"],
        attend: layers.Attend,
        *,
        decodes: bool = False,
    ) -> tuple[Float[Array, "B T D"], Any]:
        y = self.input_layernorm(x)
        q, k, v = (proj(y) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if decodes:
            # Or XLA multiplies with kernels split by heads, and on TPUs copies them in that order at every step.
            q, k, v = jax.lax.optimization_barrier((q, k, v))
        q, k, v = (each.reshape(*y.shape[:2], -1, self.head_dim) for each in (q, k, v))
        attended, kept = attend(rotate(q, rotation), rotate(k, rotation), v)
        x = x + self.o_proj(attended.reshape(*y.shape[:2], -1))
        y = self.post_attention_layernorm(x)
        y = jax.nn.silu(self.gate_proj(y)) * self.up_proj(y)
        if decodes:
            # Or XLA for TPUs puts the products of up_proj and down_proj into one, which is slower.
            y = jax.lax.optimization_barrier(y)
        return x + self.down_proj(y), kept


def rope(positions: Int[Array, "B T"], config: LlamaConfig) -> Float[Array, "2 B T 1 H"]:
    """Cosines and sines of the rotary embedding (Su et al. 2021), halves concatenated, in float32."""
    exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    angles = positions[..., None, None].astype(jnp.float32) / config.rope_theta**exponent
    angles = jnp.concatenate([angles, angles], -1)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def rotate(x: Float[Array, "B T N H"], rotation: Float[Array, "2 B T 1 H"]) -> Float[Array, "B T N H"]:
    """Applies `rope` to queries or keys."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    turned = jnp.concatenate([-second, first], -1)
    return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)


class Llama(nnx.Module):
    """Token embeddings, decoder layers and the output head."""

    def __init__(self, config: LlamaConfig, *, dtype: Any, scan: bool, rngs: nnx.Rngs) -> None:
        self.embed_tokens = layers.param(rngs, (config.vocab_size, config.hidden_size), ("vocab", "embed"), dtype)
        self.layers = layers.make_layers(
            lambda rngs: DecoderLayer(config, dtype=dtype, rngs=rngs), config.num_layers, scan=scan, rngs=rngs
        )
        self.norm = layers.RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype, rngs=rngs)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else layers.param(rngs, (config.hidden_size, config.vocab_size), ("embed", "vocab"), dtype)
        )
        self.config = config

    def embed(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Embeddings; an id outside the vocabulary (an image's place) gives some row that the caller replaces."""
        table = gather_fsdp(self.embed_tokens[...], ("vocab", "embed"))
        return constrain_batch(jnp.take(table, token_ids, axis=0, mode="clip"))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        attend: layers.Attend | None = None,
        per_layer: Any = None,
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        remat: str = "none",
        implementation: Implementation = "auto",
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Runs the decoder on embeddings.

        Args:
          x: token or image embeddings.
          positions: rotary positions.
          attend: `(q, k, v, per_layer[i]) -> (attended, kept)`; causal attention over the sequence itself by default,
            which keeps nothing.
          per_layer: what `attend` needs of each layer (a cache), as `apply_layers` takes it.
          segment_ids: of packed rows, for the default attention.
          remat: rematerialization policy, see `layers.REMAT_POLICIES`.
          implementation: kernel of the default attention.

        Returns:
          Normalized hidden states, ready for `logits`, and what `attend` kept of each layer.
        """
        if attend is None:

            def attend(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, Any]:
                return attention(q, k, v, causal=True, segment_ids=segment_ids, implementation=implementation), None

        rotation = rope(positions, self.config)

        def call(layer: DecoderLayer, x: Array, item: Any) -> tuple[Array, Any]:
            return layer(x, rotation, lambda q, k, v: attend(q, k, v, item), decodes=item is not None)

        x, kept = layers.apply_layers(self.layers, call, x, per_layer, num_layers=self.config.num_layers, remat=remat)
        return self.norm(x), kept

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Output scores over the vocabulary, accumulated and returned in float32."""
        return jnp.matmul(hidden, self.head(), preferred_element_type=jnp.float32)

    def head(self) -> Float[Array, "D V"]:
        """The output matrix; the transposed embeddings where a checkpoint ties them."""
        return self.embed_tokens[...].T if self.lm_head is None else self.lm_head[...]
