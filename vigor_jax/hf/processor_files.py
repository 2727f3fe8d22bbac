"""The files of a checkpoint beside its weights: tokenizer, image processor, processor and generation settings."""

import json
import shutil
from pathlib import Path
from typing import Any

from vigor_jax.hf.config import preprocessing_to_hf, read_json
from vigor_jax.hf.load import Source
from vigor_jax.models.llava import LlavaConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
OTHER_FILES = ("added_tokens.json", "chat_template.jinja", "chat_template.json")
IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_hf_files(source: Source, config: LlavaConfig, out: Path) -> None:
    """Everything `transformers.AutoProcessor` and `generate` read. Tokenizer files are copied byte for byte, because
    saving them again changes them (transformers 5 drops `legacy`); only an original checkpoint's gain two tokens."""
    if source.layout == "llava-hf":
        _copy(source, out, TOKENIZER_FILES + OTHER_FILES)
        if not (out / "tokenizer.json").exists():
            (out / "tokenizer.json").write_text(source.tokenizer.to_json(), encoding="utf-8")
    else:
        added = {IMAGE_TOKEN: config.image_token_id, PAD_TOKEN: config.image_token_id + 1}
        _copy(source, out, ("tokenizer.model",))
        (out / "tokenizer.json").write_text(source.tokenizer.to_json(added), encoding="utf-8")
        _write_tokenizer_config(source, added, out)
    write_json(out / "preprocessor_config.json", preprocessing_to_hf(source.preprocessing))
    write_json(
        out / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": image_token(source),
            "patch_size": config.vision.patch_size,
            "vision_feature_select_strategy": "full" if config.feature_select == "full" else "default",
            "num_additional_image_tokens": 1,
        },
    )
    _write_generation_config(source, pad_id(source, config), out)


def write_original_files(source: Source, out: Path) -> None:
    """What the original code's `AutoTokenizer.from_pretrained(..., use_fast=False)` reads. It resizes the embeddings
    to the tokenizer, so the tokens that llava-hf added must not be there."""
    if source.layout == "llava":
        _copy(source, out, TOKENIZER_FILES + OTHER_FILES)
        if not (out / "tokenizer.json").exists():
            (out / "tokenizer.json").write_text(source.tokenizer.to_json(), encoding="utf-8")
    else:
        _copy(source, out, ("tokenizer.model",))
        content = json.loads(source.tokenizer.to_json())
        kept = [token for token in content["added_tokens"] if token["id"] < source.config.image_token_id]
        write_json(out / "tokenizer.json", {**content, "added_tokens": kept})
        _write_tokenizer_config(source, {}, out)
    pad = source.tokenizer.pad_id
    _write_generation_config(source, pad if pad < source.config.image_token_id else 0, out)


def image_token(source: Source) -> str:
    """The text that stands for an image in this checkpoint's prompts."""
    path = source.directory / "processor_config.json"
    return read_json(path).get("image_token", IMAGE_TOKEN) if path.exists() else IMAGE_TOKEN


def pad_id(source: Source, config: LlavaConfig) -> int:
    return source.tokenizer.pad_id if source.layout == "llava-hf" else config.image_token_id + 1


def _copy(source: Source, out: Path, files: tuple[str, ...]) -> None:
    for name in files:
        if (source.directory / name).exists():
            shutil.copyfile(source.directory / name, out / name)


def _write_tokenizer_config(source: Source, added: dict[str, int], out: Path) -> None:
    """A tokenizer_config.json made from the source's own, with exactly `added` after the vocabulary."""
    path = source.directory / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    limit = source.config.image_token_id
    decoder = {i: token for i, token in config.pop("added_tokens_decoder", {}).items() if int(i) < limit}
    for token, i in added.items():
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        decoder[str(i)] = {"content": token, "special": True, **flags}
    special = {f"{name}_token": _token(source, name) for name in ("bos", "eos", "unk")}
    special["pad_token"] = PAD_TOKEN if added else special["unk_token"]
    for name in ("extra_special_tokens", "image_token", "processor_class"):
        config.pop(name, None)
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "model_max_length": source.config.text.max_position_embeddings,
            "padding_side": "left" if added else "right",
            **config,
            "legacy": source.tokenizer.legacy,
            "added_tokens_decoder": decoder,
            **special,
        },
    )
    write_json(out / "special_tokens_map.json", special)


def _token(source: Source, name: str) -> str:
    path = source.directory / "tokenizer_config.json"
    token = read_json(path).get(f"{name}_token") if path.exists() else None
    default = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}[name]
    return token.get("content", default) if isinstance(token, dict) else token or default


def _write_generation_config(source: Source, pad: int, out: Path) -> None:
    path = source.directory / "generation_config.json"
    ids = {
        "bos_token_id": source.tokenizer.bos_id,
        "eos_token_id": source.tokenizer.eos_id,
        "pad_token_id": pad,
    }
    write_json(out / "generation_config.json", (read_json(path) if path.exists() else {}) | ids)
