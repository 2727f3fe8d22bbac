"""Which settings a run asks for: those of the stages that it runs, and of what these or its results are made of."""

import dataclasses

import pytest

from tests.rewards import clip_world
from tests.stages.ppo_world import make_world
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.errors import InputError
from vigor_jax.hf.options import ExportConfig, ModelConfig
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.pipeline.run import Run
from vigor_jax.rewards.clip_baselines import make_baselines
from vigor_jax.rewards.verifier import made_of, read_entities
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.stages.score_config import ScoreConfig
from vigor_jax.training.config import SftConfig


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("settings") / "w", images=2)


def config(world, run_dir, *stages, **sections) -> TrainConfig:
    """With a verifier that is not given, and fine-tuning on data that is not made here."""
    given = {
        "model": ModelConfig(world / "model", dtype="float32"),
        "score": ScoreConfig(streams=("clip",)),
        "sft": SftConfig(data=world / "data.json", images=str(world / "images")),
        "ppo": PpoConfig(images=str(world / "images")),
    }
    return TrainConfig(RunConfig(run_dir, stages), **given | sections)


@pytest.mark.parametrize("stages", [("sample",), ("sft",), ("sft", "export"), ("export",), ("export", "evaluate")])
def test_no_verifier_is_asked_for_where_none_judges(world, tmp_path, stages):
    assert Run(config(world, tmp_path, *stages)).settings()


@pytest.mark.parametrize("stages", [("ppo",), ("ppo", "export"), ("score",), ("select",), ("sample", "score")])
def test_a_verifier_that_judges_is_asked_for(world, tmp_path, stages):
    """Or that did, of what is to be made; before anything is computed."""
    with pytest.raises(InputError, match=r"^clip\.model is not given"):
        Run(config(world, tmp_path, *stages))


def test_a_verifier_whose_result_is_here_is_asked_for(world, tmp_path):
    """Its result may be stale, and so what is made of it."""
    root = clip_world.make_world(tmp_path / "clip")
    given = clip_world.config(root, baselines=root / "b.json", per="word")
    made = made_of(clip_world.checkpoint(root), given, read_entities(given))
    make_baselines([[(0.2, False), (0.1, True)]], made).write(root / "b.json")
    whole = config(world, tmp_path / "run", "ppo", "export", clip=given)
    (tmp_path / "run").mkdir()
    Run(whole).begin("ppo")
    without = config(world, tmp_path / "run", "export")
    with pytest.raises(InputError, match=r"^clip\.model is not given"):
        Run(without)
    assert Run(dataclasses.replace(whole, run=without.run)).settings()


def test_a_layout_is_refused_where_it_is_to_be_written(world, tmp_path):
    """Before training, of an export that is to come; without one the layout plays no part."""
    sections = {"export": ExportConfig(layout="peft")}
    assert Run(config(world, tmp_path, "sft", **sections)).settings()
    with pytest.raises(InputError, match="layout: peft is for adapters, and none was trained here"):
        Run(config(world, tmp_path, "sft", "export", **sections))
    adapted = config(world, tmp_path, "sft", "export", **sections)
    assert Run(dataclasses.replace(adapted, sft=dataclasses.replace(adapted.sft, lora=LoraConfig(rank=2)))).settings()
