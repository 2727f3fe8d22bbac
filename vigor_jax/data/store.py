"""Records as Parquet, in parts: `FOLDER/part-00000-of-00004.parquet`, local or remote (`gs://`, `s3://`, by fsspec).

A part is written under a hidden name and renamed, so a part that exists is complete, and a stage that was killed goes
on with the parts that are missing. Equal records give equal bytes (with one version of pyarrow): row groups have a
fixed size, and nothing is dated.
"""

import contextlib
import itertools
import os
import posixpath
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from vigor_jax.data.schemas import added, columns_of, complete, difference, is_older, reader_of, schema_of
from vigor_jax.errors import InputError

Record = TypeVar("Record")

# Readers hold one row group at a time: some ten MB of candidates, and as many of verdicts.
ROWS_PER_GROUP = 4096

_PART = re.compile(r"part-(\d{5,})-of-(\d{5,})\.parquet")
_HIDDEN_PART = re.compile(r"\.part-\d{5,}-of-\d{5,}\.parquet\.tmp")
_ARROW_KEY = b"ARROW:schema"


def join(folder: str | Path, *names: str) -> str:
    """A path below a folder, which may be a URL (`pathlib` would make `gs:/` of `gs://`)."""
    return posixpath.join(str(folder), *names)


def part_name(index: int, count: int) -> str:
    """`part-00000-of-00004.parquet`."""
    assert 0 <= index < count, f"part {index} of {count}"
    return f"part-{index:05d}-of-{count:05d}.parquet"


def write_part(
    folder: str | Path,
    index: int,
    count: int,
    records: Iterable[Record],
    record_type: type[Record],
    metadata: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Writes one part, in place of the same part if there is one; holds `ROWS_PER_GROUP` records at a time.

    Args:
      folder: is made if need be.
      index: of the part, from 0.
      count: of all parts.
      records: all of this part, maybe none.
      record_type: their dataclass.
      metadata: kept in the file's schema; the same for all parts of the folder.

    Raises:
      InputError: the folder has parts of another count.
    """
    _check_count(folder, count)
    schema = schema_of(record_type).with_metadata(dict(metadata))
    to_columns = columns_of(record_type)
    remaining = iter(records)
    with (
        write_atomically(join(folder, part_name(index, count))) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        while rows := list(itertools.islice(remaining, ROWS_PER_GROUP)):
            columns = [pa.array(values, field.type) for values, field in zip(to_columns(rows), schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=ROWS_PER_GROUP)


def read_part(folder: str | Path, index: int, count: int, record_type: type[Record]) -> Iterator[Record]:
    """The records of one part, in order; holds one row group at a time.

    Raises:
      InputError: the part is missing or damaged, holds other records, or the folder has parts of another count.
    """
    schema = schema_of(record_type)
    from_row = reader_of(record_type)
    for batch in read_batches(folder, index, count, schema=schema):
        yield from map(from_row, batch.to_pylist())


def read_parts(folder: str | Path, record_type: type[Record]) -> Iterator[Record]:
    """The records of all parts, in order; holds one row group at a time.

    Raises:
      InputError: there are none, some are missing (named), or one holds other records.
    """
    count = count_parts(folder)
    for index in range(count):
        yield from read_part(folder, index, count, record_type)


def read_batches(
    folder: str | Path,
    index: int,
    count: int,
    *,
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of one part as Arrow, row group by row group, for those who need no Python objects.

    Args:
      folder: as in `read_part`.
      index: as in `read_part`.
      count: as in `read_part`.
      columns: those to read, all by default; `a.list.element.b` is field b of the structs in the lists of column a.
      schema: what the part must hold, if that is known; fields that an earlier version did not write are added.

    Raises:
      InputError: as in `read_part`.
    """
    _check_count(folder, count)
    system, path = _open_folder(folder)
    path = posixpath.join(path, part_name(index, count))
    if not system.exists(path):
        raise InputError(f"{join(folder, part_name(index, count))}: no such part; run the stage that writes it")
    with _read(system, path) as file:
        as_today = schema is None or file.schema_arrow.equals(schema)
        if schema is not None and not (as_today or is_older(file.schema_arrow, schema)):
            raise InputError(f"{path}: {difference(file.schema_arrow, schema)}; remove it and write it again")
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns, use_threads=False)
            for batch in table.combine_chunks().to_batches():
                yield batch if schema is None or as_today else _completed(batch, schema, columns)


def _completed(batch: pa.RecordBatch, schema: pa.Schema, columns: Sequence[str] | None) -> pa.RecordBatch:
    def wanted(path: str) -> bool:
        return columns is None or any(path == column or path.startswith(f"{column}.") for column in columns)

    have = set(batch.schema.names)
    arrays = {
        field.name: complete(batch.column(field.name), field.type, wanted, field.name)
        if field.name in have
        else added(field, batch.num_rows)
        for field in schema
        if field.name in have or wanted(field.name)
    }
    return pa.record_batch(list(arrays.values()), names=list(arrays))


def part_count(folder: str | Path) -> int | None:
    """How many parts the folder is divided into, None if it has none yet.

    Raises:
      InputError: it has parts of two counts.
    """
    counts = sorted({count for _, count in _parts(folder)})
    if len(counts) > 1:
        raise InputError(
            f"{folder}: expected parts of one count, got parts of {counts[0]} and of {counts[1]}; remove those that do "
            "not belong"
        )
    return counts[0] if counts else None


def count_parts(folder: str | Path) -> int:
    """The number of parts of a folder that has them all.

    Raises:
      InputError: there are none, or some are missing; names them.
    """
    count = part_count(folder)
    if count is None:
        raise InputError(f"{folder}: expected parts such as {part_name(0, 1)}, got none; run their stage")
    done = parts_done(folder, count)
    if missing := [index for index in range(count) if index not in done]:
        names = ", ".join(part_name(index, count) for index in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InputError(f"{folder}: {len(missing)} of {count} parts are missing ({names}); run their stage again")
    return count


def has_part(folder: str | Path, index: int, count: int) -> bool:
    """Whether a part is there, hence complete.

    Raises:
      InputError: the folder has parts of another count.
    """
    return index in parts_done(folder, count)


def parts_done(folder: str | Path, count: int) -> set[int]:
    """Indices of the parts that are there, hence complete.

    Raises:
      InputError: the folder has parts of another count.
    """
    _check_count(folder, count)
    return {index for index, _ in _parts(folder)}


def part_metadata(folder: str | Path) -> dict[str, str]:
    """What `write_part` was given as metadata; empty if there are no parts.

    Raises:
      InputError: two parts have different metadata.
    """
    system, path = _open_folder(folder)
    first: tuple[str, dict[str, str]] | None = None
    for part in sorted(_parts(folder)):
        name = part_name(*part)
        with _read(system, posixpath.join(path, name)) as file:
            stored = file.schema_arrow.metadata or {}
        found = {key.decode(): value.decode() for key, value in stored.items() if key != _ARROW_KEY}
        if first and found != first[1]:
            key = min(key for key in {**found, **first[1]} if found.get(key) != first[1].get(key))
            raise InputError(
                f"{folder}: parts were written with different settings: {key} is {first[1].get(key)!r} in {first[0]} "
                f"and {found.get(key)!r} in {name}; remove the parts that do not belong"
            )
        first = first or (name, found)
    return first[1] if first else {}


def remove_parts(folder: str | Path) -> None:
    """Removes all parts, whatever their count, and what killed writers left; nothing else."""
    system, path = _open_folder(folder)
    for name in _names(folder):
        if _PART.fullmatch(name) or _HIDDEN_PART.fullmatch(name):
            system.rm_file(posixpath.join(path, name))


@contextlib.contextmanager
def write_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends without an error, and not before; local or remote."""
    system, inner = fsspec.core.url_to_fs(str(path))
    folder, name = posixpath.split(inner)
    hidden = posixpath.join(folder, f".{name}.tmp")
    system.makedirs(folder, exist_ok=True)
    try:
        with system.open(hidden, "wb") as file:
            yield file
            if "file" in _protocols(system):  # else a crash of the machine may leave the name without the bytes
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            system.rm_file(hidden)
        raise
    system.mv(hidden, inner)


def _open_folder(folder: str | Path) -> tuple[Any, str]:
    return fsspec.core.url_to_fs(str(folder))


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _names(folder: str | Path) -> list[str]:
    system, path = _open_folder(folder)
    system.invalidate_cache(path)  # other processes write there too
    try:
        return [posixpath.basename(name.rstrip("/")) for name in system.ls(path, detail=False)]
    except FileNotFoundError:
        return []


def _parts(folder: str | Path) -> list[tuple[int, int]]:
    """`(index, count)` of each part."""
    matches = filter(None, map(_PART.fullmatch, _names(folder)))
    return [(int(match[1]), int(match[2])) for match in matches]


def _check_count(folder: str | Path, count: int) -> None:
    found = part_count(folder)
    if found not in (None, count):
        raise InputError(
            f"{folder}: expected parts of {count}, got parts of {found}; use that count, or remove them to begin again"
        )


@contextlib.contextmanager
def _read(system: Any, path: str) -> Iterator[pq.ParquetFile]:
    with system.open(path, "rb") as source:
        try:
            file = pq.ParquetFile(source)
        except pa.ArrowInvalid as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: not a Parquet file ({reason}); remove it and run its stage again") from error
        with file:
            yield file
