"""A run that is refused before anything is learned is not bound to its settings: with others it may run."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.stages.dpo_world import make_world
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.errors import InputError
from vigor_jax.hf.options import ModelConfig
from vigor_jax.pipeline.run import Run
from vigor_jax.stages.dpo_config import DpoConfig
from vigor_jax.stages.preference_reward_config import PreferenceRewardConfig
from vigor_jax.stages.score_config import ScoreConfig
from vigor_jax.stages.train_reward_config import TrainRewardConfig
from vigor_jax.training.config import SftConfig

SECTIONS = {
    "sft": SftConfig,
    "dpo": DpoConfig,
    "train_reward": TrainRewardConfig,
    "train_preference_reward": PreferenceRewardConfig,
}
NO_PAIRS = r"there is no .*preferences\.parquet; run the stage pair, or give {}\.data"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    world = make_world(tmp_path_factory.mktemp("refused") / "w", rows=2)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    (world / "chat.json").write_text(json.dumps([{"id": 1, "image": "99.png", "conversations": turns}]))
    return world


def refuse(
    world: Path, run_dir: Path, stage: str, message: str, streams: tuple[str, ...] = ("detector",), **given: Any
):
    section = SECTIONS[stage](**{"images": str(world / "images"), **given})
    config = TrainConfig(
        RunConfig(run_dir, (stage,)),
        ModelConfig(world / "model", dtype="float32"),
        score=ScoreConfig(streams=streams),
        **{stage: section},
    )
    with pytest.raises(InputError, match=message) as error:
        Run(config).go()
    assert "\n" not in str(error.value)


CASES = {
    "no targets": ("sft", {}, r"there is no .*targets\.json; run the stage select, or give sft\.data"),
    "no image": ("sft", {"data": "chat.json", "max_length": 100}, "99.png does not exist"),
    "longer than the model": ("sft", {"data": "chat.json"}, "max_length: 2048 is more than the 512 positions"),
    "no pairs": ("dpo", {}, NO_PAIRS.format("dpo")),
    "too long": ("dpo", {"data": "preferences.json", "max_length": 9}, "tokens, and max_length is 9; raise it"),
    "no annotations": ("train_reward", {}, "name the file of judged descriptions"),
    "no pairs to judge": ("train_preference_reward", {}, NO_PAIRS.format("train_preference_reward")),
    "too long to judge": (
        "train_preference_reward",
        {"data": "preferences.json", "max_length": 9},
        "tokens, and max_length is 9; raise it",
    ),
}


@pytest.mark.parametrize("what", CASES)
def test_a_refused_run_may_be_given_other_settings(what, world, tmp_path):
    stage, given, message = CASES[what]
    given = given | ({"data": world / given["data"]} if "data" in given else {})
    refuse(world, tmp_path, stage, message, **given)
    refuse(world, tmp_path, stage, message, **given, learning_rate=3e-4)
    assert not (tmp_path / "stages.json").exists()


def test_pairs_that_a_reward_model_has_judged_do_not_train_it(world, tmp_path):
    """The run's pairs come from its streams: with this model among them, it would have to be there before itself."""
    streams = ("detector", "preference_reward")
    refuse(world, tmp_path, "train_preference_reward", "train_preference_reward.data: no file is given", streams)
