"""Leaves out the sentences of a chosen response that mention something that is not there (ViGoR, section 3.3).

Beyond the paper, if asked: those that only continue such a sentence, and those that repeat an earlier one.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from vigor_jax.errors import InputError
from vigor_jax.records import Dropped, Signal, Span, Verdict
from vigor_jax.rewards.continuations import continuations
from vigor_jax.rewards.repetitions import repetitions
from vigor_jax.rewards.sentences import split_sentences

CONTINUES = "continues a sentence that was left out"
REPEATS = "repeats an earlier sentence"


@dataclasses.dataclass(frozen=True)
class Refined:
    """What is left of a text.

    Attributes:
      text: the kept sentences as they were, with the text's own spacing between them; "" if none is kept.
      dropped: the others, in order.
    """

    text: str
    dropped: tuple[Dropped, ...]


def refine(
    text: str, verdicts: Sequence[Verdict], *, drop_continuations: bool = False, drop_repetitions: bool = False
) -> Refined:
    """Drops every sentence that a signal with `absent` points into; changes nothing else.

    Args:
      text: what the verdicts are about.
      verdicts: of any streams.
      drop_continuations: whether the sentences that only continue a dropped one (`rewards/continuations.py`) go too.
      drop_repetitions: whether a sentence that is already kept, word for word, is kept once.

    Raises:
      InputError: a span lies outside the text.
    """
    absent = list(_absent(text, verdicts))
    repeated = repetitions(text) if drop_repetitions else []
    if not (absent or repeated):
        return Refined(text.strip(), ())
    sentences = split_sentences(text)
    reasons = [
        "; ".join(dict.fromkeys(reason for span, reason in absent if span.start < end and span.end > start))
        for start, end in sentences
    ]
    if drop_continuations:
        continuing = continuations([text[slice(*span)] for span in sentences], list(map(bool, reasons)))
        reasons = [CONTINUES if is_continuing else why for is_continuing, why in zip(continuing, reasons, strict=True)]
    if repeated:
        kept = [span for span, why in zip(sentences, reasons, strict=True) if not why]
        again = set(repetitions(text, kept))
        reasons = [REPEATS if span in again else why for span, why in zip(sentences, reasons, strict=True)]
    dropped = tuple(Dropped(span, why) for span, why in zip(sentences, reasons, strict=True) if why)
    return Refined(keep_sentences(text, sentences, [not why for why in reasons]), dropped)


def keep_sentences(text: str, sentences: Sequence[Span], kept: Sequence[bool]) -> str:
    """The kept sentences of a text.

    What stands between two of them is what stood there. Where others were left out it is the widest of the breaks
    around those: an empty line, a new line, or else one space.

    Args:
      text: the whole.
      sentences: all of its sentences, in order, with nothing but white space around them.
      kept: whether each of them stays.
    """
    pieces: list[str] = []
    gaps: list[str] = []  # since the last kept sentence
    for number, (span, keep) in enumerate(zip(sentences, kept, strict=True)):
        if number:
            gaps.append(text[sentences[number - 1].end : span.start])
        if keep:
            pieces += [_widest(gaps)] if pieces else []
            pieces.append(text[slice(*span)])
            gaps = []
    return "".join(pieces)


def _widest(gaps: Sequence[str]) -> str:
    if len(gaps) == 1:
        return gaps[0]
    widest = max(gaps, key=_num_lines)
    return widest if _num_lines(widest) > 1 else " "


def _num_lines(gap: str) -> int:
    return len(f"{gap}.".splitlines())


def _absent(text: str, verdicts: Sequence[Verdict]) -> Iterator[tuple[Span, str]]:
    """Where something is mentioned that is not there, and the reason that this gives."""
    for verdict in verdicts:
        for signal in verdict.signals:
            if not signal.absent:
                continue
            for span in signal.spans:
                if not 0 <= span.start <= span.end <= len(text):
                    raise InputError(
                        f"verdict of {verdict.stream} on {verdict.image}, candidate {verdict.candidate}: "
                        f"{signal.label!r} is at characters {span.start} to {span.end} of a text of {len(text)}; "
                        "score the candidates again"
                    )
                yield span, _reason(signal)


def _reason(signal: Signal) -> str:
    if signal.denied:
        return f'says that there is no "{signal.label}", and there is ({signal.score:.2f})'
    return f'mentions "{signal.label}", which is not there ({signal.score:.2f})'
