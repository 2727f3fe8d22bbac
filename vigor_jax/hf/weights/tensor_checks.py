"""Whether the tensors on disk are those of the model: each once, with its shape, and no other."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vigor_jax.errors import InputError, some
from vigor_jax.hf import names
from vigor_jax.hf.weights.tensor_files import TensorReader
from vigor_jax.models.llava import LlavaConfig, abstract_llava, param_paths


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


def canonical(stored: Mapping[str, Stored], rename: Callable[[str], str], directory: Path) -> dict[str, Stored]:
    """The tensors by their canonical names, without buffers.

    Raises:
      InputError: two have the same.
    """
    tensors: dict[str, Stored] = {}
    for name, tensor in stored.items():
        if names.IGNORED.fullmatch(name):
            continue
        if rename(name) in tensors:
            raise InputError(f"{directory}: {name} and {tensors[rename(name)].name} name the same tensor; remove one")
        tensors[rename(name)] = tensor
    return tensors


IDENTITY_WEIGHT, IDENTITY_BIAS = (
    "multi_modal_projector.linear_2.weight",
    "multi_modal_projector.linear_2.bias",
)


def check_identity(tensors: dict[str, Stored], directory: Path) -> None:
    """llava-hf has no slot for v1.0's single linear layer: it is stored before a second one that changes nothing.

    Raises:
      InputError: the second one changes something.
    """
    if IDENTITY_WEIGHT not in tensors or IDENTITY_BIAS not in tensors:
        return
    weight, bias = tensors.pop(IDENTITY_WEIGHT), tensors.pop(IDENTITY_BIAS)
    is_square = len(weight.shape) == 2 and weight.shape[0] == weight.shape[1]
    values = weight.read().astype(np.float32) if is_square else np.zeros((1, 1), np.float32)
    if not np.array_equal(values, np.eye(len(values))) or bias.read().astype(np.float32).any():
        raise InputError(
            f"{directory}: projector_hidden_act is linear, so {IDENTITY_WEIGHT} must be the identity, its bias zero; "
            "they are not, and only LLaVA v1.0's one linear layer is supported in this form"
        )


EMBEDDINGS, OUTPUT = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
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


def check_tensors(tensors: Mapping[str, Stored], config: LlavaConfig, directory: Path) -> None:
    """Compares the tensors with what a model of this config needs.

    Raises:
      InputError: one is missing, unexpected, of another shape or holds whole numbers; up to ten of each are named.
    """
    wanted = expected_shapes(config)
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
def expected_shapes(config: LlavaConfig) -> Mapping[str, tuple[int, ...]]:
    """Canonical name → shape on disk, for every tensor of the model."""
    # Layers stacked: the time is the same for any number of them.
    ours = param_paths(nnx.state(abstract_llava(config)))
    shapes = {}
    for entry in names.entries(config):
        shape = ours[entry.path].get_value().shape
        shape = shape if entry.layer is None else shape[1:]
        shapes[entry.name] = tuple(shape[entry.axes.index(i)] for i in range(len(shape)))
    return shapes
