"""A GroundingDINO with random weights that is small enough for unit tests and converts to the official layout."""

import json
import math
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from detector_bridge.backends import Backend

_TEXT = (
    "a an the two three of on in with and near behind left right small large big round hot wet old young wooden "
    "red green blue yellow orange white black gray brown pink purple "
    "circle square triangle cross star ring disc box bar "
    "person man woman child boy girl people dog cat horse cow sheep bird fish bear elephant zebra giraffe "
    "car bus truck train boat bicycle motorcycle airplane traffic light stop sign fire hydrant bench road street "
    "table chair couch bed desk lamp book clock vase phone laptop keyboard mouse remote screen window door wall "
    "cup glass bottle bowl plate fork knife spoon food pizza sandwich cake apple banana carrot broccoli donut "
    "shirt hat tie bag backpack umbrella shoe glasses ball bat kite frisbee skateboard surfboard ski racket "
    "tree grass flower sky cloud sun water beach sand snow mountain building house bridge kitchen room"
)
WORDS = _TEXT.split()
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}


def vocabulary() -> list[str]:
    """1,100 word pieces with the special ones where BERT has them; every word of ASCII letters and digits tokenizes."""
    pieces = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *"!\"#$%&'()*+,-/:;<=>@[\\]^_`{|}~", *WORDS, "##s"]
    pieces = [piece for piece in dict.fromkeys(pieces) if piece not in IDS]
    taken = set(IDS.values())
    places = [i for i in range(1100) if i not in taken]
    filled = dict(zip(places[150:], pieces, strict=False)) | {i: piece for piece, i in IDS.items()}
    return [filled.get(i, f"[unused{i}]") for i in range(1100)]


def write_tokenizer(directory: Path) -> None:
    """The files of an uncased BERT tokenizer with the small vocabulary, as hubs have them."""
    directory.mkdir(parents=True, exist_ok=True)
    pieces = vocabulary()
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "vocab.txt").write_text("\n".join(pieces) + "\n")
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    config = names | {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def write_transformers(
    directory: Path,
    seed: int = 0,
    *,
    kind: str = "GroundingDino",
    embed_dim: int = 24,
    depths: tuple[int, ...] = (1, 2, 1, 1),
    swin_heads: int = 2,
    d_model: int = 64,
    layers: int = 2,
    heads: int = 4,
    ffn: int = 128,
    queries: int = 40,
    text_width: int = 32,
    text_layers: int = 2,
    short_side: int = 224,
    long_side: int = 400,
) -> Path:
    """Writes a checkpoint that `GroundingDinoForObjectDetection` and `AutoProcessor` load, and returns `directory`.

    With the kind "MMGroundingDino" it is one for `MMGroundingDinoForObjectDetection`.

    The weights are random, of a spread such that scores differ between queries, phrases and pictures. Only a model
    with d_model 256 converts to the original layout, whose package has that number as a constant.
    """
    write_tokenizer(directory)
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=transformers.SwinConfig(
            image_size=224,
            embed_dim=embed_dim,
            depths=list(depths),
            num_heads=[swin_heads * 2**stage for stage in range(len(depths))],
            window_size=7,
            out_indices=[2, 3, 4],
        ),
        text_config=transformers.BertConfig(
            vocab_size=len(vocabulary()),
            hidden_size=text_width,
            num_hidden_layers=text_layers,
            num_attention_heads=max(2, text_width // 64),
            intermediate_size=4 * text_width,
            max_position_embeddings=512,
        ),
        d_model=d_model,
        num_queries=queries,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn,
        num_feature_levels=4,
        max_text_len=256,
    )
    model = getattr(transformers, f"{kind}ForObjectDetection")(config)
    spread(model.eval(), seed)
    balance(model, seed)
    state = {key: tensor for key, tensor in model.state_dict().items() if ".swin.layernorm." not in key}
    model.save_pretrained(directory, state_dict=state)  # without a norm that only transformers 5 writes, and none uses
    processor = {
        "image_processor_type": "GroundingDinoImageProcessor",
        "processor_class": "GroundingDinoProcessor",
        "do_resize": True,
        "size": {"shortest_edge": short_side, "longest_edge": long_side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_pad": True,
        "format": "coco_detection",
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))
    return directory


def draw_scene(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """A picture with shading, flat patches and noise: something at every scale, as in a photograph."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    canvas = np.stack([255 * columns / width, 255 * rows / height, 127 + 0 * rows], axis=-1)
    for _ in range(8):
        top, left = random.integers(0, height), random.integers(0, width)
        bottom, right = top + random.integers(8, 100), left + random.integers(8, 100)
        canvas[top:bottom, left:right] = random.integers(0, 256, 3)
    return Image.fromarray((canvas + random.normal(0, 8, canvas.shape)).clip(0, 255).astype(np.uint8))


def prompt_of(backend: Backend, *phrases: str) -> list[int]:
    """Token ids of a prompt: [CLS], every phrase followed by a dot, [SEP]."""
    return [101, *(token for phrase in phrases for token in [*backend.tokenize(phrase), 1012]), 102]


@torch.no_grad()
def spread(model: torch.nn.Module, seed: int) -> None:
    """Random weights by which every part of the model tells on its scores; the library's own start almost equal."""
    random = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        noise = torch.randn(weight.shape, generator=random)
        if "sampling_offsets" in name:
            weight.add_(0.3 * noise)  # around the ring of points that the library starts from
        elif name.endswith(("vision_param", "text_param")):
            weight.copy_((0.3 if "vision" in name else 0.1) + 0.05 * noise)
        elif weight.ndim > 1 and "embed" not in name.rsplit(".", 2)[-2]:
            weight.copy_(noise / math.sqrt(weight[0].numel()))
        elif weight.ndim > 1:
            weight.copy_(noise)
        elif name.endswith("bias"):
            weight.copy_(0.1 * noise)
        else:
            weight.copy_(1 + 0.1 * noise)


@torch.no_grad()
def balance(model: torch.nn.Module, seed: int) -> None:
    """Sets the last norm of the decoder, which a logit is a product of with a token, so that scores are spread.

    Logits of words get mean -0.7 and deviation 1.5, those of one word a deviation of 0.7 between queries.
    """
    random = torch.Generator().manual_seed(seed)
    pieces = vocabulary()
    words = [pieces.index(word) for word in WORDS[:100]]
    prompt = [101, *(token for word in words for token in (word, 1012)), 102]
    outputs = model(pixel_values=torch.randn(1, 3, 224, 224, generator=random), input_ids=torch.tensor([prompt]))
    text, queries = outputs.encoder_last_hidden_state_text[0, 1:-1:2], outputs.last_hidden_state[0]
    last = model.model.decoder.layer_norm
    queries = queries - last.bias
    scale = 0.7 / (queries @ text.T).std(dim=0).mean()
    mean = text.mean(dim=0)
    shared = torch.randn(mean.shape, generator=random)
    shared -= (shared @ mean) / (mean @ mean) * mean
    shared *= 1.5 / (text @ shared).std()
    last.weight.mul_(scale)
    last.bias.copy_(shared - 0.7 * mean / (mean @ mean) - scale * queries.mean(dim=0))
