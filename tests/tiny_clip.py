"""Tiny random CLIP checkpoints, made by transformers itself."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
REAL_VOCABULARY = ROOT.parent / "shared" / "data" / "tokenizers" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class TinyClip:
    """Sizes of a random CLIP; everything the port must get right has a value to vary."""

    vision_width: int = 32
    vision_mlp: int = 48
    vision_layers: int = 3
    vision_heads: int = 4
    image_size: int = 28
    patch_size: int = 14
    text_width: int = 48
    text_mlp: int = 64
    text_layers: int = 2
    text_heads: int = 3
    positions: int = 24
    projection: int = 20
    act: str = "quick_gelu"
    old_end: bool = False  # the convention of configs that say 2


def byte_letters() -> list[str]:
    """What stands for each byte in a byte-level BPE, in the order of CLIP's vocabulary."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in kept] + [chr(256 + n) for n in range(256 - len(kept))]


def small_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Letters alone, with a few merges; laid out as CLIP's: letters, letters that end words, merges, start, end."""
    merges = [("t", "h"), ("d", "o"), ("do", "g</w>"), ("c", "a"), ("ca", "t</w>"), ("th", "e</w>")]
    return vocabulary_of(merges), merges


def real_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's own, from the file of its authors."""
    lines = gzip.decompress(REAL_VOCABULARY.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    return vocabulary_of(merges), merges


def vocabulary_of(merges: list[tuple[str, str]]) -> dict[str, int]:
    letters = byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}


def build_model(tiny: TinyClip, vocab: dict[str, int], seed: int = 0) -> transformers.CLIPModel:
    """A random model in float32 in which every layer matters."""
    torch.manual_seed(seed)
    end = vocab[END]
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": len(vocab),
            "hidden_size": tiny.text_width,
            "intermediate_size": tiny.text_mlp,
            "num_hidden_layers": tiny.text_layers,
            "num_attention_heads": tiny.text_heads,
            "max_position_embeddings": tiny.positions,
            "hidden_act": tiny.act,
            "bos_token_id": vocab[START],
            "eos_token_id": 2 if tiny.old_end else end,
        },
        vision_config={
            "hidden_size": tiny.vision_width,
            "intermediate_size": tiny.vision_mlp,
            "num_hidden_layers": tiny.vision_layers,
            "num_attention_heads": tiny.vision_heads,
            "image_size": tiny.image_size,
            "patch_size": tiny.patch_size,
            "hidden_act": tiny.act,
        },
        projection_dim=tiny.projection,
    )
    model = transformers.CLIPModel(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            elif weight.ndim:
                weight.copy_(torch.randn_like(weight) * (0.5 if "embed" in name else 1.5 * weight.shape[-1] ** -0.5))
    return model


def build_checkpoint(
    directory: Path,
    tiny: TinyClip = TinyClip(),
    *,
    seed: int = 0,
    real: bool = False,
    model: Any = None,
    dtype: Any = torch.float32,
) -> Path:
    """Saves a random model, its tokenizer and its image settings, as transformers does."""
    vocab, merges = real_vocabulary() if real else small_vocabulary()
    model = model or build_model(tiny, vocab, seed)
    model.to(dtype).save_pretrained(directory)
    transformers.CLIPTokenizer(vocab=vocab, merges=merges).save_pretrained(directory)
    size = tiny.image_size
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory
