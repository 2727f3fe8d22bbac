"""The tensors of an export: trained ones from the devices, the others from the base checkpoint, bit for bit.

An adapter is merged into those that it belongs to, in float32, and the sum is rounded to the type of the file.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from vigor_jax.hf.adapter import lora_entries
from vigor_jax.hf.names import EMBEDDINGS, FINAL_NORM, LINEAR, OUTPUT, Axes, Entry
from vigor_jax.hf.weights.safetensors_file import LazyTensor
from vigor_jax.hf.weights.tensor_checks import Stored
from vigor_jax.hf.weights.tensor_files import TensorWriter

# Rows of a tensor that an adapter is merged into at a time.
_MERGED_ROWS = 256


@dataclasses.dataclass
class Rounding:
    """How much of what an adapter adds is still there in the type of the file.

    Attributes:
      wanted: sum of the squares of what is added.
      kept: sum of its products with what is added after rounding.
    """

    wanted: float = 0.0
    kept: float = 0.0

    @property
    def share(self) -> float | None:
        """The part of the update that survived; None if there is none."""
        return self.kept / self.wanted if self.wanted else None

    def add(self, update: np.ndarray, change: np.ndarray) -> None:
        """Counts one tensor's update, and by how much it has really changed."""
        self.wanted += float(np.vdot(update, update))
        self.kept += float(np.vdot(update, change))


def merged_tensors(
    entries: Sequence[Entry],
    stored: Mapping[str, Stored],
    params: Mapping[str, jax.Array],
    dtype: np.dtype | None,
    vocab_size: int,
    lora_scale: float = 0.0,
    rounding: Rounding | None = None,
) -> Iterator[tuple[str, LazyTensor]]:
    """Every tensor as it will be on disk, under its canonical name; nothing is read or computed before it is made.

    Processes that share arrays must make all of them in this order, the widest elements first, which is that of a file.

    Args:
      entries: of the model.
      stored: the base checkpoint's tensors by canonical name.
      params: what was trained, by dotted path, layers stacked or apart.
      dtype: of every tensor; None keeps the type that each has in `stored`.
      vocab_size: rows of the embeddings and of the output head.
      lora_scale: `models.lora.LoraConfig.scale` of the adapter among `params`, if there is one.
      rounding: counts what merging it costs, as the tensors are made.
    """

    def make(entry: Entry, kind: np.dtype) -> np.ndarray:
        if entry.path in params:
            value = fetch(params[entry.path], entry.layer, entry.axes)
        elif entry.unstacked_path in params:
            value = fetch(params[entry.unstacked_path], None, entry.axes)
        else:
            value = stored[entry.name].read()
        if pair := [params[each.path] for each in lora_entries(entry) if each.path in params]:
            a, b = (fetch(matrix, entry.layer, LINEAR).astype(np.float32) for matrix in pair)
            value = _merge(value, lora_scale, b, a, kind, rounding)
        return _fit_vocabulary(value, vocab_size) if entry.name in (EMBEDDINGS, OUTPUT) else value

    kinds = {entry.name: dtype or stored[entry.name].dtype for entry in entries}
    for entry in sorted(entries, key=lambda entry: -kinds[entry.name].itemsize):
        shape, kind = stored[entry.name].shape, kinds[entry.name]
        if entry.name in (EMBEDDINGS, OUTPUT):
            shape = (vocab_size, *shape[1:])
        yield entry.name, LazyTensor(shape, kind, functools.partial(make, entry, kind))


def _merge(
    value: np.ndarray, scale: float, b: np.ndarray, a: np.ndarray, kind: np.dtype, rounding: Rounding | None
) -> np.ndarray:
    """value + scale * (b @ a) in float32, rounded; a few rows at a time, which stay in the cache of the processor."""
    added = b @ a  # at once: after every product OpenBLAS lets all cores wait busily for the next
    merged = np.empty(value.shape, kind)
    for first in range(0, len(value), _MERGED_ROWS):
        rows = slice(first, first + _MERGED_ROWS)
        update, whole = scale * added[rows], value[rows].astype(np.float32)
        merged[rows] = whole + update
        if rounding:
            rounding.add(update, merged[rows].astype(np.float32) - whole)
    return merged


def write_tensors(
    directory: Path | None,
    tensors: Iterator[tuple[str, LazyTensor]],
    rename: Callable[[str], str],
    shard_bytes: int,
) -> str:
    """Writes the tensors and returns the type's name; a process that does not write walks along for the gathering."""
    kind = "float32"
    if directory is None:
        for _, tensor in tensors:
            tensor.make()
        return kind
    with TensorWriter(directory, shard_bytes) as writer:
        for name, tensor in tensors:
            if name == FINAL_NORM:
                kind = tensor.dtype.name
            writer.add(rename(name), tensor)
    return kind


def fetch(value: jax.Array, layer: int | None, axes: Axes) -> np.ndarray:
    """One layer of a parameter on this host, gathered from wherever its parts are, its axes as on disk.

    Of one CPU device it is a view, which takes no memory and is turned when it is written.
    """
    sharding = value.sharding
    devices: list[Any] = list(sharding.device_set)
    if len(devices) == 1 and devices[0].platform == "cpu":
        whole = np.asarray(value)  # the same memory
        return (whole if layer is None else whole[layer]).transpose(np.argsort(axes))
    if isinstance(sharding, NamedSharding):
        value = _gather(NamedSharding(sharding.mesh, P()), layer is not None)(value, layer)
    elif layer is not None:
        value = value[layer]
    return np.asarray(_turn_back(axes, value.sharding)(value))


@functools.cache
def _gather(sharding: NamedSharding, one_layer: bool) -> Callable[[jax.Array, int | None], jax.Array]:
    return jax.jit(lambda value, layer: value[layer] if one_layer else value, out_shardings=sharding)


@functools.cache
def _turn_back(axes: Axes, sharding: Sharding) -> Callable[[jax.Array], jax.Array]:
    """On the device, where it is ten times faster than NumPy; apart from `_gather`, or XLA on CPU is no faster."""
    return jax.jit(lambda value: value.transpose(np.argsort(axes)), out_shardings=sharding)


def _fit_vocabulary(value: np.ndarray, rows: int) -> np.ndarray:
    """Cuts rows off, or appends the mean row, which is what both codes give a token that was never seen."""
    missing = rows - value.shape[0]
    if missing <= 0:
        return value[:rows]
    mean = value.astype(np.float32).mean(0, keepdims=True).astype(value.dtype)
    return np.concatenate([value, np.repeat(mean, missing, axis=0)])
