"""What is asked about an image, for models that read it while they look, as InstructBLIP's Q-Former does."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int32

from vigor_jax.data.text.tokenizer_json import IMAGE_TOKEN
from vigor_jax.errors import InputError

NO_TOKEN = -1
_BUCKET = 16


class InstructionTokenizer:
    """Instructions to rows of token ids, by a tokenizer.json that need not be LLaMA's.

    Args:
        path: of the tokenizer.json; what it puts around a text (BERT's [CLS] and [SEP]) is kept.
        max_length: most tokens of an instruction; longer ones are cut, what stands around them stays.

    Raises:
        InputError: the file cannot be read.
    """

    def __init__(self, path: Path, max_length: int) -> None:
        try:
            self._tokenizer = _bert(path) if path.suffix == ".txt" else tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"{path}: no {path.name} that can be read ({error}); copy it here") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)
        self._digest = hashlib.sha256(f"{max_length} {self._tokenizer.to_str()}".encode()).hexdigest()

    def digest(self) -> str:
        """Names all that decides on the ids."""
        return self._digest

    def rows(self, texts: Sequence[str]) -> Int32[np.ndarray, "B Q"]:
        """The ids of each text, and -1 behind them; images' places are no part of an instruction.

        Q is a multiple of 16, so that few shapes are ever compiled.
        """
        words = [text.replace(IMAGE_TOKEN, "").strip() for text in texts]
        ids = [self._tokenizer.encode(text).ids for text in words]
        longest = max(map(len, ids), default=0)
        found = np.full((len(ids), max(-(-longest // _BUCKET), 1) * _BUCKET), NO_TOKEN, np.int32)
        for row, each in zip(found, ids, strict=True):
            row[: len(each)] = each
        return found


def _bert(path: Path) -> tokenizers.Tokenizer:
    """A new one of the library, which its own class for BERT only wraps."""
    return tokenizers.Tokenizer.from_str(tokenizers.BertWordPieceTokenizer(str(path), lowercase=True).to_str())
