"""Images in Parquet files, in a column of bytes or of Hugging Face's {bytes, path}: read by row group."""

import bisect
import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vigor_jax.data.images.places import File, Ranges
from vigor_jax.data.images.row_groups import RowGroups
from vigor_jax.errors import InputError

SUFFIX = ".parquet"

# Columns that hold the images' names, the first that the file has; ".path" is the struct's own.
NAMES = ("name", "path", "file_name", "filename", ".path", "__key__", "key", "image_id", "id")

# Decoded row groups that are kept, all together; the newest one is kept however large it is.
CACHE_BYTES = 512 << 20


class _Columns(NamedTuple):
    """Dotted paths of the images' bytes and of their names."""

    image: str
    name: str


class _Group(NamedTuple):
    """A row group: names and bytes, and its first row in the file."""

    start: int
    names: pa.ChunkedArray
    images: pa.ChunkedArray

    @property
    def nbytes(self) -> int:
        return self.names.nbytes + self.images.nbytes


class ParquetShards:
    """Reads Parquet files; every row is an image.

    Its bytes are in the column `image`, or in the one column of the file that can hold them: bytes, or a struct with
    `bytes` (and `path`), as `datasets` writes it. Its name is in the first column of `NAMES` that the file has, text
    or whole numbers.

    A row group is decoded once for images that are read one after the other, by however many threads. Images in any
    order cost a row group each, so small ones suit fine-tuning.

    Args:
      options: `image` and `name`, columns to be taken instead.
    """

    columns: tuple[tuple[str, pa.DataType], ...] = ()

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = options
        self._ends: dict[str, list[int]] = {}  # file → row behind the last one of each of its row groups
        self._groups: RowGroups[_Group] = RowGroups()

    def scan(self, file: File) -> tuple[list[str], list[list[Any]]]:
        """Names of the images of a file, in its order; no other columns.

        Raises:
          InputError: it is no Parquet file, lacks a column, or an image has no name.
        """
        with _open(file) as parquet:
            columns = self._find(parquet.schema_arrow, file)
            names = _column(parquet.read(columns=[columns.name]), columns.name).cast(pa.string())
        if names.null_count:
            row = pc.index(pc.is_null(names), True).as_py()
            raise InputError(
                f"{file.url}: column {columns.name} has no name in row {row} ({names.null_count} in all); name another "
                "column by #name=COLUMN behind the path"
            )
        return names.to_pylist(), []

    def read(self, file: File, row: int, name: str, values: dict[str, int]) -> bytes:
        """An image's bytes.

        Raises:
          InputError: the row has none, or the file has changed or cannot be read.
        """
        changed = f"{file.url}: image {name} is not where it was; the file was changed meanwhile, start again"
        ends = self._ends.get(file.path)
        if ends is None:
            with _open(file) as parquet:
                metadata = parquet.metadata
                ends = [*itertools.accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))]
            self._ends[file.path] = ends
        number = bisect.bisect_right(ends, row)
        if number == len(ends):
            raise InputError(changed)
        group = self._group(file, number, ends[number - 1] if number else 0)
        place = row - group.start
        if place >= len(group.names) or group.names[place].as_py() != name:
            raise InputError(changed)
        content = group.images[place].as_py()
        if content is None:
            raise InputError(
                f"{file.url}: image {name} (row {row}) has no bytes; embed the images in the file, see docs/images.md"
            )
        return content

    def _group(self, file: File, number: int, start: int) -> _Group:
        """A row group, from the cache or the file."""

        def decode() -> _Group:
            with _open(file) as parquet:
                columns = self._find(parquet.schema_arrow, file)
                table = parquet.read_row_group(number, columns=list(columns), use_threads=False)
            names = _column(table, columns.name).cast(pa.string())
            return _Group(start, names, _column(table, columns.image))

        return self._groups.get((file.path, number), decode, CACHE_BYTES)

    def _find(self, schema: pa.Schema, file: File) -> _Columns:
        able = {field.name: path for field in schema if (path := _bytes_path(field))}
        wanted = self._options.get("image", "image" if "image" in able or len(able) != 1 else next(iter(able)))
        if wanted not in able:
            raise InputError(
                f"{file.url}: expected images as bytes, or as {{bytes, path}}, in column {wanted}, got "
                f"{_describe(schema)}; name their column by #image=COLUMN behind the path"
            )
        names = {field.name: field.name for field in schema if _is_name(field.type)}
        if able[wanted] != wanted and schema.field(wanted).type.get_field_index("path") >= 0:
            names[".path"] = f"{wanted}.path"
        chosen = self._options.get("name") or next((name for name in NAMES if name in names), None)
        if chosen not in names:
            raise InputError(
                f"{file.url}: expected the images' names in column {chosen or ' or '.join(NAMES)}, got "
                f"{_describe(schema)}; name it by #name=COLUMN behind the path"
            )
        return _Columns(able[wanted], names[chosen])


def _bytes_path(field: pa.Field) -> str | None:
    """The dotted path of a column's bytes, None if it has none."""
    if _is_binary(field.type):
        return field.name
    if pa.types.is_struct(field.type):
        index = field.type.get_field_index("bytes")
        if index >= 0 and _is_binary(field.type.field(index).type):
            return f"{field.name}.bytes"
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_name(kind: pa.DataType) -> bool:
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return is_text or pa.types.is_integer(kind)


def _column(table: pa.Table, path: str) -> pa.ChunkedArray:
    if path in table.column_names:
        return table.column(path)
    name, _, field = path.rpartition(".")
    return pc.struct_field(table.column(name), field)


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "no columns"


@contextlib.contextmanager
def _open(file: File) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(file.path if file.is_local else pa.PythonFile(Ranges(file)), pre_buffer=True) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file.url}: not a whole Parquet file ({reason}); write it again") from error
