"""Tokens and embedding rows of an export: the two layouts differ in both."""

import dataclasses
from typing import Any

from vigor_jax.hf.family import Checkpoint
from vigor_jax.hf.processor_files import IMAGE_TOKEN
from vigor_jax.models.llava import LlavaConfig

PAD_TOKEN = "<pad>"
VOCAB_MULTIPLE = 64  # llava-hf pads the vocabulary to a multiple of it


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What an export's tokenizer and embeddings hold.

    Attributes:
      config: the model with the export's number of rows and its image token.
      new_tokens: tokens that the source's tokenizer lacks, with their ids.
      pad_token: the token for padding.
      pad_id: its id.
    """

    config: LlavaConfig
    new_tokens: dict[str, int]
    pad_token: str
    pad_id: int

    def holds(self, token: dict[str, Any]) -> bool:
        """Whether an added token of the source is one of the export too."""
        return token["id"] < self.config.text.vocab_size


def exported_vocabulary(checkpoint: Checkpoint, layout: str) -> Vocabulary:
    """The vocabulary of `source` in a layout.

    llava-hf has tokens for images and for padding, and fills its rows up to a multiple of 64. The original layout has
    neither: its code makes the embeddings as long as the tokenizer. Tokens that somebody added, and their rows, are
    kept in both; then an image token before them stays too, since ids must not move.
    """
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    assert isinstance(config, LlavaConfig)
    image_id, rows = config.image_token_id, config.text.vocab_size
    new_tokens: dict[str, int] = {}
    pad_token, pad = tokenizer.token(tokenizer.pad_id), tokenizer.pad_id
    if layout == checkpoint.layout:
        return Vocabulary(config, new_tokens, pad_token, pad)
    if layout == "llava":
        fallback = tokenizer.eos_id if tokenizer.unk_id is None else tokenizer.unk_id
        unneeded = {tokenizer.token(image_id)}
        if pad not in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id):
            unneeded.add(pad_token)
        rows = min(rows, tokenizer.size_without(unneeded))
        pad_token, pad = tokenizer.token(fallback), fallback
    else:
        ids = []
        for token in (IMAGE_TOKEN, PAD_TOKEN):
            if (found := tokenizer.token_to_id(token)) is None:
                found = new_tokens[token] = tokenizer.vocab_size + len(new_tokens)
            ids.append(found)
        image_id, pad = ids
        pad_token = PAD_TOKEN
        rows = max(rows, tokenizer.vocab_size + len(new_tokens))
        rows += -rows % VOCAB_MULTIPLE
    config = dataclasses.replace(
        config, image_token_id=image_id, text=dataclasses.replace(config.text, vocab_size=rows)
    )
    return Vocabulary(config, new_tokens, pad_token, pad)
