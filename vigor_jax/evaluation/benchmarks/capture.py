"""CAPTURE: what a caption says of objects, attributes and relations, against reference captions (Dong et al. 2024).

The arithmetic is that of the authors' `capture.py`: elements are matched as they are, then by synonyms, and what is
left by the similarity of its embeddings; precision, recall and F1 of each kind, weighed 5:5:2. Matching by synonyms
takes the first that fits, so the order of elements decides: here that of the file, there that of a set, which changes
from run to run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

# Keeps divisions from being by 0.
EPS = 1e-6
# Objects, attributes, relations.
WEIGHTS = (0.5, 0.5, 0.2)
KINDS = ("object", "attribute", "relation")
FIGURES = ("capture", *(f"{kind}_{part}" for kind in KINDS for part in ("precision", "recall", "f1")))

# A word or phrase → its synonyms, itself included where it is known.
Synonyms = Callable[[str], frozenset[str]]
# Phrases → their embeddings, of length 1: float [phrases, size].
Encode = Callable[[Sequence[str]], np.ndarray]
Relation = tuple[str, str, str]


@dataclass(frozen=True)
class Graph:
    """What a caption says.

    Attributes:
        objects: Each once.
        attributes: Object → its attributes.
        relations: Subject, relation and object; each once.
    """

    objects: tuple[str, ...] = ()
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    relations: tuple[Relation, ...] = ()


class Matching(NamedTuple):
    """How much of two lists fits: whole elements, and of what is left its similarity to the nearest.

    Attributes:
        candidate: Of the caption's elements.
        reference: Of the reference's.
    """

    candidate: float
    reference: float


def are_synonyms(first: str, second: str, synonyms: Synonyms) -> bool:
    """Whether one is in the other, or both have a synonym in common; of several words as one, joined by "_"."""
    if first in second or second in first:
        return True
    return bool(synonyms("_".join(first.split())) & synonyms("_".join(second.split())))


def _match(
    candidates: Sequence[object],
    references: Sequence[object],
    tests: Sequence[Callable[..., bool]],
    encode: Encode | None,
    text: Callable[..., str],
) -> Matching:
    """Matches each candidate with the first free reference that passes a test; one test after the other."""
    left, free = list(candidates), list(references)
    for test in tests:
        still = []
        for candidate in left:
            place = next((place for place, reference in enumerate(free) if test(candidate, reference)), None)
            if place is None:
                still.append(candidate)
            else:
                del free[place]
        left = still
    matched = float(len(candidates) - len(left))
    if encode is None or not left or not free:
        return Matching(matched, matched)
    similar = encode([text(one) for one in left]) @ encode([text(one) for one in free]).T
    return Matching(matched + float(similar.max(1).sum()), matched + float(similar.max(0).sum()))


def match_words(
    candidates: Sequence[str], references: Sequence[str], synonyms: Synonyms | None, encode: Encode | None = None
) -> Matching:
    """Matches objects, or attributes.

    Args:
        candidates: Of the caption.
        references: Of the reference.
        synonyms: None: words are only compared as they are.
        encode: For what is left; None: it counts as not matched.
    """
    tests: list[Callable[..., bool]] = [lambda one, other: one == other]
    if synonyms is not None:
        tests.append(lambda one, other: are_synonyms(one, other, synonyms))
    return _match(candidates, references, tests, encode, str)


def match_relations(
    candidates: Sequence[Relation],
    references: Sequence[Relation],
    synonyms: Synonyms | None,
    encode: Encode | None = None,
) -> Matching:
    """Matches relations, whose three parts have to fit; the rest as `match_words`."""
    tests: list[Callable[..., bool]] = [lambda one, other: one == other]
    if synonyms is not None:
        tests.append(lambda one, other: all(are_synonyms(a, b, synonyms) for a, b in zip(one, other, strict=True)))
    return _match(candidates, references, tests, encode, " ".join)


def phrases(graph: Graph) -> list[str]:
    """All that may have to be encoded: objects, attributes, and relations as texts."""
    values = (value for own in graph.attributes.values() for value in own)
    return [*graph.objects, *values, *map(" ".join, graph.relations)]


def score(
    candidate: Graph, reference: Graph, synonyms: Synonyms | None, encode: Encode | None = None
) -> dict[str, float]:
    """The figures of a caption against one reference, `FIGURES`, in [0, 1].

    Args:
        candidate: What the caption says.
        reference: What the reference says.
        synonyms: As for `match_words`.
        encode: The same.
    """
    found: dict[str, float] = {}
    own = [one for values in candidate.attributes.values() for one in values]
    theirs = [one for values in reference.attributes.values() for one in values]
    parts = (
        (match_words(candidate.objects, reference.objects, synonyms, encode), candidate.objects, reference.objects),
        (match_words(own, theirs, synonyms, encode), own, theirs),
        (
            match_relations(candidate.relations, reference.relations, synonyms, encode),
            candidate.relations,
            reference.relations,
        ),
    )
    for kind, (matching, said, wanted) in zip(KINDS, parts, strict=True):
        precision, recall = matching.candidate / (len(said) + EPS), matching.reference / (len(wanted) + EPS)
        f1 = 2 * precision * recall / (precision + recall + EPS)
        found |= {f"{kind}_precision": precision, f"{kind}_recall": recall, f"{kind}_f1": f1}
    capture = sum(weight * found[f"{kind}_f1"] for kind, weight in zip(KINDS, WEIGHTS, strict=True)) / sum(WEIGHTS)
    return {"capture": capture, **found}


def mean_score(
    candidate: Graph, references: Sequence[Graph], synonyms: Synonyms | None, encode: Encode | None = None
) -> np.ndarray:
    """The means of the figures over an image's references: float64 [10], in the order of `FIGURES`."""
    each = [score(candidate, reference, synonyms, encode) for reference in references]
    return np.array([[one[name] for name in FIGURES] for one in each], np.float64).mean(0)


def rates(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Sums over images [..., 11], those of `FIGURES` and the images, → the means of the figures, float64 [...]."""
    values = np.asarray(sums, np.float64)
    number = np.maximum(values[..., -1], 1)
    return {name: values[..., place] / number for place, name in enumerate(FIGURES)}
