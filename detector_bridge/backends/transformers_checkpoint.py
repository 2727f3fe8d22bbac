"""A checkpoint of a detector in the layout of the transformers library; 4.57 and 5.x."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from detector_bridge.backends.torch_backend import check_keys, first_line
from detector_bridge.errors import InputError

_ONE_VERSION = re.compile(r"relative_position_index|\.swin\.layernorm\.")
GROUNDING_DINO = "GroundingDINO"


@dataclass(frozen=True)
class Options:
    """How a checkpoint is opened.

    Attributes:
      place: the device.
      dtype: of the computation.
      short_side: pixels of a picture's shorter side, instead of the checkpoint's.
      long_side: most pixels of its longer side, instead of the checkpoint's.
      rows_at_once: most prompts that the model answers at once.
    """

    place: torch.device
    dtype: str
    short_side: int | None
    long_side: int | None
    rows_at_once: int

    @property
    def shared(self) -> dict[str, Any]:
        """What every backend is made with."""
        return {"device": self.place, "dtype": self.dtype, "rows_at_once": self.rows_at_once}


def model_type(model: Path) -> str:
    """What kind of model a checkpoint is, as its config says.

    Raises:
      InputError: there is no checkpoint, or no config that says it.
    """
    weights_of(model)
    try:
        return str(json.loads((model / "config.json").read_bytes())["model_type"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"no detector could be read from {model}: expected a config.json that has a model_type "
            f"({first_line(error)})"
        ) from error


def read_network(model: Path, name: str = GROUNDING_DINO, class_name: str = "GroundingDinoForObjectDetection") -> Any:
    """The network of a checkpoint, in float32 on the CPU.

    Args:
      model: directory.
      name: of the kind of model, for errors.
      class_name: of the library's class.

    Raises:
      InputError: files or weights are missing, left over, or of another model; or the library is too old for it.
    """
    weights = weights_of(model)
    model_class: Any = getattr(transformers, class_name, None)
    if model_class is None:
        raise InputError(f"{model} is a {name}, which transformers {transformers.__version__} does not have; update it")
    try:
        config = transformers.AutoConfig.from_pretrained(model, local_files_only=True)
        if not isinstance(config, model_class.config_class) or not getattr(config, "two_stage", True):
            kind = model_class.config_class.model_type
            wanted = f"two-stage {kind}" if "grounding-dino" in kind else kind
            raise InputError(f"expected a {wanted} in {model}, got a {config.model_type}")
        network, problems = model_class.from_pretrained(
            model,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=weights[0].suffix == ".safetensors",
            output_loading_info=True,
        )
    except InputError:
        raise
    except Exception as error:  # the library raises all kinds for bad files
        raise InputError(f"no {name} could be read from {model}: {first_line(error)}") from error
    # Neither version needs what only the other writes: an index of version 4, a norm that version 5 passes by.
    found = {
        kind: [key for key in problems[f"{kind}_keys"] if not _ONE_VERSION.search(str(key))]
        for kind in ("missing", "unexpected", "mismatched")
    }
    check_keys(model, found)
    return network


def weights_of(model: Path) -> list[Path]:
    """The weights files of a checkpoint: safetensors where there are any.

    Raises:
      InputError: no such directory, or no weights in it.
    """
    if not model.is_dir():
        raise InputError(f"expected the directory of a checkpoint, found none at {model}")
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        if files := sorted(model.glob(pattern)):
            return files
    raise InputError(f"expected weights as model*.safetensors or pytorch_model*.bin in {model}, found none")


def read_processor(model: Path, class_names: Sequence[str]) -> Any:
    """The image processor of a checkpoint, one that needs no torchvision.

    Args:
      model: directory.
      class_names: transformers 5 and 4 name it differently; the first that there is counts.

    Raises:
      InputError: it cannot be read.
    """
    try:
        processor_class: Any = next(filter(None, (getattr(transformers, name, None) for name in class_names)))
        return processor_class.from_pretrained(model, local_files_only=True)
    except Exception as error:  # the library raises all kinds for a bad file
        raise InputError(f"no image processor could be read from {model}: {first_line(error)}") from error
