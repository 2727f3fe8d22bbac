"""The table of a report's reward models: held-out sentences by kind of error, all together and of each source."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class RewardRow(NamedTuple):
    """A row of the reward models' table.

    Attributes:
      label: a kind of error, or the name of a source.
      note: behind the label.
      is_part: belongs to the row of a source above it.
      cells: run → `count`, `auc` and `accuracy`; a run that has none is missing.
    """

    label: str
    note: str
    is_part: bool
    cells: dict[str, Mapping[str, Any]]


def reward_rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[RewardRow]:
    """All sentences, kind by kind; then those of each source.

    Args:
      metrics: run → a line of `metrics/reward_eval.jsonl`.
    """
    rows = _kinds(metrics, "All", "", is_part=False)
    names = dict.fromkeys(name for each in metrics.values() for name in each.get("sources", {}))
    for name in names:
        own = {run: each["sources"][name] for run, each in metrics.items() if name in each.get("sources", {})}
        weights = dict.fromkeys(f"{values['weight']:g}" for values in own.values() if "weight" in values)
        rows += _kinds(own, name, f"weight {', '.join(weights)}" if weights else "", is_part=True)
    return rows


def _kinds(metrics: Mapping[str, Mapping[str, Any]], label: str, note: str, *, is_part: bool) -> list[RewardRow]:
    kinds = dict.fromkeys(kind for each in metrics.values() for kind in each["errors"])
    rows = [RewardRow(label, note, False, dict(metrics))]
    for kind in kinds:
        cells = {run: each["errors"][kind] for run, each in metrics.items() if kind in each["errors"]}
        rows.append(RewardRow(kind.capitalize(), "", is_part, cells))
    return rows
