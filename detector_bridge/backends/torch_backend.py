"""What the two PyTorch backends share: device, digest, phrases to ids, padding, and scores from raw outputs."""

import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from detector_bridge.backends import Scores
from detector_bridge.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Both implementations cut prompts into phrases at these ids; one of them knows no others.
SPECIAL_IDS = {"[PAD]": 0, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
_UNKNOWN = "[UNK]"
_PROBE = 256


class Prompts(NamedTuple):
    """R prompts of token ids as one batch; all are [R, T] int64, and padding has id 0 and mask 0."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor

    @classmethod
    def pad(cls, prompts: Sequence[Sequence[int]]) -> "Prompts":
        """Pads at the end to the longest prompt."""
        rows = [torch.tensor(list(prompt), dtype=torch.int64) for prompt in prompts]
        mask = [torch.ones_like(row) for row in rows]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return cls(ids, nn.utils.rnn.pad_sequence(mask, batch_first=True), torch.zeros_like(ids))


class Grid(NamedTuple):
    """How a model divides a picture into the encoder positions from which it picks its queries.

    Attributes:
      strides: pixels per cell of every feature map that the backbone gives.
      round_up: whether a map covers a picture's remainder by its own cell (Swin) or leaves it out (ConvNeXt).
      extra_levels: further maps, each half the one before, rounded up.
      queries: as many positions are needed, else the model's top-k fails.
    """

    strides: tuple[int, ...]
    round_up: bool
    extra_levels: int
    queries: int

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, int]], levels: int, queries: int) -> "Grid":
        """From the backbone's shapes for the picture of `probe`: its width is one more than its height."""
        strides = tuple(_PROBE // height for height, _ in shapes)
        return cls(strides, shapes[0][1] > shapes[0][0], levels - len(shapes), queries)

    @staticmethod
    def probe(device: torch.device) -> Tensor:
        """A blank picture whose feature maps tell the strides and how remainders are treated."""
        return torch.zeros(1, 3, _PROBE, _PROBE + 1, device=device)

    def fits(self, height: int, width: int) -> bool:
        """Whether a picture gives enough positions, at least one of them in every map."""
        halve = math.ceil if self.round_up else math.floor
        maps = [(halve(height / stride), halve(width / stride)) for stride in self.strides]
        for _ in range(self.extra_levels):
            maps.append((math.ceil(maps[-1][0] / 2), math.ceil(maps[-1][1] / 2)))
        areas = [rows * columns for rows, columns in maps]
        return min(areas) > 0 and sum(areas) >= self.queries

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The smallest size to pad a picture to: its own where that is enough.

        Sizes that need padding become multiples of the coarsest stride, so that masks, which both implementations
        shrink by taking the nearest pixel, count the same cells as the unpadded picture has.
        """
        if self.fits(height, width):
            return height, width
        coarsest = self.strides[-1] * 2**self.extra_levels
        height, width = (math.ceil(side / coarsest) * coarsest for side in (height, width))
        while not self.fits(height, width):
            height, width = (height + coarsest, width) if height <= width else (height, width + coarsest)
        return height, width


class TorchBackend(ABC):
    """A `Backend` in PyTorch. What differs between implementations is in `resize`, `forward` and `forget`."""

    name: str

    def __init__(
        self,
        *,
        model: Path,
        weights: Sequence[Path],
        tokenizer: transformers.PreTrainedTokenizerBase,
        grid: Grid,
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
        self._grid = grid
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

    def detect(self, pixels: np.ndarray, prompts: Sequence[Sequence[int]], image_of: Sequence[int]) -> Scores:
        """Runs the model; each picture goes through the vision backbone once, however many prompts ask about it.

        Pictures too small for as many encoder positions as the model has queries are padded with zeros at the bottom
        and right, and masked; boxes stay relative to the picture, since the model divides by its valid part.

        Args:
          pixels: [B, 3, H, W] float32: pictures of one size, from `prepare`.
          prompts: R prompts of token ids, [CLS] and [SEP] included, every phrase followed by a dot.
          image_of: for each prompt, which of the B pictures it asks about.

        Raises:
          InputError: a prompt is longer than `max_tokens`, or `image_of` names no picture.
        """
        longest = max(map(len, prompts))
        if longest > self.max_tokens:
            raise InputError(f"a prompt has {longest} tokens but the model takes {self.max_tokens}: split it")
        if len(image_of) != len(prompts) or not all(0 <= image < len(pixels) for image in image_of):
            raise InputError(
                f"image_of must name one of {len(pixels)} pictures for each of {len(prompts)} prompts, "
                f"got {list(image_of)}"
            )
        height, width = pixels.shape[-2:]
        padded_height, padded_width = self._grid.padded(height, width)
        pictures = torch.zeros(len(pixels), 3, padded_height, padded_width, device=self._device)
        pictures[:, :, :height, :width] = torch.from_numpy(pixels)
        valid = torch.zeros(1, padded_height, padded_width, dtype=torch.bool, device=self._device)
        valid[:, :height, :width] = True
        batch = Prompts(*(part.to(self._device) for part in Prompts.pad(prompts)))
        rows = torch.tensor(list(image_of), device=self._device)
        half = self.dtype != "float32"
        found = []
        try:
            with torch.inference_mode(), torch.autocast(self._device.type, DTYPES[self.dtype], enabled=half):
                # A thousand phrases make a dozen prompts: how much memory a picture needs must not depend on it.
                for start in range(0, len(rows), self._rows_at_once):
                    part = slice(start, start + self._rows_at_once)
                    found.append(self.forward(pictures, valid, Prompts(*(ids[part] for ids in batch)), rows[part]))
        finally:
            self.forget()
        logits, boxes = (torch.cat(parts) for parts in zip(*found, strict=True))
        tokens = logits[..., :longest].float().sigmoid()
        center, size = boxes.float().split(2, dim=-1)
        boxes_xyxy = torch.cat([center - size / 2, center + size / 2], dim=-1).clamp(0, 1)
        return Scores(tokens.cpu().numpy(), boxes_xyxy.cpu().numpy())

    @abstractmethod
    def resize(self, image: Image.Image) -> np.ndarray:
        """`prepare` as the implementation does it; a ValueError where nothing is left of the picture."""

    @abstractmethod
    def forward(self, pictures: Tensor, valid: Tensor, prompts: Prompts, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the model; the backbone looks at the pictures in the first call after `forget` only.

        Args:
          pictures: [B, 3, H, W] float32.
          valid: [1, H, W] bool: the part of every picture that is no padding.
          prompts: R prompts.
          rows: [R] int64: the picture each prompt asks about.

        Returns:
          Logits [R, Q, max_tokens], -inf beyond a prompt's end, and boxes [R, Q, 4] as center and size in [0, 1].
        """

    @abstractmethod
    def forget(self) -> None:
        """Lets the pictures go that the backbone has seen."""


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
