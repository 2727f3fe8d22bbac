"""The files of the original GroundingDINO: a .pth, a config .py, and a BERT directory."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detector_bridge.backends.torch_backend import first_line
from detector_bridge.errors import InputError

TEXT_ENCODERS = ("bert-base-uncased", "text_encoder")


class OriginalFiles(NamedTuple):
    """Where the parts lie; `config` is None where there is none, which means SwinT_OGC."""

    weights: Path
    config: Path | None
    text_encoder: Path

    @classmethod
    def find(cls, model: Path) -> "OriginalFiles":
        """Looks in a directory, or around a .pth.

        Raises:
          InputError: the weights, the config or the BERT directory is missing or not the only one.
        """
        directory = model if model.is_dir() else model.parent
        weights = sorted(directory.glob("*.pth")) if model.is_dir() else [model]
        if not model.exists():
            raise InputError(f"expected a .pth or the directory of one, found none at {model}")
        if len(weights) != 1:
            raise InputError(f"expected one *.pth in {model}, found {len(weights)}: name the file itself")
        configs = sorted(directory.glob("*.py"))
        if len(configs) > 1:
            raise InputError(f"expected at most one config *.py in {directory}, found {len(configs)}")
        for name in TEXT_ENCODERS:
            if (directory / name / "config.json").is_file():
                return cls(weights[0], configs[0] if configs else None, directory / name)
        raise InputError(
            f"expected BERT's config.json and tokenizer in {' or '.join(TEXT_ENCODERS)} in {directory}, found neither"
        )

    def read(self) -> dict[str, Tensor]:
        """The tensors by name, read as data (nothing in the file is executed), without wrappers' prefixes.

        Raises:
          InputError: the file is no checkpoint of tensors.
        """
        try:
            content: Any = torch.load(self.weights, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch each raise their own
            raise InputError(f"no weights could be read from {self.weights}: {first_line(error)}") from error
        tensors = content.get("model", content) if isinstance(content, dict) else None
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise InputError(f"expected tensors by name, under 'model' or at the top, in {self.weights}")
        return {name.removeprefix("module."): value for name, value in tensors.items()}
