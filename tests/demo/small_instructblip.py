"""An InstructBLIP that begins to learn the demo's scenes: it speaks and has eyes, and its Q-Former knows nothing."""

import json
import shutil
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import load_file

from vigor_jax.demo.dataset import CHECKPOINTS
from vigor_jax.demo.language import PROMPTS

POLICY = CHECKPOINTS / "policy"
QUERIES = 36
WORDS = 128


def build(directory: Path, seed: int = 0) -> Path:
    """Writes a checkpoint as transformers lays it out.

    The language model is that of the demo's policy, and so are the layers of its tower; EVA has no norm before them as
    CLIP has, and the projection is another, so that these parts must learn to see again. The Q-Former is random.
    """
    told = json.loads((POLICY / "config.json").read_text())
    tower = told["vision_config"]
    torch.manual_seed(seed)
    model = transformers.InstructBlipForConditionalGeneration(
        transformers.InstructBlipConfig(
            vision_config={key: tower[key] for key in tower if key != "model_type"} | {"qkv_bias": True},
            qformer_config={
                "vocab_size": WORDS,
                "hidden_size": 96,
                "intermediate_size": 256,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "cross_attention_frequency": 1,
                "max_position_embeddings": 32,
                "encoder_hidden_size": tower["hidden_size"],
            },
            text_config=told["text_config"],
            num_query_tokens=QUERIES,
            image_token_index=told["image_token_index"],
        )
    ).float()
    with torch.no_grad():
        model.query_tokens.normal_(std=1.0)
    known = load_file(POLICY / "model.safetensors")
    language = {name: value for name, value in known.items() if name.startswith("language_model.")}
    _, unexpected = model.load_state_dict(language | _tower(known), strict=False)
    assert not unexpected, unexpected
    model.save_pretrained(directory)

    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json"):
        shutil.copy(POLICY / name, directory)
    path = directory / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    size = {"height": tower["image_size"], "width": tower["image_size"]}
    kept = {key: settings[key] for key in ("image_mean", "image_std")}
    processor = {"image_processor_type": "BlipImageProcessor", "size": size, "resample": 3, "rescale_factor": 1 / 255}
    path.write_text(json.dumps(processor | dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True) | kept))
    (directory / "processor_config.json").write_text(
        json.dumps({"processor_class": "InstructBlipProcessor", "num_query_tokens": QUERIES})
    )
    folder = directory / "qformer_tokenizer"
    folder.mkdir()
    bert = tokenizers.BertWordPieceTokenizer(lowercase=True)
    bert.train_from_iterator(PROMPTS, vocab_size=WORDS, show_progress=False)
    bert.save(str(folder / "tokenizer.json"))
    return directory


def _tower(known: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """CLIP's layers by the names of EVA's, which has the three projections of attention in one."""
    prefix = "vision_tower.vision_model."
    own = {name.removeprefix(prefix): value for name, value in known.items() if name.startswith(prefix)}
    found = {}
    for name, value in own.items():
        if "_proj." not in name or "out_proj" in name:
            found[name.replace("self_attn.out_proj", "self_attn.projection")] = value
        elif "q_proj" in name:
            parts = [own[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            found[name.replace("q_proj", "qkv")] = torch.cat(parts)
    found["embeddings.class_embedding"] = found["embeddings.class_embedding"].reshape(1, 1, -1)
    found["embeddings.position_embedding"] = found.pop("embeddings.position_embedding.weight")[None]
    found["embeddings.patch_embedding.bias"] = torch.zeros(found["embeddings.class_embedding"].shape[-1])
    return {f"vision_model.{name}": value for name, value in found.items() if not name.startswith("pre_layrnorm")}
