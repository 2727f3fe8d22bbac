"""The search over settings, on programs whose memory and time are made up."""

import dataclasses
from pathlib import Path

import pytest

from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.errors import InputError
from vigor_jax.hf.load import ModelConfig
from vigor_jax.plan.estimate import Estimate
from vigor_jax.plan.search import search, with_flags

CONFIG = TrainConfig(
    run=RunConfig(dir=Path("runs/x"), stages=("train_reward", "sample", "score", "select", "sft", "export")),
    model=ModelConfig(path=Path("model")),
)
WEIGHTS = 14.0


class Compiler:
    """Estimates by a formula, in GiB and seconds, and what was asked for.

    Weights are split over `tensor`, an image takes 0.5 GiB beside them. What an update keeps for the backward pass
    depends on `remat` and on the parts that a batch is computed in. More images cost less each, up to `worth` of them.
    """

    def __init__(self, memory, devices=16, worth=10**9):
        self.memory, self.devices, self.worth, self.asked = memory, devices, worth, []

    def __call__(self, config):
        self.asked.append(config)
        (first, *_) = config.run.stages
        if first in ("train_reward", "sft"):
            settings = getattr(config, first)
            kept = {"none": 12.0, "dots": 6.0, "full": 2.0}[settings.remat] / settings.accumulate
            return [self.made(first, settings.batch_size, 10.0 + kept, 1.0)]
        parts = config.inference_mesh.tensor
        if self.devices % parts:
            raise InputError("mesh: does not divide")
        sizes = {"sample": config.sample.sampling.batch_size, "score": config.reward_model.batch_size}
        return [
            self.made(
                stage,
                sizes[stage],
                WEIGHTS / parts + 0.5 * sizes[stage] * parts / self.devices,
                1.0 if sizes[stage] <= self.worth else sizes[stage] / self.worth,
            )
            for stage in config.run.stages
        ]

    def made(self, stage, rows, peak, seconds):
        return Estimate(stage, "x", rows, 0, 0, int(peak * 2**30), int(self.memory * 2**30), 1, 1, {}, seconds, 0, 0, 0)


@pytest.mark.parametrize(
    ("memory", "tensor", "remat", "accumulate"),
    [(80, 1, "none", 1), (17, 1, "dots", 1), (13, 2, "full", 1), (11, 2, "full", 2), (10.5, 2, "full", 4)],
)
def test_takes_the_fastest_that_fits(memory, tensor, remat, accumulate):
    found = search(CONFIG, Compiler(memory))
    assert not found.missing
    assert found.config.inference_mesh.tensor == tensor
    for stage in (found.config.sft, found.config.train_reward):
        assert (stage.remat, stage.accumulate) == (remat, accumulate)
    assert found.config.mesh.fsdp == -1
    assert with_flags(CONFIG, found.flags) == found.config


def test_batches_grow_while_they_fit():
    """8 images are 14 + 0.25 GiB, 64 are 16, 128 are 18."""
    found = search(CONFIG, Compiler(17))
    assert found.flags["sample.sampling.batch_size"] == 64
    assert found.config.reward_model.batch_size == 64


def test_batches_grow_while_it_is_worth_it():
    assert search(CONFIG, Compiler(80, worth=32)).flags["sample.sampling.batch_size"] == 32


def test_what_does_not_fit_is_named():
    found = search(CONFIG, Compiler(10.1))
    assert found.missing == ("train_reward", "sft")
    assert found.config.inference_mesh.tensor == 2
    assert not any(name.startswith("sft") for name in found.flags)
    assert search(CONFIG, Compiler(1)).missing == ("sample", "score", "train_reward", "sft")


def test_meshes_that_do_not_divide_are_passed_over():
    compiler = Compiler(80, devices=1)
    assert search(CONFIG, compiler).config.inference_mesh.tensor == 1
    assert not search(dataclasses.replace(CONFIG, run=RunConfig(dir=Path("x"), stages=("export",))), compiler).flags
    assert search(CONFIG, Compiler(10.5, devices=1)).missing == ("sample", "score")


def test_only_the_stage_in_question_is_compiled():
    compiler = Compiler(80)
    search(CONFIG, compiler)
    assert {config.run.stages for config in compiler.asked} == {
        ("sample", "score"),
        ("sample",),
        ("score",),
        ("train_reward",),
        ("sft",),
    }
