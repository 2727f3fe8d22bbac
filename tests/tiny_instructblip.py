"""Tiny random InstructBLIP checkpoints, made by transformers itself, for tests of everything that reads one."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

from tests.tiny_tokenizer import SENTENCES, build_tokenizer_dir

FOLDER = "qformer_tokenizer"
IMAGE_TOKEN_ID, PAD_TOKEN_ID = 509, 510  # of the tokenizer below


@dataclasses.dataclass(frozen=True)
class TinyBlip:
    """Sizes of a random model; everything the port must get right has a value to vary.

    Attributes:
        legacy: a checkpoint of before transformers 4.46, without an image token.
    """

    text_width: int = 64
    text_mlp: int = 96
    text_layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tied: bool = False
    vision_width: int = 32
    vision_mlp: int = 48
    vision_layers: int = 3
    vision_heads: int = 4
    image_size: int = 28
    patch_size: int = 7
    vision_act: str = "gelu"
    qkv_bias: bool = True
    width: int = 24
    mlp: int = 40
    layers: int = 4
    qformer_heads: int = 3
    frequency: int = 2
    queries: int = 4
    words: int = 300
    positions: int = 48
    vocab_size: int = 576
    legacy: bool = False

    @property
    def num_image_tokens(self) -> int:
        return self.queries


def config_of(tiny: TinyBlip) -> transformers.InstructBlipConfig:
    return transformers.InstructBlipConfig(
        vision_config={
            "hidden_size": tiny.vision_width,
            "intermediate_size": tiny.vision_mlp,
            "num_hidden_layers": tiny.vision_layers,
            "num_attention_heads": tiny.vision_heads,
            "image_size": tiny.image_size,
            "patch_size": tiny.patch_size,
            "hidden_act": tiny.vision_act,
            "qkv_bias": tiny.qkv_bias,
        },
        qformer_config={
            "vocab_size": tiny.words,
            "hidden_size": tiny.width,
            "intermediate_size": tiny.mlp,
            "num_hidden_layers": tiny.layers,
            "num_attention_heads": tiny.qformer_heads,
            "cross_attention_frequency": tiny.frequency,
            "max_position_embeddings": tiny.positions,
            "encoder_hidden_size": tiny.vision_width,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": tiny.vocab_size,
            "hidden_size": tiny.text_width,
            "intermediate_size": tiny.text_mlp,
            "num_hidden_layers": tiny.text_layers,
            "num_attention_heads": tiny.heads,
            "num_key_value_heads": tiny.kv_heads,
            "head_dim": tiny.head_dim,
            "rms_norm_eps": tiny.rms_norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": tiny.rope_theta},
            "rope_theta": tiny.rope_theta,
            "max_position_embeddings": 512,
            "tie_word_embeddings": tiny.tied,
        },
        num_query_tokens=tiny.queries,
        image_token_index=IMAGE_TOKEN_ID,
    )


def build_model(tiny: TinyBlip, seed: int = 0) -> transformers.InstructBlipForConditionalGeneration:
    """A random model in float32 whose outputs are far from uniform."""
    torch.manual_seed(seed)
    model = transformers.InstructBlipForConditionalGeneration(config_of(tiny)).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Norms and biases away from 1 and 0, matrices wide enough that every layer matters.
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            elif "embed" in name or "query_tokens" in name:
                weight.copy_(torch.randn_like(weight) * 0.5)
            else:  # norms after each sum make the Q-Former sensitive to small differences as it is
                gain = 1.5 if name.startswith("language_model") else 1.0
                weight.copy_(torch.randn_like(weight) * gain * weight[0].numel() ** -0.5)
    return model


def build_checkpoint(
    directory: Path, tiny: TinyBlip = TinyBlip(), *, seed: int = 0, dtype: Any = torch.float32, **save: Any
) -> Path:
    """Saves a random model with real small tokenizers and processor files as transformers lays them out."""
    if tiny.legacy:
        tiny = dataclasses.replace(tiny, vocab_size=IMAGE_TOKEN_ID + 1)  # rows up to [PAD], as Vicuna's 32001
    model = build_model(tiny, seed).to(dtype)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory, **save)
    if tiny.legacy:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        del config["image_token_index"]
        path.write_text(json.dumps(config))
    write_processor(directory, tiny)
    return directory


def write_processor(directory: Path, tiny: TinyBlip = TinyBlip()) -> None:
    """Tokenizer and processor files as Salesforce's directories have them."""
    write_tokenizer(directory, legacy=tiny.legacy)
    write_instruction_tokenizer(directory / FOLDER, tiny.words)
    processor = {
        "image_processor_type": "BlipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": tiny.image_size, "width": tiny.image_size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "InstructBlipProcessor",
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    if not tiny.legacy:
        settings = {"processor_class": "InstructBlipProcessor", "num_query_tokens": tiny.queries}
        (directory / "processor_config.json").write_text(json.dumps(settings))


def write_tokenizer(directory: Path, *, legacy: bool = False) -> None:
    """LLaMA's, with LAVIS's special tokens: texts begin and end with </s>, and unknown is </s> too."""
    build_tokenizer_dir(directory)
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    added = content["added_tokens"][:3]
    names = ["[PAD]"] if legacy else ["<image>", "[PAD]"]
    for token_id, name in enumerate(names, IMAGE_TOKEN_ID):
        added.append({**added[0], "id": token_id, "content": name})
    first, text = {"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    content["added_tokens"] = added
    content["post_processor"] |= {
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
    }
    path.write_text(json.dumps(content, ensure_ascii=False))
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "[PAD]"}
    decoder = {str(each["id"]): {key: each[key] for key in each if key != "id"} for each in added}
    path.write_text(json.dumps(config | special | {"added_tokens_decoder": decoder}))
    (directory / "special_tokens_map.json").write_text(json.dumps(special))


def write_instruction_tokenizer(folder: Path, words: int = TinyBlip.words) -> None:
    """BERT's, trained on the spot, with LAVIS's [DEC]."""
    folder.mkdir(exist_ok=True)
    bert = tokenizers.BertWordPieceTokenizer(lowercase=True)
    bert.train_from_iterator(SENTENCES, vocab_size=words - 1, show_progress=False)
    vocabulary = sorted(bert.get_vocab(), key=bert.get_vocab().get)
    assert len(vocabulary) < words
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary))
    whole = tokenizers.BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    whole.add_special_tokens(["[DEC]"])
    whole.save(str(folder / "tokenizer.json"))
    special = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    special |= {"mask_token": "[MASK]", "bos_token": "[DEC]"}
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def to_lavis(directory: Path, out: Path) -> Path:
    """A checkpoint of transformers as LAVIS's users have it: its Vicuna, the Q-Former's file and the tower's."""
    model = transformers.InstructBlipForConditionalGeneration.from_pretrained(directory)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    text = {name.removeprefix("language_model."): value for name, value in weights.items() if "language_model" in name}
    out.mkdir(parents=True)
    rows = IMAGE_TOKEN_ID  # a Vicuna has neither [PAD] nor <image>
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        text[name] = text[name][:rows].clone()
    language = transformers.LlamaForCausalLM(model.config.text_config)
    language.resize_token_embeddings(rows)
    language.load_state_dict(text)
    language.save_pretrained(out)
    build_tokenizer_dir(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((out / name).read_text())
        if name == "tokenizer.json":
            content["added_tokens"] = content["added_tokens"][:3]
        else:
            content["added_tokens_decoder"] = {i: t for i, t in content["added_tokens_decoder"].items() if int(i) < 3}
            del content["pad_token"]
        (out / name).write_text(json.dumps(content, ensure_ascii=False))
    (out / FOLDER).mkdir()
    shutil.copy(directory / FOLDER / "vocab.txt", out / FOLDER)
    special = json.loads((out / "special_tokens_map.json").read_text())
    (out / "special_tokens_map.json").write_text(json.dumps({k: v for k, v in special.items() if k != "pad_token"}))

    tower, rest = {}, {"query_tokens": weights["query_tokens"], "Qformer.bert.embeddings.position_ids": torch.arange(9)}
    for name, value in weights.items():
        if name.startswith("vision_model.post_layernorm."):
            rest[name.replace("vision_model.post_layernorm", "ln_vision")] = value
        elif name.startswith("vision_model."):
            tower |= _tower_tensors(name.removeprefix("vision_model."), value)
        elif name.startswith("qformer."):
            new = name.replace("qformer.", "Qformer.bert.").replace("layernorm", "LayerNorm")
            rest[new.replace("attention.attention.", "attention.self.")] = value
        elif name.startswith("language_projection."):
            rest[name.replace("language_projection", "llm_proj")] = value
    torch.save({"model": rest}, out / "instruct_blip_vicuna7b_trimmed.pth")
    torch.save(tower | {"head.weight": torch.ones(2, 2)}, out / "eva_vit_g.pth")
    return out


def _tower_tensors(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor of the tower by the names of its own file."""
    plain = {"embeddings.class_embedding": "cls_token", "embeddings.position_embedding": "pos_embed"}
    if name in plain:
        return {plain[name]: value}
    if name.startswith("embeddings.patch_embedding."):
        return {name.replace("embeddings.patch_embedding", "patch_embed.proj"): value}
    name = name.replace("encoder.layers.", "blocks.").replace("layer_norm", "norm").replace("self_attn.", "attn.")
    name = name.replace("attn.projection", "attn.proj")
    if not name.endswith("qkv.bias"):
        return {name: value}
    query, key, value = value.chunk(3)
    assert not key.any(), "LAVIS's keys have no bias"
    return {name.replace("qkv.bias", "q_bias"): query.clone(), name.replace("qkv.bias", "v_bias"): value.clone()}


def instruction_rows(rng: np.random.Generator, lengths: tuple[int, ...], tiny: TinyBlip) -> np.ndarray:
    """Random instructions of these lengths, -1 behind them."""
    found = np.full((len(lengths), max(lengths) + 3), -1, np.int32)
    for row, length in zip(found, lengths, strict=True):
        row[:length] = rng.integers(0, tiny.words, length)
    return found
