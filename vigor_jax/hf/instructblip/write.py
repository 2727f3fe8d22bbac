"""Writes InstructBLIP for transformers.

What has that form already is taken over, with other weights. What has no image token, a checkpoint of before
transformers 4.46 or one of LAVIS, gets one, which later versions want: 32001 with 32064 rows, as Salesforce's have.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from vigor_jax.hf.family import Checkpoint, Export
from vigor_jax.hf.image_settings import BLIP, preprocessing_to_hf
from vigor_jax.hf.instructblip import lavis
from vigor_jax.hf.instructblip.config import IMAGE_KEYS, to_hf
from vigor_jax.hf.processor_files import (
    AS_IS,
    IMAGE_TOKEN,
    copy_files,
    rewrite_for_both_versions,
    write_generation_config,
    write_json,
    write_tokenizer,
    write_tokenizer_config,
)
from vigor_jax.hf.weights.merged import write_tensors
from vigor_jax.json_fields import exists, read_json
from vigor_jax.models.instructblip import InstructBlipConfig

INSTRUCTION_FOLDER = "qformer_tokenizer"
INSTRUCTION_FILES = tuple(
    f"{INSTRUCTION_FOLDER}/{name}"
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "added_tokens.json")
)
_PAD_TOKEN, _ROWS_MULTIPLE = "[PAD]", 64


def write(export: Export, directory: Path | None) -> None:
    """Writes an export; the arguments are those of `Family.write`."""
    source = export.checkpoint
    config = source.config
    assert isinstance(config, InstructBlipConfig)
    before = read_json(source.directory / "config.json")
    is_complete = any(before.get(key) is not None for key in IMAGE_KEYS)
    new_tokens: dict[str, int] = {}
    if not is_complete:
        config, new_tokens = _with_image_token(source, config)
    tensors = export.tensors(config.text.vocab_size)
    kind = write_tensors(directory, tensors, lambda name: name, export.shard_bytes)
    if directory is None:
        return
    if lavis.is_lavis(before, source.directory):
        after = to_hf(config, kind)
    else:
        after = before | {"dtype" if "dtype" in before else "torch_dtype": kind}
    if not is_complete:
        after |= {"image_token_index": config.image_token_id}
        after["text_config"] = after["text_config"] | {"vocab_size": config.text.vocab_size}
    write_json(directory / "config.json", after)
    if is_complete:
        copy_files(source.directory, directory, source.family.files)
        write_tokenizer(source.directory, source.tokenizer, directory)
        rewrite_for_both_versions(directory / "tokenizer_config.json")
        rewrite_for_both_versions(directory / INSTRUCTION_FILES[1])
    else:
        _write_new_files(source, config, new_tokens, directory)
    # No chat template: `InstructBlipProcessor` takes a text without images, and puts the image in front of it.


def _with_image_token(source: Checkpoint, config: InstructBlipConfig) -> tuple[InstructBlipConfig, dict[str, int]]:
    """The sizes with rows for two tokens, and those of them that are new."""
    tokenizer, new = source.tokenizer, dict[str, int]()
    for token in (_PAD_TOKEN, IMAGE_TOKEN):
        if tokenizer.token_to_id(token) is None:
            new[token] = tokenizer.vocab_size + len(new)
    image = tokenizer.token_to_id(IMAGE_TOKEN)
    rows = max(config.text.vocab_size, tokenizer.vocab_size + len(new))
    text = dataclasses.replace(config.text, vocab_size=rows + -rows % _ROWS_MULTIPLE)
    return dataclasses.replace(config, text=text, image_token_id=new[IMAGE_TOKEN] if image is None else image), new


def _write_new_files(source: Checkpoint, config: InstructBlipConfig, new: dict[str, int], out: Path) -> None:
    """Everything that `InstructBlipProcessor` and `generate` read; the tokenizer puts in front what ours does."""
    tokenizer = source.tokenizer
    copy_files(source.directory, out, ("tokenizer.model", *INSTRUCTION_FILES))
    content = json.loads(tokenizer.to_json(new))
    content["post_processor"] = _in_front(tokenizer.token(tokenizer.bos_id), tokenizer.bos_id)
    (out / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    pad = new.get(_PAD_TOKEN, tokenizer.token_to_id(_PAD_TOKEN))
    assert pad is not None
    kind = AS_IS | {"padding_side": "left"}
    length = config.text.max_position_embeddings
    tokens = content["added_tokens"]
    write_tokenizer_config(source.directory, tokenizer, tokens, out, kind, pad_token=_PAD_TOKEN, length=length)
    write_generation_config(source.directory, tokenizer, pad, out)
    if not exists(out / INSTRUCTION_FILES[1]):  # a vocab.txt alone says nothing to `AutoTokenizer`
        write_json(out / INSTRUCTION_FILES[1], {"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    edge = source.preprocessing.size
    image = {"image_processor_type": BLIP, "size": {"height": edge, "width": edge}}
    settings = preprocessing_to_hf(source.preprocessing)
    kept = {key: value for key, value in settings.items() if key not in ("do_center_crop", "crop_size")}
    write_json(out / "preprocessor_config.json", kept | image)
    processor = {"processor_class": "InstructBlipProcessor", "num_query_tokens": config.qformer.num_queries}
    write_json(out / "processor_config.json", processor)


def _in_front(token: str, token_id: int) -> dict[str, Any]:
    """The post-processor that puts a token in front of a text."""
    first, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }
