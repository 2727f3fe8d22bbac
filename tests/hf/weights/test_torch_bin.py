"""PyTorch's files: what is read equals what torch.load reads, and no pickle runs code."""

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vigor_jax.errors import InputError
from vigor_jax.hf.weights.tensor_files import TensorReader

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
]


def assert_reads_like_torch(path: Path, expected: dict[str, torch.Tensor] | None = None) -> None:
    """Bit for bit what `torch.load` gives, in row-major order."""
    expected = expected or torch.load(path, weights_only=True)
    reader = TensorReader.open_file(path)
    assert list(reader.names()) == list(expected)
    for name, tensor in expected.items():
        array = reader.read(name)
        assert array.dtype.name == reader.dtype(name).name == str(tensor.dtype).removeprefix("torch.")
        assert array.shape == reader.shape(name) == tuple(tensor.shape)
        plain = tensor.detach().contiguous().reshape(-1)
        assert array.tobytes() == plain.view(torch.uint8).numpy().tobytes()


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        TensorReader.open_file(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def saved(tmp_path: Path, state: Any, **options: Any) -> Path:
    torch.save(state, tmp_path / "file.bin", **options)
    return tmp_path / "file.bin"


def example_state() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, 5, generator=rng)
    return {
        **{str(dtype): (torch.arange(12) % 2).to(dtype).reshape(3, 4) for dtype in DTYPES},
        "noise": torch.randn(3, 7, generator=rng).bfloat16(),
        "base": base,
        "shared": base[2:4],
        "transposed": base.transpose(0, 2),
        "stepped": base[1::2, :, 1::3],
        "expanded": base[0, :, :1].expand(4, 9),
        "scalar": torch.tensor(3.5),
        "element": base[3, 2, 1],
        "empty": torch.empty(0, 3),
        "empty view": base[:, 2:2],
    }


def test_reads_what_torch_reads(tmp_path: Path) -> None:
    assert_reads_like_torch(saved(tmp_path, example_state()))


def test_reads_state_dicts_of_modules_and_parameters(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.BatchNorm2d(3), torch.nn.Linear(3, 4).half())
    assert_reads_like_torch(saved(tmp_path, module.state_dict()))
    assert_reads_like_torch(saved(tmp_path, dict(module.named_parameters())))
    assert_reads_like_torch(saved(tmp_path, OrderedDict()), {})


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_reads_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    path = saved(tmp_path, example_state(), pickle_protocol=protocol)
    assert_reads_like_torch(path, torch.load(path, weights_only=False))


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_reads_a_nested_state_dict(tmp_path: Path, key: str) -> None:
    inner = OrderedDict(weight=torch.arange(4.0))
    path = saved(tmp_path, {"epoch": 3, "dtype": torch.bfloat16, key: inner, "optimizer": {"lr": [0.1]}})
    assert_reads_like_torch(path, inner)


def test_slices_of_a_shared_storage(tmp_path: Path) -> None:
    state = example_state()
    reader = TensorReader.open_file(saved(tmp_path, state))
    index = (slice(1, None), slice(0, 3, 2))
    for name in ("shared", "transposed", "stepped", "expanded", "empty view"):
        np.testing.assert_array_equal(reader.read(name, index), state[name].numpy()[index], strict=True)


def test_the_storages_are_read_late(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.zeros(3)})
    reader = TensorReader.open_file(path)
    content = path.read_bytes()
    ones = torch.ones(3).numpy().tobytes()
    at = zipfile.ZipFile(path).getinfo("file/data/0")
    start = content.index(bytes(12), at.header_offset + 64)
    path.write_bytes(content[:start] + ones + content[start + 12 :])
    np.testing.assert_array_equal(reader.read("a"), np.ones(3, np.float32))


# What is refused


class _Run:
    """Unpickles by calling a function: what a malicious file does."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_no_pickle_runs_code(tmp_path: Path) -> None:
    target = tmp_path / "created"
    path = saved(tmp_path, {"weight": torch.ones(2), "x": _Run(os.mkdir, str(target))})
    message = refusal(path)
    assert f"refers to '{os.mkdir.__module__}.mkdir'" in message
    assert "could run code" in message
    assert not target.exists()
    # The same file is dangerous to a plain unpickler, so the above is a refusal and no accident.
    torch.load(path, weights_only=False)
    assert target.exists()


@pytest.mark.parametrize(
    "value",
    [
        _Run(eval, "1"),
        _Run(getattr, "a", "upper"),
        _Run(torch.load, "x"),
        _Run(np.dtype, "f4"),
        torch.nn.Linear(1, 1),
        torch.ones(1).to_sparse(),
        torch.Size([1]),
    ],
    ids=["eval", "getattr", "torch.load", "numpy", "module", "sparse", "Size"],
)
def test_refuses_every_other_global(tmp_path: Path, value: Any) -> None:
    assert "refers to '" in refusal(saved(tmp_path, {"weight": torch.ones(2), "x": value}))


def archive(path: Path, data: bytes, storages: dict[str, bytes], **options: Any) -> Path:
    """A file laid out as torch.save does, with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3")
        file.writestr("archive/byteorder", "little")
        for key, content in storages.items():
            file.writestr(f"archive/data/{key}", content)
    return path


class _Pickler(pickle.Pickler):
    """Pickles a `Storage` as torch does."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Storage) else None


class Storage:
    def __init__(self, size: int, kind: str = "storage", key: str = "0") -> None:
        self.pid = (kind, torch.FloatStorage, key, "cpu", size)


def pickled(state: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(state)
    return buffer.getvalue()


def view(storage: Storage, *place: Any) -> _Run:
    return _Run(torch._utils._rebuild_tensor_v2, storage, *place, False, OrderedDict())


def test_a_handmade_archive_is_read(tmp_path: Path) -> None:
    data = np.arange(6, dtype=np.float32)
    path = archive(tmp_path / "file.bin", pickled({"a": view(Storage(6), 1, (2, 2), (3, 1))}), {"0": data.tobytes()})
    np.testing.assert_array_equal(TensorReader.open_file(path).read("a"), [[1, 2], [4, 5]])
    assert_reads_like_torch(path)


@pytest.mark.parametrize(
    ("tensor", "fragment"),
    [
        (view(Storage(6), 0, (7,), (1,)), "places the tensor 'a' outside its storage"),
        (view(Storage(6), 5, (2,), (1,)), "places the tensor 'a' outside its storage"),
        (view(Storage(6), 0, (2, 2), (5, 1)), "places the tensor 'a' outside its storage"),
        (view(Storage(6), -1, (2,), (1,)), "places the tensor 'a' outside its storage"),
        (view(Storage(6), 5, (2,), (-1,)), "places the tensor 'a' outside its storage"),
        (view(Storage(6), 0.0, (2,), (1,)), "places the tensor 'a' outside its storage"),
        (view(Storage(7), 0, (7,), (1,)), "damaged member 'archive/data/0'"),
        (view(Storage(6), 0, (2, 3), (1,)), "is not a whole file of torch.save (ValueError)"),
        (view(Storage(6), 0, "ab", (1, 1)), "is not a whole file of torch.save (TypeError)"),
        (view(Storage(6, key="9"), 0, (1,), (1,)), "is not a whole file of torch.save (KeyError)"),
        (
            view(Storage(6, kind="module"), 0, (1,), (1,)),
            "is not a whole file of torch.save (ValueError)",
        ),
        (_Run(OrderedDict, 3), "is not a whole file of torch.save (TypeError)"),
        (torch.FloatStorage, "holds 'a' of type str, where tensors by name are expected"),
    ],
)
def test_refuses_tensors_that_lie_outside(tmp_path: Path, tensor: Any, fragment: str) -> None:
    path = archive(tmp_path / "file.bin", pickled({"a": tensor}), {"0": bytes(24)})
    assert fragment in refusal(path)


# The opcode BUILD (b) sets attributes of what is on the stack, from a dict or by setattr.
@pytest.mark.parametrize("state", [b"}Vpath\nV/etc\ns", b"(N}Vpath\nV/etc\nst"], ids=["dict", "setattr"])
@pytest.mark.parametrize(
    "name",
    [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"],
    ids=["function", "dtype", "class"],
)
def test_a_pickle_sets_no_attribute(tmp_path: Path, name: bytes, state: bytes) -> None:
    message = refusal(archive(tmp_path / "file.bin", name + state + b"b.", {}))
    assert re.search(r"is not a whole file of torch.save \((AttributeError|TypeError)\)", message), message


@pytest.mark.parametrize(
    ("state", "fragment"),
    [
        ([torch.ones(1)], "holds a list: re-save its state dict alone"),
        (torch.ones(1), "holds a _View: re-save its state dict alone"),
        ({"a": torch.ones(1), "step": 3}, "holds 'step' of type int, where tensors by name are expected"),
        ({1: torch.ones(1)}, "holds 1 of type _View, where tensors by name are expected"),
        ({"net": {"a": torch.ones(1)}}, "holds 'net' of type dict, where tensors by name are expected"),
        ({"a": torch.ones(2, dtype=torch.complex64).conj()}, "lazily conjugated"),
    ],
)
def test_refuses_what_is_no_state_dict(tmp_path: Path, state: Any, fragment: str) -> None:
    assert fragment in refusal(saved(tmp_path, state))


def test_refuses_the_format_before_1_6(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.ones(1)}, _use_new_zipfile_serialization=False)
    assert "in the format of PyTorch before 1.6: re-save it with a newer PyTorch" in refusal(path)


def test_refuses_other_archives(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    data = pickled({"a": view(Storage(6), 0, (6,), (1,))})
    archive(path, data, {"0": bytes(24)}, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed, which torch.save never does: re-save it" in refusal(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/byteorder", "big")
    assert "is big-endian: re-save it" in refusal(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no weights")
    assert "is a zip with 0 */data.pkl" in refusal(path)
    path.write_text("<html>")
    assert "is no file of torch.save (a zip is expected): download it again" in refusal(path)


@settings(max_examples=150, deadline=None, database=None)
@given(st.data())
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(100), "b": torch.ones(3).half()}, buffer)
    content = buffer.getvalue()
    path = tmp_path_factory.getbasetemp() / "truncated.bin"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(InputError, match="download it again"):
        TensorReader.open_file(path)


@settings(max_examples=300, deadline=None, database=None)
@given(st.data())
def test_a_changed_byte_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(archive_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.bin"
    path.write_bytes(content)
    try:
        reader = TensorReader.open_file(path)
    except InputError:
        return
    for name in reader.names():
        assert reader.read(name).shape == reader.shape(name)


@settings(max_examples=300, deadline=None, database=None)
@given(st.data())
def test_a_changed_pickle_with_a_right_checksum_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(pickled({"a": view(Storage(6), 1, (2, 2), (3, 1)), "b": view(Storage(6), 0, (6,), (1,))}))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = archive(tmp_path_factory.getbasetemp() / "changed.bin", bytes(content), {"0": bytes(24)})
    try:
        reader = TensorReader.open_file(path)
    except InputError:
        return
    for name in reader.names():
        assert reader.read(name).nbytes <= 24


@pytest.mark.parametrize("opcode", [b"r" + (100_000).to_bytes(4, "little"), b"p100000\n"], ids=["binary", "text"])
def test_a_pickle_that_numbers_its_objects_as_it_likes_is_refused(tmp_path: Path, opcode: bytes) -> None:
    """Python makes room for as many objects as the number says; this one costs a megabyte, others would fill memory."""
    content = pickled({"a": view(Storage(6), 1, (2, 2), (3, 1))})
    assert content.endswith(b".")
    path = archive(tmp_path / "numbered.bin", content[:-1] + opcode + b".", {"0": bytes(24)})
    with pytest.raises(InputError, match=r"remembers an object as number 100000, in a pickle of \d+ bytes"):
        TensorReader.open_file(path)


def archive_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(5), "b": torch.ones(3, 2).half().T}, buffer)
    return buffer.getvalue()
