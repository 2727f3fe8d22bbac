"""The plan of PPO: its programs compile, and sampling and training are counted as resident together."""

import jax
import jax.numpy as jnp
import pytest

from tests.inference.test_tree_attention import CONFIG
from tests.plan.memory_taken import CHIP
from vigor_jax.inference.sampling_methods import SamplingConfig
from vigor_jax.models.lora import LoraConfig, add_lora
from vigor_jax.models.vlm import abstract_model
from vigor_jax.parallel.sharding import MeshConfig
from vigor_jax.plan.estimate import estimate
from vigor_jax.stages import ppo_programs
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.stages.programs import Sizes, Target, Work

SAMPLING = SamplingConfig(temperature=1.0, max_new_tokens=16, num_candidates=3, batch_size=4, prompt_bucket=32)
SIZES = Sizes(prompt=32, response=16, branch_row=128, sentences=6, example=128)


def size(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)], ids=["all weights", "adapter"])
def test_programs_of_ppo(lora):
    config = PpoConfig(sampling=SAMPLING, batch_size=8, minibatch=4, accumulate=2, bucket=32, lora=lora)
    target = Target(CONFIG, jnp.float32, jax.devices()[:1], MeshConfig(), MeshConfig(), SIZES)
    found = [(program, estimate(program, CHIP, 1)) for program in ppo_programs.programs("ppo", config, target)]
    assert [(program.name, program.rows, program.tokens) for program, _ in found] == [
        ("prefill", 1, 32), ("decode", 12, 16), ("score", 2, 96), ("update", 4, 96),
    ]  # fmt: skip
    whole = size(abstract_model(CONFIG))
    peaks = {program.name: made.peak for program, made in found}
    held = {program.name: program.held + program.held_by_others for program, _ in found}
    if lora is None:  # the masters, two moments each, the reference, and what sampling holds
        trained = whole - size(abstract_model(CONFIG).vision_tower)
        least = whole + 3 * trained + whole
    else:  # the base for training and for sampling; the adapter with two moments, and for sampling
        least = 2 * whole + 4 * (size(add_lora(abstract_model(CONFIG), lora)) - whole)
    for name in ("score", "update"):
        assert least <= held[name] < 1.05 * least, name
    for name in ("decode", "update"):
        assert peaks[name] > least, name
    calls, seconds = ppo_programs.cost(config, Work(images=80), [made for _, made in found])
    assert calls == 10
    assert seconds > 0
