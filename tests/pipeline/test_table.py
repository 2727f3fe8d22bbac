"""What stages take from the rest of the config where they leave it open."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from vigor_jax.config import RunConfig, Stage, TrainConfig
from vigor_jax.errors import InputError
from vigor_jax.hf.options import ModelConfig
from vigor_jax.pipeline.rounds import of_round
from vigor_jax.pipeline.table import filled, make_stages
from vigor_jax.stages.export import PROVENANCE
from vigor_jax.stages.sample_config import SampleConfig
from vigor_jax.training.config import SftConfig

WITH_A_TEMPLATE = (
    *("train_reward", "train_preference_reward", "sample", "reward_model", "preference_reward"),
    *("sft", "dpo", "ppo", "evaluate"),
)


def config(**sections) -> TrainConfig:
    return TrainConfig(RunConfig(Path("run")), **{"model": ModelConfig(Path("model")), **sections})


def test_every_section_with_a_template_is_filled():
    having = [
        field.name for field in dataclasses.fields(TrainConfig) if hasattr(getattr(config(), field.name), "template")
    ]
    # A CLIP's template is a text around a phrase, no form of a conversation.
    assert sorted(having) == sorted([*WITH_A_TEMPLATE, "model", "clip_attributes"])


@pytest.mark.parametrize("template", ["v1", "llava_v1"])
def test_the_template_is_that_of_the_model(template):
    found = filled(config(model=ModelConfig(Path("model"), template=template)))
    assert {getattr(found, name).template for name in WITH_A_TEMPLATE} == {template}


def test_a_stage_may_have_its_own_template():
    found = filled(config(sft=SftConfig(template="v0")))
    assert (found.sft.template, found.sample.template) == ("v0", "v1")


def test_images_are_those_that_are_sampled():
    found = filled(config(sample=SampleConfig(images="photos"), sft=SftConfig(images="others")))
    assert (found.train_reward.images, found.sft.images, found.ppo.images) == ("photos", "others", "photos")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(Path("m"), template="v2"), "model.template: expected one of v0, .* got 'v2'"),
        (lambda: SampleConfig(template="v2"), "sample.template: expected one of"),
        (lambda: SftConfig(template=""), "template: expected one of v0, .* got ''"),
    ],
)
def test_a_template_that_does_not_exist(make, message):
    with pytest.raises(InputError, match=message):
        make()


def exported_of(run_dir: Path, *stages: Stage) -> str:
    made = make_stages(TrainConfig(RunConfig(run_dir, stages), ModelConfig(Path("model"))))
    return made["export"]._of


def test_what_is_exported(tmp_path):
    """What is trained with it; later what the export is of, or what did train."""
    assert exported_of(tmp_path, "sft", "export") == exported_of(tmp_path, "export") == "sft"
    assert exported_of(tmp_path, "ppo", "export") == exported_of(tmp_path, "sft", "ppo", "export") == "ppo"
    (tmp_path / "checkpoints" / "ppo" / "3").mkdir(parents=True)
    assert exported_of(tmp_path, "export") == exported_of(tmp_path, "evaluate") == "ppo"
    assert exported_of(tmp_path, "sft", "export") == "sft"
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / PROVENANCE).write_text('{"checkpoint": "../checkpoints/sft"}')
    assert exported_of(tmp_path, "evaluate") == exported_of(tmp_path, "ppo") == "sft"


def test_rounds_draw_other_responses():
    """Of sampling, and of PPO."""
    whole = dataclasses.replace(config(), run=RunConfig(Path("run"), rounds=2))
    rounds = [of_round(whole, number) for number in (1, 2)]
    drawn = [(each.sample.sampling.seed, each.ppo.sampling.seed, each.ppo.seed) for each in rounds]
    assert drawn == [(0, 0, 0), (1, 1, 1)]


def test_the_table_has_every_stage_in_order():
    assert tuple(make_stages(config())) == get_args(Stage)
