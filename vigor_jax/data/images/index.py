"""Which images shards hold: made once by looking into each, kept in the user's cache, and memory-mapped from there.

    ~/.cache/vigor_jax/images/DIGEST/      $XDG_CACHE_HOME instead of ~/.cache, where it is set
      rows.arrow     a record batch for each shard: the images' names and where their bytes are
      starts.npy     the number of the first image of each shard, and that of all
      lookup.npy     hashes of all names, sorted, and the images' numbers in that order

The digest is of the shards' paths, sizes and versions, so a shard that is written again makes a new index. It may be
removed at any time. On disk it has 16 bytes an image, the name's, and in tars 20 more. A process holds only the pages
that it touches, and all processes of a host share them.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import posixpath
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from vigor_jax.data.images.places import File
from vigor_jax.errors import InputError

logger = logging.getLogger(__name__)

_FORMAT = 1
_SCANNERS = 8
_NAMES_AT_A_TIME = 4096


class Shards(Protocol):
    """A kind of shard: what it notes of each image, and how it looks into a file."""

    @property
    def columns(self) -> tuple[tuple[str, pa.DataType], ...]: ...

    def scan(self, file: File) -> tuple[list[str], list[list[Any]]]:
        """Names of a file's images, and the values of each column."""

    def read(self, file: File, row: int, name: str, values: dict[str, int]) -> bytes:
        """The bytes of one of them: its row in the file, its name, its values."""


class Entry(NamedTuple):
    """An image in the index.

    Attributes:
      shard: number of its file.
      row: number among the images of that file.
      values: of the kind's columns.
    """

    shard: int
    row: int
    values: dict[str, int]


class ImageIndex:
    """The images of some shards, in the order of the shards; thread-safe.

    Args:
      folder: as `make` writes it.
    """

    def __init__(self, folder: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow")))
        self._starts = np.load(folder / "starts.npy")
        self._hashes, self._numbers = np.load(folder / "lookup.npy", mmap_mode="r")
        self._batches: dict[int, pa.RecordBatch] = {}
        self._lock = threading.Lock()
        if self._reader.num_record_batches + 1 != len(self._starts) or self._starts[-1] != len(self._hashes):
            raise ValueError("the files of the index do not belong together")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def names(self, start: int, stop: int) -> Iterator[str]:
        """The names of the images with these numbers."""
        while start < stop:
            shard, row = self._place(start)
            names = self._batch(shard).column(0).slice(row, min(stop - start, _NAMES_AT_A_TIME)).to_pylist()
            yield from names
            start += len(names)

    def find(self, name: str) -> int | None:
        """The number of an image, None if there is none of this name."""
        key = hash_name(name)
        place = int(np.searchsorted(self._hashes, np.uint64(key)))
        while place < len(self._hashes) and self._hashes[place] == key:
            number = int(self._numbers[place])
            shard, row = self._place(number)
            if self._batch(shard).column(0)[row].as_py() == name:
                return number
            place += 1
        return None

    def entry(self, number: int) -> Entry:
        """Where an image's bytes are."""
        shard, row = self._place(number)
        batch = self._batch(shard)
        return Entry(shard, row, {name: batch.column(name)[row].as_py() for name in batch.schema.names[1:]})

    def refuse_duplicates(self, files: Sequence[File]) -> None:
        """Raises `InputError` if two images have one name; names their shards, which are `files`."""
        for place in np.flatnonzero(self._hashes[1:] == self._hashes[:-1]):
            one, other = sorted(int(number) for number in self._numbers[place : place + 2])
            (name,), (same,) = self.names(one, one + 1), self.names(other, other + 1)
            if name == same:
                first, second = (files[self._place(number)[0]].url for number in (one, other))
                if first == second:
                    raise InputError(f"images: {name} is in {first} twice; a name must be one image's: rename one")
                raise InputError(
                    f"images: {name} is in {first} and in {second}; a name must be one image's: add #names=shard to "
                    "the path to call images SHARD/NAME, or rename them"
                )

    def _place(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return shard, number - int(self._starts[shard])

    def _batch(self, shard: int) -> pa.RecordBatch:
        if shard not in self._batches:
            with self._lock:
                self._batches[shard] = self._reader.get_batch(shard)
        return self._batches[shard]


def open_index(files: Sequence[File], kind: Shards, *, qualify: bool, settings: dict[str, Any]) -> ImageIndex:
    """The index of some shards, from the cache if that has it.

    Args:
      files: the shards, in their order.
      kind: what they are.
      qualify: images are called SHARD/NAME, by `shard_names`.
      settings: what else decides on the names.

    Raises:
      InputError: a shard cannot be read, or two images have one name.
    """
    shards = [(file.url, file.size, file.version) for file in files]
    digest = hashlib.sha256(json.dumps([_FORMAT, type(kind).__name__, qualify, settings, shards]).encode())
    folder = cache_folder() / digest.hexdigest()[:32]
    if (found := _open_cached(folder)) is not None:
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.parent):
        if (found := _open_cached(folder)) is not None:  # another process made it meanwhile
            return found
        logger.info("indexing %d files of images once, the first is %s", len(files), files[0].url)
        made = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        try:
            make(made, files, kind, qualify=qualify)
            shutil.rmtree(folder, ignore_errors=True)
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return ImageIndex(folder)


def _open_cached(folder: Path) -> ImageIndex | None:
    if not folder.is_dir():
        return None
    try:
        return ImageIndex(folder)
    except (OSError, EOFError, ValueError) as error:  # pa.ArrowInvalid is a ValueError
        logger.warning("%s is damaged (%s) and made again", folder, error)
        return None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, where the system can see to that; else several may make the same index."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """Where indices are kept; where the home cannot be written to, that is the folder for temporary files."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with contextlib.suppress(OSError):
        base.mkdir(parents=True, exist_ok=True)
    if not os.access(base, os.W_OK):
        base = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return base / "vigor_jax" / "images"


def make(folder: Path, files: Sequence[File], kind: Shards, *, qualify: bool) -> None:
    """Writes the index of some shards; holds some 30 bytes an image while it sorts.

    Raises:
      InputError: as `open_index`.
    """
    schema = pa.schema([("name", pa.string()), *kind.columns])
    hashes, sizes = [], []
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as out, pa.ipc.new_file(out, schema) as writer:
        for shard, (names, columns) in zip(shard_names(files), _scan(files, kind), strict=True):
            if qualify:
                names = [f"{shard}/{name}" for name in names]
            hashes.append(np.fromiter(map(hash_name, names), np.uint64, len(names)))
            sizes.append(len(names))
            arrays = [pa.array(values, field.type) for values, field in zip([names, *columns], schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    joined = np.concatenate(hashes)
    hashes.clear()
    numbers = np.argsort(joined, kind="stable")
    lookup = np.lib.format.open_memmap(folder / "lookup.npy", "w+", np.uint64, (2, len(joined)))
    lookup[0], lookup[1] = joined[numbers], numbers
    lookup.flush()
    np.save(folder / "starts.npy", np.cumsum([0, *sizes]))
    ImageIndex(folder).refuse_duplicates(files)


def hash_name(name: str) -> int:
    """64 bits of a name, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def shard_names(files: Sequence[File]) -> list[str]:
    """What tells shards apart: their paths below the folder that they share, without endings."""
    root = os.path.commonpath([posixpath.dirname(file.path) for file in files])
    return [posixpath.splitext(posixpath.relpath(file.path, root or "."))[0] for file in files]


def _scan(files: Iterable[File], kind: Shards) -> Iterator[tuple[list[str], list[list[Any]]]]:
    """What each file holds, in order, a few files ahead of the code that asks."""
    ahead: deque[Future[tuple[list[str], list[list[Any]]]]] = deque()
    with ThreadPoolExecutor(_SCANNERS, "scan-shard") as pool:
        try:
            for file in files:
                ahead.append(pool.submit(kind.scan, file))
                if len(ahead) == 2 * _SCANNERS:
                    yield ahead.popleft().result()
            for future in ahead:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
