"""The head of a reward model in the file `reward_head` next to its weights, as LLaVA-RLHF keeps it.

It is a PyTorch state dict of a linear layer: `weight` [1, D] and `bias` [1].
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from vigor_jax.errors import InputError
from vigor_jax.hf import hub
from vigor_jax.hf.peft import CONFIG as ADAPTER_CONFIG
from vigor_jax.hf.weights.torch_bin import torch_tensors
from vigor_jax.hf.weights.torch_bin_write import write_torch_bin
from vigor_jax.json_fields import exists, show

FILE = "reward_head"
# Where LLaVA-RLHF's trainer has the adapter below the folder of a checkpoint.
_ADAPTER_FOLDERS = ("adapter_model/lora_default", "adapter_model")


class RewardHead(NamedTuple):
    """A reward is kernel · state + bias.

    Attributes:
      kernel: of D states.
      bias: added.
    """

    kernel: Float32[np.ndarray, " D"]
    bias: float


def weights_folder(name: str | Path) -> Path:
    """The folder of a reward model's weights: what is named, or the adapter within a checkpoint of LLaVA-RLHF's.

    Raises:
      InputError: the Hub does not give it.
    """
    directory = hub.local_directory(name)
    if not exists(directory / "config.json") and not exists(directory / ADAPTER_CONFIG):
        for folder in _ADAPTER_FOLDERS:
            if exists(directory / folder / ADAPTER_CONFIG):
                return directory / folder
    return directory


def head_file(weights: Path) -> Path | None:
    """The file of the head of these weights, in their folder or above LLaVA-RLHF's; None if there is none."""
    places = [weights]
    for folder in _ADAPTER_FOLDERS:
        if weights.as_posix().endswith(f"/{folder}"):
            places.append(weights.parents[folder.count("/")])
    return next((place / FILE for place in places if exists(place / FILE)), None)


def read_head(weights: Path, width: int) -> RewardHead:
    """The head of a reward model.

    Args:
      weights: the folder of its weights.
      width: of the model's states.

    Raises:
      InputError: there is none, it is damaged, or it is for states of another width.
    """
    if (path := head_file(weights)) is None:
        raise InputError(
            f"{weights} has no file {FILE}, so it is no reward model; give the folder that train_preference_reward "
            "exported, or put LLaVA-RLHF's file next to the adapter"
        )
    tensors = torch_tensors(path)
    if tensors.keys() != {"weight", "bias"}:
        raise InputError(f"{path}: expected the tensors weight and bias, got {show(', '.join(sorted(tensors)))}")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if shapes != {"weight": [1, width], "bias": [1]}:
        raise InputError(
            f"{path}: expected weight [1, {width}] and bias [1], for the model's states have {width} numbers, got "
            f"weight {shapes['weight']} and bias {shapes['bias']}; give the head that was trained with this model"
        )
    kernel, bias = (tensors[name].read().astype(np.float32).reshape(-1) for name in ("weight", "bias"))
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise InputError(f"{path}: its numbers are not finite; copy it again")
    return RewardHead(kernel, float(bias[0]))


def write_head(head: RewardHead, path: Path) -> None:
    """Writes the file, in float32."""
    kernel, bias = (np.asarray(value, np.float32) for value in (head.kernel, [head.bias]))
    write_torch_bin(path, {"weight": kernel[None], "bias": bias})


def digest(head: RewardHead) -> str:
    """SHA-256 of its numbers."""
    return hashlib.sha256(head.kernel.astype(np.float32).tobytes() + np.float32(head.bias).tobytes()).hexdigest()
