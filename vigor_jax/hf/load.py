"""Opens a LLaVA checkpoint of either layout and streams its weights into sharded device arrays."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax.data.images import Preprocessing
from vigor_jax.data.tokenizer import Tokenizer
from vigor_jax.errors import InputError
from vigor_jax.hf import config as hf_config
from vigor_jax.hf import names
from vigor_jax.hf.image_settings import preprocessing_from_hf
from vigor_jax.hf.names import Layout
from vigor_jax.hf.tensor_files import TensorReader
from vigor_jax.models.llava import Llava, LlavaConfig, abstract_llava, param_paths
from vigor_jax.sharding import partition_spec


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The checkpoint to begin with.

    Attributes:
      path: a llava-hf directory, or one of the original LLaVA code.
      vision_tower: directory of the CLIP tower of an original checkpoint that does not bring it.
      dtype: type to compute in; what is trained is held in float32 in any case.
    """

    path: Path
    vision_tower: Path | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"


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

    def read(self, index: tuple[slice, ...] | None = None) -> np.ndarray:
        return self.reader.read(self.name, index)


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint on disk, checked: every tensor the model needs is there with its shape, and nothing else is.

    Attributes:
      directory: where it is.
      layout: "llava-hf" or "llava", the original.
      config: sizes of the model.
      preprocessing: what its images go through.
      tokenizer: its tokenizer.
      tensors: canonical name (`vigor_jax.hf.names`) → place on disk.
    """

    directory: Path
    layout: Layout
    config: LlavaConfig
    preprocessing: Preprocessing
    tokenizer: Tokenizer
    tensors: Mapping[str, Stored]

    @property
    def dtype(self) -> np.dtype:
        """The type its language model is stored in."""
        return self.tensors["language_model.model.norm.weight"].dtype

    def digest(self) -> str:
        """Names the checkpoint: SHA-256 of its sizes and of a few rows of every tensor, without reading the rest."""
        total = hashlib.sha256(repr(self.preprocessing).encode())
        if not self.tokenizer.restarts_after_image:
            total.update(b"text continues after an image")  # earlier versions tokenized it otherwise
        for name, tensor in sorted(self.tensors.items()):
            total.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            rows = tensor.shape[0] if tensor.shape else 1
            for row in sorted({0, rows // 3, 2 * rows // 3, rows - 1}):
                total.update(tensor.read((slice(row, row + 1),) if tensor.shape else None).tobytes())
        return total.hexdigest()


def open_checkpoint(directory: Path, vision_tower: Path | None = None) -> Source:
    """Opens a checkpoint directory without reading its weights.

    Args:
      directory: a llava-hf directory, or one of the original LLaVA code.
      vision_tower: directory of the CLIP tower of an original checkpoint that neither contains it nor names a path
        that exists here.

    Raises:
      InputError: a file is missing or damaged, a tensor is missing, unexpected or of another shape, or the config
        asks for something that this model does not have.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"model: {directory} is no directory; give the directory of a LLaVA checkpoint")
    path = directory / "config.json"
    config = hf_config.read_json(path)
    if hf_config.is_original(config):
        return _open_original(directory, config, vision_tower)

    model = hf_config.from_hf(config, path)
    reader = TensorReader.open(directory)
    tensors = _canonical({name: Stored(reader, name) for name in reader.names()}, names.canonical_hf, directory)
    if model.projector == "linear":
        _check_identity(tensors, directory)
    _check_tensors(tensors, model, directory)
    processor = next(
        (
            directory / name
            for name in ("preprocessor_config.json", "processor_config.json")
            if _has_images(directory / name)
        ),
        directory / "preprocessor_config.json",
    )
    preprocessing = preprocessing_from_hf(hf_config.read_json(processor), model.vision.image_size, processor)
    return _source(directory, "llava-hf", model, preprocessing, tensors)


def _has_images(path: Path) -> bool:
    return path.exists() and (path.name.startswith("pre") or "image_processor" in hf_config.read_json(path))


def _source(
    directory: Path,
    layout: Layout,
    model: LlavaConfig,
    preprocessing: Preprocessing,
    tensors: Mapping[str, Stored],
) -> Source:
    mean, deviation = preprocessing.scaled_mean, preprocessing.scaled_std
    vision = dataclasses.replace(model.vision, image_mean=mean, image_std=deviation)
    model = dataclasses.replace(model, vision=vision)
    # A llava-hf prompt is one text for its processor; the original code has none, and a slow tokenizer.
    tokenizer = Tokenizer.load(directory, whole_prompt=layout == "llava-hf", model_first=layout == "llava")
    tokenizer.check_rows(model.text.vocab_size)
    image = tokenizer.token_to_id("<image>")
    if layout == "llava-hf" and image is not None and image != model.image_token_id:
        raise InputError(
            f"{directory}: config.json puts images at token {model.image_token_id}, the tokenizer's <image> is {image} "
            "and these must be the same; take both files from one checkpoint"
        )
    return Source(directory, layout, model, preprocessing, tokenizer, tensors)


def _open_original(directory: Path, config: dict[str, Any], vision_tower: Path | None) -> Source:
    path = directory / "config.json"
    named = str(config["mm_vision_tower"])
    places = [vision_tower] if vision_tower else [Path(named), directory / named, directory / "vision_tower"]
    tower = next((place for place in places if (place / "config.json").exists()), None)
    if tower:
        vision = hf_config.vision_config(hf_config.read_json(tower / "config.json"), tower / "config.json")
    elif named in hf_config.KNOWN_TOWERS and not vision_tower:
        vision = hf_config.KNOWN_TOWERS[named]
    else:
        raise InputError(
            f"{path}: the vision tower {str(vision_tower or named)!r} is no directory with a config.json; "
            "give its directory as vision_tower"
        )
    model = hf_config.from_original(config, vision, path)

    reader = TensorReader.open(directory)
    stored = {name: Stored(reader, name) for name in reader.names()}
    projector = directory / "mm_projector.bin"
    if not any("mm_projector" in name for name in stored) and projector.exists():
        reader = TensorReader.open_file(projector)
        stored |= {name: Stored(reader, name) for name in reader.names() if "mm_projector" in name}
    if not any(name.startswith(names.ORIGINAL_TOWER) for name in stored):
        if tower is None:
            raise InputError(
                f"{directory}: neither the weights nor a directory hold the vision tower {named!r}; "
                "give its directory as vision_tower"
            )
        stored |= {names.ORIGINAL_TOWER + name: tensor for name, tensor in _tower_tensors(tower).items()}
    tensors = _canonical(stored, lambda name: names.canonical_original(name, model), directory)
    _check_tensors(tensors, model, directory)

    pads = config.get("image_aspect_ratio")
    if pads not in (None, "square", "pad"):
        raise InputError(
            f"{path}: image_aspect_ratio {pads!r} is not supported, only 'pad' or 'square': several views of an image "
            "belong to later models than LLaVA 1.5"
        )
    processor = (tower or directory) / "preprocessor_config.json"
    if tower and processor.exists():
        preprocessing = preprocessing_from_hf(hf_config.read_json(processor), vision.image_size, processor)
    else:
        preprocessing = Preprocessing(vision.image_size)
    preprocessing = dataclasses.replace(preprocessing, pad=pads == "pad")
    return _source(directory, "llava", model, preprocessing, tensors)


def _tower_tensors(directory: Path) -> dict[str, Stored]:
    """The vision half of a CLIP checkpoint, which may bring the text half too."""
    reader = TensorReader.open(directory)
    vision = [name for name in reader.names() if name.startswith("vision_model.")]
    # transformers 5 leaves the prefix out when it saves a tower alone.
    if not vision:
        return {"vision_model." + name: Stored(reader, name) for name in reader.names()}
    return {name: Stored(reader, name) for name in vision}


def _canonical(stored: Mapping[str, Stored], canonical: Callable[[str], str], directory: Path) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for name, tensor in stored.items():
        if names.IGNORED.fullmatch(name):
            continue
        if canonical(name) in tensors:
            raise InputError(
                f"{directory}: {name} and {tensors[canonical(name)].name} name the same tensor; remove one"
            )
        tensors[canonical(name)] = tensor
    return tensors


IDENTITY_WEIGHT, IDENTITY_BIAS = (
    "multi_modal_projector.linear_2.weight",
    "multi_modal_projector.linear_2.bias",
)


def _check_identity(tensors: dict[str, Stored], directory: Path) -> None:
    """llava-hf has no slot for v1.0's single linear layer: it is stored before a second one that changes nothing."""
    weight, bias = tensors.pop(IDENTITY_WEIGHT, None), tensors.pop(IDENTITY_BIAS, None)
    if weight is None or bias is None:
        return
    values = weight.read().astype(np.float32)
    if not np.array_equal(values, np.eye(*values.shape)) or bias.read().astype(np.float32).any():
        raise InputError(
            f"{directory}: projector_hidden_act is linear, so {IDENTITY_WEIGHT} must be the identity, its bias zero; "
            "they are not, and only LLaVA v1.0's one linear layer is supported in this form"
        )


def _check_tensors(tensors: Mapping[str, Stored], config: LlavaConfig, directory: Path) -> None:
    wanted = expected_shapes(config)
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors[name].name for name in tensors.keys() - wanted.keys())
    wrong = [
        f"{name} (expected {list(shape)}, got {list(tensors[name].shape)})"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = [
        f"{len(found)} {what}: {', '.join(found)}"
        for what, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        if found
    ]
    if problems:
        raise InputError(f"{directory}: the tensors do not fit config.json; {'; '.join(problems)}")


def expected_shapes(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name → shape on disk, for every tensor of the model."""
    ours = param_paths(nnx.state(abstract_llava(config, scan=False)))
    shapes = {}
    for entry in names.entries(config):
        shape = ours[entry.unstacked_path].get_value().shape
        shapes[entry.name] = tuple(shape[entry.axes.index(i)] for i in range(len(shape)))
    return shapes


def load_llava(
    source: Source,
    *,
    mesh: Mesh,
    dtype: Any,
    scan: bool = True,
    master: Callable[[str], bool] | None = None,
) -> Llava:
    """Streams the weights onto the mesh, one tensor at a time; each process reads only what its devices hold.

    Args:
      source: an open checkpoint.
      mesh: where the weights go, split by `vigor_jax.sharding.RULES`.
      dtype: of the weights, and so of the computation.
      scan: stacked layers or separate ones, which decoding prefers, see `layers.stacks_inference`.
      master: parameters, by dotted path, that are loaded in float32 instead: those that are to be trained.
    """
    graphdef, state = nnx.split(abstract_llava(source.config, dtype=dtype, scan=scan))
    variables = param_paths(state)
    targets = {path: _target(path, variable, mesh, dtype, master) for path, variable in variables.items()}
    by_path: dict[str, list[names.Entry]] = {path: [] for path in variables}
    for entry in names.entries(source.config):
        by_path[entry.path if scan else entry.unstacked_path].append(entry)
    wanted = [(path, entry) for path, entries in by_path.items() for entry in entries]
    reads = (functools.partial(_read, source.tensors[entry.name], entry, targets[path]) for path, entry in wanted)

    values: dict[str, jax.Array] = {}
    for (path, entry), block in zip(wanted, _one_ahead(reads), strict=True):
        target = targets[path]
        value = _turn(entry.axes, target.dtype, _of_layer(entry, target))(block)
        if len(target.shape) > len(entry.axes):
            stack = values.pop(path) if path in values else _zeros(target)
            value = _set_layer(target.sharding)(stack, value, entry.layer)
        values[path] = jax.block_until_ready(value)  # or blocks that wait for their turn fill the host's memory
    for path, variable in variables.items():
        variable.set_value(values.pop(path))
    return nnx.merge(graphdef, state)


def _target(
    path: str, variable: nnx.Variable, mesh: Mesh, dtype: Any, master: Callable[[str], bool] | None
) -> jax.ShapeDtypeStruct:
    """Shape, type and split of a parameter."""
    shape, axes = variable.get_value().shape, variable.get_metadata()["axes"]
    sharding = NamedSharding(mesh, partition_spec(shape, axes, mesh))
    return jax.ShapeDtypeStruct(shape, jnp.float32 if master and master(path) else dtype, sharding=sharding)


def _of_layer(entry: names.Entry, target: jax.ShapeDtypeStruct) -> NamedSharding:
    """How one layer of a parameter is split, or all of one that has no layers."""
    spec = target.sharding.spec
    return NamedSharding(target.sharding.mesh, P(*spec[len(target.shape) - len(entry.axes) :]))


def _zeros(target: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(target.shape, target.dtype), out_shardings=target.sharding)()


def _read(tensor: Stored, entry: names.Entry, target: jax.ShapeDtypeStruct) -> jax.Array:
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
def _turn(axes: names.Axes, dtype: Any, sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda block: block.transpose(axes).astype(dtype), out_shardings=sharding)


@functools.cache
def _set_layer(sharding: NamedSharding) -> Callable[[jax.Array, jax.Array, Any], jax.Array]:
    """Apart from `_turn`, or XLA on CPU rewrites the whole stack for each layer."""

    def set_layer(stack: jax.Array, value: jax.Array, layer: int) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, value, layer, 0)

    return jax.jit(set_layer, out_shardings=sharding, donate_argnums=0)
