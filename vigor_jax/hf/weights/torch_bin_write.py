"""Writes a PyTorch state dict without torch, the counterpart of `torch_bin`: others read some files as such only."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vigor_jax.hf.weights.stored_tensor import byte_view, row_major_strides
from vigor_jax.hf.weights.torch_bin import STORAGE_DTYPES

_STORAGES = {dtype: name for name, dtype in STORAGE_DTYPES.items()}
_ROOT = "archive"


def write_torch_bin(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes what `torch.load` reads as a dict of tensors, `weights_only`, too; each has a storage to itself.

    Args:
        path: the file.
        tensors: arrays of any of torch's types, by name; there may be none.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    items = b"".join(_plain(name) + _tensor(str(key), array) for key, (name, array) in enumerate(arrays.items()))
    state = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.STOP
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{_ROOT}/data.pkl", state)
        archive.writestr(f"{_ROOT}/byteorder", "little")
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"{_ROOT}/data/{key}", bytes(byte_view(array)))
        archive.writestr(f"{_ROOT}/version", "3\n")


def _tensor(key: str, array: np.ndarray) -> bytes:
    """The pickle of `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`.

    Written out, because pickle looks every function up that it names, and torch is not here.
    """
    kind = _global("torch", _STORAGES[array.dtype])
    storage = pickle.MARK + _plain("storage") + kind + _plain(key) + _plain("cpu") + _plain(array.size) + pickle.TUPLE
    no_hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    view = _plain(0) + _plain(array.shape) + _plain(row_major_strides(array.shape)) + _plain(False)
    arguments = pickle.MARK + storage + pickle.BINPERSID + view + no_hooks + pickle.TUPLE
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _plain(value: Any) -> bytes:
    """The pickle of a value without classes, without its beginning and end."""
    return pickle.dumps(value, 2)[2:-1]


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
