"""What a detector must do to be served: texts and pictures to arrays; batches and phrases are the server's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from detector_bridge.prompts import Prompt


class Scores(NamedTuple):
    """What a detector says of R prompts.

    Attributes:
      tokens: [R, Q, T] float32 in [0, 1]: how surely each of Q queries is what each token of the prompt names, or each
        phrase where the model scores phrases as a whole (sigmoid of the model's logit); 0 beyond a prompt's end.
      boxes_xyxy: [R, Q, 4] float32 in [0, 1], corners.
    """

    tokens: np.ndarray
    boxes_xyxy: np.ndarray


class Backend(Protocol):
    """A detector on one device. Methods are called from several threads; `detect` from one at a time.

    Attributes:
      name: "transformers" or "groundingdino".
      model: directory or file the weights came from.
      digest: hexadecimal SHA-256 of the weights files, in the order of their names.
      device: such as "cuda:0".
      dtype: of the computation, such as "bfloat16".
      max_tokens: longest text that the model reads at once, special tokens included.
      has_text_threshold: whether a phrase has scores of its tokens, which a second threshold is for.
      versions: of the libraries that matter, by name.
    """

    name: str
    model: Path
    digest: str
    device: str
    dtype: str
    max_tokens: int
    has_text_threshold: bool
    versions: dict[str, str]

    def tokenize(self, phrase: str) -> list[int]:
        """Token ids of lower-case text without special tokens."""

    def unknown_words(self, phrase: str) -> list[tuple[str, list[str]]]:
        """The words of a lower-case phrase that the vocabulary lacks, and the pieces or [UNK] that each becomes."""

    def make_prompts(self, phrases: Sequence[str]) -> list[Prompt]:
        """Packs phrases, each once, into as few prompts as the model needs.

        Raises:
          RefusedError: NO_PHRASES, EMPTY_PHRASE or PHRASE_TOO_LONG.
        """

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An upright RGB picture, resized and normalized as the model expects it: [3, H, W] float32."""

    def detect(self, pixels: np.ndarray, prompts: Sequence[Any], image_of: Sequence[int]) -> Scores:
        """Runs the model; each picture goes through the vision backbone once, however many prompts ask about it.

        Args:
          pixels: [B, 3, H, W] float32: pictures of one size, from `prepare`.
          prompts: the `tokens` of R prompts.
          image_of: for each prompt, which of the B pictures it asks about.

        Returns:
          Boxes are relative to what `prepare` made; see `in_picture`.
        """

    def in_picture(self, scores: Scores, width: int, height: int) -> Scores:
        """What `detect` found in one picture, with boxes that are relative to the picture as it was given.

        Args:
          scores: of the prompts about it.
          width: of the picture, in pixels.
          height: the same.
        """
