"""Records as Parquet columns; the schema follows from the dataclasses in `records.py`.

| Python | Parquet |
| --- | --- |
| `str`, `Literal` | string |
| `int` | int64; pages of small numbers are dictionary-encoded, so the width costs no space |
| `float` | double, which is Python's own, so that what is read is what was written |
| `bool` | boolean |
| `tuple` | list |
| dataclass, `NamedTuple` | struct |
| `X \\| None` | X, null for None |
"""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import pyarrow as pa

_SCALARS: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def schema_of(record_type: type) -> pa.Schema:
    """The columns of a record, by the table at the head of this module."""
    return pa.schema(_fields(record_type))


def _fields(record_type: Any) -> list[pa.Field]:
    return [pa.field(name, _type(hint)) for name, hint in typing.get_type_hints(record_type).items()]


def _type(hint: Any) -> pa.DataType:
    if hint in _SCALARS:
        return _SCALARS[hint]
    if get_origin(hint) is Literal:
        return pa.string()
    if get_origin(hint) in (typing.Union, types.UnionType):
        return _type(_optional(hint))
    if get_origin(hint) is tuple:
        return pa.list_(pa.field("element", _type(get_args(hint)[0])))
    assert _is_struct(hint), f"no Parquet type for {hint}"
    return pa.struct(_fields(hint))


def _is_struct(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or hasattr(hint, "_fields")


def _optional(hint: Any) -> Any:
    """`X | None` → X."""
    (inner,) = (argument for argument in get_args(hint) if argument is not type(None))
    return inner


def columns_of(record_type: type) -> Callable[[list[Any]], list[list[Any]]]:
    """A function from records to the values of each column, plain enough for Arrow."""
    plain = {name: _to_plain(hint) for name, hint in typing.get_type_hints(record_type).items()}

    def columns(records: list[Any]) -> list[list[Any]]:
        return [
            [getattr(record, name) for record in records]
            if convert is None
            else [convert(getattr(record, name)) for record in records]
            for name, convert in plain.items()
        ]

    return columns


def _to_plain(hint: Any) -> Callable[[Any], Any] | None:
    """What makes dicts of the structs in a value; None if there are none."""
    if get_origin(hint) is tuple:
        element = _to_plain(get_args(hint)[0])
        return element and (lambda values: [element(value) for value in values])
    if not _is_struct(hint):
        return None
    names = list(typing.get_type_hints(hint))
    if all(_to_plain(inner) is None for inner in typing.get_type_hints(hint).values()):
        return lambda value: {name: getattr(value, name) for name in names}
    inner = {name: _to_plain(field) or (lambda value: value) for name, field in typing.get_type_hints(hint).items()}
    return lambda value: {name: convert(getattr(value, name)) for name, convert in inner.items()}


def reader_of(hint: Any) -> Callable[[Any], Any]:
    """A function from a row as Arrow gives it back, a dict, to the record; or from a field's value to the field's."""
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        if not _is_struct(inner) and get_origin(inner) is not tuple:
            return tuple
        element = reader_of(inner)
        return lambda values: tuple(element(value) for value in values)
    if not _is_struct(hint):
        return lambda value: value
    fields = {name: reader_of(inner) for name, inner in typing.get_type_hints(hint).items()}
    return lambda row: hint(**{name: convert(row[name]) for name, convert in fields.items()})


def difference(found: pa.Schema, expected: pa.Schema) -> str:
    """The first column that tells two schemas apart, as a message says it."""
    for name in dict.fromkeys([*expected.names, *found.names]):
        here, there = (str(schema.field(name).type) if name in schema.names else "none" for schema in (found, expected))
        if here != there:
            return f"expected column {name} of type {there}, got {here}"
    return f"expected columns {', '.join(expected.names)}, got {', '.join(found.names)}"


# Columns and fields of structs that later versions added, with what parts written before mean by leaving them out.
_ADDED: dict[str, Any] = {
    "denied": False,
    "has_content": [],
    "repeats": [],
    "kind": "",
    "edits": [],
    "attributes": [],
    "repaired": [],
}


def is_older(found: pa.Schema, expected: pa.Schema) -> bool:
    """Whether `found` is `expected` as an earlier version wrote it, which `complete` completes."""
    return _is_older(pa.struct(found), pa.struct(expected))


def _is_older(found: pa.DataType, expected: pa.DataType) -> bool:
    if pa.types.is_list(found) and pa.types.is_list(expected):
        return _is_older(found.value_type, expected.value_type)
    if not (pa.types.is_struct(found) and pa.types.is_struct(expected)):
        return found.equals(expected)
    fields = {field.name: field.type for field in found}
    return list(fields) == [field.name for field in expected if field.name in fields] and all(
        _is_older(fields[field.name], field.type) if field.name in fields else field.name in _ADDED
        for field in expected
    )


def added(field: pa.Field, length: int) -> pa.Array:
    """A column or a field of a struct that an earlier version did not write, of that length."""
    return pa.repeat(pa.scalar(_ADDED[field.name], field.type), length)


def complete(array: pa.Array, expected: pa.DataType, wanted: Callable[[str], bool], path: str) -> pa.Array:
    """An array that an earlier version wrote, with the fields that it lacks.

    Args:
      array: what was read; only wanted fields.
      expected: its type as it is written today, with all fields.
      wanted: whether a path of Parquet, such as `a.list.element.b`, is to be read.
      path: of the array.
    """
    if pa.types.is_list(expected):
        values = complete(array.values, expected.value_type, wanted, f"{path}.list.element")
        return pa.ListArray.from_arrays(array.offsets, values, type=pa.list_(pa.field("element", values.type)))
    if not pa.types.is_struct(expected):
        return array
    columns = {field.name: array.field(i) for i, field in enumerate(array.type)}
    for field in expected:
        place = f"{path}.{field.name}"
        if field.name in columns:
            columns[field.name] = complete(columns[field.name], field.type, wanted, place)
        elif field.name in _ADDED and wanted(place):
            columns[field.name] = added(field, len(array))
    return pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
