"""GroundingDINO and MM-Grounding-DINO as the transformers library builds them."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detector_bridge.backends.grounding import Grid, GroundingBackend, Prompts
from detector_bridge.backends.torch_backend import read_tokenizer
from detector_bridge.backends.transformers_checkpoint import (
    GROUNDING_DINO,
    Options,
    read_network,
    read_processor,
    weights_of,
)


class PictureOnce(nn.Module):
    """Stands in for the model's backbone: looks at B pictures and answers for R prompts.

    The model takes its batch size from the features, so it may be handed the B pictures as they are.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.position_embedding = backbone.position_embedding
        self.rows: Tensor | None = None
        self.seen: Any = None

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        """[B, 3, H, W] pictures and their masks, alike for all, to feature maps, masks and positions of R rows."""
        if self.seen is None:
            self.seen = self.backbone(pixel_values, pixel_mask[:1].expand(len(pixel_values), -1, -1))
        features, positions = self.seen
        return [(map_[self.rows], mask[self.rows]) for map_, mask in features], [p[self.rows] for p in positions]


class GroundingDino(GroundingBackend):
    """`GroundingDinoForObjectDetection` with its checkpoint's own image processor and tokenizer."""

    name = "transformers"
    kind = GROUNDING_DINO
    network_class = "GroundingDinoForObjectDetection"

    def __init__(self, network: Any, processor: Any, size: dict[str, int], **parts: Any) -> None:
        super().__init__(versions={}, **parts)
        self._network = network
        self._processor = processor
        self._size = size

    @classmethod
    def open(cls, model: Path, options: Options) -> Self:
        """Reads a checkpoint."""
        network = read_network(model, cls.kind, cls.network_class)
        config = network.config
        processor = read_processor(model, ("GroundingDinoImageProcessorPil", "GroundingDinoImageProcessor"))
        network = network.eval().requires_grad_(False).to(options.place)
        network.model.backbone = PictureOnce(network.model.backbone)
        with torch.inference_mode():
            probe = Grid.probe(options.place)
            features, _ = network.model.backbone.backbone(probe, torch.ones_like(probe[:, 0], dtype=torch.bool))
        shapes = [tuple(feature.shape[-2:]) for feature, _ in features]
        return cls(
            network,
            processor,
            _size(dict(processor.size), options.short_side, options.long_side),
            model=model,
            weights=weights_of(model),
            tokenizer=read_tokenizer(model),
            grid=Grid.of(shapes, config.num_feature_levels, config.num_queries),
            max_tokens=config.max_text_len,
            **options.shared,
        )

    def resize(self, image: Image.Image) -> np.ndarray:
        """See the base class."""
        pixels = self._processor(images=image, size=self._size, do_pad=False, return_tensors="np")["pixel_values"]
        return np.ascontiguousarray(pixels[0], dtype=np.float32)

    def forward(self, pictures: Tensor, valid: Tensor, prompts: Prompts, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        self._network.model.backbone.rows = rows
        outputs = self._network(pixel_values=pictures, pixel_mask=valid.expand(len(rows), -1, -1), **prompts._asdict())
        return outputs.logits, outputs.pred_boxes

    def forget(self) -> None:
        """See the base class."""
        self._network.model.backbone.seen = None


class MMGroundingDino(GroundingDino):
    """`MMGroundingDinoForObjectDetection`: the same, trained on more, with a bias for each decoder layer's scores."""

    kind = "MM-Grounding-DINO"
    network_class = "MMGroundingDinoForObjectDetection"


def _size(size: dict[str, int], short_side: int | None, long_side: int | None) -> dict[str, int]:
    """The processor's size, overridden where asked."""
    size = {name: value for name, value in size.items() if value is not None}
    if short_side is None and long_side is None:
        return size
    return {
        "shortest_edge": short_side or size.get("shortest_edge", 800),
        "longest_edge": long_side or size.get("longest_edge", 1333),
    }
