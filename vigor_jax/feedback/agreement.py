"""How well people agree: Krippendorff's alpha and Cohen's kappa for each kind of error, and figures of each person.

What is compared is a yes or no about each sentence: is it wrong at all ("error"), does it have this kind of error, is
it creative? The coefficients are NLTK's. Where all say the same of everything, they are undefined and None.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, TypeAlias

from vigor_jax.feedback.form import KINDS
from vigor_jax.feedback.judgments import Judgment
from vigor_jax.percent import percent
from vigor_jax.records import AnnotatedSentence, Annotation

# (annotator, item, answer)
Triple: TypeAlias = tuple[str, Any, Any]
_Key: TypeAlias = tuple[str, str, int]  # image, description, number of the sentence

ERROR = "error"
ASKED: dict[str, Callable[[AnnotatedSentence], bool]] = {
    ERROR: lambda sentence: bool(sentence.errors),
    **{kind: (lambda sentence, kind=kind: kind in sentence.errors) for kind in KINDS},  # type: ignore[misc]
    "creative": lambda sentence: sentence.creative,
}

# Krippendorff: below 2/3 not even tentative conclusions. Landis and Koch: from 0.6 kappa is substantial.
LEAST_ALPHA, LEAST_KAPPA = 2 / 3, 0.6
# Fewer sentences, or sentences with a kind of error, say too little to call anybody or anything bad.
FEW, FEW_OF_A_KIND = 20, 5
MOST_SHARE = 0.5
MOST_FALL = 0.1


class Person(NamedTuple):
    """Figures of one annotator.

    Attributes:
      annotator: who.
      descriptions: that the person judged.
      sentences: in them.
      share: of all judgments.
      seconds: for a description, the median; None if that is not known.
      errors: share of sentences that the person calls wrong.
      shared: sentences on which the others have a majority.
      agreement: share of these on which the person says what the majority of the others says: wrong or not.
      kappa: with that majority, by kind.
      gold_sentences: sentences whose truth is known.
      gold_kappa: with the truth, by kind.
      gold_missed: by kind, share of the sentences that have it in truth on which the person does not say so.
      gold_invented: by kind, share of the others on which the person does say so.
      halves: what changed: seconds, errors and agreement in the first and the second half of the work, by time.
    """

    annotator: str
    descriptions: int
    sentences: int
    share: float
    seconds: float | None
    errors: float
    shared: int
    agreement: float | None
    kappa: dict[str, float | None]
    gold_sentences: int
    gold_kappa: dict[str, float | None]
    gold_missed: dict[str, float | None]
    gold_invented: dict[str, float | None]
    halves: dict[str, tuple[float | None, float | None]]


class Agreement(NamedTuple):
    """How well people agree.

    Attributes:
      descriptions: that somebody judged.
      overlapping: that several people judged.
      sentences: in those that several people judged.
      alpha: by kind.
      positives: by kind, judgments in `sentences` that say yes.
      pairs: of two people: sentences that both judged, and kappa by kind.
      people: in the order of their names.
      advice: sentences for people: who should be retrained, which kind is defined badly, whether one person did most.
    """

    descriptions: int
    overlapping: int
    sentences: int
    alpha: dict[str, float | None]
    positives: dict[str, int]
    pairs: dict[tuple[str, str], tuple[int, dict[str, float | None]]]
    people: tuple[Person, ...]
    advice: tuple[str, ...]


def alpha(triples: Sequence[Triple]) -> float | None:
    """Krippendorff's alpha of nominal answers; items may lack answers, and those with one answer do not count.

    Args:
      triples: at most one of a person and an item.

    Returns:
      None where it is undefined: no item has two answers, or all such answers are alike.
    """
    counts = Counter(item for _, item, _ in triples)
    shared = [each for each in triples if counts[each[1]] > 1]
    if len({answer for *_, answer in shared}) < 2:
        return None
    from nltk.metrics.agreement import AnnotationTask

    return float(AnnotationTask(shared).alpha())


def kappa(pairs: Iterable[tuple[Any, Any]]) -> float | None:
    """Cohen's kappa of two people's answers to the same items.

    Args:
      pairs: both answers to each item.

    Returns:
      None where it is undefined: there are no items, or all answers are alike.
    """
    pairs = list(pairs)
    if len({answer for pair in pairs for answer in pair}) < 2:
        return None
    from nltk.metrics.agreement import AnnotationTask

    triples = [(who, item, answer) for item, pair in enumerate(pairs) for who, answer in zip("ab", pair, strict=True)]
    return float(AnnotationTask(triples).kappa_pairwise("a", "b"))


def measure(
    judgments: Sequence[Judgment],
    gold: Iterable[Annotation] = (),
    *,
    least_alpha: float = LEAST_ALPHA,
    least_kappa: float = LEAST_KAPPA,
) -> Agreement:
    """Measures agreement.

    Args:
      judgments: at most one of a person and a description.
      gold: descriptions whose truth is known; those that nobody judged do not count.
      least_alpha: a kind of error below it is called badly defined.
      least_kappa: a person below it, against the others or against gold, is to be retrained.
    """
    own: dict[str, dict[_Key, AnnotatedSentence]] = {}
    for judgment in judgments:
        own.setdefault(judgment.annotator, {}).update(_sentences(judgment.annotation))
    truth: dict[_Key, AnnotatedSentence] = {}
    for annotation in gold:
        truth |= _sentences(annotation)
    people = tuple(_person(name, judgments, own, truth) for name in sorted(own, key=_by_number))
    counts = Counter(judgment.key for judgment in judgments)
    answered = Counter(key for said in own.values() for key in said)
    shared = {key for key, count in answered.items() if count > 1}
    triples = {
        kind: [(who, key, says(said[key])) for who, said in own.items() for key in said if key in shared]
        for kind, says in ASKED.items()
    }
    pairs = {}
    for one, other in combinations(sorted(own, key=_by_number), 2):
        common = [(own[one][key], own[other][key]) for key in own[one] if key in own[other]]
        if common:
            pairs[one, other] = len(common), _kappas(common)
    found = Agreement(
        descriptions=len(counts),
        overlapping=sum(count > 1 for count in counts.values()),
        sentences=len(shared),
        alpha={kind: alpha(each) for kind, each in triples.items()},
        positives={kind: sum(answer for *_, answer in each) for kind, each in triples.items()},
        pairs=pairs,
        people=people,
        advice=(),
    )
    return found._replace(advice=tuple(_advice(found, least_alpha, least_kappa)))


def _sentences(annotation: Annotation) -> dict[_Key, AnnotatedSentence]:
    start = (annotation.image, annotation.description)
    return {(*start, sentence.span.start): sentence for sentence in annotation.sentences}


def _by_number(name: str) -> tuple[int, str]:
    return (int(name) if name.isdecimal() else 0, name)


def _kappas(pairs: Sequence[tuple[AnnotatedSentence, AnnotatedSentence]]) -> dict[str, float | None]:
    return {kind: kappa((says(one), says(other)) for one, other in pairs) for kind, says in ASKED.items()}


def _person(
    name: str,
    judgments: Sequence[Judgment],
    own: Mapping[str, Mapping[_Key, AnnotatedSentence]],
    truth: Mapping[_Key, AnnotatedSentence],
) -> Person:
    work = sorted((each for each in judgments if each.annotator == name), key=lambda each: each.created)
    said = own[name]
    others = [each for who, each in own.items() if who != name]
    rest = {kind: _majorities(said, others, says) for kind, says in ASKED.items()}
    known = [(said[key], truth[key]) for key in said if key in truth]

    def agreed(keys: Iterable[_Key]) -> float | None:
        return _mean(bool(said[key].errors) == rest[ERROR][key] for key in keys if key in rest[ERROR])

    def half(part: Sequence[Judgment]) -> tuple[float | None, float | None, float | None]:
        keys = [key for each in part for key in _sentences(each.annotation)]
        return _seconds(part), _mean(bool(said[key].errors) for key in keys), agreed(keys)

    middle = (len(work) + 1) // 2
    first, second = half(work[:middle]), half(work[middle:])
    return Person(
        annotator=name,
        descriptions=len(work),
        sentences=len(said),
        share=len(work) / len(judgments),
        seconds=_seconds(work),
        errors=_mean(bool(sentence.errors) for sentence in said.values()) or 0.0,
        shared=len(rest[ERROR]),
        agreement=agreed(said),
        kappa={
            kind: kappa((says(said[key]), answer) for key, answer in rest[kind].items()) for kind, says in ASKED.items()
        },
        gold_sentences=len(known),
        gold_kappa=_kappas(known),
        gold_missed={kind: _mean(not says(one) for one, right in known if says(right)) for kind, says in ASKED.items()},
        gold_invented={
            kind: _mean(says(one) for one, right in known if not says(right)) for kind, says in ASKED.items()
        },
        halves=dict(zip(("seconds", "errors", "agreement"), zip(first, second, strict=True), strict=True)),
    )


def _majorities(
    keys: Iterable[_Key],
    others: Sequence[Mapping[_Key, AnnotatedSentence]],
    says: Callable[[AnnotatedSentence], bool],
) -> dict[_Key, bool]:
    """What more than half of the others say, where that is so."""
    found = {}
    for key in keys:
        votes = [says(each[key]) for each in others if key in each]
        if votes and 2 * sum(votes) != len(votes):
            found[key] = 2 * sum(votes) > len(votes)
    return found


def _mean(values: Iterable[bool]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def _seconds(work: Sequence[Judgment]) -> float | None:
    known = [each.seconds for each in work if each.seconds is not None]
    return statistics.median(known) if known else None


def _advice(found: Agreement, least_alpha: float, least_kappa: float) -> Iterable[str]:
    if not found.overlapping:
        yield "nothing was judged by two people, so nothing says how well they agree; let some be judged twice"
    for kind, value in found.alpha.items():
        if value is not None and value < least_alpha and found.positives[kind] >= FEW_OF_A_KIND:
            if kind == ERROR:
                yield f"people agree little on what is wrong at all: alpha is {value:.2f}, below {least_alpha:.2f}"
            else:
                yield f"define {kind!r} better, with examples: its alpha is {value:.2f}, below {least_alpha:.2f}"
    for person in found.people:
        for value, count, whom in (
            (person.kappa[ERROR], person.shared, "the others"),
            (person.gold_kappa[ERROR], person.gold_sentences, "gold"),
        ):
            if value is not None and value < least_kappa and count >= FEW:
                yield f"retrain annotator {person.annotator}: kappa with {whom} is {value:.2f}, below {least_kappa:.2f}"
        first, second = person.halves["agreement"]
        if None not in (first, second) and first - second > MOST_FALL and person.shared >= 2 * FEW:  # type: ignore[operator]
            yield (
                f"annotator {person.annotator} drifts: like the others on {percent(first or 0)}% of the sentences in "
                f"the first half of the work, on {percent(second or 0)}% in the second"
            )
        if person.share > MOST_SHARE and len(found.people) > 2:
            share = percent(person.share)
            yield f"annotator {person.annotator} did {share}% of the work, which makes it one person's opinion"
