"""Settings of the stage that makes preferences."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from vigor_jax import fingerprint
from vigor_jax.errors import InputError
from vigor_jax.inference.sampling_config import SamplingConfig

_OF_RESPONSES = ("kind", "match_lengths", "chosen", "rejected", "margin", "per_image", "all_ranked")
_OF_SENTENCES = ("kind", "match_lengths", "wrong", "per_step", "max_sentences", "sampling")


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """How preferences are made of what the run has sampled, or of sentences that are sampled for it.

    Attributes:
      kind: "responses" compares candidates of the run by the penalty that `select` has found. "sentences" samples next
        sentences of a text that is clean so far, and compares those that the streams find right with those that they
        find wrong (SENTINEL, Peng et al. 2025).
      match_lengths: the shorter text of a pair has at least this share of the words of the longer one, 0 to 1; of those
        that do, the nearest are taken. 0 does not look.
      chosen: of responses: "refined", what refinement left of the selected candidate, or "best", it as it was sampled.
      rejected: of responses: "worst", the candidate of the highest penalty, or "unrefined", the selected candidate as
        it was sampled.
      margin: of "worst": how much higher its penalty is, at least.
      per_image: pairs an image at most; the next ones have the next worst candidates.
      all_ranked: of responses: all candidates of an image that have content as one preference with their ratings, minus
        the penalties, in place of pairs.
      wrong: of sentences: "absent" takes those of which a stream says that something is not so, as the detector and the
        claims do; "negative" also those that a stream gives more on the negative side than on the positive one, as
        the reward model does.
      per_step: pairs of a sentence's alternatives, at most.
      max_sentences: of a text that is continued.
      sampling: of next sentences: `num_candidates` each time, of `max_new_tokens` at most.
    """

    kind: Literal["responses", "sentences"] = "responses"
    match_lengths: float = 0.0
    chosen: Literal["refined", "best"] = "refined"
    rejected: Literal["worst", "unrefined"] = "worst"
    margin: float = 0.0
    per_image: int = 1
    all_ranked: bool = False
    wrong: Literal["absent", "negative"] = "absent"
    per_step: int = 1
    max_sentences: int = 10
    sampling: SamplingConfig = dataclasses.field(default_factory=lambda: SamplingConfig(max_new_tokens=64))

    def __post_init__(self) -> None:
        for name in ("per_image", "per_step", "max_sentences"):
            if getattr(self, name) < 1:
                raise InputError(f"pair.{name}: expected at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise InputError(f"pair.margin: expected a finite number of 0 or more, got {self.margin}")
        if not 0 <= self.match_lengths <= 1:
            raise InputError(f"pair.match_lengths: expected 0 (off) to 1 (equal lengths), got {self.match_lengths}")
        if self.chosen == "best" and self.rejected == "unrefined":
            raise InputError(
                "pair.chosen best and pair.rejected unrefined are the same text; give pair.chosen refined, or "
                "pair.rejected worst"
            )
        if self.all_ranked and self.match_lengths:
            raise InputError(
                "pair.all_ranked takes all candidates, whatever their lengths; give pair.match_lengths 0, or leave "
                "pair.all_ranked out"
            )
        if self.kind == "sentences" and self.sampling.num_candidates < 2:
            raise InputError(
                "pair.sampling.num_candidates: expected 2 or more, for sentences are compared with each other, got "
                f"{self.sampling.num_candidates}"
            )

    def settings(self) -> dict[str, Any]:
        """What its result depends on: the options of its kind."""
        names = _OF_SENTENCES if self.kind == "sentences" else _OF_RESPONSES
        return {key: value for key, value in fingerprint.of(self, "pair").items() if key.split(".")[1] in names}

    def check(self, *, refine: str, streams: Sequence[str]) -> None:
        """Raises InputError if the stage cannot do what it is told.

        Args:
          refine: `select.refine`.
          streams: that judge.
        """
        refines = self.chosen == "refined" and not self.all_ranked
        if self.kind == "responses" and refines and refine == "none":
            raise InputError(
                "pair.chosen refined: select.refine is none, so nothing is refined; give select.refine drop, or "
                "pair.chosen best"
            )
        if self.kind == "sentences" and not streams:
            raise InputError("pair.kind sentences: expected a stream that judges them (score.streams), got none")
