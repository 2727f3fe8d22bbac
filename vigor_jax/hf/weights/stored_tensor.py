"""Where one tensor lies in a weights file, and how to read it, or a part of it, without the rest of the file.

Both formats in use, safetensors and PyTorch's zip, keep a tensor as plain little-endian elements at some
offset, so a path, an offset, a dtype, a shape and strides say all there is. The data are read, never mapped:
mapped pages count as resident memory, and a walk over a 14 GB checkpoint would seem to need 14 GB.
"""

import contextlib
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from vigor_jax.errors import InputError

# A strided read goes through a buffer of at most this many bytes.
_BUFFER_BYTES = 8 << 20
# Rows that are turned at a time: few enough for the cache of the processor, five times faster than all of them.
TURNED_ROWS = 64
# From this size on an array gets its own pages.
_OWN_PAGES_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in a file.

    Attributes:
        path: the file.
        offset: of the first element, in bytes from the start of the file.
        dtype: little-endian NumPy dtype; `ml_dtypes.bfloat16` for bfloat16.
        shape: () for a scalar.
        strides: in elements, one an axis, none negative.
    """

    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """Reads the tensor, or the part `index` of it, into a new array.

        Safe from several threads: every call opens the file for itself.

        Args:
            index: one slice for each leading axis, with NumPy's meaning and a positive step. Other axes are
                read whole.

        Raises:
            InputError: the file ends before the tensor does (it was replaced after it was opened).
            ValueError: a slice too many, or a step below 1.
        """
        start, shape, strides = self._place(index or ())
        out = _empty(shape, self.dtype)
        if out.size:
            with open(self.path, "rb", buffering=0) as file:
                _fill(out, file, start, strides)
        return out

    def read_into(self, out: np.ndarray, index: tuple[slice, ...] | None = None) -> None:
        """Reads into an array of the same shape, of any type and order of axes, and needs little memory besides.

        Args:
            out: gets the values, rounded to its type.
            index: as in `read`.

        Raises:
            InputError: as `read`.
            ValueError: as `read`.
        """
        start, shape, strides = self._place(index or ())
        if not out.size:
            return
        with open(self.path, "rb", buffering=0) as file:
            if out.dtype == self.dtype and out.flags.c_contiguous:
                _fill(out, file, start, strides)
                return
            rows = max(1, shape[0] if shape else 1)
            view = out.reshape(1, *out.shape) if not shape else out
            block = np.empty((min(TURNED_ROWS, rows), *shape[1:]), self.dtype)
            for row in range(0, rows, len(block)):
                part = block[: rows - row]
                _fill(part, file, start + row * (strides[0] if strides else 0) * self.dtype.itemsize, strides or [1])
                view[row : row + len(part)] = part.astype(out.dtype, copy=False)  # before it is turned: faster

    def _place(self, index: tuple[slice, ...]) -> tuple[int, list[int], list[int]]:
        """First byte, shape and strides of a part."""
        if len(index) > len(self.shape):
            raise ValueError(f"index has {len(index)} slices for a tensor of shape {self.shape}")
        start, shape, strides = self.offset, list(self.shape), list(self.strides)
        for axis, part in enumerate(index):
            first, stop, step = part.indices(shape[axis])
            if step < 1:
                raise ValueError(f"index has the step {step} on axis {axis}; steps must be at least 1")
            start += first * strides[axis] * self.dtype.itemsize
            shape[axis] = len(range(first, stop, step))
            strides[axis] *= step
        return start, shape, strides


def zeros(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array of zeros, a large one in its own pages, as `StoredTensor.read` returns it."""
    out = _empty(shape, dtype)
    if out.nbytes < _OWN_PAGES_BYTES:
        out[...] = 0
    return out


def _empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array in its own pages, which go back to the system with it.

    On the heap, one tensor read and freed after the other, among others that stay, leaves holes: a sixth of the
    weights' size in the worst loads measured.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _OWN_PAGES_BYTES:
        return np.empty(shape, dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            # As NumPy's own arrays have: filling pages of 4 KiB takes three times as long.
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8).view(dtype).reshape(shape)


def row_major_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of an array of this shape without gaps, the last axis fastest."""
    strides = [1] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


def byte_view(array: np.ndarray) -> memoryview:
    """The memory of a C-contiguous array, bfloat16 included, which has no buffer protocol."""
    return array.reshape(-1).view(np.uint8).data


def damaged(path: Path, problem: str) -> InputError:
    """The error for a weights file whose content cannot be right: `problem`, and the fix.

    Args:
        path: the file.
        problem: continues the sentence that begins with the path.
    """
    with open(path, "rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            return InputError(f"{path} is a Git LFS pointer, not the weights: run 'git lfs pull' in its clone")
    return InputError(f"{path} {problem}: download it again")


def _fill(out: np.ndarray, file: FileIO, start: int, strides: Sequence[int]) -> None:
    """Fills `out`, of at least one element, from the elements that lie at byte `start` with these strides."""
    axes = [axis for axis, size in enumerate(out.shape) if size > 1]
    expected = row_major_strides(out.shape)
    if out.flags.c_contiguous and all(strides[axis] == expected[axis] for axis in axes):
        _read_into(out, file, start)
        return
    span = 1 + sum((out.shape[axis] - 1) * strides[axis] for axis in axes)
    if span * out.itemsize <= _BUFFER_BYTES:
        buffer = np.empty(span, out.dtype)
        _read_into(buffer, file, start)
        steps = [stride * out.itemsize for stride in strides]
        out[...] = np.lib.stride_tricks.as_strided(buffer, out.shape, steps)
        return
    # Halving the slowest axis leaves two ranges of the file, without the bytes between them.
    axis = max(axes, key=lambda axis: strides[axis])
    half = out.shape[axis] // 2
    before: list[slice] = [slice(None)] * out.ndim
    after = list(before)
    before[axis], after[axis] = slice(half), slice(half, None)
    _fill(out[tuple(before)], file, start, strides)
    _fill(out[tuple(after)], file, start + half * strides[axis] * out.itemsize, strides)


def _read_into(out: np.ndarray, file: FileIO, start: int) -> None:
    """Fills a contiguous array with the bytes at `start`."""
    rest = byte_view(out)
    file.seek(start)
    while rest:
        count = file.readinto(rest)
        if not count:
            raise damaged(Path(file.name), f"ends {len(rest)} bytes before one of its tensors does")
        rest = rest[count:]
