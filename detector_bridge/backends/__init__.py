"""What a detector must do to be served: two methods on arrays; batches, prompts and phrases are the server's."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image


class Scores(NamedTuple):
    """What a detector says of R prompts.

    Attributes:
      tokens: [R, Q, T] float32 in [0, 1]: how surely each of Q queries is what each token of the prompt names
        (sigmoid of the model's logit); 0 beyond a prompt's end.
      boxes_xyxy: [R, Q, 4] float32 in [0, 1], relative to the whole picture.
    """

    tokens: np.ndarray
    boxes_xyxy: np.ndarray


class Backend(Protocol):
    """A GroundingDINO on one device. Methods are called from several threads; `detect` from one at a time.

    Attributes:
      name: "transformers" or "groundingdino".
      model: directory or file the weights came from.
      digest: hexadecimal SHA-256 of the weights files, in the order of their names.
      device: such as "cuda:0".
      dtype: of the computation, such as "bfloat16".
      max_tokens: longest prompt, [CLS] and [SEP] included.
      versions: of the libraries that matter, by name.
    """

    name: str
    model: Path
    digest: str
    device: str
    dtype: str
    max_tokens: int
    versions: dict[str, str]

    def tokenize(self, phrase: str) -> list[int]:
        """Token ids of lower-case text without special tokens."""

    def unknown_words(self, phrase: str) -> list[tuple[str, list[str]]]:
        """The words of a lower-case phrase that the vocabulary lacks, and the pieces or [UNK] that each becomes."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An upright RGB picture, resized and normalized as the model expects it: [3, H, W] float32."""

    def detect(self, pixels: np.ndarray, prompts: Sequence[Sequence[int]], image_of: Sequence[int]) -> Scores:
        """Runs the model; each picture goes through the vision backbone once, however many prompts ask about it.

        Args:
          pixels: [B, 3, H, W] float32: pictures of one size, from `prepare`.
          prompts: R prompts of token ids, [CLS] and [SEP] included, every phrase followed by a dot.
          image_of: for each prompt, which of the B pictures it asks about.
        """
