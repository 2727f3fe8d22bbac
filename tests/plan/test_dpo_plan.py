"""The plan of learning from preferences: what an update holds and takes."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.inference.test_tree_attention import CONFIG
from tests.plan.memory_taken import CHIP
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.hf.options import ModelConfig
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import abstract_model
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.plan.estimate import estimate
from vigor_jax.plan.recipe import work_of
from vigor_jax.stages.dpo import DpoStage
from vigor_jax.stages.dpo_config import DpoConfig
from vigor_jax.stages.programs import Sizes, Target, Work
from vigor_jax.stages.sample_config import SampleConfig

SIZES = Sizes(prompt=32, response=16, branch_row=128, sentences=6, example=128)
LORA = LoraConfig(rank=4, alpha=8)


def size(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def planned(**changes):
    config = DpoConfig(**{"batch_size": 4, "lora": LORA, **changes})
    target = Target(CONFIG, jnp.float32, jax.devices()[:1], MeshConfig(), MeshConfig(), SIZES)
    program, reference = DpoStage(config).programs(target)
    return config, program, reference


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.main),
        pytest.param({"lora": None}, marks=pytest.mark.main),
        {"image_factor": 1.0},
        pytest.param({"image_factor": 0.5, "image_term": "noised"}, marks=pytest.mark.main),
    ],
    ids=["adapter", "all weights", "cropped", "noised"],
)
def test_an_update_compiles_from_shapes_alone(changes):
    config, program, _ = planned(**changes)
    assert (program.stage, program.name, program.rows, program.tokens) == ("dpo", "update", 4, 64)
    assert program.held > size(abstract_model(CONFIG))
    found = estimate(program, CHIP, 1)
    assert found.peak > program.held  # activations come on top
    calls, seconds = DpoStage(config).cost(Work(images=100), [found])
    assert calls == 25
    assert seconds == pytest.approx(25 * found.seconds * 4 / 3)
    three = DpoStage(dataclasses.replace(config, epochs=3)).cost(Work(images=100), [found])
    assert three == (75, pytest.approx(75 * found.seconds * 10 / 9))  # the reference reads the data once


@pytest.mark.parametrize(
    "changes", [{}, {"lora": None}, {"image_factor": 0.5, "image_term": "noised"}], ids=["adapter", "all", "noised"]
)
def test_the_reference_holds_its_weights_alone_and_reads_what_an_update_computes_at_a_time(changes):
    _, update, reference = planned(accumulate=2, **changes)
    assert (reference.stage, reference.name, reference.rows, reference.tokens) == ("dpo", "reference", 2, 64)
    assert reference.held == size(abstract_model(CONFIG))
    found = estimate(reference, CHIP, 1)
    assert reference.held < found.peak < estimate(update, CHIP, 1).peak


def test_another_image_is_another_pass():
    flops = {name: planned(**changes)[1].flops for name, changes in {
        "plain": {}, "cropped": {"image_factor": 1.0}, "noised": {"image_factor": 1.0, "image_term": "noised"},
    }.items()}  # fmt: skip
    assert flops["cropped"] == pytest.approx(2 * flops["plain"])
    assert flops["noised"] == pytest.approx(4 / 3 * flops["plain"])
    read = [planned(**changes)[2].flops for changes in ({}, {"image_factor": 1.0})]
    assert read[1] == pytest.approx(2 * read[0])


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_data_of_its_own_is_not_what_is_sampled(stage):
    config = TrainConfig(RunConfig(Path("x")), ModelConfig(Path("m")), sample=SampleConfig(limit=10))
    section = dataclasses.replace(getattr(config, stage), data=Path("data.json"))
    given = dataclasses.replace(config, **{stage: section})
    assert [work_of(stage, each, Work(images=1000)).images for each in (config, given)] == [10, 1000]
