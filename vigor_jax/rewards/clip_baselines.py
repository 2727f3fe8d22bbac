"""What scores of words mean: the baselines of eq. 7 and the reward of eq. 8 (FiSAO).

Both equations are lost in the paper's text; this is our reading of what stands around them:

    mu_c = mean over responses of the mean score of a response's correct words; mu_h of its hallucinated ones     (7)
    reward(s) = N(s) if s >= mu_c + margin or s <= mu_h - margin, else 0                                          (8)

where N maps [mu_c + margin, s_max] to [0, 1] and [s_min, mu_h - margin] to [-1, 0]. At CLIPScore's scale, the paper's
margin of 10 is about the whole distance between mu_c and mu_h on photographs, so the margin may also be given in
standard deviations, or as a quantile, and its sign be turned.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.json_fields import Fields

MarginUnit: TypeAlias = Literal["absolute", "std", "quantile"]
MarginSign: TypeAlias = Literal["+", "-"]
LEVELS = np.linspace(0, 1, 101)


@dataclasses.dataclass(frozen=True)
class Side:
    """The cosines of all correct words, or of all hallucinated ones.

    Attributes:
      mean: over responses of the mean over a response's words (eq. 7).
      std: standard deviation over all words.
      quantiles: at 0%, 1%, ... 100% of all words.
      words: how many there are; one that is mentioned twice counts twice.
      responses: that have any.
    """

    mean: float
    std: float
    quantiles: tuple[float, ...]
    words: int
    responses: int

    def share_from(self, cosine: float) -> float:
        """About which share of the words has this cosine or a higher one."""
        if cosine <= self.quantiles[0]:
            return 1.0
        return 1 - float(np.interp(cosine, self.quantiles, LEVELS)) if cosine <= self.quantiles[-1] else 0.0

    def share_to(self, cosine: float) -> float:
        """About which share of the words has this cosine or a lower one."""
        if cosine >= self.quantiles[-1]:
            return 1.0
        return float(np.interp(cosine, self.quantiles, LEVELS)) if cosine >= self.quantiles[0] else 0.0


@dataclasses.dataclass(frozen=True)
class Baselines:
    """What is known of a verifier's scores from responses to images whose objects are known.

    Attributes:
      correct: words for what is in the image.
      hallucinated: words for what is not.
      made_of: names what it was made of, see `rewards.clip.ClipVerifier.made_of`.
    """

    correct: Side
    hallucinated: Side
    made_of: Mapping[str, Any]

    @property
    def highest(self) -> float:
        """The highest cosine, s_max."""
        return max(self.correct.quantiles[-1], self.hallucinated.quantiles[-1])

    @property
    def lowest(self) -> float:
        """The lowest cosine, s_min."""
        return min(self.correct.quantiles[0], self.hallucinated.quantiles[0])

    def write(self, path: Path) -> None:
        """Writes a JSON file."""
        content = {"unit": "cosine", **dataclasses.asdict(self)}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Baselines":
        """Reads what `write` wrote.

        Raises:
          InputError: the file is missing, or something else.
        """
        if not path.exists():
            raise InputError(f"clip.baselines: {path} is missing; python -m vigor_jax.verifier makes it")
        fields = Fields.read(path)
        made_of = fields.object("made_of")
        correct, hallucinated = _side(fields, "correct"), _side(fields, "hallucinated")
        if made_of is None or fields.text("unit", "") != "cosine":
            raise InputError(f"clip.baselines: {path} is no file of python -m vigor_jax.verifier; make it with that")
        return cls(correct, hallucinated, made_of.values)


def _side(fields: Fields, name: str) -> Side:
    inner = fields.object(name)
    if inner is None:
        raise InputError(
            f"clip.baselines: {fields.place(name)} is missing; make the file with python -m vigor_jax.verifier"
        )
    mean, std = (inner.number(key, None, least=-2, most=2) for key in ("mean", "std"))
    quantiles = inner.numbers("quantiles", None, count=len(LEVELS), least=-2, most=2)
    words, responses = (inner.integer(key, 0, least=0, most=1 << 60) for key in ("words", "responses"))
    if mean is None or std is None or quantiles is None or list(quantiles) != sorted(quantiles):
        raise InputError(
            f"clip.baselines: {fields.place(name)} expected mean, std and ascending quantiles; make the file with "
            "python -m vigor_jax.verifier"
        )
    return Side(mean, std, quantiles, words, responses)


def make_baselines(responses: Iterable[Sequence[tuple[float, bool]]], made_of: Mapping[str, Any]) -> Baselines:
    """Eq. 7, and what else of the scores eq. 8 may need.

    Args:
      responses: the words of each response: their cosine, and whether they are hallucinated.
      made_of: names where they are from.

    Raises:
      InputError: no word is correct, or none is hallucinated.
    """
    every: dict[bool, list[list[float]]] = {False: [], True: []}
    for response in responses:
        for is_wrong, found in every.items():
            if own := [cosine for cosine, wrong in response if wrong is is_wrong]:
                found.append(own)
    for is_wrong, kind in ((False, "correct"), (True, "hallucinated")):
        if not every[is_wrong]:
            raise InputError(
                f"verifier: no {kind} word in any response, so there is no mean score of them; give captions of more "
                "images, or captions that were sampled at a higher temperature"
            )
    return Baselines(_side_of(every[False]), _side_of(every[True]), made_of)


def _side_of(responses: Sequence[Sequence[float]]) -> Side:
    words = np.concatenate([np.asarray(own, np.float64) for own in responses])
    return Side(
        mean=float(np.mean([np.mean(own) for own in responses])),
        std=float(words.std()),
        quantiles=tuple(np.quantile(words, LEVELS).tolist()),
        words=len(words),
        responses=len(responses),
    )


class Thresholds(NamedTuple):
    """Which scores are rewarded, and which are punished; all are cosines times the scale.

    Attributes:
      reward: the lowest score that is rewarded.
      punish: the highest score that is punished.
      highest: has reward 1.
      lowest: has reward -1.
    """

    reward: float
    punish: float
    highest: float
    lowest: float

    def __call__(self, score: float) -> float:
        """The reward, in [-1, 1]; 0 between the thresholds."""
        if score >= self.reward:
            return _share(score - self.reward, self.highest - self.reward)
        return -_share(self.punish - score, self.punish - self.lowest) if score <= self.punish else 0.0


def _share(part: float, whole: float) -> float:
    return min(part / whole, 1.0) if whole > 0 else 1.0


def thresholds(
    baselines: Baselines, scale: float, margin: float, unit: MarginUnit = "absolute", sign: MarginSign = "+"
) -> Thresholds:
    """Where rewards begin.

    Args:
      baselines: of the verifier.
      scale: what cosines are multiplied by.
      margin: in units of scores; in standard deviations of the correct words' scores and of the hallucinated ones'; or
        a quantile q: correct words from their q on, and hallucinated ones up to their 1 - q.
      unit: which of these.
      sign: "-" takes the margin off mu_c and adds it to mu_h.

    Raises:
      InputError: some scores would be both rewarded and punished.
    """
    right, wrong = baselines.correct, baselines.hallucinated
    if unit == "quantile":
        reward = scale * float(np.interp(margin, LEVELS, right.quantiles))
        punish = scale * float(np.interp(1 - margin, LEVELS, wrong.quantiles))
    else:
        signed = margin if sign == "+" else -margin
        units = (1.0, 1.0) if unit == "absolute" else (scale * right.std, scale * wrong.std)
        reward, punish = scale * right.mean + signed * units[0], scale * wrong.mean - signed * units[1]
    if punish >= reward:
        raise InputError(
            f"clip.margin: with {describe_margin(margin, unit, sign)}, scores from {reward:.1f} to {punish:.1f} would "
            f"be both rewarded and punished; choose a margin that leaves mu_c ({scale * right.mean:.1f}) and mu_h "
            f"({scale * wrong.mean:.1f}) apart"
        )
    return Thresholds(reward, punish, scale * baselines.highest, scale * baselines.lowest)


def describe_margin(margin: float, unit: MarginUnit, sign: MarginSign) -> str:
    """A margin in words: "a margin of +10"."""
    if unit == "quantile":
        return f"the quantile {margin:g}"
    return f"a margin of {sign}{margin:g}" + (" standard deviations" if unit == "std" else "")


class Shares(NamedTuple):
    """Which words of the baselines' responses a margin rewards and punishes, from 0 to 1."""

    correct_rewarded: float
    hallucinated_rewarded: float
    correct_punished: float
    hallucinated_punished: float


def shares(baselines: Baselines, limits: Thresholds, scale: float) -> Shares:
    """Of correct and hallucinated words."""
    reward, punish = limits.reward / scale, limits.punish / scale
    sides = baselines.correct, baselines.hallucinated
    return Shares(*(side.share_from(reward) for side in sides), *(side.share_to(punish) for side in sides))
