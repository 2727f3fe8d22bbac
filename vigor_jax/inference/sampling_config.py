"""How responses are drawn: the options."""

import dataclasses
import math

from vigor_jax import fingerprint
from vigor_jax.errors import InputError


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
