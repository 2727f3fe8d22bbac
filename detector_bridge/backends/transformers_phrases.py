"""What OWL-ViT, OWLv2 and OmDet-Turbo have in common: they read each phrase by itself, with a CLIP's text tower."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from detector_bridge.backends.torch_backend import TorchBackend, first_line
from detector_bridge.backends.transformers_checkpoint import Options, read_network, read_processor, weights_of
from detector_bridge.errors import InputError


class PhraseBackend(TorchBackend):
    """Pictures of one size, that of the checkpoint, and a score for each phrase as a whole."""

    name = "transformers"
    has_text_threshold = False
    kind: str
    network_class: str
    processor_classes: tuple[str, ...]

    def __init__(self, network: Any, processor: Any, ends: tuple[int, int], **parts: Any) -> None:
        super().__init__(versions={}, **parts)
        self._network = network
        self._processor = processor
        self._ends = ends

    @classmethod
    def open(cls, model: Path, options: Options) -> Self:
        """Reads a checkpoint.

        Raises:
          InputError: files or weights are missing, left over, or of another model; or another size was asked for.
        """
        if options.short_side or options.long_side:
            raise InputError(
                f"--short-side and --long-side are for GroundingDINO and MM-Grounding-DINO; {model} is a {cls.kind}, "
                "which reads pictures of one size"
            )
        network = read_network(model, cls.kind, cls.network_class)
        processor = read_processor(model, cls.processor_classes)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True, use_fast=True)
            first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
        except Exception as error:  # libraries raise all kinds for a bad file
            raise InputError(f"no tokenizer could be read from {model}: {first_line(error)}") from error
        if first is None or last is None:
            raise InputError(f"the tokenizer in {model} has no tokens that begin and end a text; expected CLIP's")
        return cls(
            network.eval().requires_grad_(False).to(options.place),
            processor,
            (first, last),
            model=model,
            weights=weights_of(model),
            tokenizer=tokenizer,
            max_tokens=network.config.text_config.max_position_embeddings,
            **options.shared,
        )

    def resize(self, image: Image.Image) -> np.ndarray:
        """See the base class."""
        pixels = self._processor(images=image, return_tensors="np")["pixel_values"]
        return np.ascontiguousarray(pixels[0], dtype=np.float32)

    def whole(self, ids: Sequence[int]) -> list[int]:
        """A text as the model reads it: what is too long is cut off."""
        return [self._ends[0], *ids[: self.max_tokens - 2], self._ends[1]]

    def padded(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """N texts as ids and mask, int64 [N, T]; the ids of padding are 0."""
        rows = [torch.tensor(list(text), dtype=torch.int64) for text in texts]
        pad = torch.nn.utils.rnn.pad_sequence
        mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
        return pad(rows, batch_first=True).to(self._device), mask.to(self._device)
