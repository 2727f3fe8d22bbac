"""Rows of a data file that cannot be trained on: all of them are found before the first update, and told together."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vigor_jax.data.records.store import write_atomically
from vigor_jax.errors import InputError

logger = logging.getLogger(__name__)

# Rows that a message names; a file has the others.
SHOWN = 10
_LONGEST = 1000  # letters of a reason


class BadRow(NamedTuple):
    """One of them.

    Attributes:
        number: of the row: its line, from 1, or its index in a list, from 0.
        label: the same in words, such as "line 7".
        id: what the row is called; None if it has no name.
        reason: what was expected and found, in one line.
        message: the reason with file, row and name.
    """

    number: int
    label: str
    id: str | None
    reason: str
    message: str


def bad_row(path: str | Path, number: int, label: str, id: str | None, reason: str) -> BadRow:
    """A bad row with its message, of which a long reason (a name of thousands of letters) is cut."""
    reason = reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}..."
    return BadRow(number, label, id, reason, f"{path}, {label}{_named(id)}: {reason}")


def refusal(path: str | Path, bad: Sequence[BadRow], total: int, *, fix: str = "", report: Path | None = None) -> str:
    """One line about all of them.

    Args:
        path: of the data.
        bad: at least one, in the order of the file.
        total: rows of the file.
        fix: what else can be done but fix the rows.
        report: the file that names them all.
    """
    fix = f"; {fix}" if fix else ""
    if len(bad) == 1:
        return bad[0].message + fix
    told = " | ".join(f"{row.label}{_named(row.id)}: {row.reason}" for row in bad[:SHOWN])
    more = f" | and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    more += f", all of them in {report}" if report else ""
    return f"{path}: {len(bad)} of {total} rows cannot be trained on{fix}: {told}{more}"


def settle(
    path: str | Path, bad: Sequence[BadRow], total: int, *, skip: bool, option: str, report: Path, writes: bool
) -> None:
    """Leaves bad rows out, or refuses to train.

    Args:
        path: of the data.
        bad: all of them.
        total: rows of the file.
        skip: whether they may be left out.
        option: the flag that says so.
        report: gets all of them, as JSON lines of `row`, `id` and `reason`, if they are left out or too many for a
            message.
        writes: whether this process writes it.

    Raises:
        InputError: there are some, and they may not be left out, or nothing else is there.
    """
    if not bad:
        return
    is_reported = skip or len(bad) > SHOWN
    bad = sorted(bad, key=lambda row: row.number)
    if is_reported and writes:
        _write(report, bad)
    if skip and len(bad) < total:
        logger.warning(
            "%s: %d of %d rows cannot be trained on and are left out, as --%s says; the first: %s; all of them are in "
            "%s", path, len(bad), total, option, bad[0].message, report,
        )  # fmt: skip
        return
    fix = "no other row is left" if skip else f"fix them, or give --{option} true to leave them out"
    raise InputError(refusal(path, bad, total, fix=fix, report=report if is_reported else None))


def _write(report: Path, bad: Sequence[BadRow]) -> None:
    try:
        with write_atomically(report) as file:
            for row in bad:
                line = {"row": row.number, "id": row.id, "reason": row.reason}
                file.write(json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise InputError(f"{report}: cannot be written ({error.strerror}); choose another run directory") from error


def _named(id: str | None) -> str:
    return "" if id is None else f" (id {id!r})"
