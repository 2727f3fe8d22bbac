"""What the client is given and gives: a request, and detections of its phrases."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detector_bridge.prompts import split_phrases


@dataclass(frozen=True)
class Request:
    """One image and what to look for in it.

    Attributes:
      image: an image file, or its bytes.
      phrases: noun phrases, each a text for itself; the answer follows their order. A single text is split, as
        `prompts.split_phrases` does it.
      box_threshold: in [0, 1]; None: the server's.
      text_threshold: in [0, 1]; None: the server's.
      name: what errors call it; the file's path if none is given.
    """

    image: Path | bytes
    phrases: tuple[str, ...]
    box_threshold: float | None = None
    text_threshold: float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.phrases, str):  # else each letter would be a phrase
            object.__setattr__(self, "phrases", split_phrases(self.phrases))

    @property
    def label(self) -> str:
        return self.name or (str(self.image) if isinstance(self.image, Path) else f"image of {len(self.image)} bytes")


class UnknownWord(NamedTuple):
    """A word that the text encoder's vocabulary lacks, and what is read in its place: pieces, or [UNK] alone.

    In pieces are some that detectors know well, such as "giraffe", and any that somebody makes up.
    """

    word: str
    pieces: tuple[str, ...]

    @property
    def is_lost(self) -> bool:
        """Whether nothing of the word is read, so that the score would be the same for another one."""
        return self.pieces == ("[UNK]",)

    def __str__(self) -> str:
        return f"{self.word} (read as {' '.join(self.pieces)})"


@dataclass(frozen=True)
class Detection:
    """What was found of one phrase.

    Attributes:
      phrase: as asked for.
      present: whether there is at least one box.
      score: best of any box, kept or not: [0, 1].
      boxes_xyxy: [N, 4] float32, best first, corners relative to the upright image: [0, 1].
      scores: [N] float32.
      unknown_words: of the phrase.
    """

    phrase: str
    present: bool
    score: float
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    unknown_words: tuple[UnknownWord, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Detections for each phrase of a request, in its order; the upright image's size in pixels."""

    detections: tuple[Detection, ...]
    width: int
    height: int
