"""Places of rows in a run's order, and how a changed file fills them when the run continues.

The order of a run is a permutation of places, one for each row that it began with. A row that was fixed since keeps its
place, and the place of one that was removed stays empty, so the batches of all other rows stay what they were: the run
ends as one would that had the fixed rows, and empty places, from the beginning. That holds as long as no batch with a
changed place was learned, and as long as no row was added.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt64

from vigor_jax.data.batches.loader import batch_indices
from vigor_jax.data.records.store import write_atomically
from vigor_jax.errors import InputError

EMPTY = 0  # as a digest: nothing is in this place; as a name: the row has none


def row_keys(rows: Iterable[tuple[bytes, str | None]]) -> UInt64[np.ndarray, "N 2"]:
    """Two numbers a row: of the 8 bytes that digest its content, and of its name (`EMPTY` if it has none)."""
    keys = [[int.from_bytes(content, "little"), EMPTY if name is None else _digest(name)] for content, name in rows]
    return np.array(keys, np.uint64).reshape(-1, 2)


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def read_places(path: Path) -> UInt64[np.ndarray, "N 2"] | None:
    """What `write_places` wrote; None if the file does not exist.

    Raises:
        InputError: the file is damaged.
    """
    try:
        keys = np.load(path, allow_pickle=False)
        if keys.dtype != np.uint64 or keys.shape[1:] != (2,):
            raise ValueError(f"expected uint64 [N, 2], got {keys.dtype} {list(keys.shape)}")
        return keys
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it, and keep the data that the run has") from error


def write_places(path: Path, keys: UInt64[np.ndarray, "N 2"]) -> None:
    """Keeps the rows of a run: 16 bytes each."""
    with write_atomically(path) as file:
        np.save(file, keys, allow_pickle=False)


def fill_places(places: UInt64[np.ndarray, "N 2"], rows: UInt64[np.ndarray, "M 2"]) -> Int64[np.ndarray, "N"] | int:
    """Gives each row of today the place that it has in a run.

    That is the place of an equal row, or else of the one of the same name, or else the one of its number, if there are
    as many rows as places.

    Args:
        places: keys of the rows in them.
        rows: keys of the rows of today.

    Returns:
        For each place the number of its row, -1 if it stays empty; or the number of a row that has no place.
    """
    filled = np.full(len(places), -1, np.int64)
    left = _match(filled, places[:, 0], rows[:, 0], range(len(rows)))
    left = _match(filled, places[:, 1], rows[:, 1], left, only_one=True)
    if len(places) == len(rows):
        for row in left:
            if filled[row] < 0:
                filled[row] = row
        left = [row for row in left if filled[row] != row]
    return left[0] if left else filled


def _match(
    filled: np.ndarray, places: np.ndarray, rows: np.ndarray, left: Sequence[int], *, only_one: bool = False
) -> list[int]:
    """Fills free places with rows of the same key, in their order; returns the rows that found none.

    With `only_one` a key must be that of one free place and one row.
    """
    free: dict[int, list[int]] = defaultdict(list)
    for place in np.flatnonzero(filled < 0)[::-1].tolist():
        free[int(places[place])].append(place)
    free.pop(EMPTY, None)
    wanted: dict[int, list[int]] = defaultdict(list)
    for row in left:
        wanted[int(rows[row])].append(row)
    unplaced: list[int] = []
    for key, same in wanted.items():
        found = free.get(key, [])
        if only_one and (len(found) != 1 or len(same) != 1):
            found = []
        for row in same:
            if found:
                filled[found.pop()] = row
            else:
                unplaced.append(row)
    return sorted(unplaced)


def learned_places(num_places: int, seed: int, count: int) -> set[int]:
    """The places of the first `count` examples of a run."""
    return set(batch_indices(num_places, seed, range(min(count, num_places))))


def empty_update(filled: np.ndarray, *, batch_size: int, epochs: int, seed: int, start: int) -> int | None:
    """The first update after `start` of which every place is empty, from 1; None if there is none."""
    empty = set(np.flatnonzero(filled < 0).tolist())
    if len(empty) < min(batch_size, len(filled)):
        return None
    for step in range(start, len(filled) * epochs // batch_size):
        if empty.issuperset(batch_indices(len(filled), seed, range(step * batch_size, (step + 1) * batch_size))):
            return step + 1
    return None
