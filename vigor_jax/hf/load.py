"""Opens a LLaVA checkpoint of either layout and streams its weights into sharded device arrays."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax.data.images.preprocessing import Preprocessing
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError
from vigor_jax.hf import config as hf_config
from vigor_jax.hf import hub, names
from vigor_jax.hf.image_settings import preprocessing_from_hf
from vigor_jax.hf.names import Layout
from vigor_jax.hf.other_folders import describe, refuse_adapter, refuse_part, refuse_quantized, refuse_unmerged
from vigor_jax.hf.weights.tensor_checks import IDENTITY_BIAS as IDENTITY_BIAS
from vigor_jax.hf.weights.tensor_checks import IDENTITY_WEIGHT as IDENTITY_WEIGHT
from vigor_jax.hf.weights.tensor_checks import Stored, canonical, check_identity, check_tensors, tie
from vigor_jax.hf.weights.tensor_checks import expected_shapes as expected_shapes
from vigor_jax.hf.weights.tensor_files import TensorReader
from vigor_jax.json_fields import Fields, exists, read_json
from vigor_jax.models.llava import Llava, LlavaConfig, abstract_llava, param_paths
from vigor_jax.parallel.sharding import partition_spec

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The checkpoint to begin with.

    Attributes:
      path: a llava-hf directory or one of the original LLaVA code, or its name on the Hub (docs/checkpoints.md).
      vision_tower: the same of the CLIP tower of an original checkpoint that does not bring it.
      dtype: type to compute in; what is trained is held in float32 in any case.
    """

    path: str | Path
    vision_tower: str | Path | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
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
    def origin(self) -> str:
        """Where it came from: its directory, or `ORG/NAME@COMMIT` if that is in the cache of the Hub."""
        return hub.origin(self.directory)

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


def open_checkpoint(name: str | Path, vision_tower: str | Path | None = None) -> Checkpoint:
    """Opens a checkpoint without reading its weights; from the Hub, it fetches what the cache lacks.

    Args:
      name: a llava-hf directory or one of the original LLaVA code, or `ORG/NAME` or `ORG/NAME@REVISION` on the Hub.
      vision_tower: the same of the CLIP tower of an original checkpoint that neither contains it nor names a path
        that exists here.

    Raises:
      InputError: a file is missing or damaged, a tensor is missing, unexpected or of another shape, or the config
        asks for something that this model does not have; or the Hub does not give it.
    """
    directory = hub.local_directory(name)
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
    if hf_config.is_original(config):
        return _open_original(directory, config, vision_tower)

    model = hf_config.from_hf(config, path)
    stored = _weights(directory)
    refuse_part(stored, directory)
    tensors = canonical(stored, names.canonical_hf, directory)
    if model.text.tie_word_embeddings:
        tie(tensors, directory)
    if model.projector == "linear":
        check_identity(tensors, directory)
    check_tensors(tensors, model, directory)
    preprocessing = preprocessing_from_hf(_image_processor(directory), model.vision.image_size)
    return _source(directory, "llava-hf", model, preprocessing, tensors)


def _image_processor(directory: Path) -> Fields:
    """What images go through; where both files say it, transformers 5, which alone writes the first, takes that."""
    whole = directory / "processor_config.json"
    if exists(whole):
        fields = Fields.read(whole)
        fields.text("image_token", None, null=True)  # read on export only, which is late for a refusal
        if inside := fields.object("image_processor"):
            return inside
    alone = Fields.read(directory / "preprocessor_config.json")
    return alone.object("image_processor") or alone


def _source(
    directory: Path,
    layout: Layout,
    model: LlavaConfig,
    preprocessing: Preprocessing,
    tensors: Mapping[str, Stored],
) -> Checkpoint:
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
    return Checkpoint(directory, layout, model, preprocessing, tokenizer, tensors)


def _open_original(directory: Path, config: dict[str, Any], vision_tower: str | Path | None) -> Checkpoint:
    path = directory / "config.json"
    fields = Fields(config, path)
    if not (named := fields.text("mm_vision_tower", "")):
        raise InputError(f"{fields.place('mm_vision_tower')} is empty; name the tower, or its directory")
    if vision_tower:
        places = [hub.local_directory(vision_tower)]
    else:
        places = [Path(named), directory / named, directory / "vision_tower"]
    tower = next((place for place in places if exists(place / "config.json")), None)
    # As the original code does.
    is_fetched = tower is None and not vision_tower and hub.is_snapshot(directory) and hub.is_id(named)
    if is_fetched and named not in hf_config.KNOWN_TOWERS:
        tower = hub.local_directory(named)
    if tower:
        vision = hf_config.vision_config(Fields.read(tower / "config.json"))
    elif named in hf_config.KNOWN_TOWERS and not vision_tower:
        vision = hf_config.KNOWN_TOWERS[named]
    else:
        raise InputError(
            f"{path}: the vision tower {str(vision_tower or named)!r} is no directory with a config.json; "
            "give its directory as vision_tower, or ORG/NAME on the Hub"
        )
    model = hf_config.from_original(config, vision, path)

    stored = _weights(directory)
    refuse_part(stored, directory, others=True)
    projector = directory / "mm_projector.bin"
    if not any("mm_projector" in name for name in stored) and exists(projector):
        reader = TensorReader.open_file(projector)
        stored |= {name: Stored(reader, name) for name in reader.names() if "mm_projector" in name}
    if not any(name.startswith(names.ORIGINAL_TOWER) for name in stored):
        if is_fetched:
            tower = hub.local_directory(named)
        if tower is None:
            raise InputError(
                f"{directory}: neither the weights nor a directory hold the vision tower {named!r}; "
                "give its directory as vision_tower, or ORG/NAME on the Hub"
            )
        stored |= {names.ORIGINAL_TOWER + name: tensor for name, tensor in _tower_tensors(tower).items()}
    tensors = canonical(stored, lambda name: names.canonical_original(name, model), directory)
    if model.text.tie_word_embeddings:
        tie(tensors, directory)
    check_tensors(tensors, model, directory)

    pad = (
        fields.choice("image_aspect_ratio", ("square", "pad"), "square", null=True)  # "anyres" is of later models
        == "pad"
    )
    processor = tower and tower / "preprocessor_config.json"
    preprocessing = (
        preprocessing_from_hf(Fields.read(processor), vision.image_size)
        if processor and exists(processor)
        else Preprocessing(vision.image_size)
    )
    preprocessing = dataclasses.replace(preprocessing, pad=pad)
    return _source(directory, "llava", model, preprocessing, tensors)


def _weights(directory: Path) -> dict[str, Stored]:
    """Every tensor of a folder's weights, by the name that it had before the model was wrapped, if it was."""
    hub.fetch_weights(directory)
    reader = TensorReader.open(directory)
    refuse_unmerged(reader.names(), directory)
    plain, wrappers = names.unwrapped(reader.names())
    if wrappers and len(set(plain.values())) == len(plain):
        logger.warning(
            "%s: the names of the weights were saved from a wrapped model; they are read without %s",
            directory,
            ", ".join(wrappers),
        )
        reader = reader.renamed(plain)
    return {name: Stored(reader, name) for name in reader.names()}


def _tower_tensors(directory: Path) -> dict[str, Stored]:
    """The vision half of a CLIP checkpoint, which may bring the text half too."""
    stored = _weights(directory)
    vision = {name: tensor for name, tensor in stored.items() if name.startswith("vision_model.")}
    # transformers 5 leaves the prefix out when it saves a tower alone.
    return vision or {"vision_model." + name: tensor for name, tensor in stored.items()}


def load_llava(
    checkpoint: Checkpoint,
    *,
    mesh: Mesh,
    dtype: Any,
    scan: bool = True,
    master: Callable[[str], bool] | None = None,
) -> Llava:
    """Streams the weights onto the mesh, one tensor at a time; each process reads only what its devices hold.

    Args:
      checkpoint: an open checkpoint.
      mesh: where the weights go, split by `vigor_jax.parallel.sharding.RULES`.
      dtype: of the weights, and so of the computation.
      scan: stacked layers or separate ones, which decoding prefers, see `layers.stacks_inference`.
      master: parameters, by dotted path, that are loaded in float32 instead: those that are to be trained.
    """
    graphdef, state = nnx.split(abstract_llava(checkpoint.config, dtype=dtype, scan=scan))
    variables = param_paths(state)
    targets = {path: _target(path, variable, mesh, dtype, master) for path, variable in variables.items()}
    by_path: dict[str, list[names.Entry]] = {path: [] for path in variables}
    for entry in names.entries(checkpoint.config):
        by_path[entry.path if scan else entry.unstacked_path].append(entry)
    wanted = [(path, entry) for path, entries in by_path.items() for entry in entries]
    reads = (functools.partial(_read, checkpoint.tensors[entry.name], entry, targets[path]) for path, entry in wanted)

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
