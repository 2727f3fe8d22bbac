"""A LLaMA-style tokenizer of about 500 tokens, trained on the spot, as the files of a checkpoint folder."""

import json
from pathlib import Path
from typing import Any

import tokenizers

SENTENCES = (
    "A chat between a curious user and an artificial intelligence assistant.",
    "A chat between a curious human and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: Describe the image in detail. ASSISTANT: The image shows a red circle and a blue square.",
    "Human: What is on the table? Assistant: There are two plates, a fork and a glass on the table.",
    "A man is riding a wave on a surfboard in the ocean while people watch from the beach.",
    "Two dogs and a cat sit on the green grass beside a wooden bench; a car is parked behind them.",
    "The traffic light above the street is red, and several persons are waiting to cross.",
    "Assess the accuracy of the last sentence in this description, and return a single number: 1 or 0.",
    "The error is in the object, the attribute, the relationship or the conjecture ### 23456789.",
    "Is there a bicycle in the image? No, there is not. Is there a person? Yes, in the middle.",
)
_SPECIAL = ("<unk>", "<s>", "</s>")
_NUM_MERGES_AND_LETTERS = 250


def build_tokenizer_dir(directory: Path, legacy: bool = True) -> Path:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json; returns `directory`.

    Ids: `<unk>` 0, `<s>` 1, `</s>` 2, 256 bytes, letters and merges, then `<image>` and `<pad>` last.
    """
    directory.mkdir(parents=True, exist_ok=True)
    trained = _train()
    pieces = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(trained["vocab"], key=trained["vocab"].get)
    added = [*enumerate(_SPECIAL), (len(pieces), "<image>"), (len(pieces) + 1, "<pad>")]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}

    prepend = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    sequence = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    bos, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, "content": token, **flags} for token_id, token in added],
        "normalizer": {"type": "Sequence", "normalizers": prepend} if legacy else None,
        "pre_tokenizer": None if legacy else metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": sequence},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": trained["merges"],
        },
    }
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": legacy,
        "added_tokens_decoder": {str(token_id): {"content": token, **flags} for token_id, token in added},
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    special = {name: config[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    for name, value in (
        ("tokenizer.json", content),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special),
    ):
        (directory / name).write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    return directory


def _train() -> dict[str, Any]:
    """The vocabulary and merges of a BPE whose pieces, like LLaMA's, hold one word or one digit at most."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([words, digits])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=_NUM_MERGES_AND_LETTERS, show_progress=False, initial_alphabet=["▁"]
    )
    model.train_from_iterator(SENTENCES, trainer)
    return json.loads(model.to_str())["model"]
