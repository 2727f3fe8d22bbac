"""What a judge says of the claims of a caption, as signals of a stream, with repairs of what is wrong."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.records import Edit, Signal
from vigor_jax.rewards.claims.claim import Claim
from vigor_jax.rewards.claims.evidence import BoxTuples
from vigor_jax.rewards.claims.find import Reading
from vigor_jax.rewards.claims.judge import Found, Truth
from vigor_jax.rewards.claims.repair import Repairs, WrongClaim


class JudgedClaim(NamedTuple):
    """A claim and what is said of it.

    Attributes:
        claim: The claim.
        truth: Whether it is right.
        score: How sure it is that it is right; [0, 1].
        boxes: Where its subject was found.
        scores: What repairs of attributes are judged by, see `WrongClaim`.
    """

    claim: Claim
    truth: Truth
    score: float
    boxes: BoxTuples
    scores: Mapping[str, float] = MappingProxyType({})


def claim_signals(reading: Reading, judged: Sequence[JudgedClaim], repairs: Repairs) -> tuple[Signal, ...]:
    """A signal of each claim that is right or wrong, in the order of the claims; equal claims are one.

    Args:
        reading: The caption, as it was read.
        judged: Its claims, each once.
        repairs: Finds what makes the wrong ones right.
    """
    wrong = [each for each in judged if each.truth is Truth.WRONG]
    found = repairs(reading, [WrongClaim(each.claim, Found(each.boxes), each.scores) for each in wrong])
    edits = iter(found)
    signals: dict[tuple[str, object], Signal] = {}
    for each in judged:
        own = next(edits) if each.truth is Truth.WRONG else ()
        if each.truth is not Truth.UNKNOWN:
            key = each.claim.subject.phrase, each.claim.value
            signals[key] = _signal(reading.text, each, own, signals.get(key))
    return tuple(sorted(signals.values(), key=lambda signal: signal.spans[0]))


def _signal(text: str, judged: JudgedClaim, edits: tuple[Edit, ...], other: Signal | None) -> Signal:
    """A claim's signal, joined with that of an equal claim."""
    claim, is_right = judged.claim, judged.truth is Truth.RIGHT
    spans = sorted({claim.span, *(other.spans if other else ())})
    # Both are repaired or none: refinement would keep a sentence for an edit in another one.
    both = (*edits, *(other.edits if other else ())) if edits and (other is None or other.edits) else ()
    return Signal(
        label=f"{claim.subject.phrase}: {without_boxes(text[slice(*claim.span)]).lower()}"
        if other is None
        else other.label,
        spans=tuple(spans),
        negative=float(not is_right),
        positive=float(is_right),
        score=judged.score,
        absent=not is_right,
        boxes_xyxy=judged.boxes,
        kind=claim.kind,
        edits=tuple(sorted(set(both))),
    )
