"""A tokenizer of LLaMA's kind for the demo, every word of which is one token, as a checkpoint's files."""

import json
import string
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

_SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_ADDED = {"image_token": "<image>", "pad_token": "<pad>"}
# More than the demo's words need, so training ends when each of them is whole.
_MAX_PIECES = 2000


def write_tokenizer(directory: Path, texts: Iterable[str], max_length: int) -> Tokenizer:
    """Trains byte-pair encoding on the texts and writes the files that transformers and `Tokenizer.load` read.

    Ids as in LLaMA: `<unk>` 0, `<s>` 1, `</s>` 2, then the 256 bytes, which spell what the pieces cannot, then the
    pieces; `<image>` and `<pad>` are last, as in llava-hf checkpoints.

    Args:
      directory: exists already.
      texts: the words to know.
      max_length: the model's longest sequence in tokens.
    """
    tokenizer = Tokenizer(_byte_pairs(texts))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    special = [*_SPECIAL.values(), *_ADDED.values()]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))

    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    decoder = {str(tokenizer.token_to_id(token)): {"content": token, "special": True, **flags} for token in special}
    names = {**_SPECIAL, "pad_token": _ADDED["pad_token"]}
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "padding_side": "left",
        "added_tokens_decoder": decoder,
        **names,
    }
    for name, value in (("tokenizer_config.json", settings), ("special_tokens_map.json", names)):
        (directory / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return tokenizer


def _byte_pairs(texts: Iterable[str]) -> models.BPE:
    """Pieces that hold no more than one word or one punctuation mark, behind LLaMA's first 259 ids."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation()]
    )
    letters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    trainer = trainers.BpeTrainer(vocab_size=_MAX_PIECES, initial_alphabet=letters, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]

    pieces = [*_SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(learned["vocab"], key=learned["vocab"].get)
    return models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
