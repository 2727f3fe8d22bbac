"""Checkpoint weights on disk, without torch: reads safetensors and PyTorch files and writes safetensors."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.hf.other_folders import describe
from vigor_jax.hf.weights.safetensors_file import DTYPE_CODES, LazyTensor, safetensors_tensors, write_safetensors
from vigor_jax.hf.weights.shards import read_weight_map, shards_without_index
from vigor_jax.hf.weights.stored_tensor import StoredTensor
from vigor_jax.hf.weights.torch_bin import torch_tensors
from vigor_jax.json_fields import check_file, exists


@dataclass(frozen=True)
class TensorReader:
    """The tensors of a checkpoint: listed and checked when it is opened, each read when it is asked for.

    No file stays open and nothing stays in memory between reads; reads are safe from several threads.

    Attributes:
        files: the weights files, in the order of their names.
    """

    files: tuple[Path, ...]
    _tensors: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, directory: Path, stem: str = "model") -> Self:
        """Opens the weights in a Hugging Face or LLaVA checkpoint directory.

        Looks for `STEM.safetensors`, `STEM.safetensors.index.json`, `pytorch_model.bin` and
        `pytorch_model.bin.index.json`, and takes the first that exists; then for all shards of either without
        their index. For a stem other than "model" the PyTorch files are `STEM.bin` and `STEM.bin.index.json`.

        Raises:
            InputError: no weights, a shard is missing or damaged, or the index and its shards disagree.
        """
        directory = Path(directory)
        torch_stem = "pytorch_model" if stem == "model" else stem
        for name in (f"{stem}.safetensors", f"{torch_stem}.bin"):
            if exists(directory / name):
                return cls.open_file(directory / name)
            if exists(directory / f"{name}.index.json"):
                return cls._open_shards(directory / f"{name}.index.json")
        for name in (f"{stem}.safetensors", f"{torch_stem}.bin"):
            if shards := shards_without_index(directory, *name.rsplit(".", 1)):
                return cls(tuple(shards), _united(shards))
        known = describe(directory) if directory.is_dir() else None
        raise InputError(
            f"{directory} {'holds no weights' if directory.is_dir() else 'is no directory'}: expected"
            f" {stem}.safetensors or {torch_stem}.bin, or an .index.json of either with its shards;"
            f" {known or 'give the directory of a checkpoint'}"
        )

    @classmethod
    def open_file(cls, path: Path) -> Self:
        """Opens one weights file, such as `mm_projector.bin`.

        Raises:
            InputError: the file is missing, damaged or neither `.safetensors` nor `.bin`, `.pt` or `.pth`.
        """
        path = Path(path)
        return cls((path,), _list_tensors(path))

    @classmethod
    def _open_shards(cls, index: Path) -> Self:
        weight_map = read_weight_map(index)
        files = tuple(index.parent / name for name in sorted(set(weight_map.values())))
        missing = [path.name for path in files if not exists(path)]
        if missing:
            raise InputError(
                f"{index} names {len(files)} shards, of which {len(missing)} are not next to it, {missing[0]}"
                " first: download them"
            )
        tensors = _united(files)
        for path in files:
            absent = [
                name
                for name, file in weight_map.items()
                if file == path.name and (name not in tensors or tensors[name].path != path)
            ]
            if absent:
                raise InputError(
                    f"{path} lacks {len(absent)} tensors that {index.name} places in it, {absent[0]!r} first:"
                    " download both again, from one checkpoint"
                )
        return cls(files, tensors)

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same tensors under other names.

        Args:
            names: name here → name there, for every tensor; two may not get the same.
        """
        return type(self)(self.files, {names[name]: tensor for name, tensor in self._tensors.items()})

    def same_place(self, one: str, other: str) -> bool:
        """Whether two tensors are the same bytes of the same file, as tied weights in a PyTorch file are."""
        return self._find(one) == self._find(other)

    def names(self) -> tuple[str, ...]:
        """The tensors' names, file by file."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, () for a scalar."""
        return self._find(name).shape

    def dtype(self, name: str) -> np.dtype:
        """The dtype of a tensor, `ml_dtypes.bfloat16` for bfloat16."""
        return self._find(name).dtype

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """Reads a tensor, or a part of it, into a new array; see `StoredTensor.read`."""
        return self._find(name).read(index)

    def read_into(self, name: str, out: np.ndarray, index: tuple[slice, ...] | None = None) -> None:
        """Reads a tensor, or a part of it, into an array; see `StoredTensor.read_into`."""
        self._find(name).read_into(out, index)

    def _find(self, name: str) -> StoredTensor:
        if name not in self._tensors:
            raise InputError(f"{self.files[0].parent} has no tensor {name!r}: give a checkpoint that has it")
        return self._tensors[name]


class TensorWriter:
    """Writes tensors as safetensors, in shards where one file would be too large.

        with TensorWriter(directory) as writer:
            writer.add("lm_head.weight", array)

    The files are `model.safetensors`, or `model-00001-of-0000N.safetensors` and so on with
    `model.safetensors.index.json`. They are written in a folder `.model.partial` and take their names when
    the block ends without an exception; only then is an older checkpoint of the same stem removed. The
    tensors of one shard are held until it is written: views take no memory, and a `LazyTensor` is made only then.

    Args:
        directory: where the files go; made if it is not there.
        max_shard_bytes: a shard holds no more than this, or one tensor.
        stem: the files' name in place of "model".
    """

    def __init__(self, directory: Path, max_shard_bytes: int = 5_000_000_000, stem: str = "model") -> None:
        self._directory = Path(directory)
        self._partial = self._directory / f".{stem}.partial"
        self._stem = stem
        self._max_shard_bytes = max_shard_bytes
        self._pending: dict[str, np.ndarray | LazyTensor] = {}
        self._pending_bytes = 0
        self._total_bytes = 0
        self._shard_of: dict[str, int] = {}
        self._num_shards = 0

    def __enter__(self) -> Self:
        # A run that was killed may have left one.
        shutil.rmtree(self._partial, ignore_errors=True)
        try:
            self._partial.mkdir(parents=True)
        except OSError as error:
            raise InputError(
                f"{self._directory} cannot be written to ({error.strerror}): give one that can be"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, name: str, array: np.ndarray | LazyTensor) -> None:
        """Adds one tensor; `array`, or what a lazy one reads, must not change until the block ends.

        Raises:
            ValueError: the name was added before, or safetensors has no such dtype.
        """
        array = array if isinstance(array, LazyTensor) else np.asarray(array)
        if array.dtype not in DTYPE_CODES:
            raise ValueError(f"{name!r} has the dtype {array.dtype}, which safetensors cannot hold")
        if name in self._shard_of:
            raise ValueError(f"{name!r} was added twice")
        if self._pending and self._pending_bytes + array.nbytes > self._max_shard_bytes:
            self._write_shard()
        self._shard_of[name] = self._num_shards
        self._pending[name] = array
        self._pending_bytes += array.nbytes
        self._total_bytes += array.nbytes

    def _write_shard(self) -> None:
        write_safetensors(self._partial / str(self._num_shards), self._pending)
        self._num_shards += 1
        self._pending, self._pending_bytes = {}, 0

    def _finish(self) -> None:
        """Moves the shards to their names, the index last, because without it no reader looks for them."""
        if self._pending or not self._num_shards:
            self._write_shard()
        single, count = f"{self._stem}.safetensors", self._num_shards
        files = [f"{self._stem}-{k + 1:05d}-of-{count:05d}.safetensors" for k in range(count)]
        weight_map = {name: files[k] for name, k in self._shard_of.items()}
        content = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        (self._partial / "index").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        index = self._directory / f"{single}.index.json"
        shards = self._directory.glob(f"{self._stem}-?????-of-?????.safetensors")
        for path in (index, self._directory / single, *shards):
            path.unlink(missing_ok=True)
        if count == 1:
            os.replace(self._partial / "0", self._directory / single)
            return
        for k, file in enumerate(files):
            os.replace(self._partial / str(k), self._directory / file)
        os.replace(self._partial / "index", index)


def _united(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """The tensors of several files, each in one of them only."""
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        shard = _list_tensors(path)
        twice = [name for name in shard if name in tensors]
        if twice:
            raise InputError(
                f"{path} holds {len(twice)} tensors that other shards hold too, {twice[0]!r} in"
                f" {tensors[twice[0]].path.name} first: download both again, from one checkpoint"
            )
        tensors |= shard
    return tensors


def _list_tensors(path: Path) -> dict[str, StoredTensor]:
    """Lists and checks the tensors of one weights file of either format."""
    try:
        check_file(path)
        if path.suffix == ".safetensors":
            return safetensors_tensors(path)
        if path.suffix in (".bin", ".pt", ".pth"):
            return torch_tensors(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): give a readable weights file") from error
    raise InputError(f"{path} is no weights file: expected the suffix .safetensors, .bin, .pt or .pth")
