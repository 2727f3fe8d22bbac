"""How the answer to a benchmark's question is drawn."""

import dataclasses
from typing import ClassVar

from vigor_jax.inference.sampling_config import SamplingConfig


@dataclasses.dataclass(frozen=True)
class AnswerSampling(SamplingConfig):
    """As `SamplingConfig` says, but one answer to each question, and by default the most likely one."""

    num_candidates: ClassVar[int] = 1  # type: ignore[misc]  # a class variable is no option
    temperature: float = 0.0
