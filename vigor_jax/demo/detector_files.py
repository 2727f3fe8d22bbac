"""What stands next to the weights of the demo's detector: tokenizer, image processor, model card."""

import math
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vigor_jax.demo.scenes import COLORS, IMAGE_SIZE, SHAPES
from vigor_jax.hf.processor_files import write_json
from vigor_jax.hf.weights.tensor_files import TensorReader

# Where BERT has them: the model's code relies on all but [UNK] and [MASK].
SPECIAL_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
VOCAB_SIZE = max(SPECIAL_IDS.values()) + 1
_FIRST_WORD = 200
# Twelve phrases of two words, with room to spare.
MAX_TOKENS = 64

# Near the mean and spread of the drawn pictures.
IMAGE_MEAN, IMAGE_STD = (0.82, 0.82, 0.8), (0.25, 0.25, 0.25)


def make_tokenizer() -> Tokenizer:
    """BERT's, uncased, with one piece for each word of the demo; other words are spelled by letters and digits."""
    letters = string.ascii_lowercase + string.digits
    words = [*SHAPES, *COLORS, *letters, *(f"##{letter}" for letter in letters)]
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


def write_card(directory: Path, training: Mapping[str, Any], accuracy: Mapping[str, Any]) -> None:
    """Writes README.md.

    Args:
      directory: of the detector.
      training: "num_steps", "batch_size", "num_pictures", "seed" and "minutes".
      accuracy: see `detector.evaluate_detector`.
    """
    rows = {"all nouns": accuracy["overall"], **accuracy["nouns"], "all phrases with a color": accuracy["attributes"]}
    rows |= {f"... {kind}": accuracy[kind] for kind in ("true", "wrong color", "absent")}
    table = "\n".join(f"| {name} | {share:.2%} |" for name, share in rows.items())
    weights = TensorReader.open(directory)
    parameters = sum(math.prod(weights.shape(name)) for name in weights.names())
    facts = {
        **training,
        "parameters": parameters,
        "num_scenes": accuracy["num_scenes"],
        "test_seed": accuracy["seed"],
        "table": table,
    }
    card = _CARD.format(**facts, side=IMAGE_SIZE, shapes=", ".join(SHAPES), colors=", ".join(COLORS))
    (directory / "README.md").write_text(card, encoding="utf-8")


_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-object-detection
---
# The detector of the demo

A small GroundingDINO: transformers' architecture with {parameters:,} weights (float16; compute in float32),
trained from scratch on drawings of the demo's scenes alone. In pictures of {side} x {side} pixels it finds

- {shapes},
- in {colors}.

It knows nothing else, and no photograph: a plaything that makes the demo's pipeline run in minutes.

Prompts are those of its big relatives, lower case, a dot after every phrase, the last one too:
`star . red circle . moon .`, with thresholds of 0.25 for boxes and for text. The sidecar serves it:
`python -m detector_bridge.server --model vigor_jax/demo/checkpoints/detector`.

## How it was made

`python -m vigor_jax.demo.build detector`: {num_steps:,} updates of {batch_size} pictures, out of {num_pictures:,}
drawn with seed {seed}, in {minutes:.0f} minutes on one CPU core. Half of the scenes are the demo's. In the others every
object's shape and color is drawn independently, so that the detector cannot guess one thing from another.

## How often it is right

Is something there or not, on {num_scenes:,} new scenes of the demo (seed {test_seed}), through transformers'
processor and model. Every scene is asked about all twelve nouns, and about phrases with a color, of three kinds alike
often: true, wrong in the color alone, and about what is absent.

| | right |
| --- | --- |
{table}

License: Apache-2.0, as the code that made it.
"""
