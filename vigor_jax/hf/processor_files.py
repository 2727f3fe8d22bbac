"""The files of a checkpoint next to its weights: tokenizer, image processor, processor and generation settings."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vigor_jax.data.text.conversation import Template
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.hf.chat_template import chat_template
from vigor_jax.json_fields import Fields, exists, read_json

IMAGE_TOKEN = "<image>"

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
CHAT_FILES = ("chat_template.jinja", "chat_template.json")
SETTINGS_FILES = ("preprocessor_config.json", "processor_config.json", "generation_config.json")
# Reads tokenizer.json as it is in every version. LlamaTokenizer of early versions 5 builds another from its vocabulary.
AS_IS = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}

_FLAGS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def image_processor(directory: Path) -> Fields:
    """What images go through; where both files say it, transformers 5, which alone writes the first, takes that."""
    whole = directory / "processor_config.json"
    if exists(whole):
        fields = Fields.read(whole)
        fields.text("image_token", None, null=True)  # read on export only, which is late for a refusal
        if inside := fields.object("image_processor"):
            return inside
    alone = Fields.read(directory / "preprocessor_config.json")
    return alone.object("image_processor") or alone


def image_token(directory: Path) -> str:
    """The text that stands for an image in the prompts of a checkpoint."""
    path = directory / "processor_config.json"
    return Fields.read(path).text("image_token", IMAGE_TOKEN, null=True) if path.exists() else IMAGE_TOKEN


def write_tokenizer(directory: Path, tokenizer: Tokenizer, out: Path) -> None:
    """The tokenizer's files byte for byte, because saving them again changes them (transformers 5 drops `legacy`); a
    tokenizer.json in any case."""
    copy_files(directory, out, (*TOKENIZER_FILES, "added_tokens.json", *CHAT_FILES))
    if not (out / "tokenizer.json").exists():
        (out / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")


def copy_files(directory: Path, out: Path, files: tuple[str, ...]) -> None:
    """Those of the files that exist."""
    for name in files:
        if (directory / name).exists():
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(directory / name, out / name)


def rewrite_for_both_versions(path: Path) -> None:
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
        config |= AS_IS
    if config != before:
        write_json(path, config)


def write_tokenizer_config(
    directory: Path,
    tokenizer: Tokenizer,
    tokens: Sequence[Mapping[str, Any]],
    out: Path,
    kind: Mapping[str, Any],
    *,
    pad_token: str,
    length: int,
) -> None:
    """A tokenizer_config.json made from the source's own, with exactly `tokens` after the vocabulary, and `kind`; and a
    special_tokens_map.json.

    Args:
      directory: of the source.
      tokenizer: of the source; what it calls the unknown token is the one of the end where it has none.
      tokens: as a tokenizer.json lists them.
      out: where to.
      kind: what replaces the source's own values.
      pad_token: the token for padding.
      length: most tokens, where the source does not say.
    """
    path = directory / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    special = {
        "bos_token": tokenizer.token(tokenizer.bos_id),
        "eos_token": tokenizer.token(tokenizer.eos_id),
        "unk_token": tokenizer.token(tokenizer.eos_id if tokenizer.unk_id is None else tokenizer.unk_id),
        "pad_token": pad_token,
    }
    for name in ("extra_special_tokens", "image_token", "processor_class", "model_input_names", "add_prefix_space"):
        config.pop(name, None)
    listed = {str(token["id"]): {flag: token[flag] for flag in _FLAGS} for token in tokens}
    legacy = {"legacy": tokenizer.legacy, "added_tokens_decoder": listed}
    write_json(out / path.name, {"model_max_length": length, **config, **kind, **legacy, **special})
    write_json(out / "special_tokens_map.json", special)


def write_generation_config(directory: Path, tokenizer: Tokenizer, pad: int, out: Path) -> None:
    """The source's own, with the ids of the special tokens; `pad` is the one for padding."""
    path = directory / "generation_config.json"
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": pad}
    write_json(out / path.name, (read_json(path) if path.exists() else {}) | ids)


def write_chat_template(template: Template, tokenizer: Tokenizer, image: str, out: Path) -> None:
    """In every place where a version of transformers, or its tokenizer alone, looks for it."""
    text = chat_template(template, eos_token=tokenizer.token(tokenizer.eos_id), image_token=image)
    (out / "chat_template.jinja").write_text(text, encoding="utf-8")
    write_json(out / "chat_template.json", {"chat_template": text})
    path = out / "tokenizer_config.json"
    if path.exists() and "chat_template" in (config := read_json(path)):
        write_json(path, config | {"chat_template": text})
