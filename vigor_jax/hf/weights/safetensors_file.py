"""Where the tensors of a safetensors file lie, as its library finds them, and writing such a file."""

import json
import os
import re
import struct
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from vigor_jax.errors import InputError
from vigor_jax.hf.weights.stored_tensor import TURNED_ROWS, StoredTensor, byte_view, damaged, row_major_strides

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}
DTYPE_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_UNKNOWN_DTYPE = re.compile("unknown variant `([^`]*)`")
# Rows that are rounded and turned at a time, a few megabytes.
_BLOCK_ROWS = 256


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is made when it is written, and let go after.

    Attributes:
        shape: of the tensor in the file.
        dtype: in the file.
        make: returns it, in any order of axes and of any type; it is rounded a few rows at a time.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def safetensors_tensors(path: Path) -> dict[str, StoredTensor]:
    """Lists the tensors of a safetensors file in the order of their data; reads none of the data.

    The library reads and checks the header. The data are read by `StoredTensor`, as those of PyTorch's files are: the
    library (0.8) reads the header again for each tensor, holds the pages of a tensor as well as its copy if it maps
    the file, and reads a whole tensor to take some rows of it if it does not.

    Raises:
        InputError: the file is truncated or damaged, or holds a tensor of a type that NumPy does not have.
        OSError: it cannot be read.
    """
    # The library checks that the tensors lie one after the other up to the end of the file, without gaps.
    end = path.stat().st_size
    tensors: dict[str, StoredTensor] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in reversed(file.offset_keys()):
                entry = file.get_slice(name)
                code, shape = entry.get_dtype(), tuple(entry.get_shape())
                if code not in _DTYPES:
                    raise _unsupported(path, repr(name), code)
                dtype = _DTYPES[code]
                end -= prod(shape) * dtype.itemsize
                tensors[name] = StoredTensor(path, end, dtype, shape, row_major_strides(shape))
    except SafetensorError as error:
        if unknown := _UNKNOWN_DTYPE.search(str(error)):
            raise _unsupported(path, "a tensor", unknown[1]) from error
        raise _not_whole(path, error) from error
    return dict(reversed(tensors.items()))


def safetensors_metadata(path: Path) -> dict[str, str]:
    """What a file says of itself.

    Raises:
        InputError: the file is truncated or damaged.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise _not_whole(path, error) from error


def _not_whole(path: Path, error: SafetensorError) -> InputError:
    reason = textwrap.shorten(str(error).removeprefix("Error while deserializing header: "), 200)
    return damaged(path, f"has {path.stat().st_size} bytes that are no whole safetensors file ({reason})")


def _unsupported(path: Path, what: str, code: str) -> InputError:
    return InputError(f"{path} holds {what} as {code}, which is not supported: convert it to BF16 or F32")


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray | LazyTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes one file.

    Args:
        path: the file, which must not exist.
        tensors: of the types in `DTYPE_CODES`; arrays may have any order of axes. They are made and written in this
            order if their types are of one width.
        metadata: what the file is to say of itself, besides its format.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    # Not by the library: its `save_file` up to 0.7 copies all tensors, 0.8 makes files that nobody else may read, and
    # of a full disk both raise an error without the errno that `vigor_jax.disk` explains.
    # The widest elements first, so that every tensor begins at a multiple of its element's size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    # transformers before 4.38 refuses a file whose metadata do not name a framework.
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        code = DTYPE_CODES[tensor.dtype]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in ordered:
            _write_tensor(file, name, tensor)
        file.flush()
        # Before the move to its name, lest a power cut leave a file of that name without its data.
        os.fsync(file.fileno())


def _write_tensor(file: BinaryIO, name: str, tensor: np.ndarray | LazyTensor) -> None:
    """Makes a lazy one first; nothing of it is left in memory after."""
    array = tensor.make() if isinstance(tensor, LazyTensor) else tensor
    if array.shape != tensor.shape:
        raise ValueError(f"{name!r} was to have the shape {tensor.shape}, and was made with {array.shape}")
    for block in _blocks(array, tensor.dtype):
        file.write(byte_view(block))


def _blocks(array: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The elements in row-major order, rounded to a type: a matrix a few rows at a time if it must be copied."""
    if array.ndim < 2 or (array.dtype == dtype and array.flags.c_contiguous):
        yield np.ascontiguousarray(array, dtype)
        return
    for row in range(0, len(array), _BLOCK_ROWS):
        rounded = array[row : row + _BLOCK_ROWS].astype(dtype, copy=False)
        if rounded.flags.c_contiguous or array.ndim > 2:
            yield np.ascontiguousarray(rounded)
            continue
        # Few columns at a time stay in the cache of the processor while they are turned: five times faster.
        block = np.empty(rounded.shape, dtype)
        for column in range(0, array.shape[1], TURNED_ROWS):
            part = slice(column, column + TURNED_ROWS)
            block[:, part] = rounded[:, part]
        yield block
