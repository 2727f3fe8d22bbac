"""GroundingDINO in PyTorch, whichever library builds it: many phrases in one caption, and scores of its tokens."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from detector_bridge.backends import Scores
from detector_bridge.backends.torch_backend import TorchBackend, corners
from detector_bridge.errors import InputError
from detector_bridge.prompts import Prompt, make_prompts

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


class GroundingBackend(TorchBackend):
    """What the implementations share. What differs between them is in `resize`, `forward` and `forget`."""

    def __init__(self, *, grid: Grid, **parts: Any) -> None:
        super().__init__(**parts)
        self._grid = grid

    def make_prompts(self, phrases: Sequence[str]) -> list[Prompt]:
        """See `Backend`: captions of phrases, each phrase closed by a dot."""
        return make_prompts(phrases, self.tokenize, self.max_tokens)

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
        found = []
        try:
            with self.computing():
                # A thousand phrases make a dozen prompts: how much memory a picture needs must not depend on it.
                for part in self.parts(len(rows)):
                    found.append(self.forward(pictures, valid, Prompts(*(ids[part] for ids in batch)), rows[part]))
        finally:
            self.forget()
        logits, boxes = (torch.cat(parts) for parts in zip(*found, strict=True))
        tokens = logits[..., :longest].float().sigmoid()
        return Scores(tokens.cpu().numpy(), corners(boxes).clamp(0, 1).cpu().numpy())

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
