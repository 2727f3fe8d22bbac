"""The search over settings, on programs whose memory and time are made up."""

import dataclasses
import math
from pathlib import Path

import pytest

from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.errors import InputError
from vigor_jax.hf.options import ModelConfig
from vigor_jax.plan.estimate import Estimate
from vigor_jax.plan.hardware import TPUS, Topology
from vigor_jax.plan.search import nearest, search, with_flags
from vigor_jax.stages.pair_config import PairConfig

CONFIG = TrainConfig(
    run=RunConfig(dir=Path("runs/x"), stages=("train_reward", "sample", "score", "select", "sft", "export")),
    model=ModelConfig(path=Path("model")),
)
WEIGHTS = 14.0


class Compiler:
    """Estimates by a formula, in GiB and seconds, and what was asked for.

    Weights are split over `tensor`, an image takes 0.5 GiB next to them. What an update keeps for the backward pass
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
        sizes |= {"pair": config.pair.sampling.batch_size}
        return [
            self.made(
                stage,
                sizes[stage],
                WEIGHTS / parts + 0.5 * sizes[stage] * parts / self.devices,
                1.0 if sizes[stage] <= self.worth else sizes[stage] / self.worth,
                "decode",
            )
            for stage in config.run.stages
        ]

    def made(self, stage, rows, peak, seconds, name="x"):
        return Estimate(
            stage, name, rows, 0, 0, int(peak * 2**30), int(self.memory * 2**30), 1, 1, {}, seconds, 0, 0, 0
        )


@pytest.mark.parametrize(
    ("memory", "tensor", "remat", "accumulate"),
    [(80, 1, "none", 1), (17, 1, "dots", 1), (13, 2, "full", 1), (11, 2, "full", 2), (10.5, 2, "full", 4)],
)
def test_takes_the_fastest_that_fits(memory, tensor, remat, accumulate):
    found = search(CONFIG, 16, Compiler(memory))
    assert not found.missing
    assert found.config.inference_mesh.tensor == tensor
    for stage in (found.config.sft, found.config.train_reward):
        assert (stage.remat, stage.accumulate) == (remat, accumulate)
    assert found.config.mesh.fsdp == -1
    assert with_flags(CONFIG, found.flags) == found.config


def test_pairs_of_sentences_take_part():
    """Those of responses need no device."""
    run = dataclasses.replace(CONFIG.run, stages=("sample", "pair"))
    config = dataclasses.replace(CONFIG, run=run, pair=PairConfig("sentences"))
    assert search(config, 16, Compiler(17)).flags["pair.sampling.batch_size"] == 64
    compiler = Compiler(17)
    assert "pair.sampling.batch_size" not in search(dataclasses.replace(config, pair=PairConfig()), 16, compiler).flags
    assert {stage for asked in compiler.asked for stage in asked.run.stages} == {"sample"}


def test_batches_grow_while_they_fit():
    """8 images are 14 + 0.25 GiB, 64 are 16, 128 are 18."""
    found = search(CONFIG, 16, Compiler(17))
    assert found.flags["sample.sampling.batch_size"] == 64
    assert found.config.reward_model.batch_size == 64


def test_batches_grow_while_it_is_worth_it():
    assert search(CONFIG, 16, Compiler(80, worth=32)).flags["sample.sampling.batch_size"] == 32


@pytest.mark.parametrize(
    ("programs", "flag"),
    [
        (("verifier",), "clip.batch_size"),
        (("reward model", "verifier"), "reward_model.batch_size"),
        (("reward model",), "reward_model.batch_size"),
        (("crops",), "clip_attributes.batch_size"),
        (("preference reward model",), "preference_reward.batch_size"),
        (("verifier", "crops"), "clip.batch_size"),
    ],
)
def test_the_batch_of_the_judge_grows(programs, flag):
    """Of two, that of the reward model, though the other program is the longer one here."""

    def estimate(config):
        rows = {
            "verifier": config.clip.batch_size,
            "reward model": config.reward_model.batch_size,
            "crops": config.clip_attributes.batch_size,
            "preference reward model": config.preference_reward.batch_size,
        }
        seconds = {"verifier": 100.0, "reward model": 1.0, "crops": 1.0, "preference reward model": 1.0}
        return [
            Estimate("score", name, rows[name], 0, 0, rows[name], 512, 1, 1, {}, seconds[name], 0, 0, 0)
            for name in programs
        ]

    config = dataclasses.replace(CONFIG, run=RunConfig(dir=Path("x"), stages=("score",)))
    found = search(config, 1, estimate)
    assert {name: value for name, value in found.flags.items() if name.endswith("batch_size")} == {flag: 512}


def preferring(kind, **memory):
    """Of a run that makes preferences and learns from them; the sampler of sentences takes the room of eight more."""
    stages = ("sample", "score", "pair", "dpo", "export")
    config = with_flags(CONFIG, {"run.stages": stages, "pair.kind": kind, "dpo.batch_size": 32})

    def estimate(config):
        made, parts = Compiler(**memory), config.inference_mesh.tensor
        found = {
            "dpo": lambda: [made.made("dpo", 32, {"none": 22.0, "dots": 16.0, "full": 12.0}[config.dpo.remat], 1.0)],
            "pair": lambda: [
                made.made("pair", rows, WEIGHTS / parts + 0.5 * rows * parts / 16, 1.0, name)
                for rows in (config.pair.sampling.batch_size,)
                for name in (("prefill", "decode") if kind == "sentences" else ())
            ],
        }
        return [each for stage in config.run.stages for each in found.get(stage, list)()]

    return search(config, 16, estimate)


def test_learning_from_preferences_is_training():
    found = preferring("sentences", memory=17)
    assert (found.config.dpo.remat, found.config.dpo.accumulate, found.config.mesh.tensor) == ("dots", 1, 1)
    assert found.flags["pair.sampling.batch_size"] == 64
    assert preferring("sentences", memory=11).missing == ("dpo",)


def test_pairs_of_responses_compile_nothing():
    stages = ("pair", "dpo", "export")
    config = with_flags(CONFIG, {"run.stages": stages, "dpo.batch_size": 12})
    made = Compiler(17)
    found = search(config, 8, lambda config: [made.made("dpo", 12, 10.0, 1.0)] if "dpo" in config.run.stages else [])
    assert not found.missing
    assert found.config.mesh.tensor == 2  # of 12 images, four at a time


PPO = TrainConfig(run=RunConfig(dir=Path("runs/x"), stages=("ppo", "export")), model=ModelConfig(path=Path("model")))
PPO = with_flags(PPO, {"ppo.minibatch": 8, "ppo.sampling.batch_size": 16})


class PpoCompiler(Compiler):
    """Sampler and learner share the devices: what the weights of the sampler leave is for the updates."""

    def __call__(self, config):
        self.asked.append(config)
        training, inference = config.mesh, config.inference_mesh
        if config.ppo.minibatch % (self.devices // training.tensor * config.ppo.accumulate):
            raise InputError("batch size does not divide")
        rows, weights = config.ppo.sampling.batch_size, WEIGHTS / inference.tensor
        kept = {"none": 12.0, "dots": 6.0, "full": 2.0}[config.ppo.remat] / config.ppo.accumulate
        return [
            self.made("ppo", 64, 1.0 + weights, 0.1, "hand-over"),
            self.made("ppo", 4 * rows, 1.0 + weights + 0.05 * rows, 1.0, "decode"),
            self.made("ppo", 32, 1.0 + weights, 9.0, "verifier"),
            self.made("ppo", 8, 1.0 + weights + kept / 4, 0.3, "score"),
            self.made("ppo", 8, 1.0 + weights + kept, 1.0, "update"),
        ]


@pytest.mark.parametrize(
    ("memory", "devices", "tensor", "remat", "accumulate"),
    [
        (80, 8, 1, "none", 1),
        (21.5, 4, 1, "dots", 1),
        (17.2, 4, 1, "full", 1),
        (16.5, 4, 1, "full", 2),
        (16.5, 8, 2, "dots", 1),  # an example each: nothing to accumulate
        (13.9, 8, 2, "full", 1),
        (6, 16, 8, "full", 1),
    ],
)
def test_ppo_finds_a_split_and_what_its_updates_save(memory, devices, tensor, remat, accumulate):
    compiler = PpoCompiler(memory, devices=devices)
    found = search(PPO, devices, compiler)
    assert not found.missing
    assert (found.config.inference_mesh.tensor, found.config.ppo.remat, found.config.ppo.accumulate) == (
        tensor, remat, accumulate,
    )  # fmt: skip
    assert found.config.mesh.tensor == max(1, devices // 8)
    assert with_flags(PPO, found.flags) == found.config


def test_ppo_samples_more_images_at_a_time_up_to_those_of_an_iteration():
    assert search(PPO, 8, PpoCompiler(80, devices=8)).flags["ppo.sampling.batch_size"] == 64
    assert search(PPO, 4, PpoCompiler(16.7, devices=4)).flags["ppo.sampling.batch_size"] == 32


def test_updates_are_not_tried_where_sampling_does_not_fit():
    compiler = PpoCompiler(10, devices=8)
    assert search(PPO, 8, compiler).config.inference_mesh.tensor == 2
    assert [config.ppo.remat for config in compiler.asked if config.inference_mesh.tensor == 1] == ["none"]


def test_ppo_that_nothing_makes_fit_is_named():
    assert search(PPO, 8, PpoCompiler(1, devices=8)).missing == ("ppo",)


def test_what_does_not_fit_is_named():
    found = search(CONFIG, 16, Compiler(10.1))
    assert found.missing == ("train_reward", "sft")
    assert found.config.inference_mesh.tensor == 2
    assert not any(name.startswith("sft") for name in found.flags)
    assert search(CONFIG, 16, Compiler(1)).missing == ("train_reward", "sft", "sample", "score")


def test_meshes_that_do_not_divide_are_passed_over():
    compiler = Compiler(80, devices=1)
    assert search(CONFIG, 1, compiler).config.inference_mesh.tensor == 1
    assert not search(dataclasses.replace(CONFIG, run=RunConfig(dir=Path("x"), stages=("export",))), 1, compiler).flags
    assert search(CONFIG, 1, Compiler(10.5, devices=1)).missing == ("sample", "score")


def test_only_the_stage_in_question_is_compiled():
    compiler = Compiler(80)
    search(CONFIG, 16, compiler)
    assert {config.run.stages for config in compiler.asked} == {
        ("sample", "score"),
        ("sample",),
        ("score",),
        ("train_reward",),
        ("sft",),
    }


@pytest.mark.parametrize(("num_devices", "tensor"), [(8, 1), (32, 1), (64, 2), (256, 8), (24, 3)])
def test_of_more_devices_than_examples_several_share_one(num_devices, tensor):
    """Batches are of 32."""
    found = search(CONFIG, num_devices, Compiler(80, devices=num_devices))
    assert (found.config.mesh.fsdp, found.config.mesh.tensor) == (-1, tensor)
    packed = with_flags(CONFIG, {"sft.pack": 4, "run.stages": ("sft",)})
    assert search(packed, num_devices, Compiler(80)).config.mesh.tensor == num_devices // math.gcd(num_devices, 8)


@dataclasses.dataclass(frozen=True)
class Pod(Topology):
    def devices(self):
        return [None] * self.num_chips

    def larger(self):
        return (Pod(each.name, each.chip, each.num_chips) for each in super().larger())


def test_the_nearest_pod_is_the_smallest_that_something_fits():
    compilers = []

    def compiler(topology, devices):
        # What an update keeps is split over the pod.
        compilers.append((topology.name, len(devices), Compiler(8 + len(devices) / 2, devices=len(devices))))
        return compilers[-1][-1]

    pod, found = nearest(CONFIG, Pod("v5e:2x2", TPUS["v5e"], 4), compiler)
    assert [(name, count) for name, count, _ in compilers] == [("v5e:2x2", 4), ("v5e:2x4", 8)]
    assert pod.name == "v5e:2x4"
    assert not found.missing
    assert found.config.sft.remat == "full"
    # Of the small one, only what does not fit was tried: its training, not its sampling.
    assert {config.run.stages for config in compilers[0][-1].asked} == {("train_reward",), ("sft",)}
    assert all(config.sample.sampling.batch_size == 8 for config in compilers[1][-1].asked)
    assert nearest(CONFIG, Pod("v5e:8x16", TPUS["v5e"], 128), lambda *_: Compiler(1)) is None
