"""Loading must need little more memory than the weights themselves: measured in a separate process."""

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_llava import Tiny, write_processor
from vigor_jax.hf.llava import config as llava_config
from vigor_jax.hf.llava.names import entries
from vigor_jax.hf.weights.tensor_checks import expected_shapes
from vigor_jax.models.clip import ClipConfig
from vigor_jax.models.llama import LlamaConfig
from vigor_jax.models.llava import LlavaConfig

TINY = Tiny(image_size=224, patch_size=14)
ONE_BILLION = LlavaConfig(
    vision=ClipConfig(hidden_size=512, intermediate_size=2048, num_layers=12, num_heads=8, image_size=224),
    text=LlamaConfig(
        vocab_size=576, hidden_size=2048, intermediate_size=5632, num_layers=22, num_heads=32, head_dim=64
    ),
    image_token_id=TINY.image_token_id,
)
PROGRAM = """
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.parallel.config import MeshConfig



def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if "VmHWM" in line)


jax.devices()
before = peak()
source, mesh = open_checkpoint(Path(sys.argv[1])), make_mesh(MeshConfig())
model = load_model(source, mesh=mesh, dtype=sys.argv[2], scan=sys.argv[3] == "scan")
leaves = jax.tree.leaves(nnx.state(model))
jax.block_until_ready(leaves)
held = sum(leaf.nbytes for leaf in leaves)
print(sum(leaf.size for leaf in leaves), held, before, peak())
"""


def write_sparse_checkpoint(directory: Path, config: LlavaConfig, dtype: str) -> None:
    """A checkpoint of zeros whose weights file is a hole: gigabytes to read, nothing on the disk."""
    write_processor(directory, TINY)
    (directory / "config.json").write_text(json.dumps(llava_config.to_hf(config, dtype, 0)))
    code, size = ("BF16", 2) if dtype == "bfloat16" else ("F32", 4)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in expected_shapes(config, entries).items():
        end = offset + math.prod(shape) * size
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    content = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + offset)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("layers", ["scan", "apart"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_of_loading_a_billion_parameters(tmp_path, layers, dtype):
    write_sparse_checkpoint(tmp_path, ONE_BILLION, "bfloat16")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), dtype, layers], capture_output=True, text=True, check=True
    )
    parameters, held, before, peak = map(int, done.stdout.split()[-4:])
    assert parameters > 1e9
    assert held == parameters * (4 if dtype == "float32" else 2)
    assert peak - before <= 1.15 * held
    if dtype == "float32":  # with the interpreter and all its libraries (0.3 GB) counted in
        assert peak <= 1.15 * held
