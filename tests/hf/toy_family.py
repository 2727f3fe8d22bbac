"""The toy's names and config, and a checkpoint of it, written without this package."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
import tokenizers

from tests.hf.toy_model import ToyConfig, ToyEyesConfig
from tests.tiny_llava import Tiny, write_processor
from vigor_jax.data.text.instructions import InstructionTokenizer
from vigor_jax.hf.config import text_config
from vigor_jax.hf.family import Family
from vigor_jax.hf.names import CONV, KEEP, Entry, linear, text_entries
from vigor_jax.hf.processor_files import SETTINGS_FILES
from vigor_jax.json_fields import Fields, Json

WORDS_FILE = "words/tokenizer.json"
WORDS = ["what", "is", "in", "the", "picture", "?", "name", "every", "color", "describe", "it"]
IMAGE_TOKEN_ID, VOCAB_SIZE, TEXT_WIDTH, WIDTH = 509, 576, 32, 24


class ToyFamily(Family):
    layouts = ("toy",)
    files = (*SETTINGS_FILES, WORDS_FILE)

    def read_config(self, config: Json, directory: Path, vision_tower: Path | None = None) -> ToyConfig:
        fields = Fields(config, directory / "config.json")
        text = fields.object("llm")
        assert text is not None
        return ToyConfig(
            vision=ToyEyesConfig(patch_size=fields.integer("patch", 7, least=1, most=28)),
            text=text_config(text),
            image_token_id=fields.integer("image_token_id", 0, least=0, most=10**6),
            num_image_tokens=fields.integer("num_queries", 3, least=1, most=100),
        )

    def entries(self, config: ToyConfig) -> Sequence[Entry]:
        found = [Entry("eyes.patches.weight", "vision_tower.patches", None, CONV)]
        for i in range(config.vision.num_layers):
            names = linear("vision_tower.layers.fc", f"eyes.blocks.{i}.fc").items()
            found += [Entry(name, path, i, axes) for path, (name, axes) in names]
        found += [Entry(f"asking.{name}", f"multi_modal_projector.{name}", None, KEEP) for name in ("queries", "words")]
        names = linear("multi_modal_projector.out", "asking.out").items()
        found += [Entry(name, path, None, axes) for path, (name, axes) in names]
        return [*found, *text_entries(config.text)]

    def canonical_name(self, name: str) -> str:
        return name.replace("llm.", "language_model.", 1) if name.startswith("llm.") else name

    def instructions(self, directory: Path) -> InstructionTokenizer:
        return InstructionTokenizer(directory / WORDS_FILE, max_length=8)


def build_toy(directory: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes a checkpoint with random weights; returns its tensors by their names on disk."""
    directory.mkdir(parents=True)
    write_processor(directory, Tiny())
    llm = {
        "model_type": "llama", "vocab_size": VOCAB_SIZE, "hidden_size": TEXT_WIDTH, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    config = {"model_type": "toy_vlm", "torch_dtype": "float32", "patch": 7, "num_queries": 3, "llm": llm}
    (directory / "config.json").write_text(json.dumps(config | {"image_token_id": IMAGE_TOKEN_ID}))

    shapes: dict[str, tuple[int, ...]] = {
        "eyes.patches.weight": (WIDTH, 3, 7, 7),
        "asking.queries": (3, WIDTH),
        "asking.words": (40, WIDTH),
        "asking.out.weight": (TEXT_WIDTH, WIDTH),
        "asking.out.bias": (TEXT_WIDTH,),
        "llm.model.embed_tokens.weight": (VOCAB_SIZE, TEXT_WIDTH),
        "llm.model.norm.weight": (TEXT_WIDTH,),
        "llm.lm_head.weight": (VOCAB_SIZE, TEXT_WIDTH),
    }
    for i in range(2):
        shapes |= {f"eyes.blocks.{i}.fc.weight": (WIDTH, WIDTH), f"eyes.blocks.{i}.fc.bias": (WIDTH,)}
        layer = f"llm.model.layers.{i}."
        shapes |= {f"{layer}{name}.weight": (TEXT_WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, rows in (("q", TEXT_WIDTH), ("k", 16), ("v", 16), ("o", TEXT_WIDTH)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, TEXT_WIDTH)
        shapes |= {f"{layer}mlp.{name}_proj.weight": (48, TEXT_WIDTH) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (TEXT_WIDTH, 48)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        size = 1.0 if len(shape) == 1 or "embed" in name or "asking" in name else 1.5 * np.prod(shape[1:]) ** -0.5
        tensors[name] = (rng.normal(size=shape) * size + (len(shape) == 1)).astype(np.float32)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", {"format": "pt"})

    vocabulary = {word: index for index, word in enumerate(["[CLS]", "[SEP]", "[UNK]", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.normalizer = tokenizers.normalizers.Lowercase()
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    (directory / WORDS_FILE).parent.mkdir()
    words.save(str(directory / WORDS_FILE))
    return tensors
