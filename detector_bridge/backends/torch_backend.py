"""What all backends in PyTorch share: device, digest, phrases to ids, precision."""

import contextlib
import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from detector_bridge.backends import Scores
from detector_bridge.errors import InputError
from detector_bridge.prompts import Prompt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# All implementations of GroundingDINO cut prompts into phrases at these ids; the original knows no others.
SPECIAL_IDS = {"[PAD]": 0, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
_UNKNOWN = "[UNK]"


class TorchBackend(ABC):
    """What all backends in PyTorch share; `make_prompts`, `resize` and `detect` differ."""

    name: str
    has_text_threshold = True

    def __init__(
        self,
        *,
        model: Path,
        weights: Sequence[Path],
        tokenizer: transformers.PreTrainedTokenizerBase,
        max_tokens: int,
        device: torch.device,
        dtype: str,
        rows_at_once: int,
        versions: dict[str, str],
    ) -> None:
        self.model = model
        self.digest = digest(weights)
        self.device = str(device)
        self.dtype = dtype
        self.max_tokens = max_tokens
        self.versions = versions | {"torch": torch.__version__, "transformers": transformers.__version__}
        self._device = device
        self._rows_at_once = rows_at_once
        # The Rust tokenizer, because calling it changes nothing in it: several threads may.
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # "[SEP]" in a phrase is three words

    def tokenize(self, phrase: str) -> list[int]:
        """Token ids of lower-case text without special tokens."""
        return self._tokenizer.encode(phrase, add_special_tokens=False).ids

    def unknown_words(self, phrase: str) -> list[tuple[str, list[str]]]:
        """The words of a lower-case phrase that the vocabulary lacks, and the pieces or [UNK] that each becomes."""
        found = self._tokenizer.encode(phrase, add_special_tokens=False)
        unknown = []
        for _, group in itertools.groupby(range(len(found.ids)), key=found.word_ids.__getitem__):
            places = list(group)
            pieces = [found.tokens[i] for i in places]
            if len(pieces) > 1 or pieces == [_UNKNOWN]:
                unknown.append((phrase[found.offsets[places[0]][0] : found.offsets[places[-1]][1]], pieces))
        return unknown

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An upright RGB picture, resized and normalized as the model expects it: [3, H, W] float32.

        Raises:
          InputError: the picture is so thin that nothing is left of it.
        """
        try:
            return self.resize(image)
        except ValueError as error:
            raise InputError(
                f"a picture of {image.width} x {image.height} pixels cannot be resized: {first_line(error)}"
            ) from error

    @abstractmethod
    def make_prompts(self, phrases: Sequence[str]) -> list[Prompt]:
        """See `Backend`."""

    @abstractmethod
    def resize(self, image: Image.Image) -> np.ndarray:
        """`prepare` as the implementation does it; a ValueError where nothing is left of the picture."""

    @abstractmethod
    def detect(self, pixels: np.ndarray, prompts: Sequence[Any], image_of: Sequence[int]) -> Scores:
        """See `Backend`."""

    def in_picture(self, scores: Scores, width: int, height: int) -> Scores:
        """See `Backend`; here boxes are relative to the picture already."""
        return scores

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Computes in the backend's precision, without gradients."""
        half = self.dtype != "float32"
        with torch.inference_mode(), torch.autocast(self._device.type, DTYPES[self.dtype], enabled=half):
            yield

    def parts(self, count: int) -> Iterator[slice]:
        """A number of prompts in parts that the model answers at once."""
        return (slice(start, start + self._rows_at_once) for start in range(0, count, self._rows_at_once))


def corners(boxes: Tensor) -> Tensor:
    """[..., 4] boxes as center and size → corners, float32."""
    center, size = boxes.float().split(2, dim=-1)
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def select_device(device: str, dtype: str) -> torch.device:
    """The device, with its index, after a check that it is there and that the precision is known.

    Raises:
      InputError: no such device or precision.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {first_line(error)}") from error


def read_tokenizer(directory: Path) -> transformers.PreTrainedTokenizerBase:
    """A BERT tokenizer, with the ids that the model's masks rely on.

    Raises:
      InputError: there is none, or its special tokens have other ids.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True, use_fast=True)
    except Exception as error:  # libraries raise all kinds for a bad file
        raise InputError(f"no tokenizer could be read from {directory}: {first_line(error)}") from error
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_IDS}
    if found != SPECIAL_IDS:
        raise InputError(
            f"the tokenizer in {directory} must give {SPECIAL_IDS}, got {found}: only BERT's uncased vocabulary serves"
        )
    return tokenizer


def digest(files: Sequence[Path]) -> str:
    """Hexadecimal SHA-256 of the files' bytes, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def check_keys(where: Path, problems: dict[str, Any]) -> None:
    """Fails where any list of keys, by what is wrong with them, is not empty.

    Raises:
      InputError: with every key.
    """
    texts = [f"{kind}: {', '.join(sorted(map(str, keys)))}" for kind, keys in problems.items() if keys]
    if texts:
        raise InputError(f"the weights in {where} do not fit the model that its config describes; {'; '.join(texts)}")


def first_line(error: BaseException) -> str:
    """What an error of a library says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
