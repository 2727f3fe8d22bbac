"""Folders that hold something else than a whole LLaVA checkpoint: which of the usual ones it is, and what to do.

They are told by their files and by the names of their tensors; nothing of their weights is read.
"""

import re
from collections.abc import Collection
from pathlib import Path

from vigor_jax.errors import InputError, some
from vigor_jax.json_fields import Fields, exists, show

_MERGE = (
    "load it onto its base with peft's PeftModel.from_pretrained, merge it with merge_and_unload(), save the result "
    "with save_pretrained and give that folder"
)
_FULL_PRECISION = "give the checkpoint in float16, bfloat16 or float32 that it was made from"
# PEFT's methods that put tokens in front of the text; no weights could hold what they learned.
_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT")

# A file that gives a folder away, what the folder is, and what to do.
_BY_FILE = (
    ("mm_projector.bin", "LLaVA's projector alone", "give a whole checkpoint, with the language model in it"),
    (
        "instruct_blip_*.pth",
        "InstructBLIP's Q-Former in LAVIS's form",
        "put it into the folder of its Vicuna and give that",
    ),
    ("*.gguf", "weights of llama.cpp (GGUF)", "give the checkpoint that they were converted from"),
    ("consolidated.*.pth", "weights in Meta's own layout", "give the same model in the layout of transformers"),
    ("zero_to_fp32.py", "a DeepSpeed checkpoint in parts", "join them with its zero_to_fp32.py and give the result"),
    ("*.distcp", "a distributed checkpoint of PyTorch", "join it with torch.distributed.checkpoint.format_utils"),
    ("flax_model*.msgpack", "weights of Flax", "save them from transformers as safetensors"),
    ("tf_model*.h5", "weights of TensorFlow", "save them from transformers as safetensors"),
    ("*/record/record.json", "training checkpoints of ours", "export them with python -m vigor_jax.export"),
    ("*/checkpoints/*/*/record/record.json", "runs of ours", "give the folder export/ of one of them"),
    ("checkpoints/*/*/record/record.json", "a run of ours", "give its folder export/, made by the stage export"),
    ("snapshots/*/config.json", "a model in the Hub's cache", "give the folder below snapshots/ that has config.json"),
    ("*/config.json", "no checkpoint itself, but folders that may be one", "give one of these"),
)

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
# Those that are read, and what a trainer leaves next to them.
_READ = re.compile(r"(model(-\d+-of-\d+)?\.safetensors|pytorch_model(-\d+-of-\d+)?\.bin)")
_TRAINER = ("training_args.bin", "optimizer.pt", "scheduler.pt")

_LORA = re.compile(
    r"(^|\.)(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|base_layer|modules_to_save|hada_w1_a|lokr_w1)(\.|$)"
)
_QUANTIZED = re.compile(
    r".*\.(absmax|quant_map|nested_absmax|quant_state\..*|SCB|qweight|qzeros|g_idx|weight_packed|weight_scale|weight_scale_inv)"
)


_PARTS = {
    "projector": re.compile(r"multi_modal_projector\.|mm_projector\."),
    "vision tower": re.compile(r"vision_tower\.|^vision_model\."),
    "language model": re.compile(r"^(?!.*(vision|projector)).*(embed_tokens|lm_head|layers|norm)\."),
}


def refuse_adapter(directory: Path) -> None:
    """Refuses a folder that holds an adapter, with a base model next to it or without one.

    Raises:
      InputError: it does.
    """
    file = directory / "adapter_config.json"
    if exists(file):
        fields = Fields.read(file)
        kind = fields.text("peft_type", "LORA", null=True)
        base = fields.text("base_model_name_or_path", "", null=True)
        whole = has_whole_model(directory)
        what = f"{directory} holds a PEFT adapter ({some([kind])}{f' for {show(base)}' if base else ''})"
        what += ", which transformers would add to the model there" if whole else ", not a whole model"
        if kind in _PROMPTS:
            raise InputError(f"{what}; this kind cannot be merged into the weights and is not supported")
        or_not = "; to use the model without it, remove adapter_config.json" if whole else ""
        raise InputError(f"{what}: {_MERGE}{or_not}")
    weights = [name for name in ("adapter_model.safetensors", "adapter_model.bin") if exists(directory / name)]
    if weights and not has_whole_model(directory):
        raise InputError(
            f"{directory} holds the weights of a PEFT adapter ({weights[0]}) without its adapter_config.json: copy "
            f"that too, {_MERGE}"
        )


def has_whole_model(directory: Path) -> bool:
    """Whether a folder has weights that are not an adapter's."""
    return any(_READ.fullmatch(path.name) for path in directory.glob("*"))


def refuse_quantized(config: Fields) -> None:
    """Refuses the config.json of a quantized model.

    Raises:
      InputError: it is one.
    """
    for part in (config, config.object("text_config"), config.object("vision_config")):
        if part is None or (how := part.object("quantization_config")) is None:
            continue
        method = how.text("quant_method", "bitsandbytes", null=True)
        bits = 4 if how.values.get("load_in_4bit") is True else 8 if how.values.get("load_in_8bit") is True else None
        bits = bits or how.values.get("bits")
        size = f", {bits} bits" if isinstance(bits, int) else ""
        raise InputError(
            f"{part.place('quantization_config')}: the weights are quantized ({some([method])}{size}), which is not "
            f"supported: {_FULL_PRECISION}"
        )


def refuse_unmerged(names: Collection[str], directory: Path) -> None:
    """Refuses weights that are those of an adapter, or quantized.

    Args:
      names: of the tensors, in any spelling.
      directory: where they are.

    Raises:
      InputError: they are.
    """
    if lora := [name for name in names if _LORA.search(name)]:
        raise InputError(
            f"{directory} holds the weights of a PEFT adapter that is not merged ({some(lora, 2)}): {_MERGE}"
        )
    if quantized := [name for name in names if _QUANTIZED.fullmatch(name)]:
        raise InputError(f"{directory} holds quantized weights ({some(quantized, 2)}): {_FULL_PRECISION}")


def refuse_part(names: Collection[str], directory: Path, *, others: bool = False) -> None:
    """Refuses weights that are one part of the model alone.

    Args:
      names: as `refuse_unmerged`.
      directory: as `refuse_unmerged`.
      others: whether the other parts may be in other files, as in the original layout.

    Raises:
      InputError: they are.
    """
    parts = {part: [name for name in names if pattern.search(name)] for part, pattern in _PARTS.items()}
    found = [part for part in parts if parts[part]]
    if len(found) == 1 and len(parts[found[0]]) == len(names) and not (others and found == ["language model"]):
        raise InputError(
            f"{directory} holds the {found[0]} alone ({some(names, 2)}): give a whole LLaVA checkpoint, with language "
            "model, vision tower and projector"
        )


def describe(directory: Path) -> str | None:
    """What a folder without config.json or without weights is, and what to do; None if it is nothing that is known."""
    for pattern, what, fix in _BY_FILE:
        if found := sorted(directory.glob(pattern)):
            return f"it holds {what} ({some([path.relative_to(directory).as_posix() for path in found], 3)}): {fix}"
    weights = [path.name for path in sorted(directory.glob("*")) if path.suffix in _WEIGHTS]
    weights = [name for name in weights if not _READ.fullmatch(name) and name not in _TRAINER]
    if weights:
        return (
            f"it holds weights by other names ({some(weights, 3)}): if one is the whole model, name it "
            "model.safetensors or pytorch_model.bin"
        )
    return None
