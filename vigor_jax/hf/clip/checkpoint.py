"""Opens a whole CLIP, loads its weights, and says whether its vision tower is that of a policy."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vigor_jax.data.images.preprocessing import Preprocessing
from vigor_jax.data.text.clip_tokenizer import ClipTokenizer
from vigor_jax.errors import InputError
from vigor_jax.hf import hub
from vigor_jax.hf.clip.config import read_config
from vigor_jax.hf.clip.names import LOGIT_SCALE, PROJECTIONS, entries
from vigor_jax.hf.family import Checkpoint
from vigor_jax.hf.image_settings import preprocessing_from_hf
from vigor_jax.hf.load import load_weights
from vigor_jax.hf.processor_files import image_processor
from vigor_jax.hf.weights.tensor_checks import Stored, add_to_digest, canonical, check_tensors, stored_weights
from vigor_jax.models.clip import Clip, ClipPairConfig
from vigor_jax.models.vlm import abstract_model


@dataclasses.dataclass(frozen=True)
class ClipCheckpoint:
    """A whole CLIP on disk, checked.

    Attributes:
      directory: where it is.
      config: sizes of the model.
      preprocessing: what its images go through.
      tokenizer: its tokenizer.
      tensors: name → place on disk.
      logit_scale: the scale of its training, no weight of the towers; None where the checkpoint lacks it.
    """

    directory: Path
    config: ClipPairConfig
    preprocessing: Preprocessing
    tokenizer: ClipTokenizer
    tensors: Mapping[str, Stored]
    logit_scale: Stored | None = None

    @property
    def origin(self) -> str:
        """Where it came from: its directory, or `ORG/NAME@COMMIT` if that is in the cache of the Hub."""
        return hub.origin(self.directory)

    def digest(self) -> str:
        """Names the checkpoint: SHA-256 of sizes, tokenizer, image settings and a few rows of every tensor."""
        total = hashlib.sha256(f"{self.config} {self.preprocessing!r} {self.tokenizer.digest()}".encode())
        add_to_digest(total, self.tensors)
        return total.hexdigest()

    def scale(self) -> float:
        """What the CLIP multiplies cosines by, so that a softmax over texts makes probabilities (100 in OpenAI's).

        Raises:
          InputError: the checkpoint lacks it, or it is no number above 0.
        """
        if self.logit_scale is None:
            raise InputError(
                f"{self.directory} has no {LOGIT_SCALE}, by which cosines become probabilities; give a whole CLIP, "
                "such as openai/clip-vit-large-patch14-336"
            )
        stored = self.logit_scale.read().astype(np.float64).reshape(-1)
        with np.errstate(over="ignore"):
            scale = np.exp(stored)
        if scale.size != 1 or not (np.isfinite(scale).all() and scale[0] > 0):
            raise InputError(
                f"{self.directory}: {LOGIT_SCALE}: expected the logarithm of a scale, one finite number, got "
                f"{stored.tolist()[:3]}; download the weights again"
            )
        return float(scale[0])

    def load(self, *, mesh: Mesh, dtype: Any, scan: bool) -> Clip:
        """Streams the weights onto the mesh; see `hf.load.load_model`."""
        abstract = abstract_model(self.config, dtype=dtype, scan=scan)
        return load_weights(abstract, entries(self.config), self.tensors, mesh=mesh, dtype=dtype, scan=scan)


def open_clip(name: str | Path) -> ClipCheckpoint:
    """Opens a CLIP without reading its weights; from the Hub, it fetches what the cache lacks.

    Args:
      name: a directory that transformers' CLIPModel loads, or `ORG/NAME` or `ORG/NAME@REVISION` on the Hub.

    Raises:
      InputError: a file is missing or damaged, a tensor is missing, unexpected or of another shape, or the model is
        another one; or the Hub does not give it.
    """
    directory = hub.local_directory(name)
    if not directory.is_dir():
        raise InputError(
            f"{directory} is no directory; give the directory of a CLIP checkpoint, or ORG/NAME on the Hub"
        )
    config = read_config(directory)
    stored = stored_weights(directory)
    if lacking := [each for each in PROJECTIONS if f"{each}.weight" not in stored]:
        raise InputError(
            f"{directory} has no {' and no '.join(lacking)}: it holds a part of a CLIP only; give a whole one, such as "
            "openai/clip-vit-large-patch14-336"
        )
    logit_scale = stored.pop(LOGIT_SCALE, None)
    tensors = canonical(stored, lambda name: name, directory)
    check_tensors(tensors, config, entries, directory)
    preprocessing = preprocessing_from_hf(image_processor(directory), config.vision.image_size)
    mean, std = preprocessing.scaled_mean, preprocessing.scaled_std
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, image_mean=mean, image_std=std))
    tokenizer = ClipTokenizer(
        directory / "tokenizer.json",
        max_length=config.text.max_position_embeddings,
        vocab_size=config.text.vocab_size,
        end_token_id=config.text.end_token_id,
    )
    return ClipCheckpoint(directory, config, preprocessing, tokenizer, tensors, logit_scale)


def compare_towers(clip: ClipCheckpoint, policy: Checkpoint) -> str:
    """Whether the vision weights of a CLIP are those of a policy's tower, in one line.

    Values of different types are compared in the one with fewer bits, for a policy is often stored in half precision.
    """
    ours = {name: tensor for name, tensor in clip.tensors.items() if name.startswith("vision_model.")}
    theirs = {name: policy.tensors.get(f"vision_tower.{name}") for name in ours}
    shared = {name: tensor for name, tensor in theirs.items() if tensor is not None}
    if not shared or any(tensor.shape != ours[name].shape for name, tensor in shared.items()):
        return "the policy's vision tower is another model than the verifier's"
    different = [name for name, tensor in shared.items() if not _is_equal(ours[name], tensor)]
    if not different:
        return f"the policy's vision tower has the verifier's weights ({len(shared)} of {len(ours)} tensors, all equal)"
    return (
        f"the policy's vision tower has other weights than the verifier's ({len(different)} of {len(shared)} tensors "
        f"differ, {different[0]} first)"
    )


def _is_equal(one: Stored, other: Stored) -> bool:
    narrow = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    left, right = one.read().astype(narrow), other.read().astype(narrow)
    return bool(np.array_equal(left, right))
