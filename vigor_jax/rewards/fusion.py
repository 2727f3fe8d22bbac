"""Fuses what the streams say of the candidates of an image, and chooses one (ViGoR, section 3.3).

With neg_k(c) and pos_k(c) the sums of stream k's signals on candidate c, divided by its number of sentences under
`per: sentence`, and variances over all candidates of the run:

    penalty(c) = Σ_k w_k · neg_k(c) / Var(neg_k)                                        rule "paper"
    penalty(c) = Σ_k w_k · (neg_k(c) / Var(neg_k) - γ · pos_k(c) / Var(pos_k))          rule "balanced"

The lowest penalty wins; a tie goes to the highest Σ_k w_k · pos_k(c) / Var(pos_k), then to the highest mean
log-probability, then to the lowest index. The paper states the first rule in words; the variance's kind (of the
population), the order of tie-breakers and the second rule are our reading.

Two things that the paper is silent about come first, if they are given. A response that says nothing has no penalty
either: those without content lose to any with content. And with `repeats`, of two candidates that are alike in penalty
and positive signals the one that repeats fewer of its sentences wins, for repetition raises the mean log-probability.

A variance has the square of a signal's unit. So as the paper has it, `normalize: variance`, multiplying all signals by
s leaves every choice alone, but multiplying one stream's divides its weight by s: streams that count in larger units
weigh less. `normalize: std`, ours, divides by the standard deviation instead, and units do not matter at all.
"""

import dataclasses
import itertools
import logging
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self, TypeAlias, get_args

import numpy as np

from vigor_jax.errors import InputError, nearest
from vigor_jax.records import DecidedBy

logger = logging.getLogger(__name__)

# Penalties this close, relative to the terms that they are sums of, are equal. A caption's signals are tens of numbers
# whose sums are exact to some 1e-14; terms that differ because the signals do, differ by far more.
TIE = 1e-12

Rule: TypeAlias = Literal["paper", "balanced"]
Normalize: TypeAlias = Literal["variance", "std"]
Per: TypeAlias = Literal["caption", "sentence"]
_WORDS = {"rule": get_args(Rule), "normalize": get_args(Normalize), "per": get_args(Per)}


@dataclasses.dataclass(frozen=True)
class FusionConfig:
    """How the streams' signals become one penalty.

    Attributes:
      rule: "paper" counts what is wrong; "balanced" also takes off what is right.
      weights: of streams by name, such as `{detector: 0.5}`; 1 for those that are not named.
      gamma: weight of what is right under "balanced".
      normalize: what sums are divided by: their "variance", or their standard "std".
      per: "sentence" divides a candidate's sums by its number of sentences first, for sums favor short candidates.
        What has no sentence is divided by 1: its sums are 0, and its penalty too.
    """

    rule: Rule = "paper"
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    gamma: float = 1.0
    normalize: Normalize = "variance"
    per: Per = "caption"

    def __post_init__(self) -> None:
        if self.normalize == "deviation":
            raise InputError("fusion.normalize: what was called 'deviation' is now called 'std'")
        for name, known in _WORDS.items():
            if getattr(self, name) not in known:
                raise InputError(f"fusion.{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        numbers = {"gamma": self.gamma} | {f"weights.{name}": weight for name, weight in self.weights.items()}
        for key, value in numbers.items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"fusion.{key}: expected a finite number of 0 or more, got {value}")

    def check_streams(self, streams: Sequence[str]) -> None:
        """Raises InputError if a stream is weighed that is not there."""
        for name in self.weights:
            if name not in streams:
                hint = f"; {nearest(name, streams, noun='stream')}" if streams else ""
                raise InputError(f"fusion.weights: there is no stream {name!r}{hint}")


class Moments:
    """Mean and variance of columns of numbers, in one pass; statistics of parts can be merged (Chan et al., 1979).

    The same rows in the same batches, merged in the same order, give the same bits.

    Attributes:
      count: rows seen.
      mean: float64 [D].
    """

    def __init__(self, num_columns: int) -> None:
        self.count = 0
        self.mean = np.zeros(num_columns)
        self._squares = np.zeros(num_columns)  # sums of squared deviations from the mean
        self._low = np.full(num_columns, np.inf)
        self._high = np.full(num_columns, -np.inf)

    def add(self, rows: np.ndarray) -> None:
        """Takes in a batch, float64 [N, D]."""
        if len(rows):
            batch = Moments(rows.shape[1])
            batch.count = len(rows)
            batch.mean = rows.mean(axis=0)
            batch._squares = np.square(rows - batch.mean).sum(axis=0)
            batch._low, batch._high = rows.min(axis=0), rows.max(axis=0)
            self.merge(batch)

    def merge(self, other: Self) -> None:
        """Takes in all that another one has seen."""
        if not other.count:
            return
        count = self.count + other.count
        delta = other.mean - self.mean
        self.mean = self.mean + delta * (other.count / count)
        self._squares = self._squares + other._squares + np.square(delta) * (self.count * (other.count / count))
        self._low, self._high = np.minimum(self._low, other._low), np.maximum(self._high, other._high)
        self.count = count

    def variance(self) -> np.ndarray:
        """Population variance, float64 [D]; 0 where there are none, or all are equal but for rounding."""
        if not self.count:
            return np.zeros_like(self.mean)
        size = np.maximum(np.abs(self._low), np.abs(self._high))
        is_constant = np.isfinite(size) & (self._high - self._low <= TIE * size)
        return np.where(is_constant, 0.0, self._squares / self.count)


@dataclasses.dataclass(frozen=True)
class Scale:
    """What turns sums of signals into terms of the penalty: w_k / Var, or w_k over the deviation.

    Attributes:
      streams: names, in the order of all columns.
      negative: float64 [K].
      positive: float64 [K].
    """

    streams: tuple[str, ...]
    negative: np.ndarray
    positive: np.ndarray

    @classmethod
    def of(cls, streams: Sequence[str], negative: Moments, positive: Moments, config: FusionConfig) -> Self:
        """From the statistics of all candidates; a stream without variance is left out, with a warning.

        Raises:
          InputError: the config weighs a stream that is not there, or a variance is beyond what floats hold.
        """
        config.check_streams(streams)
        weights = np.array([config.weights.get(name, 1.0) for name in streams])
        factors = []
        for kind, moments in (("negative", negative), ("positive", positive)):
            variance = moments.variance()
            spread = variance if config.normalize == "variance" else np.sqrt(variance)
            with np.errstate(divide="ignore", over="ignore"):
                inverse = np.where(spread == 0, 0.0, 1 / spread)
            for name, value, factor in zip(streams, variance, inverse, strict=True):
                if not (math.isfinite(value) and math.isfinite(factor)):
                    raise InputError(
                        f"stream {name}: the variance of its {kind} signals is {value}; expected signals whose squares "
                        "are in the range of floats; scale them"
                    )
                if value == 0 and moments.count and kind == "negative":
                    logger.warning("stream %s: all candidates have the same penalty; it is left out", name)
            factors.append(weights * inverse)
        return cls(tuple(streams), *factors)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which candidate of an image, and why.

    Attributes:
      candidate: position among the candidates.
      decided_by: what told it from the next best.
      decisive_stream: where the penalty did, the stream whose terms differ most in its favor; else "".
      penalties: of each candidate.
      terms: one row a candidate, one column a stream; a candidate's penalty is the sum of its terms.
    """

    candidate: int
    decided_by: DecidedBy
    decisive_stream: str
    penalties: tuple[float, ...]
    terms: tuple[tuple[float, ...], ...]


def choose(
    negatives: np.ndarray,
    positives: np.ndarray,
    logprobs: np.ndarray,
    sentences: np.ndarray,
    starts: np.ndarray,
    scale: Scale,
    config: FusionConfig,
    *,
    has_content: np.ndarray | None = None,
    repeats: np.ndarray | None = None,
) -> list[Choice]:
    """Chooses among the candidates of each of some images by the formulas at the head of this module.

    Args:
      negatives: float64 [R, K], each stream's sum of negative signals of each candidate; finite.
      positives: float64 [R, K], the same.
      logprobs: float64 [R], means over tokens; no NaN.
      sentences: int [R], sentences of each candidate; used with `per: sentence`.
      starts: int [G + 1], each image's first row, and the end.
      scale: of the whole run.
      config: settings.
      has_content: bool [R], which candidates say something; all by default.
      repeats: int [R], how many sentences of each candidate repeat an earlier one; none by default.
    """
    per = per_unit(sentences, config)
    bad, good = negatives / per * scale.negative, positives / per * scale.positive
    taken_off = config.gamma * good if config.rule == "balanced" else np.zeros_like(good)
    terms = bad - taken_off
    penalties, goodness, likelihoods = terms.sum(axis=1).tolist(), good.sum(axis=1).tolist(), logprobs.tolist()
    sizes = (bad + taken_off).sum(axis=1).tolist()  # a difference is as exact as what it is of
    rows = list(map(tuple, terms.tolist()))
    contents = [True] * len(rows) if has_content is None else has_content.tolist()
    again = [0] * len(rows) if repeats is None else repeats.tolist()

    choices = []
    for start, end in itertools.pairwise(starts.tolist()):
        own, own_terms, good_ones = penalties[start:end], tuple(rows[start:end]), goodness[start:end]
        decided_by: DecidedBy = "only"
        best, decisive = 0, ""
        if len(own) > 1:
            ties = TIE * max(sizes[start:end]), TIE * max(good_ones)
            others = contents[start:end], again[start:end], likelihoods[start:end]
            best, next_best, decided_by = _Ranking(own, good_ones, *others, *ties).best_two()
            if decided_by == "penalty":
                in_favor = [worse - better for worse, better in zip(own_terms[next_best], own_terms[best], strict=True)]
                decisive = scale.streams[in_favor.index(max(in_favor))]
        choices.append(Choice(best, decided_by, decisive, tuple(own), own_terms))
    return choices


def per_unit(sentences: np.ndarray, config: FusionConfig) -> np.ndarray:
    """What sums of signals are divided by, float64 [C, 1]: 1, or the number of sentences."""
    if config.per == "sentence":
        return np.maximum(sentences, 1).astype(np.float64)[:, None]
    return np.ones((len(sentences), 1))


class _Ranking(NamedTuple):
    """An order of candidates: by content, penalty, positive signals, repeats, log-probability, index.

    A handful is quicker in lists.
    """

    penalties: list[float]
    goodness: list[float]
    contents: list[bool]
    repeats: list[int]
    logprobs: list[float]
    penalty_tie: float
    goodness_tie: float

    def best_two(self) -> tuple[int, int, DecidedBy]:
        """The best, the next best, and what tells them apart."""
        everyone = list(range(len(self.penalties)))
        best = self._first(everyone)
        everyone.remove(best)
        next_best = self._first(everyone)
        if self.contents[best] != self.contents[next_best]:
            return best, next_best, "content"
        if self.penalties[next_best] - self.penalties[best] > self.penalty_tie:
            return best, next_best, "penalty"
        if self.goodness[best] - self.goodness[next_best] > self.goodness_tie:
            return best, next_best, "positive"
        if self.repeats[best] < self.repeats[next_best]:
            return best, next_best, "repetition"
        if self.logprobs[best] > self.logprobs[next_best]:
            return best, next_best, "logprob"
        return best, next_best, "index"

    def _first(self, left: list[int]) -> int:
        left = [i for i in left if self.contents[i]] or left
        most = min([self.penalties[i] for i in left]) + self.penalty_tie
        left = [i for i in left if self.penalties[i] <= most]
        if len(left) == 1:
            return left[0]
        least = max([self.goodness[i] for i in left]) - self.goodness_tie
        return max([i for i in left if self.goodness[i] >= least], key=lambda i: (-self.repeats[i], self.logprobs[i]))
