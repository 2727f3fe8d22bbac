"""Opens a checkpoint of any family and streams its weights into sharded device arrays."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax.errors import InputError
from vigor_jax.hf import hub
from vigor_jax.hf.adapter import adapter_entries
from vigor_jax.hf.families import family_of
from vigor_jax.hf.family import Checkpoint as Checkpoint
from vigor_jax.hf.names import Axes, Entry
from vigor_jax.hf.other_folders import describe, refuse_adapter, refuse_quantized
from vigor_jax.hf.peft import base_of, is_adapter, trained_on, with_adapter
from vigor_jax.hf.weights.stored_tensor import zeros
from vigor_jax.hf.weights.tensor_checks import Stored
from vigor_jax.json_fields import Fields, exists, read_json
from vigor_jax.models.lora import add_lora, lora_paths
from vigor_jax.models.vlm import Vlm, abstract_model, param_paths
from vigor_jax.parallel.sharding import partition_spec

M = TypeVar("M", bound=nnx.Module)

_READERS = 4


def open_checkpoint(
    name: str | Path,
    vision_tower: str | Path | None = None,
    adapter: str | Path | None = None,
    *,
    base: str | Path | None = None,
) -> Checkpoint:
    """Opens a checkpoint without reading its weights; from the Hub, it fetches what the cache lacks.

    Args:
      name: directory of a model of one of `families.FAMILIES`, or `ORG/NAME` or `ORG/NAME@REVISION` on the Hub; or one
        of a LoRA adapter, which names its base.
      vision_tower: directory, or name on the Hub, of the CLIP tower of an original LLaVA checkpoint that neither
        contains it nor names a path that exists here.
      adapter: directory of a LoRA adapter that is put on top, or its name on the Hub.
      base: a model that `name` may be an adapter for: where that is one of ours and knows it by its digest, the place
        that it names is not asked for, so that models may be moved.

    Raises:
      InputError: a file is missing or damaged, a tensor is missing, unexpected or of another shape, or the config
        asks for something that this model does not have; or the Hub does not give it.
    """
    directory = hub.local_directory(name)
    if is_adapter(directory):
        if adapter is not None:
            raise InputError(f"model: {directory} is an adapter, and so is {adapter}; give the base and one of them")
        if base is not None and trained_on(directory):
            return _open_on(base, directory, vision_tower)
        return open_checkpoint(base_of(directory), vision_tower, directory)
    if adapter is None:
        return _open_base(directory, vision_tower)
    above = hub.local_directory(adapter)
    return with_adapter(_open_base(directory, vision_tower, above), above)


def _open_on(base: str | Path, adapter: Path, vision_tower: str | Path | None) -> Checkpoint:
    """An adapter of ours on a model, or else on the one that it names."""
    try:
        below = hub.local_directory(base)
        return open_checkpoint(base_of(below) if is_adapter(below) else below, vision_tower, adapter)
    except InputError as error:
        try:
            named = base_of(adapter)
        except InputError:
            raise error from None
    return open_checkpoint(named, vision_tower, adapter)


def _open_base(directory: Path, vision_tower: str | Path | None, adapter: Path | None = None) -> Checkpoint:
    """A checkpoint without its adapter; `adapter` may bring what a language model alone lacks."""
    if not directory.is_dir():
        raise InputError(
            f"model: {directory} is no directory; give the directory of a LLaVA checkpoint, or ORG/NAME on the Hub"
        )
    refuse_adapter(directory)
    path = directory / "config.json"
    if not exists(path) and (known := describe(directory)):
        raise InputError(f"model: {directory} has no config.json; {known}")
    config = read_json(path)
    refuse_quantized(Fields(config, path))
    own = adapter / "config.json" if adapter else None
    if adapter and own and config.get("model_type") == "llama" and exists(own):
        hub.fetch_weights(adapter)
        whole = read_json(own)
        return family_of(whole, own).open_below(adapter, whole, directory, vision_tower)
    return family_of(config, path).open(config, directory, vision_tower)


def load_model(
    checkpoint: Checkpoint,
    *,
    mesh: Mesh,
    dtype: Any,
    scan: bool = True,
    master: Callable[[str], bool] | None = None,
) -> Vlm:
    """Streams the weights onto the mesh, one tensor at a time; each process reads only what its devices hold.

    The adapter of a checkpoint that has one is loaded next to the weights that it belongs to.

    Args:
      checkpoint: an open checkpoint.
      mesh: where the weights go, split by `vigor_jax.parallel.sharding.RULES`.
      dtype: of the weights, and so of the computation.
      scan: stacked layers or separate ones, which decoding prefers, see `layers.stacks_inference`.
      master: parameters, by dotted path, that are loaded in float32 instead: those that are to be trained.
    """
    abstract, entries = abstract_model(checkpoint.config, dtype=dtype, scan=scan), checkpoint.entries
    tensors = checkpoint.tensors
    if adapter := checkpoint.adapter:
        add_lora(abstract, adapter.lora, dtype=dtype)
        entries = [*entries, *adapter_entries(entries, adapter)]
        tensors = {**tensors, **adapter.tensors}
    return load_weights(abstract, entries, tensors, mesh=mesh, dtype=dtype, scan=scan, master=master)


def load_weights(
    abstract: M,
    entries: Iterable[Entry],
    tensors: Mapping[str, Stored],
    *,
    mesh: Mesh,
    dtype: Any,
    scan: bool,
    master: Callable[[str], bool] | None = None,
) -> M:
    """Fills a model with weights; the rest is as in `load_model`.

    Args:
      abstract: the model, shapes in place of weights.
      entries: all of its tensors; a parameter without any becomes 0, as of a layer that an adapter leaves as it is.
      tensors: canonical name → place on disk.
      mesh: where the weights go.
      dtype: of the weights.
      scan: whether the model's layers are stacked.
      master: parameters in float32.
    """
    graphdef, state = nnx.split(abstract)
    variables = param_paths(state)
    targets = {path: _target(path, variable, mesh, dtype, master) for path, variable in variables.items()}
    by_path: dict[str, list[Entry]] = {path: [] for path in variables}
    for entry in entries:
        by_path[entry.path if scan else entry.unstacked_path].append(entry)
    values = (_assemble if _is_host(mesh) else _stream)(targets, by_path, tensors)
    for path, variable in variables.items():
        if path not in values and lora_paths([path]):  # a layer that the adapter leaves as it is
            values[path] = _zeros(targets[path])()
        variable.set_value(values.pop(path))
    return nnx.merge(graphdef, state)


def _is_host(mesh: Mesh) -> bool:
    """Whether the devices' memory is the host's."""
    return mesh.devices.flat[0].platform == "cpu"


def _assemble(
    targets: Mapping[str, jax.ShapeDtypeStruct], by_path: Mapping[str, Sequence[Entry]], tensors: Mapping[str, Stored]
) -> dict[str, jax.Array]:
    """Parameters of CPU devices: read to where they stay, turned on the way; JAX uses this memory as it is."""

    def assemble(path: str) -> jax.Array:
        target, entries = targets[path], by_path[path]
        parts: dict[tuple, np.ndarray] = {}  # devices that hold the same part share it

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            bounds = tuple(each.indices(size)[:2] for each, size in zip(index, target.shape, strict=True))
            if bounds not in parts:
                parts[bounds] = _part(target, bounds, entries, tensors)
            return parts[bounds]

        return jax.make_array_from_callback(target.shape, target.sharding, part)

    paths = [path for path, entries in by_path.items() if entries]
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(paths, pool.map(assemble, paths), strict=True))


def _part(
    target: jax.ShapeDtypeStruct,
    bounds: Sequence[tuple[int, int]],
    entries: Sequence[Entry],
    tensors: Mapping[str, Stored],
) -> np.ndarray:
    """What lies between bounds (first, end of each axis) of a parameter; layers that are in no file are 0."""
    out = zeros([end - first for first, end in bounds], np.dtype(target.dtype))
    for entry in entries:
        layer, own = out, bounds[len(bounds) - len(entry.axes) :]
        if len(bounds) > len(entry.axes):
            first, end = bounds[0]
            assert entry.layer is not None
            if not first <= entry.layer < end:
                continue
            layer = out[entry.layer - first]
        on_disk = tuple(slice(*own[entry.axes.index(axis)]) for axis in range(len(entry.axes)))
        tensors[entry.name].read_into(layer.transpose(np.argsort(entry.axes)), on_disk)
    return out


def _stream(
    targets: Mapping[str, jax.ShapeDtypeStruct], by_path: Mapping[str, Sequence[Entry]], tensors: Mapping[str, Stored]
) -> dict[str, jax.Array]:
    """Parameters of accelerators, which turn and stack what the host reads."""
    wanted = [(path, entry) for path, of_path in by_path.items() for entry in of_path]
    reads = (functools.partial(_read, tensors[entry.name], entry, targets[path]) for path, entry in wanted)

    values: dict[str, jax.Array] = {}
    for (path, entry), block in zip(wanted, _one_ahead(reads), strict=True):
        target = targets[path]
        value = _turn(entry.axes, target.dtype, _of_layer(entry, target))(block)
        if len(target.shape) > len(entry.axes):
            stack = values.pop(path) if path in values else _zeros(target)()
            value = _set_layer(target.sharding)(stack, value, entry.layer)
        values[path] = jax.block_until_ready(value)  # or blocks that wait for their turn fill the host's memory
    return values


def _target(
    path: str, variable: nnx.Variable, mesh: Mesh, dtype: Any, master: Callable[[str], bool] | None
) -> jax.ShapeDtypeStruct:
    """Shape, type and split of a parameter."""
    shape, axes = variable.get_value().shape, variable.get_metadata()["axes"]
    sharding = NamedSharding(mesh, partition_spec(shape, axes, mesh))
    return jax.ShapeDtypeStruct(shape, jnp.float32 if master and master(path) else dtype, sharding=sharding)


def _of_layer(entry: Entry, target: jax.ShapeDtypeStruct) -> NamedSharding:
    """How one layer of a parameter is split, or all of one that has no layers."""
    spec = target.sharding.spec
    return NamedSharding(target.sharding.mesh, P(*spec[len(target.shape) - len(entry.axes) :]))


@functools.cache
def _zeros(target: jax.ShapeDtypeStruct) -> Callable[[], jax.Array]:
    return jax.jit(lambda: jnp.zeros(target.shape, target.dtype), out_shardings=target.sharding)


def _read(tensor: Stored, entry: Entry, target: jax.ShapeDtypeStruct) -> jax.Array:
    """A tensor on the devices as it is on disk, each with its part; it is turned and rounded there."""
    sharding = _of_layer(entry, target)
    on_disk = P(*(sharding.spec[entry.axes.index(i)] for i in range(len(entry.axes))))
    parts: dict[tuple, np.ndarray] = {}  # devices that hold the same part share one read of it

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        key = tuple((part.start, part.stop) for part in index)
        if key not in parts:
            parts[key] = tensor.read(index)
        return parts[key]

    return jax.make_array_from_callback(tensor.shape, NamedSharding(sharding.mesh, on_disk), read)


def _one_ahead(reads: Iterable[Callable[[], jax.Array]]) -> Iterator[jax.Array]:
    """What each returns, in their order; a thread is always one ahead."""
    with ThreadPoolExecutor(1) as thread:
        ready: Future[jax.Array] | None = None
        for read in reads:
            following = thread.submit(read)
            if ready is not None:
                yield ready.result()
            ready = following
        if ready is not None:
            yield ready.result()


@functools.cache
def _turn(axes: Axes, dtype: Any, sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda block: block.transpose(axes).astype(dtype), out_shardings=sharding)


@functools.cache
def _set_layer(sharding: NamedSharding) -> Callable[[jax.Array, jax.Array, Any], jax.Array]:
    """Apart from `_turn`, or XLA on CPU rewrites the whole stack for each layer."""

    def set_layer(stack: jax.Array, value: jax.Array, layer: int) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, value, layer, 0)

    return jax.jit(set_layer, out_shardings=sharding, donate_argnums=0)
