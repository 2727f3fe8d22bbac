"""What stands beside the weights of the demo's detector: tokenizer, image processor, model card."""

import string
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vigor_jax.demo.scenes import COLOURS, IMAGE_SIZE, SHAPES
from vigor_jax.hf.processor_files import write_json

# Where BERT has them: the model's code relies on all but [UNK] and [MASK].
SPECIAL_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
VOCAB_SIZE = max(SPECIAL_IDS.values()) + 1
_FIRST_WORD = 200
# Twelve phrases of two words, with room to spare.
MAX_TOKENS = 64

# Near the mean and spread of the drawn pictures.
IMAGE_MEAN, IMAGE_STD = (0.82, 0.82, 0.8), (0.25, 0.25, 0.25)


def make_tokenizer() -> Tokenizer:
    """BERT's, uncased, with one piece for each word of the world; other words are spelt by letters and digits."""
    letters = string.ascii_lowercase + string.digits
    words = [*SHAPES, *COLOURS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {f"[unused{index}]": index for index in range(VOCAB_SIZE) if index not in SPECIAL_IDS.values()}
    for index, word in enumerate(words, start=_FIRST_WORD):
        del vocabulary[f"[unused{index}]"]
        vocabulary[word] = index
    tokenizer = Tokenizer(models.WordPiece(SPECIAL_IDS | vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    ends = [(name, SPECIAL_IDS[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.add_special_tokens([name for name in SPECIAL_IDS if name.startswith("[")])
    return tokenizer


def write_processor(directory: Path) -> None:
    """Writes the files that `AutoProcessor` reads."""
    tokenizer = make_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda piece: piece[1])
    (directory / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in pieces), encoding="utf-8")
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": MAX_TOKENS, **names},
    )
    write_json(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "GroundingDinoImageProcessor",
            "processor_class": "GroundingDinoProcessor",
            "do_resize": True,
            "size": {"shortest_edge": IMAGE_SIZE, "longest_edge": IMAGE_SIZE},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": IMAGE_MEAN,
            "image_std": IMAGE_STD,
            "do_pad": True,
            "format": "coco_detection",
        },
    )
