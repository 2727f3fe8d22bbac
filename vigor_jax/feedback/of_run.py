"""The descriptions of a run that people can be asked about, with what the rewards say of their sentences."""

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import fsspec

from vigor_jax.data.records.store import join, part_count, read_parts
from vigor_jax.errors import InputError
from vigor_jax.feedback.tasks import Description
from vigor_jax.records import AnnotatedSentence, Candidate, ErrorType, Selection, Signal, Span, Verdict
from vigor_jax.rewards.sentences import split_sentences

REWARD_MODEL = "reward_model"

_KINDS: tuple[ErrorType, ...] = get_args(ErrorType)
_OF_CLAIMS: dict[str, tuple[ErrorType, str]] = {
    "number": ("attribute", "count"),
    "attribute": ("attribute", ""),
    "place": ("location", ""),
    "relation": ("relationship", ""),
}


class Scored(NamedTuple):
    """A description with what the rewards say of each of its sentences.

    Attributes:
      description: with the kinds of error that are expected, if the run has verdicts.
      p_good: of the reward model; None where it says nothing.
      seen_wrong: whether another stream says that something in the sentence is not so.
      has_others: the run has other streams.
    """

    description: Description
    p_good: tuple[float | None, ...]
    seen_wrong: tuple[bool, ...]
    has_others: bool


def run_descriptions(run_dir: str | Path, *, chosen: bool = False, verdicts: bool = False) -> list[Description]:
    """The candidates of a run, each text of an image once; those without a sentence are left out.

    Args:
      run_dir: local or remote.
      chosen: only those that the run selected.
      verdicts: with what the run's streams say of each sentence.

    Raises:
      InputError: the run has no candidates, or lacks selections or verdicts that are asked for.
    """
    return [each.description for each in scored_descriptions(run_dir, chosen=chosen, verdicts=verdicts)]


def scored_descriptions(run_dir: str | Path, *, chosen: bool = False, verdicts: bool = True) -> list[Scored]:
    """`run_descriptions` with the scores of their sentences.

    Args:
      run_dir: local or remote.
      chosen: only those that the run selected.
      verdicts: with what the run's streams say of each sentence.

    Raises:
      InputError: the run has no candidates, or lacks selections or verdicts that are asked for.
    """
    picked = _chosen(run_dir) if chosen else None
    streams = _streams(run_dir) if verdicts else []
    judged = [read_parts(join(run_dir, "verdicts", name), Verdict) for name in streams]
    others = [name for name in streams if name != REWARD_MODEL]
    found: dict[tuple[str, str], Scored] = {}
    for candidate in read_parts(join(run_dir, "candidates"), Candidate):
        own = [next(verdicts, None) for verdicts in judged]
        for name, verdict in zip(streams, own, strict=True):
            if verdict is None or (verdict.image, verdict.candidate) != (candidate.image, candidate.candidate):
                raise InputError(
                    f"{join(run_dir, 'verdicts', name)}: has no verdict on candidate {candidate.candidate} of "
                    f"{candidate.image!r}; let the run finish its stage score, or give --predictions none"
                )
        if picked is not None and (candidate.image, candidate.prompt, candidate.candidate) not in picked:
            continue
        if spans := split_sentences(candidate.text):
            signals = [signal for verdict in own if verdict for signal in verdict.signals]
            expected = _expected(spans, signals) if verdicts else None
            description = Description(candidate.image, candidate.text, tuple(spans), expected)
            scores = {
                signal.spans[0]: signal.score
                for verdict in own
                if verdict and verdict.stream == REWARD_MODEL
                for signal in verdict.signals
            }
            absent = [place for signal in signals if signal.absent for place in signal.spans]
            wrong = [any(place.start < span.end and span.start < place.end for place in absent) for span in spans]
            scored = Scored(description, tuple(map(scores.get, spans)), tuple(wrong), bool(others))
            found.setdefault((candidate.image, candidate.text), scored)
    return list(found.values())


def _chosen(run_dir: str | Path) -> set[tuple[str, str, int]]:
    selections = read_parts(join(run_dir, "selections"), Selection)
    return {(each.image, each.prompt, each.candidate) for each in selections}


def _streams(run_dir: str | Path) -> list[str]:
    folder = join(run_dir, "verdicts")
    system, path = fsspec.core.url_to_fs(folder)
    try:
        names = sorted(posixpath.basename(name.rstrip("/")) for name in system.ls(path, detail=False))
    except FileNotFoundError:
        names = []
    if found := [name for name in names if part_count(join(folder, name))]:
        return found
    raise InputError(
        f"{folder}: expected verdicts of reward streams, got none; let the run judge its candidates, or give "
        "--predictions none"
    )


def _expected(spans: Sequence[Span], signals: Iterable[Signal]) -> tuple[AnnotatedSentence, ...]:
    """What the rewards say of each sentence; where they name two attributes, none is named."""
    errors: list[dict[ErrorType, set[str]]] = [{} for _ in spans]
    for signal in signals:
        for place in signal.spans:
            touched = [number for number, span in enumerate(spans) if place.start < span.end and span.start < place.end]
            if len(touched) == 1:  # what is said of several sentences says of none that it is wrong
                for error, attribute in _errors(signal):
                    errors[touched[0]].setdefault(error, set()).add(attribute)
    sentences = []
    for span, own in zip(spans, errors, strict=True):
        named = own.get("attribute", set())
        attribute = next(iter(named)) if len(named) == 1 else ""
        kinds = tuple(kind for kind in _KINDS if kind in own)
        sentences.append(AnnotatedSentence(span, kinds, attribute))
    return tuple(sentences)


def _errors(signal: Signal) -> Iterator[tuple[ErrorType, str]]:
    """The kinds of error that a signal is about: a claim's, a thing that is not there, or a reward model's answer."""
    if signal.kind or signal.absent:
        if signal.absent:
            yield _OF_CLAIMS.get(signal.kind, ("object", ""))
        return
    first, *named = signal.label.split() or [""]
    if first == "0":
        yield from ((kind, "") for kind in _KINDS if kind in named)
