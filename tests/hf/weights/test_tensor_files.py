"""Weights files: we read what safetensors and huggingface_hub write, and they read what we write."""

import functools
import json
import os
import struct
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from huggingface_hub import save_torch_state_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from vigor_jax.errors import InputError
from vigor_jax.hf.weights import stored_tensor
from vigor_jax.hf.weights.safetensors_file import LazyTensor
from vigor_jax.hf.weights.tensor_files import TensorReader, TensorWriter

ROOT = Path(__file__).resolve().parents[3]
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
]


def state() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    tensors = {f"layer.{i}": (torch.arange(15) % 2).to(d).reshape(5, 3) for i, d in enumerate(DTYPES)}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(3, 0, 2), "none": torch.empty(0).bfloat16()}
    tensors |= {
        "conv": torch.randn(4, 3, 2, 2, generator=rng),
        "norm": torch.randn(513, generator=rng).bfloat16(),
    }
    return tensors


def assert_same(reader: TensorReader, expected: dict[str, torch.Tensor]) -> None:
    """Same names, dtypes and shapes, and bit for bit the same elements."""
    assert sorted(reader.names()) == sorted(expected)
    for name, tensor in expected.items():
        array = reader.read(name)
        assert array.dtype.name == reader.dtype(name).name == str(tensor.dtype).removeprefix("torch.")
        assert array.shape == reader.shape(name) == tuple(tensor.shape)
        assert array.flags.c_contiguous
        assert array.tobytes() == tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def numpy_state() -> dict[str, np.ndarray]:
    return {
        "half": np.arange(12).astype(ml_dtypes.bfloat16).reshape(3, 4),
        "scalar": np.array(7.0, np.float32),
        "mask": np.array([True, False, True]),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "empty": np.zeros((0, 4), np.int64),
    }


def write(directory: Path, tensors: dict[str, np.ndarray], max_shard_bytes: int = 5_000_000_000) -> Path:
    with TensorWriter(directory, max_shard_bytes) as writer:
        for name, array in tensors.items():
            writer.add(name, array)
    return directory


def content_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# Reading


def test_reads_every_dtype_of_safetensors(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "model.safetensors", {"format": "pt"})
    reader = TensorReader.open(tmp_path)
    assert_same(reader, state())
    assert reader.files == (tmp_path / "model.safetensors",)
    assert reader.dtype("none") == ml_dtypes.bfloat16
    assert_same(TensorReader.open_file(tmp_path / "model.safetensors"), state())


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_reads_shards_with_an_index(tmp_path: Path, safe: bool) -> None:
    tensors = {f"layers.{i}.weight": torch.full((8, 4), i).bfloat16() for i in range(9)}
    save_torch_state_dict(tensors, tmp_path, max_shard_size=150, safe_serialization=safe)
    reader = TensorReader.open(tmp_path)
    assert len(reader.files) > 3
    assert_same(reader, tensors)
    index = json.loads(next(tmp_path.glob("*.index.json")).read_text())
    assert {name: reader._tensors[name].path.name for name in reader.names()} == index["weight_map"]


def test_takes_the_first_layout_that_is_there(tmp_path: Path) -> None:
    def save_as(kind: str, **options: object) -> None:
        save_torch_state_dict({f"{kind}.{i}": torch.ones(8) for i in range(2)}, tmp_path, **options)

    def found() -> str:
        return TensorReader.open(tmp_path).names()[0].split(".")[0]

    save_as("bin_shards", max_shard_size=40, safe_serialization=False)
    assert found() == "bin_shards"
    torch.save({"bin.0": torch.ones(8)}, tmp_path / "pytorch_model.bin")
    assert found() == "bin"
    save_as("shards", max_shard_size=40)
    assert found() == "shards"
    save_file({"single.0": torch.ones(8)}, tmp_path / "model.safetensors")
    assert found() == "single"
    torch.save({"adapter.0": torch.ones(8)}, tmp_path / "adapter_model.bin")
    assert TensorReader.open(tmp_path, "adapter_model").names() == ("adapter.0",)


SLICES = st.builds(
    slice,
    st.none() | st.integers(-9, 9),
    st.none() | st.integers(-9, 9),
    st.none() | st.integers(1, 4),
)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TensorReader, np.ndarray]]:
    """One cube in row-major order, and one whose axes lie in another order in the file."""
    directory = tmp_path_factory.mktemp("grid")
    cube = torch.arange(7 * 5 * 6, dtype=torch.float32).bfloat16().reshape(7, 5, 6)
    save_file({"cube": cube}, directory / "model.safetensors")
    permuted = cube.permute(2, 0, 1)
    torch.save({"cube": permuted}, directory / "permuted.bin")
    return {
        "contiguous": (TensorReader.open(directory), cube.float().numpy()),
        "permuted": (TensorReader.open_file(directory / "permuted.bin"), permuted.float().numpy()),
    }


@pytest.mark.parametrize("buffer_bytes", [2, 40, 8 << 20])
@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_slices_equal_numpy_slices(
    grid: dict[str, tuple[TensorReader, np.ndarray]], layout: str, buffer_bytes: int
) -> None:
    reader, expected = grid[layout]

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.lists(SLICES, max_size=3).map(tuple))
    def check(index: tuple[slice, ...]) -> None:
        part = reader.read("cube", index)
        np.testing.assert_array_equal(part.astype(np.float32), expected[index], strict=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_tensor, "_BUFFER_BYTES", buffer_bytes)
        check()


def test_a_slice_of_rows_reads_no_other_bytes(
    grid: dict[str, tuple[TensorReader, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    fill = stored_tensor._read_into
    monkeypatch.setattr(stored_tensor, "_read_into", lambda out, *rest: (read.append(out.nbytes), fill(out, *rest)))
    grid["contiguous"][0].read("cube", (slice(2, 4),))
    assert sum(read) == 2 * 5 * 6 * 2


def test_refuses_slices_that_it_cannot_read(grid: dict[str, tuple[TensorReader, np.ndarray]]) -> None:
    with pytest.raises(ValueError, match="step -1 on axis 0"):
        grid["contiguous"][0].read("cube", (slice(None, None, -1),))
    with pytest.raises(ValueError, match="4 slices for a tensor of shape"):
        grid["contiguous"][0].read("cube", (slice(None),) * 4)


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    tensors = {str(i): torch.full((64, 1024), i, dtype=torch.int32) for i in range(16)}
    save_file(tensors, tmp_path / "model.safetensors")
    reader = TensorReader.open(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        arrays = pool.map(reader.read, [str(i % 16) for i in range(160)])
    assert all((array == i % 16).all() for i, array in enumerate(arrays))


MEMORY_SCRIPT = """
import re, sys
from pathlib import Path
from vigor_jax.hf.weights.tensor_files import TensorReader

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

reader = TensorReader.open_file(Path(sys.argv[1]))
index = eval(sys.argv[2])
before = peak()
for name in reader.names():
    reader.read(name, index)
print(peak() - before)
"""
MIB = 1 << 20


def sparse_safetensors(path: Path, shape: tuple[int, ...], count: int) -> Path:
    """A file of zeros that takes no space on the disk; the reader's memory grows as with any other."""
    size = 4 * int(np.prod(shape))
    header = {
        f"layer.{i}": {"dtype": "F32", "shape": list(shape), "data_offsets": [i * size, (i + 1) * size]}
        for i in range(count)
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, path.stat().st_size + count * size)
    return path


def peak_growth(path: Path, index: str = "None") -> int:
    """By how many bytes the peak of the resident memory grows when a fresh process reads every tensor."""
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(path), index]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
class TestMemory:
    def test_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        path = sparse_safetensors(tmp_path / "model.safetensors", (30 * MIB // 4,), count=20)
        assert 29 * MIB < peak_growth(path) < 1.2 * 30 * MIB

    def test_does_not_grow_with_a_torch_file(self, tmp_path: Path) -> None:
        path = tmp_path / "pytorch_model.bin"
        torch.save({str(i): torch.zeros(30 * MIB // 4) for i in range(7)}, path)
        assert 29 * MIB < peak_growth(path) < 1.2 * 30 * MIB

    @pytest.mark.parametrize("index", ["(slice(1000, 2000),)", "(slice(None), slice(8, 16))"])
    def test_of_a_slice_does_not_grow_with_the_tensor(self, tmp_path: Path, index: str) -> None:
        path = sparse_safetensors(tmp_path / "model.safetensors", (300 * MIB // 4096, 1024), count=1)
        assert peak_growth(path, index) < 20 * MIB


# What is wrong with a file

HEADER = (
    '{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[8],"data_offsets":[16,32]}}'
)


def write_safetensors(path: Path, header: str, data: bytes = bytes(32)) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)
    return path


def assert_refused(directory: Path, *fragments: str) -> None:
    with pytest.raises(InputError) as caught:
        TensorReader.open(directory)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message, message


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ('"shape":[2,2],', "", "missing field `shape`"),
        ("[2,2]", "[2,3]", "invalid shape, data type, or offset"),
        ("[2,2]", "[-2,-2]", "integer `-2`"),
        ("[2,2]", "[2.0,2.0]", "floating point `2.0`"),
        ("[2,2]", "4", "integer `4`"),
        ("[2,2]", "[4294967296,4294967296,4]", "overflow"),
        ("[0,16]", "[0]", "invalid length 1"),
        ("[0,16]", "[16,0]", "invalid offset for tensor `a`"),
        ('"F32"', '["F32"]', "invalid type: sequence"),
        ("[16,32]", "[0,16]", "invalid offset for tensor"),
        ("[0,16]", "[8,24]", "invalid offset for tensor `a`"),
        (
            '"b":{"dtype":"BF16","shape":[8],"data_offsets":[16,',
            '"a b\\n\\nc":{"dtype":"BF16","shape":[8],"data_offsets":[15,',
            "invalid",
        ),
        (HEADER, HEADER[: HEADER.index(',"b"')] + "}", "file not fully covered"),
        (HEADER, f"[{HEADER}]", "invalid type: sequence"),
        (HEADER, "{}", "file not fully covered"),
        (HEADER, '{"a":3}', "integer `3`"),
        (HEADER, "[" * 100_000, "invalid JSON"),
        (HEADER, HEADER[:-1], "invalid JSON"),
    ],
)
def test_refuses_a_wrong_safetensors_header(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", HEADER)
    assert TensorReader.open(tmp_path).names() == ("a", "b")
    assert old in HEADER
    write_safetensors(path, HEADER.replace(old, new, 1))
    size = path.stat().st_size
    refusal = f"{path} has {size} bytes that are no whole safetensors file ("
    assert_refused(tmp_path, refusal, fragment, "): download it again")


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ('"F32","shape":[2,2]', '"F4","shape":[8,4]', "'a' as F4"),
        ('"BF16","shape":[8]', '"F8_E8M0","shape":[16]', "'b' as F8_E8M0"),
        ('"F32"', '"F17"', "a tensor as F17"),
    ],
)
def test_refuses_a_type_that_numpy_does_not_have(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    assert old in HEADER
    path = write_safetensors(tmp_path / "model.safetensors", HEADER.replace(old, new, 1))
    assert_refused(tmp_path, f"{path} holds {fragment}, which is not supported: convert it to BF16 or F32")


def test_refuses_a_header_length_that_no_header_has(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 200_000_000))
    os.truncate(path, 300_000_000)
    assert_refused(
        tmp_path, "has 300000000 bytes that are no whole safetensors file (header too large): download it again"
    )


def test_refuses_a_git_lfs_pointer(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265146304\n"
    for name in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).write_text(pointer)
        assert_refused(tmp_path, name, "is a Git LFS pointer, not the weights: run 'git lfs pull'")


@settings(max_examples=150, deadline=None, database=None)
@given(st.data())
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "truncated.safetensors"
    content = save(state())
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(InputError, match="download it again"):
        TensorReader.open_file(path)


@settings(max_examples=300, deadline=None, database=None)
@given(st.data())
def test_a_changed_byte_of_a_header_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(save({"a": torch.ones(2, 2), "b": torch.ones(3).bfloat16(), "c": torch.ones(())}))
    length = struct.unpack("<Q", content[:8])[0]
    content[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(content)
    try:
        reader = TensorReader.open_file(path)
    except InputError:
        return
    for name in reader.names():
        assert reader.read(name).shape == reader.shape(name)


def test_refuses_a_file_that_became_shorter_since_it_was_opened(tmp_path: Path) -> None:
    save_file({"a": torch.ones(100)}, tmp_path / "model.safetensors")
    reader = TensorReader.open(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 300)
    with pytest.raises(InputError, match=r"model\.safetensors ends \d+ bytes before one of its tensors does"):
        reader.read("a")


def test_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    assert_refused(tmp_path, "holds no weights: expected model.safetensors or pytorch_model.bin")
    assert_refused(tmp_path / "absent", "absent is no directory: expected model.safetensors")
    with pytest.raises(InputError, match="No such file"):
        TensorReader.open_file(tmp_path / "mm_projector.bin")
    (tmp_path / "weights.npz").touch()
    with pytest.raises(InputError, match=r"expected the suffix \.safetensors"):
        TensorReader.open_file(tmp_path / "weights.npz")
    (tmp_path / "model.safetensors").mkdir()
    assert_refused(tmp_path, "model.safetensors cannot be read")


def test_names_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"has no tensor 'lm_head\.weight'"):
        TensorReader.open(tmp_path).read("lm_head.weight")


class TestShards:
    FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        write(tmp_path, {name: np.ones(4, np.float32) for name in ("a", "b")}, max_shard_bytes=16)
        assert TensorReader.open(tmp_path).names() == ("a", "b")
        return tmp_path

    def test_a_missing_shard(self, checkpoint: Path) -> None:
        (checkpoint / self.SECOND).unlink()
        assert_refused(checkpoint, "names 2 shards, of which 1 are not next to it", self.SECOND, "download them")

    def test_a_truncated_shard(self, checkpoint: Path) -> None:
        os.truncate(checkpoint / self.SECOND, (checkpoint / self.SECOND).stat().st_size - 1)
        assert_refused(checkpoint, self.SECOND, "download it again")

    def test_a_tensor_that_its_shard_lacks(self, checkpoint: Path) -> None:
        save_file({"c": torch.ones(1)}, checkpoint / self.SECOND)
        assert_refused(checkpoint, self.SECOND, "lacks 1 tensors that model.safetensors.index.json places in it, 'b'")

    def test_a_tensor_in_two_shards(self, checkpoint: Path) -> None:
        save_file({"b": torch.ones(1), "a": torch.ones(1)}, checkpoint / self.SECOND)
        assert_refused(checkpoint, self.SECOND, "1 tensors that other shards hold too, 'a' in", self.FIRST)

    @pytest.mark.parametrize(
        ("text", "fragment"),
        [
            ("", "is no index of shards"),
            ("[1]", "is no index of shards"),
            ('{"weight_map": 3}', "is no index of shards"),
            ('{"metadata": {}}', "is no index of shards"),
            ('{"weight_map": {}}', "a weight_map that is empty"),
            ('{"weight_map": {"a": 3}}', "does not map tensors to files"),
            (
                '{"weight_map": {"a": "../a.safetensors"}}',
                "names the shard '../a.safetensors': shards must lie in",
            ),
        ],
    )
    def test_a_wrong_index(self, checkpoint: Path, text: str, fragment: str) -> None:
        index = checkpoint / "model.safetensors.index.json"
        index.write_text(text)
        assert_refused(checkpoint, str(index), fragment)


# Writing


def test_one_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    write(tmp_path / "new", numpy_state())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]
    path = tmp_path / "new" / "model.safetensors"
    read = load_file(path)
    assert_same(TensorReader.open(tmp_path / "new"), read)
    for name, array in numpy_state().items():
        assert str(read[name].dtype).removeprefix("torch.") == array.dtype.name
        np.testing.assert_array_equal(read[name].to(torch.float64).numpy(), array.astype(np.float64), strict=True)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    # Readers that map the file need each tensor to begin at a multiple of its element's size.
    reader = TensorReader.open(tmp_path / "new")
    assert all(reader._tensors[name].offset % reader.dtype(name).itemsize == 0 for name in reader.names())


def test_every_dtype_is_written_back_bit_for_bit(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "model.safetensors")
    reader = TensorReader.open(tmp_path)
    write(tmp_path / "copy", {name: reader.read(name) for name in reader.names()})
    assert_same(TensorReader.open(tmp_path / "copy"), load_file(tmp_path / "copy" / "model.safetensors"))
    assert_same(TensorReader.open(tmp_path / "copy"), state())


def test_shards_hold_what_they_may(tmp_path: Path) -> None:
    tensors = {f"t{i}": np.full(size, i, np.float32) for i, size in enumerate([10, 10, 10, 100, 5, 0, 5])}
    write(tmp_path, tensors, max_shard_bytes=80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * 140
    expected = ["t0 t1", "t2", "t3", "t4 t5 t6"]
    names = [f"model-{k + 1:05d}-of-00004.safetensors" for k in range(4)]
    assert index["weight_map"] == {t: names[k] for k, group in enumerate(expected) for t in group.split()}
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "model.safetensors.index.json"]
    for name, array in tensors.items():
        np.testing.assert_array_equal(load_file(tmp_path / index["weight_map"][name])[name].numpy(), array)


def test_the_tensors_of_a_written_shard_are_let_go(tmp_path: Path) -> None:
    with TensorWriter(tmp_path, max_shard_bytes=16) as writer:
        array = np.ones(4, np.float32)
        first = weakref.ref(array)
        writer.add("0", array)
        del array
        assert first() is not None
        writer.add("1", np.ones(4, np.float32))
        assert first() is None


@pytest.mark.parametrize("max_shard_bytes", [20_000, 5_000_000_000], ids=["shards", "one file"])
def test_transformers_loads_what_is_written(tmp_path: Path, max_shard_bytes: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=64
    )
    model = LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    write(tmp_path, weights, max_shard_bytes)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_bytes == 20_000)
    loaded, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in loaded.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), weights[name])


@pytest.mark.parametrize("fail_after", [0, 1, 3])
def test_a_failure_leaves_the_directory_as_it_was(tmp_path: Path, fail_after: int) -> None:
    write(tmp_path, {name: np.zeros(4, np.float32) for name in "ab"}, max_shard_bytes=16)
    before = content_of(tmp_path)

    def fail() -> None:
        with TensorWriter(tmp_path, max_shard_bytes=16) as writer:
            for i in range(fail_after):
                writer.add(f"new{i}", np.ones(4, np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert content_of(tmp_path) == before


def test_a_full_disk_leaves_the_directory_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a": np.zeros(4, np.float32)})
    before = content_of(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, {"b": np.ones(4, np.float32)})
    assert content_of(tmp_path) == before


def test_nothing_has_its_final_name_before_the_end(tmp_path: Path) -> None:
    with TensorWriter(tmp_path, max_shard_bytes=16) as writer:
        for i in range(3):
            writer.add(str(i), np.ones(4, np.float32))
            assert [path.name for path in tmp_path.iterdir()] == [".model.partial"]
    assert TensorReader.open(tmp_path).names() == ("0", "1", "2")


def test_a_new_checkpoint_replaces_the_old_and_a_killed_run_s_remains(tmp_path: Path) -> None:
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "7").write_bytes(b"remains")
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path, {name: np.zeros(4, np.float32) for name in "abc"}, max_shard_bytes=16)
    assert len(TensorReader.open(tmp_path).files) == 3
    write(tmp_path, {name: np.ones(4, np.float32) for name in "ab"}, max_shard_bytes=16)
    assert len(TensorReader.open(tmp_path).files) == 2
    assert len(list(tmp_path.glob("model-*"))) == 2
    write(tmp_path, {"a": np.ones(4, np.float32)})
    assert sorted(content_of(tmp_path)) == ["config.json", "model.safetensors"]
    write(tmp_path, {name: np.ones(4, np.float32) for name in "ab"}, max_shard_bytes=16)
    assert TensorReader.open(tmp_path).names() == ("a", "b")


def test_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    with TensorWriter(tmp_path) as writer:
        writer.add("a", np.ones(1, np.float32))
        with pytest.raises(ValueError, match="'a' was added twice"):
            writer.add("a", np.ones(1, np.float32))
        with pytest.raises(ValueError, match="'b' has the dtype complex128"):
            writer.add("b", np.ones(1, np.complex128))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to"):
        write(tmp_path / "file", numpy_state())


@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_read_into_an_array_is_what_is_read(tmp_path, axes, dtype):
    """Parts, in another type and order of axes; more rows than are turned at a time."""
    value = np.random.default_rng(0).normal(size=(150, 70)).astype(np.float32)
    with TensorWriter(tmp_path) as writer:
        writer.add("turned", value.T)
        writer.add("straight", value)
    reader = TensorReader.open(tmp_path)
    np.testing.assert_array_equal(reader.read("turned"), value.T)
    part = (slice(3, 149), slice(5, 60))
    wanted = value[part].astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).transpose(axes)
    found = np.empty(wanted.shape, wanted.dtype)
    reader.read_into("straight", found.transpose(axes), part)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("turned", [False, True])
def test_a_lazy_tensor_is_made_when_it_is_written_and_rounded(tmp_path, turned):
    """More rows and columns than are turned at a time; one tensor at a time is in memory, in the order given."""
    values = np.random.default_rng(0).normal(size=(3, 300, 70)).astype(np.float32)
    alive: list[weakref.ref[np.ndarray]] = []

    def make(value: np.ndarray) -> np.ndarray:
        assert not any(array() is not None for array in alive)
        made = np.asfortranarray(value) if turned else value.copy()
        alive.append(weakref.ref(made))
        return made

    kind = np.dtype(ml_dtypes.bfloat16)
    with TensorWriter(tmp_path) as writer:
        for name, value in zip("cab", values, strict=True):
            writer.add(name, LazyTensor(value.shape, kind, functools.partial(make, value)))
        assert not alive
    reader = TensorReader.open(tmp_path)
    assert reader.names() == ("c", "a", "b")
    for name, value in zip("cab", values, strict=True):
        np.testing.assert_array_equal(reader.read(name), value.astype(kind))


def test_a_lazy_tensor_must_have_the_shape_that_was_announced(tmp_path):
    with pytest.raises(ValueError, match=r"'a' was to have the shape \(3,\), and was made with \(2,\)"):
        write(tmp_path, {"a": LazyTensor((3,), np.dtype(np.float32), lambda: np.ones(2, np.float32))})
