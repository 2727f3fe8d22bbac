"""The preferences of a file that a stage can learn from; the others are told together, before the first update."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from vigor_jax.data.batches.preference_rows import PreferenceRow
from vigor_jax.data.preferences.read import scan_preferences
from vigor_jax.data.records.bad_rows import bad_row, settle
from vigor_jax.errors import InputError
from vigor_jax.parallel.processes import is_first

logger = logging.getLogger(__name__)


class PreferenceDataConfig(Protocol):
    """What is read of a stage's config."""

    @property
    def data(self) -> Path | None: ...

    @property
    def images(self) -> str | None: ...

    @property
    def form(self) -> str | None: ...

    @property
    def skip_bad(self) -> bool: ...


def usable_preferences(
    config: PreferenceDataConfig, check: Callable[[PreferenceRow], Any], run_dir: Path, name: str
) -> list[PreferenceRow]:
    """The rows of a file that something can be learned from.

    Args:
      config: of the stage; `data` must be given.
      check: raises InputError for a row that cannot be used; the message does not name the row.
      run_dir: gets `bad_preferences.jsonl`.
      name: of the stage.

    Raises:
      InputError: the file cannot be read, or some rows cannot be used and may not be left out; names them all.
    """
    if config.data is None:
        raise InputError(f"{name}.data: no file is given; name a file of preferences")
    scan = scan_preferences(config.data, config.images, config.form)
    bad, rows = list(scan.bad), []
    for row in scan.rows:
        try:
            check(row)
        except InputError as error:
            bad.append(bad_row(config.data, row.number, row.label, row.preference.name or None, str(error)))
        else:
            rows.append(row)
    settle(
        config.data, bad, scan.total,
        skip=config.skip_bad, option=f"{name}.skip_bad", report=run_dir / "bad_preferences.jsonl", writes=is_first(),
    )  # fmt: skip
    if scan.skipped and is_first():
        logger.warning(
            "%s: %s are left out, as they say nothing of which is better", config.data,
            ", ".join(f"{count} {what}" for what, count in scan.skipped.items()),
        )  # fmt: skip
    if not rows:
        raise InputError(f"{config.data}: no two responses of different ratings; expected at least one pair")
    pairs = sum(len(row.preference.pairs()) for row in rows)
    logger.info("%s: %d pairs of %d preferences (%s)", name, pairs, len(rows), scan.form)
    return rows
