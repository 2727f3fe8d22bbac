"""Whether the data of a training run is still what it was begun with, or differs only where nothing was learned yet."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt64

from vigor_jax.data.batches.places import (
    EMPTY,
    empty_update,
    fill_places,
    learned_places,
    read_places,
    write_places,
)
from vigor_jax.errors import InputError, StaleError
from vigor_jax.json_fields import Fields
from vigor_jax.parallel.processes import is_first, same_everywhere, together
from vigor_jax.training.checkpoint import latest_step, read_record
from vigor_jax.training.config import TrainingConfig

logger = logging.getLogger(__name__)


class Data(NamedTuple):
    """The data of a training stage, as it is today.

    Attributes:
        path: of its file, or of its files.
        facts: what names it in the record of a checkpoint.
        keys: of its rows, see `data.batches.places.row_keys`.
        label: says which row a number is, for messages.
    """

    path: Path | str
    facts: dict[str, Any]
    keys: UInt64[np.ndarray, "N 2"]
    label: Callable[[int], str]


def places_file(run_dir: Path, name: str) -> Path:
    """Where a stage keeps the keys of the rows that it was begun with."""
    return run_dir / "rows" / f"{name}.npy"


def hold_places(
    config: TrainingConfig, run_dir: Path, name: str, data: Data
) -> tuple[list[int] | None, dict[str, Any]]:
    """Gives each row its place in the order of the run, which a run that is begun takes from the file.

    Args:
        config: what is read is `seed`, `batch_size` and `epochs`.
        run_dir: of the run.
        name: of the stage.
        data: of today.

    Returns:
        For each place the number of its row, -1 if it is empty (None: all rows are where they stand in the file), and
        the facts under which the run knows its data.

    Raises:
        StaleError: rows were added, or some that were learned already have changed.
        InputError: processes have different data.
    """
    same_everywhere({"data": data.facts, "rows": hashlib.sha256(data.keys[:, 0].tobytes()).hexdigest()})
    path, directory = places_file(run_dir, name), run_dir / "checkpoints" / name

    def compare() -> tuple[list[int] | None, dict[str, Any], np.ndarray | None]:
        start = latest_step(directory) or 0
        places = read_places(path) if start else None
        if places is None:
            return None, data.facts, data.keys
        record = Fields(read_record(directory, start)["fingerprint"], directory / str(start), "fingerprint.")
        data_then = record.object("data")
        if data_then is None or not data_then.text("sha256", ""):
            raise InputError(f"{record.place('data')} is missing; remove that folder to go back to the step before it")
        facts = data_then.values
        if np.array_equal(places[:, 0], data.keys[:, 0]):
            return None, facts, None
        where = f"{directory / str(start)} was made with data.sha256 {facts['sha256'][:12]}, and {data.path} differs"
        filled = _fill(config, data, places, start, where)
        now = places.copy()
        now[:, 0] = np.where(filled >= 0, data.keys[filled, 0], np.uint64(EMPTY))
        now[filled >= 0, 1] = data.keys[filled[filled >= 0], 1]
        changed = int((now[:, 0] != places[:, 0]).sum())
        logger.warning("%s: %d rows of %s have changed that were not learned yet; continuing", name, changed, data.path)
        return filled.tolist(), facts, now

    filled, facts, now = together(compare)
    if now is not None and is_first():
        write_places(path, now)
    return filled, facts


def _fill(config: TrainingConfig, data: Data, places: np.ndarray, start: int, where: str) -> np.ndarray:
    """`fill_places`, if no row that was learned has another one in its place."""
    back = "go back to that data"
    filled = fill_places(places, data.keys)
    if isinstance(filled, int):
        raise StaleError(
            f"{where}: its {data.label(filled)} has no place among the {len(places)} rows that the run was begun with; "
            "rows that were not learned yet may be fixed or removed, none added",
            back,
        )
    contents = np.where(filled >= 0, data.keys[filled, 0], np.uint64(EMPTY))
    learned = learned_places(len(places), config.seed, start * config.batch_size)
    if spoiled := sorted(learned.intersection(np.flatnonzero(contents != places[:, 0]).tolist())):
        row = filled[spoiled[0]]
        what = f"{data.label(int(row))} was changed" if row >= 0 else f"its row {spoiled[0]} (from 0) was removed"
        raise StaleError(f"{where} in {len(spoiled)} rows that were learned already: {what}", back)
    settings = {"batch_size": config.batch_size, "epochs": config.epochs, "seed": config.seed}
    if (update := empty_update(filled, **settings, start=start)) is not None:
        raise StaleError(f"{where}: too many rows were removed: update {update} has none left", back)
    return filled
