"""Rewards per token: what the streams say of a response, on the tokens that say it.

FiSAO pays the tokens that name an object (section 4); here any stream's signals are paid. With w+ and w- the weights of
what is right and what is wrong, a signal is worth

    w+ · positive - w- · negative

and is put on the tokens of its words, on the last token of its sentence, or on the last token of the response, as the
stream's `credit` says. The paper is silent about names of several tokens and about things that are named twice. Our
reading: a name's tokens share its reward, and a thing is paid where it is named first, for a reward for every mention
is earned by repeating what is there.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool, Float32, Int32

from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError, nearest
from vigor_jax.records import Signal, Span, Verdict
from vigor_jax.rewards.fusion import FusionConfig, Moments, Normalize, Scale
from vigor_jax.rewards.stream import Credit

RewardAt: TypeAlias = Literal["all", "first", "last"]
Mentions: TypeAlias = Literal["first", "all"]
_WORDS = {"reward_at": get_args(RewardAt), "mentions": get_args(Mentions), "normalize": ("none", *get_args(Normalize))}


@dataclasses.dataclass(frozen=True)
class TokenRewardConfig:
    """How signals become rewards of tokens.

    Attributes:
      reward_at: which tokens of a name are paid: "all" share the reward; the "first"; the "last".
      mentions: whether a thing is paid where it is named "first", or in full wherever it is named, "all".
      positive: weight of what is right.
      negative: weight of what is wrong.
      repetition: penalty for each place after the first where a thing is named; 0 for none.
      weights: of streams by name, such as `{detector: 0.5}`; 1 for those that are not named.
      normalize: what a stream's signals are divided by: nothing, "none"; or, as in `fusion`, the "variance" or the
        standard deviation, "std", of its sums over the responses.
    """

    reward_at: RewardAt = "all"
    mentions: Mentions = "first"
    positive: float = 1.0
    negative: float = 1.0
    repetition: float = 0.0
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    normalize: Literal["none", "variance", "std"] = "none"

    def __post_init__(self) -> None:
        for name, known in _WORDS.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"token_rewards.{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        numbers = {name: getattr(self, name) for name in ("positive", "negative", "repetition")}
        for key, value in (numbers | {f"weights.{name}": weight for name, weight in self.weights.items()}).items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"token_rewards.{key}: expected a finite number of 0 or more, got {value}")


class TokenRewards(NamedTuple):
    """Rewards of a batch of responses.

    Attributes:
      rewards: 0 behind a response's end.
      lengths: tokens of each response, the one that ended it included.
    """

    rewards: Float32[np.ndarray, "B T"]
    lengths: Int32[np.ndarray, " B"]

    @property
    def mask(self) -> Bool[np.ndarray, "B T"]:
        """Which places hold a token of the response; by length, for the id of padding may be a token's."""
        return np.arange(self.rewards.shape[1]) < self.lengths[:, None]


def token_offsets(tokenizer: Tokenizer, token_ids: Sequence[int], text: str) -> Int32[np.ndarray, "T 2"]:
    """The characters [start, end) of a response's text that each of its tokens stands for.

    Every character belongs to exactly one token; one that several tokens spell, to the last of them. A token's space
    in front belongs to it. Tokens that add nothing to the text have an empty span: the one that ends the response, what
    stands before a character is complete, white space at the ends, and a stop text.

    Args:
      tokenizer: which has decoded the tokens.
      token_ids: of the response, as in `records.Candidate`.
      text: of the response, as in `records.Candidate`: decoded, up to a stop text, and stripped.

    Raises:
      InputError: the tokens say something else than the text.
    """
    added = tokenizer.split_text(token_ids)
    decoded = "".join(added)
    start = len(decoded) - len(decoded.lstrip())
    if not decoded.startswith(text, start):
        raise InputError(
            f"a response's tokens say {decoded[start : start + 60]!r}, but its text is {text[:60]!r}; expected the "
            "tokens of this text under this tokenizer; were the responses sampled with another model, or edited?"
        )
    ends = np.cumsum([0, *map(len, added)]) - start
    return np.clip(np.stack([ends[:-1], ends[1:]], axis=1), 0, len(text)).astype(np.int32)


def token_rewards(
    verdict: Verdict, offsets: Int32[np.ndarray, "T 2"], config: TokenRewardConfig, *, credit: Credit = "words"
) -> Float32[np.ndarray, " T"]:
    """One stream's rewards of the tokens of one response; the weights of streams play no part.

    A signal without spans is about the whole response. A response without tokens has no rewards.

    Args:
      verdict: of the stream.
      offsets: of the response's tokens, as `token_offsets` gives them.
      config: how signals become rewards.
      credit: of the stream, see `stream.credit_of`.

    Raises:
      InputError: a signal points beyond the text or at nothing, or is not finite.
    """
    return _place(verdict, offsets, config, credit, config.positive, config.negative, config.repetition)


def batch_token_rewards(
    verdicts: Sequence[Mapping[str, Verdict]],
    offsets: Sequence[Int32[np.ndarray, "T 2"]],
    config: TokenRewardConfig,
    *,
    credits: Mapping[str, Credit],
    scale: Scale | None = None,
) -> TokenRewards:
    """Rewards of several responses, each the weighted sum over its streams.

    Args:
      verdicts: of each response, by stream; a stream without a verdict on a response says nothing.
      offsets: of each response's tokens.
      config: how signals become rewards.
      credits: of all streams by name, see `stream.credit_of`.
      scale: what the signals are multiplied with, as `scale_of` gives it; by default from these responses.

    Raises:
      InputError: the config weighs a stream that is not in `credits`, a verdict is of one that is not, a signal points
        beyond the text, or a signal is not finite.
    """
    if len(verdicts) != len(offsets):
        raise ValueError(f"expected as many verdicts as responses, got {len(verdicts)} and {len(offsets)}")
    scale = scale or scale_of(tuple(credits), verdicts, config)
    factors = dict(zip(scale.streams, zip(scale.negative, scale.positive, strict=True), strict=True))
    lengths = np.array([len(own) for own in offsets], np.int32)
    rewards = np.zeros((len(offsets), int(lengths.max(initial=0))))
    for row, (found, own) in enumerate(zip(verdicts, offsets, strict=True)):
        for name, verdict in found.items():
            if name not in factors or name not in credits:
                raise InputError(f"verdict of stream {name!r}: expected one of {', '.join(credits) or 'none'}")
            bad, good = (float(factor) for factor in factors[name])
            weight = config.weights.get(name, 1.0)
            weights = config.positive * good, config.negative * bad, config.repetition * weight
            rewards[row, : len(own)] += _place(verdict, own, config, credits[name], *weights, dtype=np.float64)
    return TokenRewards(rewards.astype(np.float32), lengths)


def scale_of(streams: Sequence[str], verdicts: Sequence[Mapping[str, Verdict]], config: TokenRewardConfig) -> Scale:
    """What each stream's signals are multiplied with: its weight, over the spread of its sums if `normalize` says so.

    Raises:
      InputError: the config weighs a stream that is not there.
    """
    for name in config.weights:
        if name not in streams:
            hint = f"; {nearest(name, streams, noun='stream')}" if streams else ""
            raise InputError(f"token_rewards.weights: there is no stream {name!r}{hint}")
    if config.normalize == "none":
        weights = np.array([config.weights.get(name, 1.0) for name in streams])
        return Scale(tuple(streams), weights, weights)
    negative, positive = Moments(len(streams)), Moments(len(streams))
    empty = Verdict("", 0, "", ())
    for moments, kind in ((negative, "negative"), (positive, "positive")):
        rows = [[getattr(found.get(name, empty), kind) for name in streams] for found in verdicts]
        moments.add(np.array(rows, np.float64).reshape(len(rows), len(streams)))
    return Scale.of(streams, negative, positive, FusionConfig(weights=config.weights, normalize=config.normalize))


@dataclasses.dataclass
class RewardShares:
    """How many tokens are rewarded and punished; of batches, or of processes, one after the other.

    Attributes:
      responses: seen so far.
      tokens: of them.
      rewarded: tokens with a reward above 0.
      punished: tokens with a reward below 0.
    """

    responses: int = 0
    tokens: int = 0
    rewarded: int = 0
    punished: int = 0

    def add(self, batch: TokenRewards) -> None:
        """Takes in a batch."""
        self.merge(
            RewardShares(
                len(batch.lengths),
                int(batch.lengths.sum()),
                int(((batch.rewards > 0) & batch.mask).sum()),
                int(((batch.rewards < 0) & batch.mask).sum()),
            )
        )

    def merge(self, other: "RewardShares") -> None:
        """Takes in all that another one has seen."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def share_rewarded(self) -> float:
        """Of all tokens, in [0, 1]; 0 if there are none."""
        return self.rewarded / max(self.tokens, 1)

    @property
    def share_punished(self) -> float:
        """Of all tokens, in [0, 1]; 0 if there are none."""
        return self.punished / max(self.tokens, 1)

    def check(self, advice: str) -> None:
        """Checks that there is anything to learn from.

        Args:
          advice: what to change if there is not.

        Raises:
          InputError: no token of all is rewarded or punished.
        """
        if not self.rewarded and not self.punished:
            raise InputError(
                f"none of the {self.tokens} tokens of {self.responses} responses has a reward: rewarded "
                f"{self.share_rewarded:.1%}, punished {self.share_punished:.1%}; {advice}"
            )


def _place(
    verdict: Verdict,
    offsets: np.ndarray,
    config: TokenRewardConfig,
    credit: Credit,
    positive: float,
    negative: float,
    repetition: float,
    dtype: type[np.floating] = np.float32,
) -> np.ndarray:
    """Sums in float64, so that a token's rewards are rounded once."""
    rewards = np.zeros(len(offsets))
    if not len(offsets):
        return rewards.astype(dtype)
    for signal in verdict.signals:
        worth = positive * signal.positive - negative * signal.negative
        if not math.isfinite(worth):
            raise InputError(f"{_where(verdict, signal)}: expected finite numbers, got {worth}")
        spans = signal.spans or (Span(int(offsets[0, 0]), int(offsets[-1, 1])),)
        for place, span in enumerate(spans):
            paid = worth if place == 0 or config.mentions == "all" else 0.0
            paid -= repetition if place and credit == "words" else 0.0
            if paid:
                tokens = _tokens(span, offsets, verdict, signal) if signal.spans else np.array([], int)
                if credit == "response" or not len(tokens):
                    tokens = np.array([len(offsets) - 1])
                elif credit == "sentence" or config.reward_at == "last":
                    tokens = tokens[-1:]
                elif config.reward_at == "first":
                    tokens = tokens[:1]
                rewards[tokens] += paid / len(tokens)
    return rewards.astype(dtype)


def _tokens(span: Span, offsets: np.ndarray, verdict: Verdict, signal: Signal) -> np.ndarray:
    """The tokens that have characters of a span."""
    if not 0 <= span.start < span.end <= offsets[-1, 1]:
        raise InputError(
            f"{_where(verdict, signal)}: expected characters of a text of {offsets[-1, 1]}, got {span.start} to "
            f"{span.end}"
        )
    starts, ends = offsets.T
    return np.flatnonzero((starts < span.end) & (ends > span.start) & (starts < ends))


def _where(verdict: Verdict, signal: Signal) -> str:
    return f"stream {verdict.stream}, {verdict.image}, candidate {verdict.candidate}, signal {signal.label!r}"
