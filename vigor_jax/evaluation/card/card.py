"""The card as data: one section for each benchmark and protocol, a row for each figure, a value for each model."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import vigor_jax
from vigor_jax.evaluation.bootstrap import Difference
from vigor_jax.evaluation.card.figures import Better, Unit
from vigor_jax.evaluation.card.results import Skipped

# Of the bootstrap.
DRAWS, SEED, LEVEL = 1000, 0, 0.95
_DIGITS = 6


class Value(NamedTuple):
    """A figure with its interval, None where it has none."""

    value: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure of all models.

    Attributes:
        part: Of the benchmark; "" where it has none.
        key: The figure's name in `metrics.json`.
        label: Its name on the card, the part included.
        unit: As in `figures.Figure`.
        better: The same.
        values: Of each model; None where it has none.
        difference: The last model's figure minus the first's, on the images of both; None where it cannot be told.
        images: How many these images are.
    """

    part: str
    key: str
    label: str
    unit: Unit
    better: Better
    values: tuple[Value | None, ...]
    difference: Difference | None
    images: int

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where the paired interval leaves out 0, else ""."""
        if self.difference is None or not self.better or self.difference.low <= 0 <= self.difference.high:
            return ""
        return "better" if (self.difference.value > 0) == (self.better == "higher") else "worse"


@dataclasses.dataclass(frozen=True)
class Section:
    """A benchmark by one protocol.

    Attributes:
        name: Of the benchmark.
        title: The same, for people.
        protocol: Its name and digest.
        rows: The figures.
        notes: What is to be known of them.
        settings: Of each model, how its answers were drawn.
    """

    name: str
    title: str
    protocol: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    settings: tuple[Mapping[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Card:
    """All of it.

    Attributes:
        systems: Names of the models, one or two.
        sections: In the order of the benchmarks.
        skipped: What is not there, and why.
    """

    systems: tuple[str, ...]
    sections: tuple[Section, ...]
    skipped: tuple[Skipped, ...]

    def to_json(self) -> str:
        """The same bytes for the same results."""
        content = {
            "made_by": f"vigor_jax {vigor_jax.__version__}",
            "bootstrap": {"draws": DRAWS, "seed": SEED, "level": LEVEL, "over": "images"},
            "models": self.systems,
            "benchmarks": [_plain(section) for section in self.sections],
            "skipped": [each._asdict() for each in self.skipped],
        }
        return json.dumps(_rounded(content), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def shown(card: Card, section: Section) -> list[int]:
    """Places of the models that a section has values of."""
    return [place for place in range(len(card.systems)) if any(row.values[place] for row in section.rows)]


def _plain(section: Section) -> dict[str, Any]:
    rows = [{**dataclasses.asdict(row), "verdict": row.verdict} for row in section.rows]
    for row, own in zip(section.rows, rows, strict=True):
        own["values"] = [value._asdict() if value else None for value in row.values]
        own["difference"] = row.difference._asdict() if row.difference else None
    return {**{field.name: getattr(section, field.name) for field in dataclasses.fields(section)}, "rows": rows}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS) + 0.0  # no negative zero
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
