"""A LoRA adapter on disk, and what its tensors are called here."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vigor_jax.hf import hub
from vigor_jax.hf.names import LINEAR, Entry
from vigor_jax.hf.weights.tensor_checks import Stored
from vigor_jax.models.lora import A, B
from vigor_jax.models.lora_config import LoraConfig

# What the original LLaVA's trainer keeps besides the adapter's matrices.
OTHERS = "non_lora_trainables.bin"
# What follows a layer's name in the names of its adapter's tensors, here and in PEFT.
SUFFIXES = {A: "lora_A", B: "lora_B"}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter on disk, checked against its base.

    Attributes:
      directory: where it is.
      lora: its sizes; the target is the paths of the layers that have it, layers stacked.
      tensors: canonical name of a layer's kernel, followed by `.lora_A` or `.lora_B` → place on disk.
      full: canonical names of the tensors that it brings whole, which are among those of its checkpoint.
      below: of these, what the base has.
    """

    directory: Path
    lora: LoraConfig
    tensors: Mapping[str, Stored]
    full: frozenset[str]
    below: Mapping[str, Stored]

    @property
    def origin(self) -> str:
        """Where it came from, as `Checkpoint.origin`."""
        return hub.origin(self.directory.resolve())

    def full_paths(self, entries: Sequence[Entry]) -> set[str]:
        """Our parameters that it brings whole; `entries` are those of the model."""
        return {entry.path for entry in entries if entry.name in self.full}

    def read(self, entries: Sequence[Entry]) -> dict[str, np.ndarray]:
        """Its matrices by dotted path, layers stacked, in float32; `entries` are those of the model."""
        found: dict[str, dict[int, np.ndarray]] = {}
        for entry in adapter_entries(entries, self):
            value = self.tensors[entry.name].read().astype(np.float32).transpose(entry.axes)
            found.setdefault(entry.path, {})[entry.layer or 0] = value
        counts = {entry.path.rsplit(".", 1)[0]: 1 + (entry.layer or 0) for entry in entries if entry.layer is not None}
        params = {}
        for path, layers in found.items():
            some_layer, count = next(iter(layers.values())), counts.get(path.rsplit(".", 1)[0])
            stack = [layers.get(i, np.zeros_like(some_layer)) for i in range(count or 1)]
            params[path] = np.stack(stack) if count else stack[0]
        return params


def adapter_entries(entries: Sequence[Entry], adapter: Adapter) -> list[Entry]:
    """The adapter's tensors as `Entry`s: those of layers that it does not change are not there."""
    return [each for entry in entries for each in lora_entries(entry) if each.name in adapter.tensors]


def lora_entries(entry: Entry) -> list[Entry]:
    """The two matrices of a kernel's adapter, wherever the kernel has one."""
    module = entry.path.removesuffix(".kernel")
    if module == entry.path:
        return []
    return [
        Entry(f"{entry.name}.{suffix}", f"{module}.{name}", entry.layer, LINEAR) for name, suffix in SUFFIXES.items()
    ]
