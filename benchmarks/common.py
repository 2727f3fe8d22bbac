"""What the benchmarks share: the models they compare on, and how a comparison is printed."""

import os
import platform
import re
import statistics
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from vigor_jax.hf.llava import config as llava_config
from vigor_jax.hf.llava import names
from vigor_jax.models.llava import Llava, LlavaConfig
from vigor_jax.models.vlm import abstract_model, param_paths

CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP_S = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA_S = {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 10, "num_attention_heads": 10}
LLAMA_1B = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
CLIP_T = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA_T = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES = {"tiny": (CLIP_T, LLAMA_T), "100m": (CLIP_S, LLAMA_S), "1b": (CLIP_L, LLAMA_1B), "7b": (CLIP_L, LLAMA_7B)}


def sizes() -> tuple[str, ...]:
    return tuple(SIZES)


def peer_config(size: str, image_size: int = 336) -> transformers.LlavaConfig:
    """A LLaVA-1.5 of transformers: 336 pixels, 576 image tokens, 32,064 rows of vocabulary."""
    vision, text = SIZES[size]
    return transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=image_size, patch_size=14),
        text_config=transformers.LlamaConfig(**text, vocab_size=32064, max_position_embeddings=4096),
        image_seq_length=(image_size // 14) ** 2,
        attn_implementation="sdpa",
        tie_word_embeddings=False,
    )


def our_config(peer: transformers.LlavaConfig) -> LlavaConfig:
    """The same sizes for our model."""
    return llava_config.from_hf(peer.to_dict(), Path("config.json"))


def build_peer(
    size: str, dtype: torch.dtype = torch.float32, image_size: int = 336
) -> transformers.LlavaForConditionalGeneration:
    """The model of `peer_config` with random weights, on torch's default device."""
    torch.manual_seed(0)
    config = peer_config(size, image_size)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return transformers.LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)


def port(model: transformers.LlavaForConditionalGeneration, *, scan: bool = True) -> Llava:
    """Our model with the same weights, in float32 or in the type that they have."""
    config = our_config(model.config)
    weights = {names.canonical_hf(name): value for name, value in model.state_dict().items()}
    dtype = jnp.bfloat16 if next(model.parameters()).dtype == torch.bfloat16 else jnp.float32
    graphdef, state = nnx.split(abstract_model(config, dtype=dtype, scan=scan))
    stacks: dict[str, list[jax.Array]] = {}
    for entry in names.entries(config):
        value = weights[entry.name].detach().float().cpu().numpy().transpose(entry.axes)
        stacks.setdefault(entry.path if scan else entry.unstacked_path, []).append(jnp.asarray(value, dtype))
    for path, variable in param_paths(state).items():
        parts = stacks.pop(path)
        variable.set_value(jnp.stack(parts) if variable.get_value().ndim > parts[0].ndim else parts[0])
    return nnx.merge(graphdef, state)


def describe_machine() -> str:
    """One line: the commit, processor and GPU, cores, versions."""
    device = jax.devices()[0]
    gpu = "" if device.platform == "cpu" else f", {device.device_kind}"
    return (
        f"{commit()}; {processor()}, {os.cpu_count()} cores{gpu}; jax {jax.__version__}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def processor() -> str:
    """Its name and, of x86, the widest vectors that it has: they decide how fast it multiplies."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    widest = next((kind for kind in ("avx512f", "avx2") if f" {kind} " in text), "")
    return " ".join(filter(None, (name and name[1].strip(), widest))) or platform.machine()


def commit() -> str:
    """Of the working tree; "-dirty" where something is not committed, and nothing known outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no commit"


def print_table(what: str, speeds: dict[str, list[float]]) -> None:
    """Medians and the ratio, run by run, of the first side to every other."""
    first, *others = speeds
    print(f"\n| {what} | median | min | max |\n| --- | --- | --- | --- |")
    for name, runs in speeds.items():
        print(f"| {name} | {statistics.median(runs):.4g} | {min(runs):.4g} | {max(runs):.4g} |")
    for other in others:
        ratios = [a / b for a, b in zip(speeds[first], speeds[other], strict=True)]
        print(f"| {first} / {other} | {np.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |")
