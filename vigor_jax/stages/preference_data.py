"""The preferences of a file that a stage can learn from; the others are told together, before the first update."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from jax.sharding import Mesh

from vigor_jax.data.batches.places import row_keys
from vigor_jax.data.batches.preference_rows import PreferenceLoader, PreferenceRow, RowEncoder
from vigor_jax.data.preferences.read import scan_preferences
from vigor_jax.data.records.bad_rows import bad_row, settle
from vigor_jax.data.records.checksum import file_digest
from vigor_jax.errors import InputError
from vigor_jax.hf.load import Checkpoint
from vigor_jax.parallel.processes import is_first
from vigor_jax.parallel.sharding import local_rows
from vigor_jax.stages.stage import PREFERENCES, RunContext
from vigor_jax.training.resumption import Data

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


class PreferenceTrainingConfig(PreferenceDataConfig, Protocol):
    """The same of a stage that trains, with how it goes through the data."""

    @property
    def batch_size(self) -> int: ...

    @property
    def epochs(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def bucket(self) -> int: ...


def own_preferences(context: RunContext, stage: str) -> Path:
    """What the stage pair made in this run; all processes call it.

    Raises:
      InputError: it made nothing yet.
    """
    return context.own_file(PREFERENCES, made_by="pair", option=f"{stage}.data")


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


def make_loader(
    config: PreferenceTrainingConfig,
    rows: Sequence[PreferenceRow],
    encoder: RowEncoder,
    checkpoint: Checkpoint,
    mesh: Mesh,
    widest: Sequence[PreferenceRow] | None = None,
) -> PreferenceLoader:
    """Batches of preferences, with this process's share of the rows.

    Args:
      config: of the stage.
      rows: what is learned, in the order of the file.
      encoder: writes them.
      checkpoint: what is read is how it prepares images.
      mesh: all devices of all processes.
      widest: rows that have room in a batch; by default those that are learned.
    """
    assert config.data is not None, "its rows were read"
    preferences = [row.preference for row in widest or rows]
    return PreferenceLoader(
        data=rows,
        data_file=config.data,
        encoder=encoder,
        preprocessing=checkpoint.preprocessing,
        batch_size=config.batch_size,
        num_responses=max(len(preference.responses) for preference in preferences),
        num_pairs=max(len(preference.pairs()) for preference in preferences),
        epochs=config.epochs,
        seed=config.seed,
        bucket=config.bucket,
        rows=local_rows(config.batch_size, mesh),
    )


def data_of(loader: PreferenceLoader) -> Data:
    """What tells the rows of a loader from those of other data."""
    rows = [row for row in loader.data if row is not None]
    facts = {"sha256": file_digest(loader.data_file), "examples": len(rows)}
    keys = row_keys((row.digest(), row.preference.name or None) for row in rows)
    return Data(loader.data_file, facts, keys, lambda index: rows[index].title)
