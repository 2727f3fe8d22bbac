"""How much of what captions say is true of their scenes; the truth of every sentence is known here."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from vigor_jax.data.records.store import join, read_parts
from vigor_jax.demo.language import NUMBERS, ErrorKind, Sentence, errors, parse
from vigor_jax.demo.scenes import Scene
from vigor_jax.evaluation.auc import auc
from vigor_jax.records import Candidate, Verdict
from vigor_jax.rewards.repetitions import repetitions

KINDS: tuple[ErrorKind, ...] = ("object", "color", "count", "place")


@dataclasses.dataclass(frozen=True)
class CaptionMetrics:
    """Shares from 0 to 1; NaN where there is nothing to take a share of.

    Attributes:
      bad: sentences with any error, those that are none of the demo's included.
      absent: sentences about what is not there.
      unseen: of the sentences about what is there, those wrong in what no detector of things can see: color, count
        or place.
      color: of the sentences about what is there, those with a wrong color.
      count: of the sentences about several of what is there, those with a wrong number.
      place: of the sentences about one thing of what is there, those with a wrong place.
      repeats: sentences that say again, word for word, what an earlier one of the caption has said.
      again: of the sentences about a shape, there or not, those whose caption has named the shape before.
    """

    bad: float
    absent: float
    unseen: float
    color: float
    count: float
    place: float
    repeats: float
    again: float


def compute_metrics(captions: Iterable[tuple[str, Scene]]) -> CaptionMetrics:
    """Compares captions, any texts, with their scenes."""
    seen: Counter[str] = Counter()
    for text, scene in captions:
        seen["repeated"] += len(repetitions(text))
        named: set[str] = set()
        for sentence in parse(text):
            found = _errors(sentence, scene)
            seen["all"] += 1
            if sentence.statement is not None:
                seen["named"] += 1
                seen["again"] += sentence.statement.shape in named
                named.add(sentence.statement.shape)
            seen["bad"] += found is None or bool(found)
            seen["absent"] += found is not None and "object" in found
            if sentence.statement is None or found is None or "object" in found:
                continue
            form = "place" if sentence.statement.number == 1 else "count"
            seen.update(["present", form, *(["unseen"] if found else []), *(f"{kind} wrong" for kind in found)])
    return CaptionMetrics(
        bad=_share(seen["bad"], seen["all"]),
        absent=_share(seen["absent"], seen["all"]),
        unseen=_share(seen["unseen"], seen["present"]),
        color=_share(seen["color wrong"], seen["present"]),
        count=_share(seen["count wrong"], seen["count"]),
        place=_share(seen["place wrong"], seen["place"]),
        repeats=_share(seen["repeated"], seen["all"]),
        again=_share(seen["again"], seen["named"]),
    )


def reward_auc(records: str | Path, scenes: Mapping[str, Scene]) -> dict[ErrorKind, float]:
    """How well p(good) tells sentences with just one kind of error from good ones of the same form.

    Sentences about one thing and about several differ in how often they are wrong, and telling them apart is no
    judgment; so each is held against its own form only, and the forms' AUCs are averaged by their bad sentences.

    Args:
      records: a folder with `candidates/` and `verdicts/reward_model/`, made per sentence.
      scenes: by file name, of all images that there are candidates of.
    """
    scores: dict[tuple[int, ErrorKind | None], list[float]] = {}
    pairs = zip(
        read_parts(join(records, "candidates"), Candidate),
        read_parts(join(records, "verdicts", "reward_model"), Verdict),
        strict=True,
    )
    for candidate, verdict in pairs:
        scene = scenes[Path(candidate.image).name]
        for signal in verdict.signals:
            (sentence, *_) = parse(candidate.text[slice(*signal.spans[0])])
            found = _errors(sentence, scene)
            if sentence.statement is not None and found is not None and len(found) <= 1:
                form = min(sentence.statement.number, 2)
                scores.setdefault((form, found[0] if found else None), []).append(signal.score)
    result: dict[ErrorKind, float] = {}
    for kind in KINDS:
        parts = [(scores.get((form, kind), []), scores.get((form, None), [])) for form in (1, 2)]
        parts = [(bad, good) for bad, good in parts if bad and good]
        values = [
            (len(bad), auc(np.array([*bad, *good]), np.repeat([False, True], [len(bad), len(good)])) or 0.0)
            for bad, good in parts
        ]
        result[kind] = _share(sum(n * value for n, value in values), sum(n for n, _ in values))
    return result


def mark(text: str, scene: Scene) -> list[tuple[str, bool]]:
    """Each word of a caption, and whether it is wrong; of what is not there, or makes no sense, every word is."""
    marked: list[tuple[str, bool]] = []
    for sentence in parse(text):
        found, said = _errors(sentence, scene), sentence.statement
        words = sentence.text.split()
        if said is None or found is None or "object" in found:
            marked += [(word, True) for word in words]
            continue
        parts: dict[ErrorKind, str] = {"color": said.color, "count": NUMBERS[said.number], "place": said.place or ""}
        wrong = {word for kind in found for word in parts[kind].split()}
        marked += [(word, word.lower().rstrip(".") in wrong) for word in words]
    return marked


def _errors(sentence: Sentence, scene: Scene) -> tuple[ErrorKind, ...] | None:
    return None if sentence.statement is None else errors(sentence.statement, scene)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
