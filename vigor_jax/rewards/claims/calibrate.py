"""Thresholds of the judge that agree with people: precision and recall of "wrong" over a grid of them."""

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, Literal, TypeAlias, TypeVar

from vigor_jax.errors import InputError
from vigor_jax.records import CLAIM_KINDS, ClaimKind
from vigor_jax.rewards.claims.cases import Case
from vigor_jax.rewards.claims.crops import ClipAttributesConfig
from vigor_jax.rewards.claims.judge import JudgeConfig, Truth

# Attributes that a CLIP judges, by the name of its stream and section.
CROPS: Literal["clip_attributes"] = "clip_attributes"
Kind: TypeAlias = ClaimKind | Literal["clip_attributes"]
Judge = TypeVar("Judge", bound=JudgeConfig | ClipAttributesConfig)

# With fewer cases that people call wrong, precision and recall say too little.
FEWEST_CASES = 10
# What decides on "wrong" of a kind. `iou` is one for all kinds, and matters to numbers most.
THRESHOLDS: dict[Kind, tuple[str, ...]] = {
    "number": ("iou", "count_tolerance", "most_counted"),
    "place": ("place_margin", "center_width", "side_width"),
    "relation": ("relation_margin", "most_outside", "most_gap"),
    "attribute": ("attribute_margin", "least_attribute"),
    CROPS: ("most_wrong", "least_rival"),
}


@dataclasses.dataclass(frozen=True)
class ThresholdGrid:
    """The values that are tried of each threshold, and the given one in any case.

    Attributes:
      iou: of numbers; the choice holds for all kinds.
      count_tolerance: of numbers.
      most_counted: of numbers.
      place_margin: of places.
      center_width: of places.
      side_width: of places.
      relation_margin: of relations.
      most_outside: of relations.
      most_gap: of relations.
      attribute_margin: of attributes.
      least_attribute: of attributes.
      most_wrong: of attributes that a CLIP judges.
      least_rival: the same.
    """

    iou: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    count_tolerance: tuple[float, ...] = (0.0, 0.1, 0.2, 0.34, 0.5)
    most_counted: tuple[int, ...] = (4, 8, 12, 20)
    place_margin: tuple[float, ...] = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2)
    center_width: tuple[float, ...] = (1 / 3, 0.4, 0.5)
    side_width: tuple[float, ...] = (1 / 3, 0.4, 0.5)
    relation_margin: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8)
    most_outside: tuple[float, ...] = (0.0, 0.1, 0.3)
    most_gap: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    attribute_margin: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
    least_attribute: tuple[float, ...] = (0.1, 0.25, 0.4, 0.5, 0.6)
    most_wrong: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
    least_rival: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class Counts:
    """How a judge agrees with people on sentences.

    Attributes:
      cases: all of them.
      decided: of which the judge says right or wrong.
      wrong: of which people say wrong.
      said: of which the judge says wrong.
      agreed: of which both say wrong.
    """

    cases: int = 0
    decided: int = 0
    wrong: int = 0
    said: int = 0
    agreed: int = 0

    @property
    def precision(self) -> float | None:
        """How many of those that the judge calls wrong people call wrong; None if it calls none so."""
        return self.agreed / self.said if self.said else None

    @property
    def recall(self) -> float | None:
        """How many of those that people call wrong the judge calls wrong; None if they call none so."""
        return self.agreed / self.wrong if self.wrong else None

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.cases + other.cases,
            self.decided + other.decided,
            self.wrong + other.wrong,
            self.said + other.said,
            self.agreed + other.agreed,
        )


@dataclasses.dataclass(frozen=True)
class Row(Generic[Judge]):
    """One choice of a kind's thresholds, and what it gives."""

    config: Judge
    counts: Counts


@dataclasses.dataclass(frozen=True)
class Table(Generic[Judge]):
    """A kind of claim.

    Attributes:
      kind: which.
      clean: how many of the cases have one claim, so that it is known which one a person means.
      rows: all choices of the grid; the first is the given one.
      suggested: None if the cases are too few, or no choice is precise enough.
      held_out: the counts of a choice on half of the images that is measured on the other half, both ways: what to
        expect on other images; None without a suggestion, or if half of the cases give none.
    """

    kind: Kind
    clean: int
    rows: tuple[Row[Judge], ...]
    suggested: Row[Judge] | None = None
    held_out: Counts | None = None

    @property
    def given(self) -> Row[Judge]:
        return self.rows[0]

    @property
    def is_too_few(self) -> bool:
        return self.given.counts.wrong < FEWEST_CASES

    def thresholds(self, row: Row[Judge]) -> dict[str, float]:
        """A row's values of the kind's thresholds."""
        return {name: getattr(row.config, name) for name in THRESHOLDS[self.kind]}

    def frontier(self) -> list[Row[Judge]]:
        """The rows than which no other is as good in precision and recall and better in one, with most recall first."""
        rows = {(row.counts.recall or 0.0, row.counts.precision or 0.0): row for row in reversed(self.rows)}
        best, found = -1.0, []
        for (_, precision), row in sorted(rows.items(), key=lambda item: item[0], reverse=True):
            if precision > best:
                best = precision
                found.append(row)
        return found


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """The tables of all kinds, and a judge with what they suggest."""

    tables: tuple[Table[JudgeConfig], ...]
    judge: JudgeConfig


def calibrate(
    cases: Mapping[ClaimKind, Sequence[Case]],
    given: JudgeConfig,
    grid: ThresholdGrid,
    precision: float,
    progress: Callable[[Iterable[JudgeConfig]], Iterable[JudgeConfig]] = iter,
) -> Calibrated:
    """Suggests thresholds: of those that reach the precision the ones with the highest recall.

    Args:
      cases: of each kind.
      given: the judge as it is; what has no suggestion stays so.
      grid: the values to try.
      precision: that "the judge says wrong" must have, in (0, 1].
      progress: is given the choices of a kind, and yields them.

    Raises:
      InputError: a value of the grid is none that the judge takes.
    """
    judge, tables = given, list[Table[JudgeConfig]]()
    for kind in CLAIM_KINDS:  # numbers first, for their `iou` is that of the others
        every = choices(kind, judge, grid)
        table = _table(kind, cases[kind], progress(every) if cases[kind] else every, precision)
        tables.append(table)
        judge = table.suggested.config if table.suggested else judge
    return Calibrated(tuple(tables), judge)


def calibrate_crops(
    cases: Sequence[Case], given: ClipAttributesConfig, grid: ThresholdGrid, precision: float
) -> Table[ClipAttributesConfig]:
    """The same for attributes that a CLIP judges; arguments as for `calibrate`."""
    return _table(CROPS, cases, choices(CROPS, given, grid), precision)


def choices(kind: Kind, given: Judge, grid: ThresholdGrid) -> list[Judge]:
    """The judges of a kind's grid, the given one first.

    Raises:
      InputError: a value of the grid is none that the judge takes.
    """
    names = THRESHOLDS[kind]
    values = [dict.fromkeys((getattr(given, name), *getattr(grid, name))) for name in names]
    try:
        return [
            dataclasses.replace(given, **dict(zip(names, each, strict=True))) for each in itertools.product(*values)
        ]
    except InputError as error:
        raise InputError(f"grid: {error}") from None


def _table(kind: Kind, cases: Sequence[Case], configs: Iterable[Judge], precision: float) -> Table[Judge]:
    halves: tuple[list[Row[Judge]], list[Row[Judge]]] = [], []  # of the images
    for config in configs:
        counts = [Counts(), Counts()]
        for case in cases:
            counts[zlib.crc32(case.image.encode()) % 2] += _count(case, config)
        for half, each in zip(halves, counts, strict=True):
            half.append(Row(config, each))
    rows = tuple(Row(one.config, one.counts + other.counts) for one, other in zip(*halves, strict=True))
    table = Table(kind, sum(len(case.evidence) == 1 for case in cases), rows)
    if table.is_too_few or (suggested := _best(rows, precision)) is None:
        return table
    held_out = Counts()
    for own, others in (halves, halves[::-1]):
        if (best := _best(own, precision)) is None:
            return dataclasses.replace(table, suggested=suggested)
        held_out += others[own.index(best)].counts
    return dataclasses.replace(table, suggested=suggested, held_out=held_out)


def _count(case: Case, config: Judge) -> Counts:
    truth = case.judged(config)
    said = truth is Truth.WRONG
    return Counts(1, int(truth is not Truth.UNKNOWN), int(case.is_wrong), int(said), int(said and case.is_wrong))


def _best(rows: Sequence[Row[Judge]], precision: float) -> Row[Judge] | None:
    """Of the rows that are precise enough the one with the highest recall; of equal ones the most precise.

    If there are several such rows, it is the one that changes the fewest thresholds, and those the least.
    """
    given = dataclasses.astuple(rows[0].config)

    def rank(row: Row[Judge]) -> tuple[float, float, int, float]:
        pairs = zip(dataclasses.astuple(row.config), given, strict=True)
        changes = [abs(one - other) / (abs(one) + abs(other)) for one, other in pairs if one != other]
        return row.counts.agreed, row.counts.precision or 0.0, -len(changes), -sum(changes)

    enough = [row for row in rows if row.counts.agreed and (row.counts.precision or 0.0) >= precision]
    return max(enough, key=rank, default=None)
