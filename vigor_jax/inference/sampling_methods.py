"""How the next token is chosen, given its scores: pure functions of logits."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from vigor_jax import fingerprint
from vigor_jax.errors import InputError
from vigor_jax.models import cpu

BITS_OF_ONE = 0x3F800000  # float32 1.0


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How candidates are drawn. The first three shape the distribution, in this order.

    Attributes:
      temperature: divides the scores; 0 takes the most likely token.
      top_k: only the k most likely tokens (ties kept); 0 is off.
      top_p: only the fewest most likely tokens that together have this probability (Holtzman et al. 2020); 1 is off.
      max_new_tokens: a candidate that has not ended by then is cut; the model's positions may end it earlier.
      num_candidates: responses an image.
      seed: one number for all random choices. What a candidate draws depends on it, on its image's id and prompt, on
        the candidate's index and on the position in the text, and on nothing else.
      batch_size: images a batch, over all devices; the mesh may ask for a few more. `batch_size` times
        `num_candidates` responses are under way at a time, of up to one and a half times as many images.
      prompt_bucket: prompts are padded to a multiple of it, so that few lengths are ever compiled.
      repetition_stop: n > 0 ends a candidate whose last 2·n tokens repeat with a period of at most n; 0 is off.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 512
    num_candidates: int = 5
    seed: int = 0
    batch_size: int = fingerprint.neutral(8)
    prompt_bucket: int = fingerprint.neutral(64)
    repetition_stop: int = 0

    def __post_init__(self) -> None:
        least = {"max_new_tokens": 1, "num_candidates": 1, "batch_size": 1, "prompt_bucket": 1}
        for name in ("temperature", "top_k", "seed", "repetition_stop", *least):
            value = getattr(self, name)
            if not least.get(name, 0) <= value < math.inf:
                raise InputError(f"sampling.{name} must be at least {least.get(name, 0)}, got {value}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"sampling.top_p must be above 0 and at most 1, which is off, got {self.top_p}")


def sample_tokens(
    logits: Float[Array, "I #C V"],
    is_answer: Bool[np.ndarray, "V"],
    seeds: UInt32[Array, "I 2"],
    candidates: Int[Array, "I C"],
    positions: Int[Array, "I"],
    config: SamplingConfig,
) -> tuple[Int[Array, "I C"], Float[Array, "I C"]]:
    """One token a candidate, and its log-probability under the model itself: not tempered, and nothing left out.

    Args:
      logits: scores, in float32; one row for all candidates, or one each.
      is_answer: which tokens may be drawn.
      seeds: where each row's random numbers start.
      candidates: index of each among those of its image.
      positions: of the token in its text.
      config: how to draw.
    """
    shape = (*candidates.shape, logits.shape[-1])
    scores = jnp.where(is_answer, logits, -jnp.inf)
    if config.temperature > 0:
        scores = truncate(scores / config.temperature, config.top_k, config.top_p)
        keys = candidate_keys(seeds, candidates, positions)
        # Gumbel-max: the maximum of scores with this noise is a draw from their softmax.
        scores = scores + jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, shape[-1:])))(keys)
    token_ids = jnp.broadcast_to(cpu.argmax(scores), shape[:2])
    chosen = jnp.take_along_axis(jnp.broadcast_to(logits, shape), token_ids[..., None], -1)[..., 0]
    return token_ids, chosen - jax.nn.logsumexp(logits, -1)


def truncate(scores: Float[Array, "*B V"], top_k: int, top_p: float) -> Float[Array, "*B V"]:
    """-inf for all but the `top_k` most likely tokens, and of these all but the fewest that have probability `top_p`.

    A token stays while those more likely than it have less than `top_p` together. The least probability that stays is
    found by bisection over the bit patterns of float32, which are in the order of the numbers: thirty passes that only
    add, where sorting a vocabulary would cost many times more than the decoder itself.
    """
    if 0 < top_k < scores.shape[-1]:
        kth = jax.lax.top_k(scores, top_k)[0][..., -1:]
        scores = jnp.where(scores < kth, -jnp.inf, scores)
    if top_p < 1:
        probs = jax.nn.softmax(scores)
        bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

        def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds  # too much lies above `low`, and little enough above `high`
            middle = (low + high) // 2
            enough = jnp.where(bits > middle, probs, 0).sum(-1, keepdims=True) < top_p
            return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

        one = jnp.full_like(bits[..., :1], BITS_OF_ONE)
        _, least = jax.lax.fori_loop(0, 30, halve, (jnp.full_like(one, -1), one))
        scores = jnp.where(bits < least, -jnp.inf, scores)
    return scores


def candidate_keys(seeds: UInt32[Array, "I 2"], candidates: Int[Array, "I C"], positions: Int[Array, "I"]) -> Array:
    """Random keys [I, C] of a token of each row. Threefry always, whatever the process's default is."""

    def key(seed: Array, candidate: Array, position: Array) -> Array:
        base = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(base, candidate), position)

    return jax.vmap(jax.vmap(key, (None, 0, None)))(seeds, candidates, positions)
