"""What two detectors say together: one alone errs more often than both do in the same place."""

import dataclasses

from vigor_jax.records import PhraseScore, Signal, Verdict

# Of the rule below: another number makes verdicts of earlier versions stale.
AGREEMENT = 1


def agree(first: Verdict, second: Verdict) -> Verdict:
    """What both of two verdicts on one text say.

    What both find is right, with the score and the boxes of the first. What neither finds is wrong. What one of them
    finds is unknown: its signal stays, without boxes, and is neither positive nor negative nor absent. What the text
    denies is wrong if both find it; else there is no signal, as where one detector does not find it.

    Args:
      first: of one detector.
      second: of another one, which was asked for the same phrases.

    Returns:
      A verdict of the first one's stream. Attributes are those that both were asked about, with the mean of the scores.

    Raises:
      ValueError: the verdicts are on different texts, or on different phrases of a text.
    """
    if (first.image, first.candidate) != (second.image, second.candidate):
        raise ValueError(
            f"expected two verdicts on one text, got candidate {first.candidate} of {first.image} and candidate "
            f"{second.candidate} of {second.image}"
        )
    mine, theirs = ({_stated(signal): signal for signal in verdict.signals} for verdict in (first, second))
    if apart := [
        key for key in mine.keys() ^ theirs.keys() if not key[-1]
    ]:  # a denial has a signal only if it is wrong
        raise ValueError(f"expected verdicts on the same phrases of {first.image}, one of them has no {apart[0][0]!r}")
    merged = (_merged(signal, theirs.get(key)) for key, signal in mine.items())
    scores = dict(second.attributes)
    return Verdict(
        first.image,
        first.candidate,
        first.stream,
        tuple(signal for signal in merged if signal),
        tuple(PhraseScore(name, (score + scores[name]) / 2) for name, score in first.attributes if name in scores),
    )


def _stated(signal: Signal) -> tuple[object, ...]:
    """What a signal is about; whether the text denies it comes last."""
    return signal.label, signal.spans, signal.kind, signal.denied


def _merged(first: Signal, second: Signal | None) -> Signal | None:
    if second and (first.absent, first.positive > 0) == (second.absent, second.positive > 0):
        return first
    if first.denied:
        return None
    return dataclasses.replace(first, negative=0.0, positive=0.0, absent=False, boxes_xyxy=(), edits=())
