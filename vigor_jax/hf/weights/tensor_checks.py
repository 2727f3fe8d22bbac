"""Whether the tensors on disk are those of the model: each once, with its shape, and no other."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vigor_jax.errors import InputError, some
from vigor_jax.hf import hub
from vigor_jax.hf.names import EMBEDDINGS, IGNORED, OUTPUT, Entry, unwrapped
from vigor_jax.hf.other_folders import refuse_unmerged
from vigor_jax.hf.weights.tensor_files import TensorReader
from vigor_jax.models.vlm import Sizes, abstract_model, param_paths

logger = logging.getLogger(__name__)

# A family's table of tensors, of a model of some sizes.
Entries: TypeAlias = Callable[[Any], Sequence[Entry]]


class Stored(NamedTuple):
    """Where a tensor is on disk."""

    reader: TensorReader
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.reader.shape(self.name)

    @property
    def dtype(self) -> np.dtype:
        return self.reader.dtype(self.name)

    def is_same(self, other: "Stored") -> bool:
        """Whether both are the same bytes on disk."""
        return self.reader is other.reader and self.reader.same_place(self.name, other.name)

    def read(self, index: tuple[slice, ...] | None = None) -> np.ndarray:
        return self.reader.read(self.name, index)

    def read_into(self, out: np.ndarray, index: tuple[slice, ...] | None = None) -> None:
        self.reader.read_into(self.name, out, index)


def stored_weights(directory: Path) -> dict[str, Stored]:
    """Every tensor of a folder's weights, by the name that it had before the model was wrapped, if it was."""
    hub.fetch_weights(directory)
    reader = TensorReader.open(directory)
    refuse_unmerged(reader.names(), directory)
    plain, wrappers = unwrapped(reader.names())
    if wrappers and len(set(plain.values())) == len(plain):
        logger.warning(
            "%s: the names of the weights were saved from a wrapped model; they are read without %s",
            directory,
            ", ".join(wrappers),
        )
        reader = reader.renamed(plain)
    return {name: Stored(reader, name) for name in reader.names()}


def canonical(stored: Mapping[str, Stored], rename: Callable[[str], str], directory: Path) -> dict[str, Stored]:
    """The tensors by their canonical names, without buffers.

    Raises:
      InputError: two have the same.
    """
    tensors: dict[str, Stored] = {}
    for name, tensor in stored.items():
        if IGNORED.fullmatch(name):
            continue
        if rename(name) in tensors:
            raise InputError(f"{directory}: {name} and {tensors[rename(name)].name} name the same tensor; remove one")
        tensors[rename(name)] = tensor
    return tensors


def add_to_digest(total: Any, tensors: Mapping[str, Stored]) -> None:
    """Updates a hash with the sizes and a few rows of every tensor, without reading the rest."""
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        rows = tensor.shape[0] if tensor.shape else 1
        for row in sorted({0, rows // 3, 2 * rows // 3, rows - 1}):
            total.update(tensor.read((slice(row, row + 1),) if tensor.shape else None).tobytes())


# How many rows of the two are compared at a time: 32 MB of a 7B model in float16.
_ROWS = 4096


def tie(tensors: dict[str, Stored], directory: Path) -> None:
    """Leaves one of two tied tensors. Many files have both, a few the second alone; both must be equal.

    Raises:
      InputError: they are not.
    """
    output = tensors.pop(OUTPUT, None)
    embeddings = tensors.setdefault(EMBEDDINGS, output) if output else None
    if output is None or embeddings is None or embeddings is output or embeddings.is_same(output):
        return
    if embeddings.shape == output.shape:
        rows = range(0, (output.shape or (0,))[0], _ROWS)
        blocks = ((slice(row, row + _ROWS),) for row in rows)
        if all(_equal(embeddings.read(block), output.read(block)) for block in blocks):
            return
    raise InputError(
        f"{directory}: config.json ties the output layer to the embeddings, but {output.name} is not equal to "
        f"{embeddings.name}; to use both, as transformers 5 then does, set tie_word_embeddings to false in "
        f"config.json, or remove {output.name}"
    )


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype == other.dtype and one.tobytes() == other.tobytes():
        return True
    return np.array_equal(one.astype(np.float64), other.astype(np.float64), equal_nan=True)


def check_tensors(tensors: Mapping[str, Stored], config: Sizes, entries: Entries, directory: Path) -> None:
    """Compares the tensors with what a model of this config needs.

    Raises:
      InputError: one is missing, unexpected, of another shape or holds whole numbers; up to ten of each are named.
    """
    wanted = expected_shapes(config, entries)
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors[name].name for name in tensors.keys() - wanted.keys())
    wrong = [
        f"{name} (expected {list(shape)}, got {list(tensors[name].shape)})"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    kinds = [
        f"{name} ({tensors[name].dtype.name})"
        for name in wanted
        if name in tensors and not jnp.issubdtype(tensors[name].dtype, jnp.floating)
    ]
    problems = [
        f"{len(found)} {what}: {some(found)}"
        for what, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", wrong),
            ("of a type for whole numbers", kinds),
        )
        if found
    ]
    if problems:
        raise InputError(f"{directory}: the tensors do not fit config.json; {'; '.join(problems)}")


@functools.lru_cache(maxsize=16)
def expected_shapes(config: Sizes, entries: Entries) -> Mapping[str, tuple[int, ...]]:
    """Canonical name → shape on disk, for every tensor of the model."""
    # Layers stacked: the time is the same for any number of them.
    ours = param_paths(nnx.state(abstract_model(config)))
    shapes = {}
    for entry in entries(config):
        shape = ours[entry.path].get_value().shape
        shape = shape if entry.layer is None else shape[1:]
        shapes[entry.name] = tuple(shape[entry.axes.index(i)] for i in range(len(shape)))
    return shapes
