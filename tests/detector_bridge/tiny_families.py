"""OWL-ViT, OWLv2 and OmDet-Turbo with random weights, small enough for unit tests, with a small CLIP tokenizer."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.detector_bridge.tiny_detector import WORDS, spread, write_transformers

FIRST, LAST, PAD = "<|startoftext|>", "<|endoftext|>", "!"
SIZE = 96  # of pictures, in pixels


def write_clip_tokenizer(directory: Path, max_length: int) -> int:
    """The files of CLIP's tokenizer, as hubs have them, with a small vocabulary; returns its size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda letter: (letter != PAD, letter))
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(vocab_size=500, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator([" ".join([*WORDS, "detect"])] * 3, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges), FIRST, LAST]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n")
    names = {"bos_token": FIRST, "eos_token": LAST, "unk_token": LAST, "pad_token": PAD}
    config = names | {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length, "do_lower_case": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return len(vocabulary)


def text_config(vocabulary: int, max_length: int, width: int = 32) -> dict[str, int]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": max_length,
        "projection_dim": 32,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
    }


def write_processor(directory: Path, kind: str, **changes: object) -> None:
    settings = {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_resize": True,
        "size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(settings | changes))


def write_owl(directory: Path, kind: str = "Owlv2", seed: int = 0) -> Path:
    """A checkpoint of an "OwlViT" or "Owlv2"; returns `directory`."""
    size = write_clip_tokenizer(directory, 16)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 16,
    }
    config = getattr(transformers, f"{kind}Config")(
        text_config=text_config(size, 16), vision_config=vision, projection_dim=32
    )
    model = getattr(transformers, f"{kind}ForObjectDetection")(config).eval()
    spread(model, seed)
    with torch.no_grad():  # so that scores are spread: a logit is (cosine + shift) * (elu(scale) + 1)
        model.class_head.logit_scale.weight.mul_(0.2)
        model.class_head.logit_scale.bias.fill_(3.0)
        model.box_head.dense2.weight.mul_(0.5)
    model.save_pretrained(directory)
    padding = {"do_pad": True} if kind == "Owlv2" else {"do_center_crop": False, "resample": 3}
    write_processor(directory, kind, **padding)
    return directory


def write_omdet(directory: Path, seed: int = 0) -> Path:
    """A checkpoint of an OmDet-Turbo; returns `directory`."""
    size = write_clip_tokenizer(directory, 77)
    config = transformers.OmDetTurboConfig(
        backbone_config=transformers.SwinConfig(
            image_size=SIZE,
            embed_dim=16,
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 4, 8],
            window_size=3,
            out_indices=[2, 3, 4],
        ),
        use_timm_backbone=False,
        text_config=transformers.CLIPTextConfig(**text_config(size, 77, 48)),
        apply_layernorm_after_vision_backbone=False,
        image_size=SIZE,
        text_projection_in_dim=48,
        text_projection_out_dim=48,
        class_embed_dim=48,  # not that of the decoder, or the library's model fails
        task_encoder_hidden_dim=64,
        num_queries=30,
        vision_features_channels=[32, 32, 32],
        encoder_in_channels=[32, 64, 128],
        encoder_hidden_dim=32,
        encoder_attention_heads=4,
        encoder_dim_feedforward=64,
        decoder_hidden_dim=32,
        decoder_num_heads=4,
        decoder_num_layers=2,
        decoder_dim_feedforward=64,
    )
    model = transformers.OmDetTurboForObjectDetection(config).eval()
    spread(model, seed)
    model.save_pretrained(directory)
    write_processor(directory, "Detr", format="coco_detection", do_pad=False)
    return directory


WRITERS = {
    "grounding-dino": write_transformers,
    "mm-grounding-dino": lambda directory: write_transformers(directory, kind="MMGroundingDino"),
    "owlv2": write_owl,
    "owlvit": lambda directory: write_owl(directory, "OwlViT"),
    "omdet-turbo": write_omdet,
}
