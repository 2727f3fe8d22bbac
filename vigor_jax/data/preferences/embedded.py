"""Preferences in Parquet: the text of each row, and images in the file itself, whose bytes are read when asked for."""

import bisect
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vigor_jax.data.images.row_groups import RowGroups
from vigor_jax.errors import InputError

# Decoded row groups that are kept for images.
CACHE_BYTES = 512 << 20
# Rows whose text is held at a time, and whose images are looked at for whether they are there.
_ROWS, _IMAGES = 1024, 16


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An image in a row of a Parquet file; an `ImageFile`.

    Attributes:
      rows: the file.
      column: that holds the image.
      row: its number in the file, from 0.
      name: the image's own, or one made of the file's and the row's.
    """

    rows: "ParquetRows"
    column: str
    row: int
    name: str

    def read_bytes(self) -> bytes:
        return self.rows.image_bytes(self.column, self.row)

    def __str__(self) -> str:
        return f"{self.rows.path}, row {self.row}, {self.name}"


class _ImageColumn(NamedTuple):
    """A column of images as `datasets` writes them.

    Attributes:
      leaf: number of the bytes among the columns of Parquet.
      path: dotted path of the bytes.
      kind: "struct", one of bytes and path; "list" of such; "binary", bytes alone.
    """

    leaf: int
    path: str
    kind: Literal["struct", "list", "binary"]


class ParquetRows:
    """The rows of a Parquet file.

    Args:
      path: the file.
      groups: decoded row groups of images, which files may share.

    Raises:
      InputError: it cannot be read, is no Parquet, or holds lists of bytes that say nothing else.
    """

    def __init__(self, path: Path, groups: RowGroups[pa.Table] | None = None) -> None:
        self.path, self._groups = path, groups or RowGroups()
        with self._open() as file:
            counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            self._images = dict(_image_columns(file, path))
            leaves = {column.path for column in self._images.values()}
            self._read = [
                leaf.path for leaf in map(file.schema.column, range(len(file.schema.names))) if leaf.path not in leaves
            ]
        self._version = _version(path)
        self._ends = [*itertools.accumulate(counts)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each row as a dict; an image as `EmbeddedImage` where its bytes are in the file, else as `{"path": ...}`."""
        row = 0
        with self._open() as file:
            for group in range(len(self._ends)):
                has_bytes = {name: self._has_bytes(file, column, group) for name, column in self._images.items()}
                start = row
                for record in self._texts(file, group):
                    for name, column in self._images.items():
                        inside = has_bytes[name](row - start)
                        record[name] = self._image(name, column, row, record.get(name), inside)
                    yield record
                    row += 1

    def image_bytes(self, column: str, row: int) -> bytes:
        """The bytes of an image, of several in one row the first; decodes the row's group, and keeps it a while.

        Raises:
          InputError: the file was changed, or cannot be read.
        """
        number = bisect.bisect_right(self._ends, row)
        found = self._images[column]

        def decode() -> pa.Table:
            with self._open() as file:
                if _version(self.path) != self._version:
                    raise InputError(f"{self.path}: the file was changed meanwhile; start again")
                return file.read_row_group(number, columns=[found.path], use_threads=False)

        table = self._groups.get((str(self.path), column, number), decode, CACHE_BYTES)
        content = _bytes_of(table.column(0)[row - (self._ends[number - 1] if number else 0)].as_py())
        assert content is not None, "the row's image was there when the file was opened"
        return content

    def _texts(self, file: pq.ParquetFile, group: int) -> Iterator[dict[str, Any]]:
        if not self._read:
            yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
            return
        for batch in file.iter_batches(_ROWS, row_groups=[group], columns=self._read, use_threads=False):
            yield from batch.to_pylist()

    def _has_bytes(self, file: pq.ParquetFile, column: _ImageColumn, group: int) -> Callable[[int], bool]:
        """Whether a row of a group has an image's bytes; mostly the file's statistics say it of all."""
        chunk = file.metadata.row_group(group).column(column.leaf)
        statistics = chunk.statistics
        if statistics is not None and statistics.has_null_count and statistics.null_count in (0, chunk.num_values):
            has_all = statistics.null_count == 0
            return lambda row: has_all
        batches = file.iter_batches(_IMAGES, row_groups=[group], columns=[column.path], use_threads=False)
        values = itertools.chain.from_iterable(batch.column(0) for batch in batches)
        return [_bytes_of(value.as_py()) is not None for value in values].__getitem__

    def _image(self, name: str, column: _ImageColumn, row: int, value: Any, has_bytes: bool) -> Any:
        if column.kind == "list":
            images = value or []
            if len(images) != 1:
                return images
            image = self._image(name, column._replace(kind="struct"), row, images[0], has_bytes)
            return [] if image is None else [image]
        path = value.get("path") if isinstance(value, dict) else None
        if has_bytes:
            return EmbeddedImage(self, name, row, path or "")
        return {"path": path} if path else None

    @contextlib.contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                yield file
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: there is no such file; check its path") from error
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.path}: not a whole Parquet file ({reason}); write it again") from error


def _image_columns(file: pq.ParquetFile, path: Path) -> Iterator[tuple[str, _ImageColumn]]:
    leaves = {file.schema.column(number).path: number for number in range(len(file.schema.names))}
    for field in file.schema_arrow:
        if _is_binary(field.type):
            yield field.name, _ImageColumn(leaves[field.name], field.name, "binary")
        elif _is_image(field.type):
            name = f"{field.name}.bytes"
            yield field.name, _ImageColumn(leaves[name], name, "struct")
        elif pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
            inner = field.type.value_type
            name = f"{field.name}.list.{field.type.value_field.name}.bytes"
            if _is_image(inner) and inner.get_field_index("path") >= 0:
                yield field.name, _ImageColumn(leaves[name], name, "list")
            elif _is_image(inner) or _is_binary(inner):
                raise InputError(
                    f"{path}: expected images as {{bytes, path}} in column {field.name}, got lists of bytes alone; "
                    "write them as datasets does"
                )


def _is_image(kind: pa.DataType) -> bool:
    index = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return index >= 0 and _is_binary(kind.field(index).type)


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _bytes_of(value: Any) -> bytes | None:
    """The bytes in a value of an image's column, whatever its kind."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value["bytes"]
    return value
