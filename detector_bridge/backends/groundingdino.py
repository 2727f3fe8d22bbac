"""GroundingDINO as its authors' package builds it; needs groundingdino-py, torchvision and transformers 4."""

import contextlib
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from detector_bridge.backends.grounding import Grid, GroundingBackend, Prompts
from detector_bridge.backends.original_layout import OriginalFiles
from detector_bridge.backends.torch_backend import (
    check_keys,
    first_line,
    read_tokenizer,
    select_device,
)
from detector_bridge.errors import InputError
from detector_bridge.tensor_names import UNUSED


class PictureOnce(nn.Sequential):
    """Stands in for the model's backbone and position embedding: looks at B pictures and answers for R prompts."""

    rows: Tensor
    seen: Any = None

    def forward(self, samples: Any) -> tuple[list[Any], list[Tensor]]:
        """B pictures with masks, all alike, in one of the package's pairs, to features and positions of R rows."""
        if self.seen is None:
            self.seen = self[0](samples)
        count = len(self.rows)
        features = [type(map_)(map_.tensors[self.rows], map_.mask[:1].expand(count, -1, -1)) for map_ in self.seen[0]]
        return features, [position[:1].expand(count, -1, -1, -1) for position in self.seen[1]]


class GroundingDinoBackend(GroundingBackend):
    """The original model, with BERT's tokenizer and the resizing of the package's `load_image`."""

    name = "groundingdino"

    def __init__(self, network: Any, transform: Any, **parts: Any) -> None:
        super().__init__(versions={"groundingdino-py": importlib.metadata.version("groundingdino-py")}, **parts)
        self._network = network
        self._transform = transform

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
    ) -> "GroundingDinoBackend":
        """Reads a checkpoint in the original layout; nothing is fetched.

        The package executes a config .py that lies next to the weights: it is the operator's own file, as the program
        is. Without one, the package's own SwinT_OGC is meant.

        Args:
          model: a .pth, or a directory with one; next to it a config .py, and BERT's config.json and tokenizer in
            `bert-base-uncased` or `text_encoder` (its weights come with the .pth).
          device: such as "cpu", "cuda" or "cuda:1".
          dtype: "float32", or "bfloat16" or "float16" by autocast; results are float32 all the same.
          short_side: pixels of a picture's shorter side, 800 if not given.
          long_side: most pixels of its longer side, 1333 if not given.
          rows_at_once: most prompts that the model answers at once.

        Raises:
          InputError: the package or files are missing, or the weights are of another model.
        """
        place = select_device(device, dtype)
        files = OriginalFiles.find(model)
        tokenizer = read_tokenizer(files.text_encoder)
        network = _build(files)
        missing, unexpected = network.load_state_dict(files.read(), strict=False)
        problems = {"missing": missing, "unexpected": unexpected}
        check_keys(
            files.weights, {kind: [k for k in keys if not UNUSED.fullmatch(k)] for kind, keys in problems.items()}
        )
        network = network.eval().requires_grad_(False).to(place)
        network.backbone = PictureOnce(network.backbone, network.backbone[1])
        network.tokenizer = _ids_as_tokens
        for layer in network.transformer.encoder.text_layers:
            layer.register_forward_pre_hook(_mask_per_head, with_kwargs=True)
        import groundingdino.datasets.transforms as resizing
        from groundingdino.util.misc import NestedTensor

        with torch.inference_mode():
            probe = Grid.probe(place)
            features, _ = network.backbone[0](NestedTensor(probe, torch.zeros_like(probe[:, 0], dtype=torch.bool)))
        shapes = [tuple(feature.tensors.shape[-2:]) for feature in features]
        transform = resizing.Compose(
            [
                resizing.RandomResize([short_side or 800], max_size=long_side or 1333),
                resizing.ToTensor(),
                resizing.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )
        return cls(
            network,
            transform,
            model=model,
            weights=[files.weights],
            tokenizer=tokenizer,
            grid=Grid.of(shapes, network.num_feature_levels, network.num_queries),
            max_tokens=network.max_text_len,
            device=place,
            dtype=dtype,
            rows_at_once=rows_at_once,
        )

    def resize(self, image: Image.Image) -> np.ndarray:
        """See the base class."""
        pixels, _ = self._transform(image, None)
        return pixels.numpy()

    def forward(self, pictures: Tensor, valid: Tensor, prompts: Prompts, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        from groundingdino.util.misc import NestedTensor

        self._network.backbone.rows = rows
        outputs = self._network(NestedTensor(pictures, ~valid.expand(len(rows), -1, -1)), captions=prompts)
        return outputs["pred_logits"], outputs["pred_boxes"]

    def forget(self) -> None:
        """See the base class."""
        self._network.backbone.seen = None


def _ids_as_tokens(captions: Prompts, **_: Any) -> transformers.BatchEncoding:
    """Stands in for the model's tokenizer, which it calls on its captions: ours are token ids already."""
    return transformers.BatchEncoding(captions._asdict())


def _mask_per_head(layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """Repeats the text masks of R prompts for N heads in the order that attention reads them, prompt by prompt.

    The package repeats the whole batch head by head (0.4.0), so that prompts get each other's masks; it leaves a mask
    alone that already has R x N rows.
    """
    return arguments, options | {"src_mask": options["src_mask"].repeat_interleave(layer.nhead, dim=0)}


def _build(files: OriginalFiles) -> Any:
    """The network with random weights.

    Raises:
      InputError: the package is missing, or the config describes nothing that it can build.
    """
    try:
        import groundingdino
        from groundingdino.models import build_model
        from groundingdino.models.GroundingDINO.backbone import backbone, swin_transformer
        from groundingdino.util import get_tokenlizer
        from groundingdino.util.slconfig import SLConfig
    except Exception as error:  # torchvision that does not fit torch raises RuntimeError, for one
        raise InputError(
            f"groundingdino-py cannot be imported ({first_line(error)}): install it, with torchvision of torch's build"
        ) from error

    def bert(directory: str) -> nn.Module:
        # The package reads BERT's own weights, only to overwrite them.
        return transformers.BertModel(transformers.BertConfig.from_pretrained(directory))

    def swin(_: str, pretrain_img_size: int, **options: Any) -> nn.Module:
        # The package knows five sizes by name; our converter writes any other as `swin`.
        return swin_transformer.SwinTransformer(pretrain_img_size, **settings.swin, **options)

    config = files.config or Path(groundingdino.__path__[0]) / "config" / "GroundingDINO_SwinT_OGC.py"
    try:
        settings = SLConfig.fromfile(str(config))
        settings.text_encoder_type = str(files.text_encoder)
        settings.use_checkpoint = settings.use_transformer_ckpt = False  # they save memory in training
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            stack.enter_context(_replaced(get_tokenlizer, "get_pretrained_language_model", bert))
            if settings.backbone == "swin":
                settings.backbone = "swin_T_224_1k"
                stack.enter_context(_replaced(backbone, "build_swin_transformer", swin))
            return build_model(settings)
    except Exception as error:  # asserts, KeyError, NotImplementedError and whatever a config file raises
        raise InputError(f"no model could be built from {config}: {first_line(error)}") from error


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """A module's function, exchanged for a while."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
