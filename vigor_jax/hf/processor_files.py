"""The files of a checkpoint beside its weights: tokenizer, image processor, processor and generation settings."""

import json
import shutil
from pathlib import Path
from typing import Any

from vigor_jax.data.text.conversation import Template
from vigor_jax.hf.chat_template import chat_template
from vigor_jax.hf.image_settings import preprocessing_to_hf
from vigor_jax.hf.load import Checkpoint
from vigor_jax.hf.vocabulary import IMAGE_TOKEN as IMAGE_TOKEN
from vigor_jax.hf.vocabulary import PAD_TOKEN as PAD_TOKEN
from vigor_jax.hf.vocabulary import Vocabulary
from vigor_jax.json_fields import Fields, read_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
CHAT_FILES = ("chat_template.jinja", "chat_template.json")
# Reads tokenizer.json as it is in every version. LlamaTokenizer of early versions 5 builds another from its vocabulary.
_AS_IS = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
FLAGS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_hf_files(checkpoint: Checkpoint, vocabulary: Vocabulary, out: Path, template: Template | None = None) -> None:
    """Everything `transformers.AutoProcessor` and `generate` read.

    Tokenizer files are copied byte for byte, because saving them again changes them (transformers 5 drops `legacy`);
    what only one of the versions 4 and 5 understands is rewritten for both. An original checkpoint's gain two tokens,
    and its tokenizer.json the token before text that follows an image, which its code gets by cutting the prompt up.
    """
    config = vocabulary.config
    if checkpoint.layout == "llava-hf":
        _copy(checkpoint, out, (*TOKENIZER_FILES, "added_tokens.json", *CHAT_FILES))
        if not (out / "tokenizer.json").exists():
            (out / "tokenizer.json").write_text(checkpoint.tokenizer.to_json(), encoding="utf-8")
        _rewrite_for_both_versions(out / "tokenizer_config.json")
    else:
        _copy(checkpoint, out, ("tokenizer.model",))
        content = json.loads(checkpoint.tokenizer.to_json(vocabulary.new_tokens))
        (out / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        _write_tokenizer_config(checkpoint, content["added_tokens"], vocabulary, out, _AS_IS | {"padding_side": "left"})
    if template:
        eos = checkpoint.tokenizer.token(checkpoint.tokenizer.eos_id)
        _write_chat_template(chat_template(template, eos_token=eos, image_token=image_token(checkpoint)), out)
    write_json(out / "preprocessor_config.json", preprocessing_to_hf(checkpoint.preprocessing))
    write_json(
        out / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": image_token(checkpoint),
            "patch_size": config.vision.patch_size,
            "vision_feature_select_strategy": "full" if config.feature_select == "full" else "default",
            "num_additional_image_tokens": 1,
        },
    )
    _write_generation_config(checkpoint, vocabulary.pad_id, out)


def write_original_files(checkpoint: Checkpoint, vocabulary: Vocabulary, out: Path) -> None:
    """What the original code's `AutoTokenizer.from_pretrained(..., use_fast=False)` reads. It makes the embeddings as
    long as the tokenizer, so the tokens of llava-hf must not be there, unless others come after them."""
    if checkpoint.layout == "llava":
        _copy(checkpoint, out, (*TOKENIZER_FILES, "added_tokens.json", *CHAT_FILES))
        if not (out / "tokenizer.json").exists():
            (out / "tokenizer.json").write_text(checkpoint.tokenizer.to_json(), encoding="utf-8")
    else:
        _copy(checkpoint, out, ("tokenizer.model",))
        content = json.loads(checkpoint.tokenizer.to_json())
        kept = [token for token in content["added_tokens"] if vocabulary.holds(token)]
        write_json(out / "tokenizer.json", {**content, "added_tokens": kept})
        _write_tokenizer_config(
            checkpoint, kept, vocabulary, out, {"tokenizer_class": "LlamaTokenizer", "padding_side": "right"}
        )
        pieces = content["model"]["vocab"]
        if more := {token["content"]: token["id"] for token in kept if token["content"] not in pieces}:
            write_json(out / "added_tokens.json", more)
    _write_generation_config(checkpoint, vocabulary.pad_id, out)


def image_token(checkpoint: Checkpoint) -> str:
    """The text that stands for an image in this checkpoint's prompts."""
    path = checkpoint.directory / "processor_config.json"
    return Fields.read(path).text("image_token", IMAGE_TOKEN, null=True) if path.exists() else IMAGE_TOKEN


def _copy(checkpoint: Checkpoint, out: Path, files: tuple[str, ...]) -> None:
    for name in files:
        if (checkpoint.directory / name).exists():
            shutil.copyfile(checkpoint.directory / name, out / name)


def _rewrite_for_both_versions(path: Path) -> None:
    """A tokenizer_config.json that transformers 5 wrote, such that 4 can open it."""
    if not path.exists():
        return
    before = read_json(path)
    config = dict(before)
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # 4 wants names for them
        known = config.get("additional_special_tokens") or []
        config["additional_special_tokens"] = known + [token for token in extra if token not in known]
        del config["extra_special_tokens"]
    if config.get("tokenizer_class") == "TokenizersBackend":  # unknown to 4
        config |= _AS_IS
    if config != before:
        write_json(path, config)


def _write_chat_template(text: str, out: Path) -> None:
    """In every place where a version of transformers, or its tokenizer alone, looks for it."""
    (out / "chat_template.jinja").write_text(text, encoding="utf-8")
    write_json(out / "chat_template.json", {"chat_template": text})
    path = out / "tokenizer_config.json"
    if path.exists() and "chat_template" in (config := read_json(path)):
        write_json(path, config | {"chat_template": text})


def _write_tokenizer_config(
    checkpoint: Checkpoint, tokens: list[dict[str, Any]], vocabulary: Vocabulary, out: Path, kind: dict[str, Any]
) -> None:
    """A tokenizer_config.json made from the source's own, with exactly `tokens` after the vocabulary, and `kind`."""
    path = checkpoint.directory / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    tokenizer = checkpoint.tokenizer
    unk = tokenizer.token(tokenizer.eos_id if tokenizer.unk_id is None else tokenizer.unk_id)
    special = {
        "bos_token": tokenizer.token(tokenizer.bos_id),
        "eos_token": tokenizer.token(tokenizer.eos_id),
        "unk_token": unk,
        "pad_token": vocabulary.pad_token,
    }
    for name in ("extra_special_tokens", "image_token", "processor_class", "model_input_names", "add_prefix_space"):
        config.pop(name, None)
    write_json(
        out / "tokenizer_config.json",
        {
            "model_max_length": checkpoint.config.text.max_position_embeddings,
            **config,
            **kind,
            "legacy": tokenizer.legacy,
            "added_tokens_decoder": {str(token["id"]): {flag: token[flag] for flag in FLAGS} for token in tokens},
            **special,
        },
    )
    write_json(out / "special_tokens_map.json", special)


def _write_generation_config(checkpoint: Checkpoint, pad: int, out: Path) -> None:
    path = checkpoint.directory / "generation_config.json"
    ids = {
        "bos_token_id": checkpoint.tokenizer.bos_id,
        "eos_token_id": checkpoint.tokenizer.eos_id,
        "pad_token_id": pad,
    }
    write_json(out / "generation_config.json", (read_json(path) if path.exists() else {}) | ids)
