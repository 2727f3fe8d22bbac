"""OmDet-Turbo as the transformers library builds it: phrases, and a task that names all of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from detector_bridge.backends import Scores
from detector_bridge.backends.torch_backend import corners
from detector_bridge.backends.transformers_checkpoint import Options
from detector_bridge.backends.transformers_phrases import PhraseBackend
from detector_bridge.prompts import Prompt, read_phrases

# Of two boxes of a phrase that overlap more, the one with the lower score goes, as in the library's own processor.
MAX_OVERLAP = 0.5


class PictureOnce(nn.Module):
    """Stands in for the model's vision backbone: looks at B pictures and answers for R prompts."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.rows: Tensor | None = None
        self.seen: Any = None

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """[B, 3, H, W] pictures to feature maps of R rows."""
        if self.seen is None:
            self.seen = self.backbone(pixel_values)
        return [map_[self.rows] for map_ in self.seen]


class OmDetTurbo(PhraseBackend):
    """`OmDetTurboForObjectDetection`, which stretches pictures to squares.

    A prompt is the task, "Detect dog, traffic light.", and then each phrase.
    """

    kind = "OmDet-Turbo"
    network_class = "OmDetTurboForObjectDetection"
    processor_classes = ("DetrImageProcessorPil", "DetrImageProcessor")

    @classmethod
    def open(cls, model: Path, options: Options) -> Self:
        """See the base class."""
        opened = super().open(model, options)
        opened._network.vision_backbone = PictureOnce(opened._network.vision_backbone)
        return opened

    def make_prompts(self, phrases: Sequence[str]) -> list[Prompt]:
        """See `Backend`: a task that would be too long is continued in another prompt."""
        prompts: list[list[str]] = [[]]
        found = read_phrases(phrases, self.tokenize, self.max_tokens)
        for phrase in found:
            if prompts[-1] and len(self._task([*prompts[-1], phrase])) + 2 > self.max_tokens:
                prompts.append([])
            prompts[-1].append(phrase)
        return [
            Prompt(
                [self.whole(text) for text in (self._task(own), *(found[phrase] for phrase in own))],
                {phrase: (number, number + 1) for number, phrase in enumerate(own)},
            )
            for own in prompts
        ]

    def _task(self, phrases: Sequence[str]) -> list[int]:
        return self.tokenize(f"Detect {', '.join(phrases)}.")

    def detect(self, pixels: np.ndarray, prompts: Sequence[Sequence[Sequence[int]]], image_of: Sequence[int]) -> Scores:
        """See `Backend`."""
        pictures = torch.from_numpy(pixels).to(self._device)
        lengths = [len(prompt) - 1 for prompt in prompts]
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        try:
            with self.computing():
                # What pads a prompt with fewer phrases than others would have a say in the choice of queries.
                for length in set(lengths):
                    alike = [i for i, own in enumerate(lengths) if own == length]
                    for part in self.parts(len(alike)):
                        rows = alike[part]
                        scored = self._forward(pictures, [prompts[i] for i in rows], [image_of[i] for i in rows])
                        found |= dict(zip(rows, zip(*scored, strict=True), strict=True))
        finally:
            self._network.vision_backbone.seen = None
        scores, boxes = zip(*(found[i] for i in range(len(prompts))), strict=True)
        most = max(lengths)
        tokens = [np.pad(own, ((0, 0), (0, most - own.shape[1]))) for own in scores]
        return Scores(np.stack(tokens), np.stack(boxes))

    def _forward(
        self, pictures: Tensor, prompts: Sequence[Sequence[Sequence[int]]], image_of: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores [R, Q, P] and boxes [R, Q, 4] of prompts with P phrases each."""
        self._network.vision_backbone.rows = torch.tensor(list(image_of), device=self._device)
        tasks, tasks_mask = self.padded([task for task, *_ in prompts])
        classes, classes_mask = self.padded([text for _, *texts in prompts for text in texts])
        outputs = self._network(
            pixel_values=pictures,
            classes_input_ids=classes,
            classes_attention_mask=classes_mask,
            tasks_input_ids=tasks,
            tasks_attention_mask=tasks_mask,
            classes_structure=torch.tensor([len(prompt) - 1 for prompt in prompts], device=self._device),
        )
        scores = outputs.decoder_class_logits.float().sigmoid().cpu().numpy()
        boxes = corners(outputs.decoder_coord_logits).cpu().numpy()
        for own, places in zip(scores, boxes, strict=True):
            own[suppressed(own, places)] = 0
        return scores, boxes.clip(0, 1)


def suppressed(scores: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Which boxes overlap a better one of the same phrase that is kept: non-maximum suppression.

    Args:
      scores: [Q, P] of Q boxes for each of P phrases.
      boxes_xyxy: [Q, 4].

    Returns:
      bool [Q, P].
    """
    size = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    low = np.maximum(boxes_xyxy[:, None, :2], boxes_xyxy[None, :, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], boxes_xyxy[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    area = size.prod(axis=-1)
    overlaps = shared > MAX_OVERLAP * (area[:, None] + area[None] - shared)
    order = np.argsort(-scores, axis=0, kind="stable")
    rank = np.argsort(order, axis=0)
    gone = np.zeros(scores.T.shape, bool)
    for place, best in enumerate(order):
        kept = ~gone[np.arange(len(best)), best]
        gone |= kept[:, None] & overlaps[best] & (place < rank.T)
    return gone.T
