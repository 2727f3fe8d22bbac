"""Which candidate is taken, and what is left of it: the options."""

import dataclasses
from typing import Literal

from vigor_jax import fingerprint
from vigor_jax.errors import InputError
from vigor_jax.records import CLAIM_KINDS, ClaimKind
from vigor_jax.rewards.fusion import FusionConfig

Repetitions = Literal["count", "once"]


@dataclasses.dataclass(frozen=True)
class SelectConfig:
    """How targets are made of candidates.

    Attributes:
      strategy: "reward" takes the candidate of the lowest penalty. The controls take a random one, whatever the streams
        say: "random", and "random_drop" without randomly chosen sentences, so that as many are left as refinement
        leaves of the candidate of the lowest penalty (all, if it has fewer).
      min_words: least length of a response, and of what is left of it. A shorter candidate loses to any that is longer,
        the controls do not draw it, and the variances leave it out; where all are shorter the image gives no target.
      refine: "drop" leaves out the sentences that mention what is not there, or claim of it what is wrong. "repair"
        replaces the words of wrong claims where the stream `claims` knows the right ones, and drops the rest. "none"
        keeps all. "random_drop" only counts them.
      claims: kinds of wrong claims that refinement drops or repairs; wrong claims of other kinds stay in the text.
      continuations: whether refinement also drops sentences that only continue one that it leaves out ("It is red.").
        The paper keeps them.
      repetitions: "count" takes a sentence that a candidate repeats word for word as a sentence like any other; with
        "once" it earns nothing again: its positive signals do not count, nor does it among the sentences of
        `fusion.per`, while its negative ones do; ties go to whoever repeats less, and refinement leaves it out.
      boxes: "text" writes the best box of each thing that was found behind its first mention in what is left, relative
        to the square that LLaVA-1.5 pads an image to, in place of whatever boxes the response has; "none" writes none.
      seed: of the controls; a draw depends on it, the image and the prompt only.
      fusion: how the streams' signals become one penalty.
    """

    strategy: Literal["reward", "random", "random_drop"] = "reward"
    min_words: int = 2
    refine: Literal["drop", "repair", "none"] = "drop"
    claims: tuple[ClaimKind, ...] = CLAIM_KINDS
    continuations: Literal["drop", "keep"] = "drop"
    repetitions: Repetitions = "count"
    boxes: Literal["none", "text"] = fingerprint.optional("none")
    seed: int = 0
    fusion: FusionConfig = dataclasses.field(default_factory=FusionConfig)

    def __post_init__(self) -> None:
        if self.min_words < 0:
            raise InputError(f"select.min_words: expected 0 or more, got {self.min_words}")
