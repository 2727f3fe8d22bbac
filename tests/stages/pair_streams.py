"""Reward streams for tests of pairs: of words, of another stream's verdicts, and one that all processes compute."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from vigor_jax.records import ScoreItem, Signal, Span, Verdict

GOOD, BAD = re.compile(r"man|red triangle|bench|traffic light"), re.compile(r"dog|car|cat|wave")


class Things:
    """Some things are there, and others are not."""

    name, digest = "things", hashlib.sha256(b"things").hexdigest()

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        for item in items:
            yield [Verdict(item.image, i, self.name, tuple(signals(text))) for i, text in enumerate(item.texts)]


def signals(text: str) -> Iterator[Signal]:
    """One for each mention."""
    for things, is_there in ((GOOD, True), (BAD, False)):
        for found in things.finditer(text):
            span = Span(*found.span())
            yield Signal(found.group(), (span,), float(not is_there), float(is_there), 0.5, absent=not is_there)


class Follower:
    """Says half of what `things` says."""

    name, needs = "follower", ("things",)
    digest = hashlib.sha256(b"follower").hexdigest()

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        for item in items:
            found = []
            for index, verdict in enumerate(item.verdicts["things"]):
                half = [(s, s.negative / 2, s.positive / 2) for s in verdict.signals]
                signals = tuple(Signal(s.label, s.spans, bad, good, 0.5, s.absent) for s, bad, good in half)
                found.append(Verdict(item.image, index, self.name, signals))
            yield found


class Together:
    """A good word for every text with an even number of letters; all processes have to be here with the same texts."""

    name, uses_devices = "together", True
    digest = hashlib.sha256(b"together").hexdigest()

    def __init__(self, mesh: Any) -> None:
        self._mesh = mesh

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        for item in items:
            found = []
            for index, text in enumerate(item.texts):
                seen = multihost_utils.process_allgather(np.int32(len(text))).ravel()
                assert set(seen.tolist()) == {len(text)}
                spans = (Span(len(text) - 1, len(text)),)
                signals = () if len(text) % 2 else (Signal("even", spans, 0.0, 1.0, 0.5),)
                found.append(Verdict(item.image, index, self.name, signals))
            yield found
