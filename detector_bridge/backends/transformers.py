"""The zero-shot detectors of the transformers library, from a local directory; 4.57 and 5.x."""

from pathlib import Path

from detector_bridge.backends import Backend
from detector_bridge.backends.torch_backend import select_device
from detector_bridge.backends.transformers_checkpoint import Options, model_type
from detector_bridge.backends.transformers_grounding import GroundingDino, MMGroundingDino
from detector_bridge.backends.transformers_omdet import OmDetTurbo
from detector_bridge.backends.transformers_owl import Owlv2, OwlVit
from detector_bridge.errors import InputError

# `model_type` of a config → what serves it.
FAMILIES: dict[str, type[GroundingDino | OwlVit | OmDetTurbo]] = {
    "grounding-dino": GroundingDino,
    "mm-grounding-dino": MMGroundingDino,
    "owlv2": Owlv2,
    "owlvit": OwlVit,
    "omdet-turbo": OmDetTurbo,
}


class TransformersBackend:
    """Opens whichever of `FAMILIES` a checkpoint is."""

    @staticmethod
    def load(
        model: Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        short_side: int | None = None,
        long_side: int | None = None,
        rows_at_once: int = 8,
    ) -> Backend:
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
          InputError: files or weights are missing, left over, or of a model that is not served.
        """
        place = select_device(device, dtype)
        if (kind := model_type(model)) not in FAMILIES:
            raise InputError(f"expected a zero-shot detector in {model}, one of {', '.join(FAMILIES)}, got a {kind}")
        return FAMILIES[kind].open(model, Options(place, dtype, short_side, long_side, rows_at_once))
