"""What the gallery shows of an image: everything that was said of it, packed for the page."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

from vigor_jax.data.text.box_text import find_boxes
from vigor_jax.records import Selection
from vigor_jax.rewards.sentences import split_sentences

# Of a phrase's boxes, "best first", this many are on the page.
MAX_BOXES = 8
# A stream says that something is absent; two streams disagree on a sentence.
HALLUCINATED, DISAGREE = 1, 2

Example = dict[str, Any]


def make_example(rows: Sequence[Mapping[str, Any]], streams: Sequence[str], selection: Selection | None) -> Example:
    """An image as the page has it; keys as in the records, but for these, which save space.

    `things` has what was said once, though several candidates say it: [label, score, is bad (null: unknown), is absent,
    boxes] and of a claim its kind, the score in hundredths, the boxes' corners in thousandths. A candidate's
    `sentences` are [start, end, ...] and its `signals`, for each stream, [thing, start, end, ...]; each place counts
    from the one before it, through all of the stream's signals. `flags` are HALLUCINATED and DISAGREE. `boxes` are
    those in its text, if it has any: [start, end, left, top, right, bottom], the corners in thousandths of the square
    that LLaVA-1.5 pads an image to.
    """
    things: dict[str, tuple[int, list[Any]]] = {}
    candidates = [_candidate(row, streams, things) for row in rows]
    example: Example = {
        "name": rows[0]["image"],
        "prompt": rows[0]["prompt"],
        "things": [thing for _, thing in things.values()],
        "candidates": candidates,
        "chosen": -1,
    }
    if selection:
        example |= {
            "chosen": selection.candidate,
            "decided": selection.decided_by,
            "decisive": selection.decisive_stream,
            "penalties": [_number(value) for value in selection.penalties],
            "terms": [[_number(value) for value in terms] for terms in selection.stream_penalties],
            "dropped": [[*each.span, each.reason] for each in selection.dropped],
            "repaired": [[*each.span, each.new, each.reason] for each in selection.repaired],
            "reason": selection.reason,
            "has_content": list(selection.has_content),
            "repeats": list(selection.repeats),
        }
    return example


def _candidate(
    row: Mapping[str, Any], streams: Sequence[str], things: dict[str, tuple[int, list[Any]]]
) -> dict[str, Any]:
    sentences = split_sentences(row["text"])
    signals, opinions = [], []
    is_hallucinated = False
    for stream in streams:
        found: list[list[int]] = []
        bad: list[bool | None] = [None] * len(sentences)
        last = 0
        for signal in row[f"signals of {stream}"]:
            thing = _thing(signal)
            is_hallucinated |= signal["absent"]
            number = things.setdefault(json.dumps(thing), (len(things), thing))[0]
            spans = [(span["start"], span["end"]) for span in signal["spans"]]
            found.append([number, *(place - before for before, place in pairwise([last, *chain(*spans)]))])
            last = spans[-1][1] if spans else last
            for place, sentence in enumerate(sentences):
                if thing[2] is not None and any(start < sentence.end and end > sentence.start for start, end in spans):
                    bad[place] = bool(bad[place]) or thing[2]
        signals.append(found)
        opinions.append(bad)
    boxes = [[*span, *(round(1000 * corner) for corner in box)] for span, box in find_boxes(row["text"])]
    disagree = any(len(set(said) - {None}) > 1 for said in zip(*opinions, strict=True))
    return {
        "text": row["text"],
        "sentences": [place - before for before, place in pairwise([0, *chain(*sentences)])],
        "logprob": _number(row["mean_logprob"]),
        "finish": row["finish_reason"],
        "signals": signals,
        "flags": HALLUCINATED * is_hallucinated + DISAGREE * disagree,
        **({"boxes": boxes} if boxes else {}),
    }


def _thing(signal: Mapping[str, Any]) -> list[Any]:
    """A signal finds bad what is absent, or what it holds more against than for; None where it holds nothing."""
    is_unknown = not (signal["absent"] or signal["negative"] or signal["positive"])
    is_bad = None if is_unknown else bool(signal["absent"] or signal["negative"] > signal["positive"])
    boxes = [[round(1000 * min(max(corner, 0), 1)) for corner in box] for box in signal["boxes_xyxy"][:MAX_BOXES]]
    score = round(100 * signal["score"]) if math.isfinite(signal["score"]) else None
    kind = [signal["kind"]] if signal["kind"] else []
    return [signal["label"], score, is_bad, bool(signal["absent"]), boxes, *kind]


def _number(value: float) -> float | None:
    """Four digits, which JSON can hold."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
