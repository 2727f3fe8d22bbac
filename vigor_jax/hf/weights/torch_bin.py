"""Where the tensors of a PyTorch state dict lie, without torch: `torch.save` files of PyTorch 1.6 and later.

The file is a zip of uncompressed members: `NAME/data.pkl`, a pickle in which every tensor is a call
`_rebuild_tensor_v2(storage, offset, shape, strides, ...)`, and `NAME/data/KEY`, the bytes of a storage, which
tensors may share. A pickle can call anything it can name, so the unpickler here knows the few names that a
state dict needs and refuses every other before it is looked up.
"""

import io
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.hf.weights.stored_tensor import StoredTensor, damaged

STORAGE_DTYPES = {
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "BoolStorage": np.dtype(np.bool_),
    "ByteStorage": np.dtype("u1"),
    "CharStorage": np.dtype("i1"),
    "ComplexDoubleStorage": np.dtype("<c16"),
    "ComplexFloatStorage": np.dtype("<c8"),
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "IntStorage": np.dtype("<i4"),
    "LongStorage": np.dtype("<i8"),
    "ShortStorage": np.dtype("<i2"),
}
# A training state may say in which dtype it was made.
_DTYPE_NAMES = {dtype.name for dtype in STORAGE_DTYPES.values()}
# Training states keep the weights next to other things, under one of these keys.
_NESTED_KEYS = ("model", "state_dict")


def torch_tensors(path: Path) -> dict[str, StoredTensor]:
    """Lists the tensors of a `torch.save` state dict; reads none of their data.

    Args:
        path: the file. Its object is a dict {name: tensor}, or a dict that holds such a dict under `model` or
            `state_dict`.

    Raises:
        InputError: the file is truncated, in the format before PyTorch 1.6, big-endian, no state dict, or its
            pickle names anything but tensors, dtypes and OrderedDict.
    """
    with open(path, "rb") as file:
        head = file.read(4)
        if head != b"PK\x03\x04":
            if head.startswith(b"\x80"):
                raise InputError(
                    f"{path} is in the format of PyTorch before 1.6: re-save it with a newer PyTorch,"
                    " torch.save(torch.load(PATH), PATH)"
                )
            raise damaged(path, "is no file of torch.save (a zip is expected)")
        try:
            with zipfile.ZipFile(file) as archive:
                return _Archive(path, file, archive).tensors()
        except InputError:
            raise
        except Exception as error:  # damaged zips and pickles raise nearly anything
            raise damaged(path, f"is not a whole file of torch.save ({type(error).__name__})") from error


class _Storage(NamedTuple):
    """A storage, as the pickle names it."""

    dtype: np.dtype
    key: str
    size: int


class _View(NamedTuple):
    """A tensor, as the pickle describes it; lengths in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    bits: Any


class _RebuildTensor:
    """Stands for `torch._utils._rebuild_tensor_v2`."""

    __slots__ = ()

    def __call__(
        self,
        storage: _Storage,
        offset: Any,
        shape: Any,
        strides: Any,
        _grad: Any,
        _hooks: Any,
        bits: Any = None,
    ) -> _View:
        return _View(storage, offset, tuple(shape), tuple(strides), bits)


class _RebuildParameter:
    """Stands for `torch._utils._rebuild_parameter`."""

    __slots__ = ()

    def __call__(self, data: _View, _grad: Any, _hooks: Any) -> _View:
        return data


class _Unpickler(pickle.Unpickler):
    """Turns tensors into `_View`s.

    A pickle can set attributes of what it is given. So it gets OrderedDicts, and next to them only strings,
    named tuples and objects without attributes.
    """

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data))
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _RebuildParameter()
        if module == "torch" and (name in STORAGE_DTYPES or name in _DTYPE_NAMES):
            return name
        raise InputError(
            f"{self.path} refers to {module + '.' + name!r}, which no plain state dict needs and which could"
            " run code when loaded: if you trust the file, re-save its tensors as safetensors"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, name, key, _device, size = pid
        if kind != "storage":
            raise ValueError("a state dict refers to storages only")
        return _Storage(STORAGE_DTYPES[name], key, size)


def _check_numbers(content: bytes, path: Path) -> None:
    """Refuses a pickle that remembers an object under a large number: Python makes room for as many, and counts on."""
    for opcode, number, _ in pickletools.genops(content):
        if "PUT" in opcode.name and isinstance(number, int) and number > len(content):
            raise damaged(path, f"remembers an object as number {number}, in a pickle of {len(content)} bytes")


class _Archive(NamedTuple):
    """An open file of `torch.save`."""

    path: Path
    file: BinaryIO
    zip: zipfile.ZipFile

    def tensors(self) -> dict[str, StoredTensor]:
        pickles = [name for name in self.zip.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise damaged(self.path, f"is a zip with {len(pickles)} */data.pkl, where torch.save writes one")
        root = pickles[0].removesuffix("data.pkl")
        if root + "byteorder" in self.zip.namelist() and self.zip.read(root + "byteorder") != b"little":
            raise InputError(f"{self.path} is big-endian: re-save it on a little-endian machine")
        self._start(pickles[0], 0)
        # `read` compares the checksum, so that no damaged pickle is run.
        content = self.zip.read(pickles[0])
        _check_numbers(content, self.path)
        state = _Unpickler(content, self.path).load()
        return {name: self._place(name, view, root) for name, view in self._named(state).items()}

    def _named(self, state: Any) -> dict[str, Any]:
        """The dict of tensors in what was unpickled."""
        if isinstance(state, dict):
            state = next((state[key] for key in _NESTED_KEYS if isinstance(dict.get(state, key), dict)), state)
        if not isinstance(state, dict):
            raise InputError(f"{self.path} holds a {type(state).__name__}: re-save its state dict alone")
        return dict(dict.items(state))

    def _place(self, name: Any, view: Any, root: str) -> StoredTensor:
        """The place of one tensor, after a check that it lies in its storage and the storage in the file."""
        if not isinstance(name, str) or not isinstance(view, _View):
            raise InputError(
                f"{self.path} holds {name!r} of type {type(view).__name__}, where tensors by name are"
                " expected: re-save its state dict alone"
            )
        if view.bits:
            raise InputError(f"{self.path} holds {name!r} lazily conjugated or negated: re-save it resolved")
        storage, offset, shape, strides, _ = view
        itemsize = storage.dtype.itemsize
        start = self._start(f"{root}data/{storage.key}", storage.size * itemsize)
        counts = (offset, *shape, *strides)
        last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        outside = 0 not in shape and offset + last >= storage.size
        if outside or any(type(n) is not int or n < 0 for n in counts):
            raise damaged(self.path, f"places the tensor {name!r} outside its storage")
        return StoredTensor(self.path, start + offset * itemsize, storage.dtype, shape, strides)

    def _start(self, member: str, size: int) -> int:
        """The byte at which a member's data starts; it must be uncompressed and have `size` bytes."""
        info = self.zip.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"{self.path} is compressed, which torch.save never does: re-save it with torch.save")
        # The central directory does not say how long the name and the padding in front of the data are.
        self.file.seek(info.header_offset)
        signature, name_length, padding = struct.unpack("<4s22xHH", self.file.read(30))
        start = info.header_offset + 30 + name_length + padding
        if signature != b"PK\x03\x04" or info.file_size < size or start + info.file_size > self.zip.start_dir:
            raise damaged(self.path, f"has a damaged member {member!r}")
        return start
