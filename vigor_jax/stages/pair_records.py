"""What pairing has come to: a row an image in `pairing/`, and all of it in a few numbers."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.percent import percent
from vigor_jax.records import Preference, Signal, Span, Verdict


class Count(NamedTuple):
    """How often there was something."""

    name: str
    number: int


@dataclasses.dataclass(frozen=True)
class Pairing:
    """What became of one image and prompt; a row of `pairing/`.

    Attributes:
      image: as in the preferences.
      prompt: as in the preferences.
      text: of sentences, the text that they were put together to; of responses, the chosen one; "" if there is none.
      sentences: of `text`, each with the white space before it; none of responses.
      ended: why no sentence was added any more; "" of responses.
      pairs: preferences that it gave.
      left_out: what gave no preference, by reason.
      errors: what is wrong with the rejected texts: how many have an error of which kind.
    """

    image: str
    prompt: str
    text: str
    sentences: tuple[Span, ...]
    ended: str
    pairs: int
    left_out: tuple[Count, ...]
    errors: tuple[Count, ...]


def counts(found: Counter[str]) -> tuple[Count, ...]:
    """A counter, in the order of its names."""
    return tuple(Count(name, number) for name, number in sorted(found.items()) if number)


def num_words(text: str) -> int:
    """What stands between white space, but for boxes."""
    return len(without_boxes(text).split())


def length_ratio(one: str, other: str) -> float:
    """Words of the shorter text in the share of those of the longer one, 0 to 1."""
    shorter, longer = sorted((num_words(one), num_words(other)))
    return shorter / longer if longer else 1.0


def is_negative(signal: Signal) -> bool:
    """Whether a signal is on the negative side: one of a probability is on both."""
    return signal.negative > signal.positive


def errors_of(verdicts: Mapping[str, Verdict], signals: Mapping[str, Iterable[Signal]] | None = None) -> set[str]:
    """Kinds of what is wrong with a text: those of claims by their kind, all others by their stream.

    Args:
      verdicts: of the streams by name.
      signals: of the streams, if not all of the verdicts'.
    """
    found = signals if signals is not None else {name: verdict.signals for name, verdict in verdicts.items()}
    return {each.kind or name for name, some in found.items() for each in some if is_negative(each)}


@dataclasses.dataclass(frozen=True)
class PairSummary:
    """What the stage did; `pairs.json`.

    Attributes:
      images: images, each with its prompt.
      images_with_pairs: of them.
      preferences: in all.
      pairs: that the preferences have, each of one better and one worse text.
      words: mean number of words of the "chosen" texts and of the "rejected" ones, over all pairs.
      errors: rejected texts with an error, by its kind: a claim's kind, or else the stream that says so.
      left_out: what gave no preference, by reason.
      ended: texts that were put together of sentences, by what ended them.
      sentences: mean number of sentences of these texts.
    """

    images: int
    images_with_pairs: int
    preferences: int
    pairs: int
    words: dict[str, float]
    errors: dict[str, int]
    left_out: dict[str, int]
    ended: dict[str, int]
    sentences: float

    def table(self) -> str:
        """The same as lines to print."""
        share = percent(self.images_with_pairs / max(self.images, 1), 1)
        chosen, rejected = self.words["chosen"], self.words["rejected"]
        lines = [
            f"{self.images} images, {self.images_with_pairs} of them ({share}%) with pairs; {self.preferences} "
            f"preferences, {self.pairs} pairs",
            f"mean words: chosen {chosen:.2f}, rejected {rejected:.2f}",
        ]
        lines += [f"rejected for {name}: {number}" for name, number in self.errors.items()]
        lines += [f"left out, {reason}: {number}" for reason, number in self.left_out.items()]
        if self.ended:
            lines.append(f"mean sentences of a text: {self.sentences:.2f}")
            lines += [f"ended, {reason}: {number}" for reason, number in self.ended.items()]
        return "\n".join(lines)


def summarize(pairings: Iterable[Pairing], preferences: Iterable[Preference]) -> PairSummary:
    """Of all parts."""
    totals, errors, left_out, ended = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for pairing in pairings:
        totals.update(images=1, with_pairs=bool(pairing.pairs), sentences=len(pairing.sentences))
        errors.update(dict(pairing.errors))
        left_out.update(dict(pairing.left_out))
        ended.update([pairing.ended] * bool(pairing.ended))
    for preference in preferences:
        words = [num_words(text) for text in preference.responses]
        pairs = preference.pairs()
        totals.update(preferences=1, pairs=len(pairs))
        totals.update(chosen=sum(words[one] for one, _ in pairs), rejected=sum(words[other] for _, other in pairs))
    return PairSummary(
        images=totals["images"],
        images_with_pairs=totals["with_pairs"],
        preferences=totals["preferences"],
        pairs=totals["pairs"],
        words={name: totals[name] / max(totals["pairs"], 1) for name in ("chosen", "rejected")},
        errors=dict(sorted(errors.items())),
        left_out=dict(sorted(left_out.items())),
        ended=dict(sorted(ended.items())),
        sentences=totals["sentences"] / max(sum(ended.values()), 1),
    )
