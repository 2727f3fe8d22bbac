"""The stage `dpo` in runs: on the run's own pairs, round by round, and on data that is given."""

import json
import math
from pathlib import Path

import pytest

from tests.stages import ppo_world
from tests.stages.dpo_world import curve, folders
from tests.stages.dpo_world import make_world as make_preferences
from vigor_jax import train
from vigor_jax.errors import InputError
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.reward_head import read_head

SMALL = """
  batch_size: 2
  learning_rate: 1.0e-2
  warmup_ratio: 0
  max_length: 400
  bucket: 64
  lora: {rank: 4, alpha: 8}
"""


def launch(folder: Path, config: str, *arguments: str) -> None:
    (folder / "config.yaml").write_text(config)
    train.main(["--config", str(folder / "config.yaml"), *arguments])


def exported_stage(export: Path) -> str:
    return Path(json.loads((export / "vigor_jax.json").read_text())["checkpoint"]).name


def two_rounds(tmp_path: Path) -> tuple[Path, str]:
    """A run of two rounds; the world and the config."""
    world = ppo_world.make_world(tmp_path / "world", images=8)
    config = f"""
run: {{dir: {tmp_path / "run"}, stages: [sample, score, select, pair, dpo, export], rounds: 2}}
model: {{path: {world / "model"}, dtype: float32}}
sample:
  images: {world / "images"}
  prompts: [Describe the image.]
  images_per_part: 4
  sampling: {{temperature: 1.2, num_candidates: 3, max_new_tokens: 16, batch_size: 4, prompt_bucket: 32}}
score: {{streams: ["{ppo_world.__file__}:Letters"]}}
select: {{refine: none, min_words: 0}}
pair: {{chosen: best, rejected: worst}}
dpo: {SMALL}"""
    launch(tmp_path, config)
    return world, config


@pytest.mark.slow
@pytest.mark.main
def test_rounds_on_own_pairs(tmp_path):
    """Each round's reference is the adapter that the round before exported."""
    world, _ = two_rounds(tmp_path)
    said = []
    for number in (1, 2):
        here = tmp_path / "run" / f"round-{number}"
        assert curve(here)[0]["loss"] == pytest.approx(math.log(2), rel=1e-4)
        assert exported_stage(here / "export") == "dpo"
        assert open_checkpoint(here / "export", base=world / "model").adapter is not None
        said += folders(here)
    assert len({folder.name for folder in said}) == 2


@pytest.mark.slow  # what is stale and what stays: test_manifest.py, and of references test_dpo.py
def test_another_beta_makes_a_round_again_with_the_references_that_are_still_right(tmp_path):
    _, config = two_rounds(tmp_path)
    said = [folder for number in (1, 2) for folder in folders(tmp_path / "run" / f"round-{number}")]
    parts = {path: path.stat().st_mtime_ns for folder in said for path in folder.iterdir()}
    with pytest.raises(InputError, match=r"dpo\.beta"):
        launch(tmp_path, config, "--dpo.beta", "0.3")
    launch(tmp_path, config, "--dpo.beta", "0.3", "--run.overwrite", "true")
    first = [path for path in parts if "round-1" in path.parts]
    assert {path: path.stat().st_mtime_ns for path in first} == {path: parts[path] for path in first}  # still right
    (second,) = folders(tmp_path / "run" / "round-2")  # of another model, and the older one went
    assert second.name not in {folder.name for folder in said}


@pytest.mark.slow
def test_a_reward_model_learns_from_own_pairs(tmp_path):
    """And is made of them: with other pairs it is another one."""
    world = ppo_world.make_world(tmp_path / "world", images=8)
    config = f"""
run: {{dir: {tmp_path / "run"}, stages: [sample, score, select, pair, train_preference_reward]}}
model: {{path: {world / "model"}, dtype: float32}}
sample:
  images: {world / "images"}
  prompts: [Describe the image.]
  sampling: {{temperature: 1.2, num_candidates: 3, max_new_tokens: 16, batch_size: 4, prompt_bucket: 32}}
score: {{streams: ["{ppo_world.__file__}:Letters"]}}
select: {{refine: none, min_words: 0}}
pair: {{chosen: best, rejected: worst}}
train_preference_reward: {SMALL}  question: none
  held_out: 0
"""
    launch(tmp_path, config)
    run_dir = tmp_path / "run"
    head = read_head(run_dir / "preference_reward_model", open_checkpoint(world / "model").config.text.hidden_size)
    assert json.loads((run_dir / "stages.json").read_text())["train_preference_reward"]["after"].keys() == {"pair"}
    with pytest.raises(InputError, match=r"pair\.per_image 1, .* 2; this makes pair, train_preference_reward stale"):
        launch(tmp_path, config, "--pair.per_image", "2")
    launch(tmp_path, config, "--pair.per_image", "2", "--run.overwrite", "true")
    again = read_head(run_dir / "preference_reward_model", len(head.kernel))
    assert (head.kernel != again.kernel).any()


@pytest.mark.slow
def test_given_data_and_what_is_missing(tmp_path):
    world = make_preferences(tmp_path / "world", rows=8)
    config = f"""
run: {{dir: {tmp_path / "run"}, stages: [dpo, export]}}
model: {{path: {world / "model"}, dtype: float32}}
dpo: {SMALL}"""
    with pytest.raises(InputError, match=r"there is no .*preferences\.parquet; run the stage pair, or give dpo\.data"):
        launch(tmp_path, config)
    given = ("--dpo.data", str(world / "preferences.json"), "--dpo.images", str(world / "images"))
    with pytest.raises(InputError, match=r"has an image .* but no image folder is given"):
        launch(tmp_path, config, *given[:2])
    launch(tmp_path, config, *given)
    assert len(curve(tmp_path / "run")) == 4
    assert exported_stage(tmp_path / "run" / "export") == "dpo"
    before = (tmp_path / "run" / "export" / "vigor_jax.json").stat().st_mtime_ns
    launch(tmp_path, config, *given)  # nothing is left to do
    assert (tmp_path / "run" / "export" / "vigor_jax.json").stat().st_mtime_ns == before
