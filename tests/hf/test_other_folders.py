"""Folders that are no whole checkpoint, and weights under other names: read where it is clear, else said what it is."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hf.test_round_trip import build_original, params_of
from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.errors import InputError
from vigor_jax.hf import names
from vigor_jax.hf.load import open_checkpoint

TINY = Tiny()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("folders") / "model", TINY)


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.fixture(scope="module")
def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def replace_weights(directory: Path, tensors: dict[str, torch.Tensor], kind: str = "safetensors") -> None:
    (directory / "model.safetensors").unlink()
    if kind == "safetensors":
        save_file(tensors, directory / "model.safetensors")
    else:
        torch.save(tensors, directory / "pytorch_model.bin")


def refusal(directory: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(directory)
    message = str(caught.value)
    assert "\n" not in message
    assert str(directory) in message
    assert len(message) < 1500
    return message


# Wrappers


class Wrapper(torch.nn.Module):
    """As DistributedDataParallel holds its model."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module


class Model(torch.nn.Module):
    """The weights as a module whose state dict has their names."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *parts, last = name.split(".")
            owner: Any = self
            for part in parts:
                if not hasattr(owner, part):
                    setattr(owner, part, torch.nn.Module())
                owner = getattr(owner, part)
            setattr(owner, last, torch.nn.Parameter(tensor.clone()))


def fsdp(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        re.sub(r"(layers\.\d+\.)", r"\1_fsdp_wrapped_module._checkpoint_wrapped_module.", name): tensor
        for name, tensor in tensors.items()
    }


WRAPPED = {
    "module.": lambda tensors: Wrapper(Model(tensors)).state_dict(),
    "_orig_mod.": lambda tensors: torch.compile(Model(tensors)).state_dict(),
    "both": lambda tensors: Wrapper(torch.compile(Model(tensors))).state_dict(),
    "both, turned": lambda tensors: torch.compile(Wrapper(Model(tensors))).state_dict(),
    "base_model.model.": lambda tensors: {f"base_model.model.{name}": value for name, value in tensors.items()},
    "inside": fsdp,
}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_weights_of_a_wrapped_model_are_read(
    copied: Path,
    checkpoint: Path,
    weights: dict[str, torch.Tensor],
    wrapper: str,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrapped = WRAPPED[wrapper](weights)
    assert not set(wrapped) & set(weights) or wrapper == "inside"
    replace_weights(copied, {name: value.detach() for name, value in wrapped.items()}, kind)
    with caplog.at_level(logging.WARNING):
        found = params_of(copied)
    assert "were saved from a wrapped model; they are read without" in caplog.text
    for path, value in params_of(checkpoint).items():
        np.testing.assert_array_equal(found[path], value)


def test_the_original_layout_is_read_from_a_wrapped_model_too(tmp_path: Path) -> None:
    source = build_original(tmp_path / "llava", TINY, tower_inside=True)
    expected = open_checkpoint(source).digest()
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save({f"module.{name}": value for name, value in tensors.items()}, source / "pytorch_model.bin")
    found = open_checkpoint(source)
    assert found.digest() == expected
    assert {tensor.name for tensor in found.tensors.values()} == set(tensors)


def test_a_prefix_that_not_all_names_have_stays(copied: Path, weights: dict[str, torch.Tensor]) -> None:
    first = next(iter(weights))
    replace_weights(copied, {name if name == first else f"module.{name}": value for name, value in weights.items()})
    message = refusal(copied)
    assert "unexpected: module." in message
    assert re.search(r"and \d+ more", message)


def test_names_are_unwrapped_until_nothing_is_left() -> None:
    assert names.unwrapped(["a.b", "c"]) == ({"a.b": "a.b", "c": "c"}, [])
    assert names.unwrapped([]) == ({}, [])
    plain, found = names.unwrapped(["module._orig_mod.module.a", "module._orig_mod.module.b"])
    assert list(plain.values()) == ["a", "b"]
    assert set(found) == {"module.", "_orig_mod."}
    assert names.unwrapped(["module.a", "b"])[0] == {"module.a": "module.a", "b": "b"}


def test_names_that_become_equal_are_not_unwrapped(copied: Path, weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name in weights if "embed_tokens" in name)
    replace_weights(copied, {**weights, f"_orig_mod.{name}": weights[name].clone()})
    assert f"1 unexpected: _orig_mod.{name}" in refusal(copied)


# Shards


def save_shards(directory: Path, tensors: dict[str, torch.Tensor], count: int, kind: str) -> list[Path]:
    (directory / "model.safetensors").unlink()
    stem = "model" if kind == "safetensors" else "pytorch_model"
    paths = [directory / f"{stem}-{i + 1:05d}-of-{count:05d}.{kind}" for i in range(count)]
    for i, path in enumerate(paths):
        part = {name: tensors[name] for name in list(tensors)[i::count]}
        save_file(part, path) if kind == "safetensors" else torch.save(part, path)
    return paths


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_without_an_index(copied: Path, checkpoint: Path, weights: dict[str, torch.Tensor], kind: str) -> None:
    paths = save_shards(copied, weights, 3, kind)
    found = params_of(copied)
    for path, value in params_of(checkpoint).items():
        np.testing.assert_array_equal(found[path], value)
    paths[1].rename(copied / "elsewhere")
    message = refusal(copied)
    assert "holds 2 of 3 shards and no index; missing are the numbers 2" in message
    (copied / "elsewhere").rename(paths[1])
    again = dict(weights) if kind == "bin" else {name: value.clone() for name, value in weights.items()}
    save_file(again, paths[1]) if kind == "safetensors" else torch.save(again, paths[1])
    assert "tensors that other shards hold too" in refusal(copied)


def test_shards_of_two_checkpoints(copied: Path, weights: dict[str, torch.Tensor]) -> None:
    save_shards(copied, weights, 3, "safetensors")
    save_file({"x": torch.ones(1)}, copied / "model-00001-of-00002.safetensors")
    assert "holds shards of 2 and of 3 files and no index" in refusal(copied)


def test_shards_that_lack_a_tensor(copied: Path, weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name in weights if "layers.1.mlp.up_proj" in name)
    save_shards(copied, {key: value for key, value in weights.items() if key != name}, 2, "safetensors")
    assert "1 missing: language_model.model.layers.1.mlp.up_proj.weight" in refusal(copied)


@pytest.mark.timeout(30)
def test_a_number_of_shards_that_nobody_has(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "model-00001-of-99999999999999.safetensors")
    assert "holds 1 of 99999999999999 shards" in refusal(copied)


# What it is


def adapter(directory: Path, **config: Any) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "llava-hf/llava-1.5-7b-hf", "r": 2, **config}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    stem = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    tensors = {f"{stem}.lora_A.weight": torch.ones(2, 64), f"{stem}.lora_B.weight": torch.ones(64, 2)}
    save_file(tensors, directory / "adapter_model.safetensors")


def alone(directory: Path) -> None:
    for path in list(directory.iterdir()):
        path.unlink()


def lora(directory: Path) -> None:
    alone(directory)
    adapter(directory)


def loha(directory: Path) -> None:
    alone(directory)
    adapter(directory, peft_type="LOHA")


def lora_without_config(directory: Path) -> None:
    lora(directory)
    (directory / "adapter_config.json").unlink()


def llava_lora(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    adapter(directory)
    torch.save({"base_model.model.model.mm_projector.0.weight": torch.ones(2)}, directory / "non_lora_trainables.bin")


def prompts(directory: Path) -> None:
    alone(directory)
    adapter(directory, peft_type="PROMPT_TUNING")


def not_merged(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    wrapped = {f"base_model.model.{name}": value for name, value in tensors.items()}
    name = next(name for name in wrapped if name.endswith("layers.0.self_attn.q_proj.weight"))
    wrapped[name.replace(".weight", ".base_layer.weight")] = wrapped.pop(name)
    replace_weights(directory, wrapped)


def quantized(directory: Path, **how: Any) -> None:
    config = json.loads((directory / "config.json").read_text()) | {"quantization_config": how}
    (directory / "config.json").unlink()
    (directory / "config.json").write_text(json.dumps(config))


def quantized_names(suffix: str) -> Any:
    def spoil(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        name = next(name for name in tensors if name.endswith("layers.0.self_attn.q_proj.weight"))
        replace_weights(directory, tensors | {name + suffix: torch.ones(2)})

    return spoil


def whole_numbers(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.0.self_attn.q_proj.weight"))
    replace_weights(directory, tensors | {name: tensors[name].to(torch.int8)})


def only(*words: str) -> Any:
    def spoil(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        replace_weights(directory, {n: v for n, v in tensors.items() if any(word in n for word in words)})

    return spoil


def pretrained_projector(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({"model.mm_projector.0.weight": torch.ones(2)}, directory / "mm_projector.bin")


def named(name: str) -> Any:
    def spoil(directory: Path) -> None:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / "model.safetensors").rename(directory / name)

    return spoil


def without_config(name: str) -> Any:
    def spoil(directory: Path) -> None:
        alone(directory)
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("{}")

    return spoil


MERGE, FULL = "merge it with merge_and_unload()", "in float16, bfloat16 or float32 that it was made from"
KINDS = {
    "LoRA": (
        lora,
        "holds an adapter for 'llava-hf/llava-1.5-7b-hf', which cannot be had (",
        "give the base and the adapter apart: --model BASE --model.adapter ",
    ),
    "LoRA without its config": (
        lora_without_config,
        "of a PEFT adapter (adapter_model.safetensors)",
        MERGE,
    ),
    "LoRA next to its model": (
        adapter,
        "transformers would add to the model there",
        "remove adapter_config.json",
    ),
    "LLaVA's LoRA": (llava_lora, "holds an adapter for 'llava-hf/llava-1.5-7b-hf', which cannot", "--model BASE"),
    "LoHa": (loha, "holds a PEFT adapter (LOHA for 'llava-hf/llava-1.5-7b-hf'), not a whole model", MERGE),
    "prompt tuning": (prompts, "(PROMPT_TUNING for", "cannot be merged"),
    "LoRA in the weights": (not_merged, "that is not merged (base_model.model.", MERGE),
    "4 bits": (
        lambda d: quantized(d, quant_method="bitsandbytes", load_in_4bit=True, load_in_8bit=False),
        "quantized (bitsandbytes, 4 bits)",
        FULL,
    ),
    "8 bits": (lambda d: quantized(d, load_in_8bit=True), "quantized (bitsandbytes, 8 bits)", FULL),
    "AWQ": (lambda d: quantized(d, quant_method="awq", bits=4), "quantized (awq, 4 bits)", FULL),
    "FP8": (lambda d: quantized(d, quant_method="fp8"), "quantized (fp8)", FULL),
    "nf4 without config": (quantized_names(".quant_state.bitsandbytes__nf4"), "holds quantized weights (", FULL),
    "int8 without config": (quantized_names("_scale"), "holds quantized weights (", FULL),
    "GPTQ without config": (lambda d: quantized_names(".qweight")(d), "holds quantized weights (", FULL),
    "whole numbers": (whole_numbers, "1 of a type for whole numbers: ", "q_proj.weight (int8)"),
    "projector": (only("projector"), "holds the projector alone", "give a whole LLaVA checkpoint"),
    "tower": (only("vision_tower"), "holds the vision tower alone", "give a whole LLaVA checkpoint"),
    "language model": (only("language_model"), "holds the language model alone", "give a whole LLaVA checkpoint"),
    "LLaVA's projector": (
        pretrained_projector,
        "holds LLaVA's projector alone (mm_projector.bin)",
        "a whole checkpoint",
    ),
    "GGUF": (named("llava-q4.gguf"), "weights of llama.cpp (GGUF) (llava-q4.gguf)", "that they were converted from"),
    "other name": (
        named("weights.safetensors"),
        "weights by other names (weights.safetensors)",
        "name it model.safetensors",
    ),
    "Meta": (named("consolidated.00.pth"), "weights in Meta's own layout", "the layout of transformers"),
    "FSDP": (named("__0_0.distcp"), "a distributed checkpoint of PyTorch", "format_utils"),
    "DeepSpeed": (named("zero_to_fp32.py"), "a DeepSpeed checkpoint in parts", "zero_to_fp32.py"),
    "Flax": (named("flax_model.msgpack"), "weights of Flax", "save them from transformers as safetensors"),
    "training checkpoints": (
        without_config("30/record/record.json"),
        "training checkpoints of ours",
        "vigor_jax.export",
    ),
    "a run": (without_config("checkpoints/sft/30/record/record.json"), "a run of ours", "export/"),
    "the Hub's cache": (without_config("snapshots/0abc/config.json"), "a model in the Hub's cache", "below snapshots/"),
    "a folder of models": (
        without_config("llava/config.json"),
        "folders that may be one (llava/config.json)",
        "give one",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_says_which_it_is_and_what_to_do(copied: Path, kind: str) -> None:
    spoil, what, fix = KINDS[kind]
    spoil(copied)
    message = refusal(copied)
    assert what in message
    assert fix in message


@pytest.mark.parametrize(
    "value", [None, 3, [], {}, "x", {"peft_type": 3}, {"base_model_name_or_path": [1]}, {"peft_type": "a\nb"}]
)
def test_a_damaged_adapter_config_is_one_line(copied: Path, value: Any) -> None:
    (copied / "adapter_config.json").write_text(json.dumps(value))
    assert "adapter" in refusal(copied)


@pytest.mark.parametrize(
    "value", [3, [], "bitsandbytes", {"quant_method": 3}, {"quant_method": "a\nb"}, {"bits": "x"}, {"load_in_4bit": 1}]
)
def test_a_damaged_quantization_config_is_one_line(copied: Path, value: Any) -> None:
    config = json.loads((copied / "config.json").read_text()) | {"quantization_config": value}
    (copied / "config.json").unlink()
    (copied / "config.json").write_text(json.dumps(config))
    assert "quantization_config" in refusal(copied)


def test_a_null_quantization_config_is_none(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text()) | {"quantization_config": None}
    (copied / "config.json").unlink()
    (copied / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(copied).config.text.hidden_size == TINY.text_width


@pytest.mark.parametrize("what", ["missing", "unexpected", "of another shape"])
def test_lists_of_names_are_short(copied: Path, weights: dict[str, torch.Tensor], what: str) -> None:
    if what == "missing":
        first = next(name for name in weights if "embed_tokens" in name)
        changed = {name: weights[name] for name in weights if name == first or "vision" in name or "projector" in name}
    elif what == "unexpected":
        changed = weights | {f"extra.{i}.\n{'x' * 900}": torch.ones(1) for i in range(2000)}
    else:
        changed = {name: value[:1].clone() for name, value in weights.items()}
    replace_weights(copied, changed)
    message = refusal(copied)[:1500] if what != "unexpected" else _long(copied)
    assert re.search(rf"\d+ {what}: ", message)
    assert re.search(r" and \d+ more", message)


def _long(directory: Path) -> str:
    """Ten names of a kind that nobody gives a tensor."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(directory)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 3000
    return str(caught.value)
