"""Texts to CLIP's token ids, by its tokenizer.json: in lower case, between a start and an end token."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int32

from vigor_jax.errors import InputError

_BUCKET = 8


class ClipTokenizer:
    """Makes rows of token ids.

    Args:
      path: of the tokenizer.json.
      max_length: most tokens of a text, its start and its end included; longer ones are cut, their end stays.
      vocab_size: rows of the embeddings.
      end_token_id: what ends a text; None for the largest id in it.

    Raises:
      InputError: the file cannot be read, does not end texts so, or has tokens without an embedding.
    """

    def __init__(self, path: Path, *, max_length: int, vocab_size: int, end_token_id: int | None) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{path} is missing; transformers writes it: "
                f"CLIPTokenizerFast.from_pretrained({str(path.parent)!r}).save_pretrained({str(path.parent)!r})"
            ) from None
        except Exception as error:  # the library raises nothing narrower
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: no tokenizer.json that can be read ({reason}); copy the file again") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)
        self._path, self._max_length, self._end = path, max_length, end_token_id
        self._digest = hashlib.sha256(f"{max_length} {end_token_id} {self._tokenizer.to_str()}".encode()).hexdigest()
        largest = max(self._tokenizer.get_vocab().values(), default=0)
        if largest >= vocab_size:
            raise InputError(
                f"{path}: a token has id {largest}, and config.json's vocab_size is {vocab_size}; take both files from "
                "one checkpoint"
            )
        self._ids("a")  # which refuses a tokenizer that does not end its texts

    def digest(self) -> str:
        """Names all that decides on the ids."""
        return self._digest

    def rows(self, texts: Sequence[str], *, longest: bool = False) -> Int32[np.ndarray, "B T"]:
        """The ids of each text, zeros behind them.

        Args:
          texts: any texts.
          longest: whether T is the largest length that the model takes; otherwise it is the multiple of 8 that these
            texts need.

        Raises:
          InputError: a text has a lone surrogate, or no end token.
        """
        ids = [self._ids(text) for text in texts]
        needed = -(-max(map(len, ids), default=1) // _BUCKET) * _BUCKET
        found = np.zeros((len(ids), self._max_length if longest else min(needed, self._max_length)), np.int32)
        for row, each in zip(found, ids, strict=True):
            row[: len(each)] = each
        return found

    def is_cut(self, text: str) -> bool:
        """Whether a text is longer than what the model takes."""
        return bool(self._encode(text).overflowing)

    def _encode(self, text: str) -> tokenizers.Encoding:
        try:
            return self._tokenizer.encode(text)
        except TypeError as error:
            raise InputError(
                f"text with a lone surrogate (half of a \\u pair) cannot be tokenized: {text[:40]!a}; repair its "
                "encoding"
            ) from error

    def _ids(self, text: str) -> list[int]:
        ids = self._encode(text).ids
        end = max(ids, default=0) if self._end is None else self._end
        # A text without its end would get the embedding of its start, whatever it says.
        if len(ids) < 2 or ids[-1] != end:
            what = "the largest id of each text" if self._end is None else f"token {self._end}"
            raise InputError(
                f"{self._path}: the ids of {text[:40]!r} do not end with {what}, which has the text's embedding; use "
                "the tokenizer.json of a CLIP checkpoint"
            )
        return ids
