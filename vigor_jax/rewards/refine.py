"""Leaves out the sentences of a chosen response that mention something that is not there (ViGoR, section 3.3).

Beyond the paper, if asked: those that only continue such a sentence, those that repeat an earlier one, and those with a
wrong claim, unless that can be made right.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from vigor_jax.errors import InputError
from vigor_jax.records import CLAIM_KINDS, Dropped, Edit, Repaired, Signal, Span, Verdict
from vigor_jax.rewards.boxed_phrases import BoxedPhrase, box_edits
from vigor_jax.rewards.continuations import continuations
from vigor_jax.rewards.repetitions import repetitions
from vigor_jax.rewards.sentences import split_sentences

CONTINUES = "continues a sentence that was left out"
REPEATS = "repeats an earlier sentence"


@dataclasses.dataclass(frozen=True)
class Refined:
    """What is left of a text.

    Attributes:
      text: the kept sentences, as they were but for what was repaired, with the text's own spacing between them; "" if
        none is kept.
      dropped: the others, in order.
      repaired: words of the kept ones that were replaced, in order.
    """

    text: str
    dropped: tuple[Dropped, ...]
    repaired: tuple[Repaired, ...] = ()


def refine(
    text: str,
    verdicts: Sequence[Verdict],
    *,
    drop_continuations: bool = False,
    drop_repetitions: bool = False,
    repair: bool = False,
    claims: Collection[str] = CLAIM_KINDS,
    boxes: Sequence[BoxedPhrase] | None = None,
) -> Refined:
    """Drops every sentence that a signal with `absent` points into; changes nothing else, unless asked to.

    Args:
      text: what the verdicts are about.
      verdicts: of any streams.
      drop_continuations: whether the sentences that only continue a dropped one (`rewards/continuations.py`) go too.
      drop_repetitions: whether a sentence that is already kept, word for word, is kept once.
      repair: whether a wrong claim whose signal has edits is made right instead.
      claims: kinds of claims whose sentences go, or are repaired; what is wrong in other kinds stays.
      boxes: things whose boxes are written behind their first mentions that are left, in place of all boxes that the
        text has; by default these stay.

    Raises:
      InputError: a span lies outside the text.
    """
    absent, edits = _wrong(text, verdicts, claims, repair=repair)
    repeated = repetitions(text) if drop_repetitions else []
    if not (absent or edits or repeated) and boxes is None:
        return Refined(text.strip(), ())
    sentences = split_sentences(text)
    reasons = [
        "; ".join(dict.fromkeys(reason for span, reason in absent if _meet(span, sentence))) for sentence in sentences
    ]
    if drop_continuations:
        continuing = continuations([text[slice(*span)] for span in sentences], list(map(bool, reasons)))
        reasons = [CONTINUES if is_continuing else why for is_continuing, why in zip(continuing, reasons, strict=True)]
    if repeated:
        kept = [span for span, why in zip(sentences, reasons, strict=True) if not why]
        again = set(repetitions(text, kept))
        reasons = [REPEATS if span in again else why for span, why in zip(sentences, reasons, strict=True)]
    dropped = tuple(Dropped(span, why) for span, why in zip(sentences, reasons, strict=True) if why)
    return drop(text, sentences, dropped, edits, boxes)


def drop(
    text: str,
    sentences: Sequence[Span],
    dropped: tuple[Dropped, ...],
    edits: Mapping[Edit, str] = MappingProxyType({}),
    boxes: Sequence[BoxedPhrase] | None = None,
) -> Refined:
    """A text without some of its sentences.

    Args:
      text: the whole.
      sentences: all of its sentences, in order.
      dropped: those that go.
      edits: of the words of the others, and why.
      boxes: as for `refine`.
    """
    gone = [each.span for each in dropped]
    left = {edit: why for edit, why in sorted(edits.items()) if not any(_meet(edit.span, span) for span in gone)}
    every = [*left, *(() if boxes is None else box_edits(text, boxes, gone, left))]
    written = [write_edits(text, span, sorted(edit for edit in every if _is_in(edit.span, span))) for span in sentences]
    repaired = tuple(Repaired(edit.span, text[slice(*edit.span)], edit.text, why) for edit, why in left.items())
    return Refined(
        keep_sentences(text, sentences, [span not in gone for span in sentences], written), dropped, repaired
    )


def keep_sentences(
    text: str, sentences: Sequence[Span], kept: Sequence[bool], written: Sequence[str] | None = None
) -> str:
    """The kept sentences of a text.

    What stands between two of them is what stood there. Where others were left out it is the widest of the breaks
    around those: an empty line, a new line, or else one space.

    Args:
      text: the whole.
      sentences: all of its sentences, in order, with nothing but white space around them.
      kept: whether each of them stays.
      written: what stands in place of each; by default the sentence as it is.
    """
    pieces: list[str] = []
    gaps: list[str] = []  # since the last kept sentence
    for number, (span, keep) in enumerate(zip(sentences, kept, strict=True)):
        if number:
            gaps.append(text[sentences[number - 1].end : span.start])
        if keep:
            pieces += [_widest(gaps)] if pieces else []
            pieces.append(written[number] if written else text[slice(*span)])
            gaps = []
    return "".join(pieces)


def _widest(gaps: Sequence[str]) -> str:
    if len(gaps) == 1:
        return gaps[0]
    widest = max(gaps, key=_num_lines)
    return widest if _num_lines(widest) > 1 else " "


def _num_lines(gap: str) -> int:
    return len(f"{gap}.".splitlines())


def _meet(one: Span, other: Span) -> bool:
    return one.start < other.end and one.end > other.start


def _is_in(edited: Span, sentence: Span) -> bool:
    """Whether an edit is one of a sentence; what is only put in may stand at its end."""
    return _meet(edited, sentence) if edited.start < edited.end else sentence.start < edited.end <= sentence.end


def write_edits(text: str, sentence: Span, edits: Sequence[Edit]) -> str:
    """A sentence of a text after its edits, which are in order and disjoint."""
    pieces, place = [], sentence.start
    for span, replacement in edits:
        pieces += [text[place : span.start], replacement]
        place = span.end
    return "".join([*pieces, text[place : sentence.end]])


def _wrong(
    text: str, verdicts: Sequence[Verdict], claims: Collection[str], *, repair: bool
) -> tuple[list[tuple[Span, str]], dict[Edit, str]]:
    """Where a text says what is not so, with the reason that this gives: what drops its sentence, and what repairs it.

    Of edits that contradict each other the first one counts; where the others are wanted, the sentence goes.
    """
    absent: list[tuple[Span, str]] = []
    edits: dict[Edit, str] = {}
    for verdict in verdicts:
        for signal in verdict.signals:
            if not signal.absent or (signal.kind and signal.kind not in claims):
                continue
            for span in (*signal.spans, *(edit.span for edit in signal.edits)):
                _check(span, text, verdict, signal)
            reason = _reason(signal)
            is_possible = all(
                edit in edits or not any(_meet(edit.span, other.span) for other in edits) for edit in signal.edits
            )
            if repair and signal.edits and is_possible:
                edits |= dict.fromkeys((edit for edit in signal.edits if edit not in edits), reason)
            else:
                absent += [(span, reason) for span in signal.spans]
    return absent, edits


def _check(span: Span, text: str, verdict: Verdict, signal: Signal) -> None:
    if not 0 <= span.start <= span.end <= len(text):
        raise InputError(
            f"verdict of {verdict.stream} on {verdict.image}, candidate {verdict.candidate}: "
            f"{signal.label!r} is at characters {span.start} to {span.end} of a text of {len(text)}; "
            "score the candidates again"
        )


def _reason(signal: Signal) -> str:
    if signal.kind:
        return f'claims "{signal.label}", which is wrong'
    if signal.denied:
        return f'says that there is no "{signal.label}", and there is ({signal.score:.2f})'
    return f'mentions "{signal.label}", which is not there ({signal.score:.2f})'
