"""A table of a calibration as lines for people."""

from vigor_jax.percent import percent
from vigor_jax.rewards.claims.calibrate import FEWEST_CASES, THRESHOLDS, Counts, Row, Table


def described(table: Table, unclear: int, precision: float) -> list[str]:
    """What a judge of a kind of claims says, and what people do, for its best thresholds.

    Args:
        table: Of the kind.
        unclear: Sentences that were left out.
        precision: That was asked for.
    """
    counts, names = table.given.counts, THRESHOLDS[table.kind]
    left_out = f"; {unclear} more are unclear" if unclear else ""
    lines = [
        f"{table.kind}: {counts.cases} sentences, {table.clean} with one claim; people call {counts.wrong} wrong"
        f"{left_out}"
    ]
    if not counts.cases:
        return lines
    widths = [max(12, len(name)) for name in names]
    header = "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    lines.append(f"    {'precision':>9}  {'recall':>6}  {'decided':>7}  {header}")
    shown = [table.given] + [row for row in (table.suggested,) if row and row is not table.given]
    marked = [row.counts for row in shown]
    shown += [row for row in table.frontier() if row.counts not in marked]
    for row in sorted(shown, key=lambda row: (row.counts.recall or 0, row.counts.precision or 0), reverse=True):
        values = table.thresholds(row).values()
        cells = "  ".join(f"{value:>{width}.3g}" for value, width in zip(values, widths, strict=True))
        lines.append(f"  {_mark(table, row)} {_agreement(row.counts)}  {cells}")
    return [*lines, _conclusion(table, precision)]


def _mark(table: Table, row: Row) -> str:
    return ">" if row is table.suggested else "*" if row is table.given else " "


def _agreement(counts: Counts) -> str:
    precision, recall = _share(counts.precision), _share(counts.recall)
    return f"{precision:>9}  {recall:>6}  {_share(counts.decided / counts.cases):>7}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{percent(share, 1)}%"


def _conclusion(table: Table, precision: float) -> str:
    asked = f"{percent(precision)}%"
    if table.is_too_few:
        return (
            f"    too few cases: people call {table.given.counts.wrong} wrong, a suggestion needs {FEWEST_CASES}; "
            "the thresholds stay as given"
        )
    if table.suggested is None:
        return f"    no choice has a precision of {asked}; the thresholds stay as given"
    held_out = table.held_out
    if held_out is None:
        return f"    chosen on half of the images alone, no choice has a precision of {asked}: expect less on others"
    return (
        f"    chosen on half of the images and measured on the other half: precision {_share(held_out.precision)}, "
        f"recall {_share(held_out.recall)}"
    )
