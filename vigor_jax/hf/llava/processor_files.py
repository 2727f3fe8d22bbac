"""The files of a LLaVA export next to its weights: tokenizer, image processor, processor and generation settings."""

import json
from pathlib import Path
from typing import Any

from vigor_jax.data.text.conversation import Template
from vigor_jax.hf.family import Checkpoint
from vigor_jax.hf.image_settings import preprocessing_to_hf
from vigor_jax.hf.llava.vocabulary import Vocabulary
from vigor_jax.hf.processor_files import (
    AS_IS,
    copy_files,
    image_token,
    rewrite_for_both_versions,
    write_chat_template,
    write_generation_config,
    write_json,
    write_tokenizer,
    write_tokenizer_config,
)


def write_hf_files(checkpoint: Checkpoint, vocabulary: Vocabulary, out: Path, template: Template | None = None) -> None:
    """Everything `transformers.AutoProcessor` and `generate` read.

    Tokenizer files are copied byte for byte, because saving them again changes them (transformers 5 drops `legacy`);
    what only one of the versions 4 and 5 understands is rewritten for both. An original checkpoint's gain two tokens,
    and its tokenizer.json the token before text that follows an image, which its code gets by cutting the prompt up.
    """
    config = vocabulary.config
    if checkpoint.layout == "llava-hf":
        write_tokenizer(checkpoint.directory, checkpoint.tokenizer, out)
        rewrite_for_both_versions(out / "tokenizer_config.json")
    else:
        copy_files(checkpoint.directory, out, ("tokenizer.model",))
        content = json.loads(checkpoint.tokenizer.to_json(vocabulary.new_tokens))
        (out / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        kind = AS_IS | {"padding_side": "left"}
        _write_tokenizer_config(checkpoint, content["added_tokens"], vocabulary, out, kind)
    if template:
        write_chat_template(template, checkpoint.tokenizer, image_token(checkpoint.directory), out)
    write_json(out / "preprocessor_config.json", preprocessing_to_hf(checkpoint.preprocessing))
    write_json(
        out / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": image_token(checkpoint.directory),
            "patch_size": config.vision.patch_size,
            "vision_feature_select_strategy": "full" if config.feature_select == "full" else "default",
            "num_additional_image_tokens": 1,
        },
    )
    write_generation_config(checkpoint.directory, checkpoint.tokenizer, vocabulary.pad_id, out)


def write_original_files(checkpoint: Checkpoint, vocabulary: Vocabulary, out: Path) -> None:
    """What the original code's `AutoTokenizer.from_pretrained(..., use_fast=False)` reads. It makes the embeddings as
    long as the tokenizer, so the tokens of llava-hf must not be there, unless others come after them."""
    if checkpoint.layout == "llava":
        write_tokenizer(checkpoint.directory, checkpoint.tokenizer, out)
    else:
        copy_files(checkpoint.directory, out, ("tokenizer.model",))
        content = json.loads(checkpoint.tokenizer.to_json())
        kept = [token for token in content["added_tokens"] if vocabulary.holds(token)]
        write_json(out / "tokenizer.json", {**content, "added_tokens": kept})
        _write_tokenizer_config(
            checkpoint, kept, vocabulary, out, {"tokenizer_class": "LlamaTokenizer", "padding_side": "right"}
        )
        pieces = content["model"]["vocab"]
        if more := {token["content"]: token["id"] for token in kept if token["content"] not in pieces}:
            write_json(out / "added_tokens.json", more)
    write_generation_config(checkpoint.directory, checkpoint.tokenizer, vocabulary.pad_id, out)


def _write_tokenizer_config(
    checkpoint: Checkpoint, tokens: list[dict[str, Any]], vocabulary: Vocabulary, out: Path, kind: dict[str, Any]
) -> None:
    length = checkpoint.config.text.max_position_embeddings
    pad = vocabulary.pad_token
    write_tokenizer_config(checkpoint.directory, checkpoint.tokenizer, tokens, out, kind, pad_token=pad, length=length)
