"""Reads LoRA adapters of others: PEFT's folders, and those of the original LLaVA's trainer.

Both have `adapter_config.json` and `adapter_model.safetensors` (or `.bin`), and call the same tensors by other names.
The original's has the model's `config.json` and, in `non_lora_trainables.bin`, the projector, too.
"""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from vigor_jax.errors import InputError, some
from vigor_jax.hf import hub
from vigor_jax.hf.adapter import OTHERS, SUFFIXES, Adapter, lora_entries
from vigor_jax.hf.family import Checkpoint
from vigor_jax.hf.names import FINAL_NORM, Entry, text_entries
from vigor_jax.hf.other_folders import has_whole_model, refuse_adapter
from vigor_jax.hf.weights.safetensors_file import safetensors_metadata
from vigor_jax.hf.weights.tensor_checks import Stored
from vigor_jax.hf.weights.tensor_files import TensorReader
from vigor_jax.json_fields import Fields, exists, read_json, show
from vigor_jax.models.lora import A
from vigor_jax.models.lora_config import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model"
BASE_KEY = "base"
"""In the metadata of a weights file of ours: `base_digest` of the model that it was trained on."""

_TENSOR = re.compile(r"(?P<module>.+)\.(?P<matrix>lora_[AB])(\.default)?\.weight")
# PEFT's features that change what the adapter's matrices mean; each is off where it is absent, null, false or empty.
_UNSUPPORTED = (
    *("use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "layer_replication", "target_parameters"),
    *("trainable_token_indices", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config"),
    *("monteclora_config", "velora_config"),
)
# Those of its ways to begin that leave the base as it is.
_BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal", None)


def is_adapter(directory: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return exists(directory / CONFIG) and not has_whole_model(directory)


def base_of(directory: Path) -> Path:
    """The folder of the model that an adapter was made for.

    Raises:
      InputError: it is not there, the adapter does not say which it is, or is no LoRA adapter.
    """
    fields = Fields.read(directory / CONFIG)
    _check_supported(fields, directory)
    named = fields.text("base_model_name_or_path", "", null=True) or ""
    revision = fields.text("revision", "", null=True)
    why = "is not here"
    if hub.is_id(named):
        try:
            return hub.local_directory(f"{named}@{revision}" if revision and "@" not in named else named)
        except InputError as error:
            why = f"cannot be had ({error})"
    for place in (Path(named).expanduser(), directory / named) if named else ():
        if exists(place / "config.json"):
            return place
    raise InputError(
        f"{directory} holds an adapter for {show(named) if named else 'a model that it does not name'}, which {why}; "
        f"give the base and the adapter apart: --model BASE --model.adapter {directory}; or merge them: python -m "
        f"vigor_jax.export --checkpoint {directory} --base BASE --out MERGED --layout llava-hf"
    )


def trained_on(directory: Path) -> str | None:
    """`base_digest` of the model that an adapter of ours was trained on; None of one by others."""
    file = directory / f"{WEIGHTS}.safetensors"
    return safetensors_metadata(file).get(BASE_KEY) if exists(file) else None


def with_adapter(checkpoint: Checkpoint, directory: Path) -> Checkpoint:
    """A checkpoint with an adapter on top of its weights, which stay as they are.

    Args:
      checkpoint: the base, without an adapter.
      directory: of the adapter.

    Raises:
      InputError: there is no adapter, it is damaged, of a kind that is not supported, or made for another model.
    """
    path = directory / CONFIG
    if not exists(path):
        if directory.is_dir():
            refuse_adapter(directory)
        raise InputError(
            f"adapter: {directory} has no {CONFIG}; give the folder of a LoRA adapter, or ORG/NAME on the Hub"
        )
    fields = Fields.read(path)
    _check_supported(fields, directory)
    hub.fetch_weights(directory)
    reader = TensorReader.open(directory, WEIGHTS)
    stored = {name: Stored(reader, name) for name in reader.names()}
    if exists(directory / OTHERS):
        others = TensorReader.open_file(directory / OTHERS)
        stored |= {name: Stored(others, name) for name in others.names()}

    matrices, full = _by_canonical_name(stored, checkpoint, directory)
    _check_base(matrices, checkpoint, directory)
    lora = _lora(fields, matrices, checkpoint, directory)
    return dataclasses.replace(
        checkpoint,
        tensors={**checkpoint.tensors, **full},
        adapter=Adapter(directory, lora, matrices, frozenset(full), _some(checkpoint.tensors, full)),
    )


def begun_with(checkpoint: Checkpoint) -> dict[str, str]:
    """What the record of a training run says of the model that it began with, for those who export it."""
    found = {"base": hub.origin(checkpoint.directory.absolute()), "base_digest": _text_digest(checkpoint)}
    needs_adapter = checkpoint.adapter is not None and not checkpoint.is_whole
    return found | ({"adapter": hub.origin(checkpoint.described_in.absolute())} if needs_adapter else {})


def check_begun_with(record: Fields, checkpoint: Checkpoint) -> None:
    """Refuses a model that is not the one of `begun_with`; records of earlier versions say too little for that.

    Raises:
      InputError: it is another one.
    """
    if record.text("base_digest", "") not in ("", _text_digest(checkpoint)):
        raise InputError(
            f"{record.path} is of a training that began with {record.text('base', '')}, and the weights of "
            f"{checkpoint.directory} differ from those; give the model that training began with (--base, or model.path "
            "in a run)"
        )


def _text_digest(checkpoint: Checkpoint) -> str:
    """`base_digest` of the language model's layers, which all layouts store alike."""
    layers = text_entries(checkpoint.config.text)
    return base_digest(checkpoint, [each.name for each in layers if each.layer is not None and lora_entries(each)])


def base_digest(checkpoint: Checkpoint, kernels: Sequence[str]) -> str:
    """Names the model below an adapter: SHA-256 of a few rows of the kernels that have it, and of the final norm.

    The same whatever layout and type the base is stored in, as long as the type holds its values.
    """
    total = hashlib.sha256()
    tensors = {**checkpoint.tensors, **(checkpoint.adapter.below if checkpoint.adapter else {})}
    for name in sorted({*kernels, FINAL_NORM}):
        tensor = tensors[name]
        rows = tensor.shape[0]
        for row in sorted({0, rows // 2, rows - 1}):
            total.update(tensor.read((slice(row, row + 1),)).astype(np.float32).tobytes())
    return total.hexdigest()


def _some(tensors: Mapping[str, Stored], names: Collection[str]) -> dict[str, Stored]:
    return {name: tensors[name] for name in names if name in tensors}


def _check_supported(fields: Fields, directory: Path) -> None:
    """Refuses what is no plain LoRA."""
    if fields.text("peft_type", "LORA", null=True) not in ("LORA", None):
        refuse_adapter(directory)
    for key in _UNSUPPORTED:
        if fields.values.get(key):
            raise InputError(
                f"{fields.place(key)} {show(fields.values[key])} is not supported, only plain LoRA; merge {directory} "
                "into its base with peft's merge_and_unload() and give the result"
            )
    if (bias := fields.text("bias", "none", null=True)) not in ("none", None):
        raise InputError(f"{fields.place('bias')} {show(bias)} is not supported, only none; train without biases")
    if (begins := fields.values.get("init_lora_weights")) not in _BEGINNINGS:
        raise InputError(
            f"{fields.place('init_lora_weights')} {show(begins)} is not supported: it changes the base, too; save the "
            "adapter with PEFT's path_initial_model_for_weight_conversion"
        )


def _by_canonical_name(
    stored: Mapping[str, Stored], checkpoint: Checkpoint, directory: Path
) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """The matrices, and the tensors that are brought whole."""
    family = checkpoint.family
    wanted = {entry.name: entry for entry in family.entries(checkpoint.config)}
    matrices: dict[str, Stored] = {}
    full: dict[str, Stored] = {}
    unknown, wrong = [], []
    for name, tensor in stored.items():
        plain = name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
        match = _TENSOR.fullmatch(plain)
        plain = f"{match['module']}.weight" if match else plain
        spellings = (canonical for canonical in family.spellings(plain, checkpoint.config) if canonical in wanted)
        if (found := next(spellings, None)) is None or (match and not lora_entries(wanted[found])):
            unknown.append(name)
            continue
        there = checkpoint.tensors[found].shape
        if match is None:
            full[found] = tensor
            if tensor.shape != there:
                wrong.append(f"{name} (expected {list(there)}, got {list(tensor.shape)})")
            continue
        matrices[f"{found}.{match['matrix']}"] = tensor
        at, side = (1, "inputs") if match["matrix"] == SUFFIXES[A] else (0, "outputs")
        if len(tensor.shape) != 2 or tensor.shape[at] != there[at]:
            wrong.append(f"{name} (expected {there[at]} {side}, got shape {list(tensor.shape)})")
    if unknown:
        raise InputError(
            f"{directory}: {len(unknown)} tensors are for layers that {checkpoint.directory} does not have, or of a "
            f"kind that is not supported: {some(unknown, 3)}; give the model that the adapter was made for"
        )
    if wrong:
        raise InputError(
            f"{directory}: {len(wrong)} tensors have other sizes than {checkpoint.directory}: {some(wrong, 3)}; give "
            "the model that the adapter was made for"
        )
    if not matrices:
        raise InputError(f"{directory} holds no LoRA matrices; give the folder that PEFT's save_pretrained wrote")
    return matrices, full


def _check_base(matrices: Mapping[str, Stored], checkpoint: Checkpoint, directory: Path) -> None:
    """Refuses a model that is not the one that an adapter of ours was trained on."""
    kernels = sorted({name.rsplit(".", 1)[0] for name in matrices})
    if (digest := trained_on(directory)) is not None and digest != base_digest(checkpoint, kernels):
        named = read_json(directory / CONFIG).get("base_model_name_or_path")
        raise InputError(
            f"{directory} was trained on another model: the weights of {checkpoint.directory} differ from those; give "
            f"the model that the adapter was made for ({show(named)})"
        )


def _lora(fields: Fields, matrices: Mapping[str, Stored], checkpoint: Checkpoint, directory: Path) -> LoraConfig:
    """The sizes of an adapter whose matrices fit its base."""
    rank = fields.integer("r", 8, least=1, most=1 << 20)
    for name, tensor in matrices.items():
        at = 0 if name.endswith(SUFFIXES[A]) else 1
        if tensor.shape[at] != rank:
            raise InputError(f"{directory}: {tensor.name} has rank {tensor.shape[at]}, but {CONFIG} says r {rank}")
    by_path: dict[str, list[Entry]] = {}
    for entry in checkpoint.entries:
        if lora_entries(entry):
            by_path.setdefault(entry.path.removesuffix(".kernel"), []).append(entry)
    target = []
    for path, own in by_path.items():
        wanted = [each.name for entry in own for each in lora_entries(entry)]
        missing = [name for name in wanted if name not in matrices]
        if len(missing) == len(wanted):
            continue
        alone = [name for name in missing if name.rsplit(".", 1)[0] in {have.rsplit(".", 1)[0] for have in matrices}]
        some_layers = fields.values.get("layers_to_transform") is not None
        if alone or (missing and not some_layers):
            raise InputError(
                f"{directory} lacks {len(missing)} of the tensors of its layers, {(alone or missing)[0]} first; "
                "copy its weights again"
            )
        target.append(path)
    alpha = fields.number("lora_alpha", 8.0, least=1e-9, most=1e9)
    return LoraConfig(rank, alpha, tuple(target), rslora=fields.boolean("use_rslora", False, null=True))
