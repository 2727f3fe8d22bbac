"""Writes a LoRA adapter: in PEFT's form, or in that of the original LLaVA's trainer."""

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vigor_jax.hf import hub
from vigor_jax.hf.adapter import OTHERS, lora_entries
from vigor_jax.hf.family import Export
from vigor_jax.hf.peft import BASE_KEY, CONFIG, WEIGHTS, base_digest
from vigor_jax.hf.processor_files import write_json
from vigor_jax.hf.weights.merged import fetch
from vigor_jax.hf.weights.safetensors_file import write_safetensors
from vigor_jax.hf.weights.torch_bin_write import write_torch_bin
from vigor_jax.models.lora_config import LoraConfig

logger = logging.getLogger(__name__)

_PREFIX = "base_model.model."


def write_adapter(export: Export, directory: Path | None, out: Path) -> None:
    """Writes the adapter of an export, and what was trained in full next to it.

    Args:
      export: in one of the family's `adapter_layouts`.
      directory: where to; None in a process that only gathers the weights with the others.
      out: what `directory` will be called when it is complete.
    """
    checkpoint, lora = export.checkpoint, export.lora
    assert lora is not None

    def named(name: str) -> str:
        return checkpoint.family.adapter_name(name, export.layout, checkpoint.config)

    matrices: dict[str, np.ndarray] = {}
    adapted: list[str] = []
    for entry in checkpoint.entries:
        if pair := [each for each in lora_entries(entry) if each.path in export.params]:
            adapted.append(entry.name)
        for each in pair:
            module, matrix = named(entry.name).removesuffix(".weight"), each.name.rsplit(".", 1)[1]
            matrices[f"{_PREFIX}{module}.{matrix}.weight"] = fetch(export.params[each.path], each.layer, each.axes)
    whole = {_PREFIX + named(name): value for name, value in full_tensors(export)}
    if directory is None:
        return
    apart = export.layout != checkpoint.family.adapter_layouts[0]  # LLaVA's trainer keeps the two apart
    written = {
        name: np.ascontiguousarray(value.astype(export.dtype or np.float32))
        for name, value in (matrices if apart else matrices | whole).items()
    }
    metadata = {BASE_KEY: base_digest(checkpoint, adapted)}
    write_safetensors(directory / f"{WEIGHTS}.safetensors", written, metadata)
    modules = [] if apart else sorted({name.removeprefix(_PREFIX).rsplit(".", 1)[0] for name in whole})
    if modules and any(module.startswith("model.vision_tower") for module in modules):
        logger.warning(
            "export: %s brings the vision tower whole, which PEFT leaves out without a word under transformers 5; use "
            "it with transformers 4 or here, or export it merged, with layout: %s", out, checkpoint.family.layouts[0],
        )  # fmt: skip
    target = target_modules([named(name).removesuffix(".weight") for name in adapted])
    write_json(directory / CONFIG, peft_config(lora, target, modules, hub.origin(checkpoint.directory.resolve())))
    if not apart:
        return
    half = np.dtype(np.float16)  # as its trainer saves them
    write_torch_bin(directory / OTHERS, {name: value.astype(export.dtype or half) for name, value in whole.items()})
    write_json(directory / "config.json", checkpoint.family.adapter_config(export))
    if not re.search("llava.*lora|lora.*llava", out.name, re.IGNORECASE):
        logger.warning(
            "export: the original code takes a folder for an adapter only if its name has llava and lora in it; rename "
            "%s, such as to llava-lora, before you use it there", out,
        )  # fmt: skip


def full_tensors(export: Export) -> Iterator[tuple[str, np.ndarray]]:
    """What an adapter brings besides its matrices: what was trained in full, or what the one it continues brings."""
    adapter = export.checkpoint.adapter
    brought = adapter.full if adapter else frozenset()
    for entry in export.checkpoint.entries:
        if entry.path in export.params:
            yield entry.name, fetch(export.params[entry.path], entry.layer, entry.axes)
        elif entry.name in brought:
            yield entry.name, export.checkpoint.tensors[entry.name].read()


def target_modules(modules: Sequence[str]) -> str:
    """A regular expression for whole names of modules that covers these and, of other layers, the same.

    PEFT takes a list of `q_proj` and its like for those of the image tower, too.
    """
    kinds: dict[str, dict[str, None]] = {}
    for module in modules:
        found = re.fullmatch(r"(?P<stem>(?:.*?\.)?)(?P<layer>\d+\.)?(?P<leaf>[^.]+(\.[^.\d][^.]*)?)", module)
        assert found is not None, module
        stem = re.escape(found["stem"]) + (r"\d+\." if found["layer"] else "")
        kinds.setdefault(stem, {})[re.escape(found["leaf"])] = None
    parts = [f"{stem}({'|'.join(leaves)})" for stem, leaves in kinds.items()]
    # transformers 5 calls a tower's modules by shorter names than 4.
    return "|".join(parts).replace(r"vision_tower\.vision_model\.", r"vision_tower\.(vision_model\.)?")


def peft_config(lora: LoraConfig, target: str, whole: Sequence[str], base: str) -> dict[str, Any]:
    """An adapter_config.json.

    Args:
      lora: its sizes.
      target: regular expression that covers the names of its layers.
      whole: modules that it brings whole.
      base: `Checkpoint.origin` of its base.
    """
    name, _, revision = base.partition("@") if not Path(base).is_absolute() else (base, "", "")
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision or None,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "target_modules": target,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": lora.rslora,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": list(whole) or None,
        "inference_mode": True,
    }
