"""GroundingDINO as the transformers library builds it, from a local directory; 4.57 and 5.x."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from detector_bridge.backends.torch_backend import (
    Grid,
    Prompts,
    TorchBackend,
    check_keys,
    first_line,
    read_tokenizer,
    select_device,
)
from detector_bridge.errors import InputError

_ONE_VERSION = re.compile(r"relative_position_index|\.swin\.layernorm\.")


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


class TransformersBackend(TorchBackend):
    """`GroundingDinoForObjectDetection` with its checkpoint's own image processor and tokenizer."""

    name = "transformers"

    def __init__(self, network: Any, processor: Any, size: dict[str, int], **parts: Any) -> None:
        super().__init__(versions={}, **parts)
        self._network = network
        self._processor = processor
        self._size = size

    @classmethod
    def load(
        cls,
        model: Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        short_side: int | None = None,
        long_side: int | None = None,
        rows_at_once: int = 8,
    ) -> "TransformersBackend":
        """Reads a checkpoint; nothing is fetched from a hub.

        Args:
          model: directory with config.json, preprocessor_config.json, a tokenizer, and weights as .safetensors
            (preferred) or .bin.
          device: such as "cpu", "cuda" or "cuda:1".
          dtype: "float32", or "bfloat16" or "float16" by autocast; results are float32 all the same.
          short_side: pixels of a picture's shorter side, instead of the checkpoint's.
          long_side: most pixels of its longer side, instead of the checkpoint's.
          rows_at_once: most prompts that the model answers at once.

        Raises:
          InputError: files or weights are missing, left over, or of another model.
        """
        place = select_device(device, dtype)
        network = read_network(model)
        config = network.config
        try:
            processor = _pil_processor().from_pretrained(model, local_files_only=True)
        except Exception as error:  # the library raises all kinds for a bad file
            raise InputError(f"no image processor could be read from {model}: {first_line(error)}") from error
        network = network.eval().requires_grad_(False).to(place)
        network.model.backbone = PictureOnce(network.model.backbone)
        with torch.inference_mode():
            probe = Grid.probe(place)
            features, _ = network.model.backbone.backbone(probe, torch.ones_like(probe[:, 0], dtype=torch.bool))
        shapes = [tuple(feature.shape[-2:]) for feature, _ in features]
        return cls(
            network,
            processor,
            _size(dict(processor.size), short_side, long_side),
            model=model,
            weights=weights_of(model),
            tokenizer=read_tokenizer(model),
            grid=Grid.of(shapes, config.num_feature_levels, config.num_queries),
            max_tokens=config.max_text_len,
            device=place,
            dtype=dtype,
            rows_at_once=rows_at_once,
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


def read_network(model: Path) -> Any:
    """The network of a checkpoint, in float32 on the CPU.

    Raises:
      InputError: files or weights are missing, left over, or of another model.
    """
    weights = weights_of(model)
    try:
        config = transformers.AutoConfig.from_pretrained(model, local_files_only=True)
        if not isinstance(config, transformers.GroundingDinoConfig) or not config.two_stage:
            raise InputError(f"expected a two-stage grounding-dino in {model}, got a {config.model_type}")
        model_class: Any = transformers.GroundingDinoForObjectDetection
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
        raise InputError(f"no GroundingDINO could be read from {model}: {first_line(error)}") from error
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


def _pil_processor() -> Any:
    """The image processor that needs no torchvision: transformers 4 and 5 name it differently."""
    if transformers.__version__.startswith("4."):
        return transformers.GroundingDinoImageProcessor
    return transformers.GroundingDinoImageProcessorPil


def _size(size: dict[str, int], short_side: int | None, long_side: int | None) -> dict[str, int]:
    """The processor's size, overridden where asked."""
    size = {name: value for name, value in size.items() if value is not None}
    if short_side is None and long_side is None:
        return size
    return {
        "shortest_edge": short_side or size.get("shortest_edge", 800),
        "longest_edge": long_side or size.get("longest_edge", 1333),
    }
