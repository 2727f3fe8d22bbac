"""PPO in a run that is started again: nothing is opened where nothing is left to do, and what changed is made again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.stages.ppo_world import Watched, make_world
from vigor_jax import train
from vigor_jax.data.records.store import part_count, read_parts
from vigor_jax.errors import InputError
from vigor_jax.records import Rollout
from vigor_jax.stages import ppo as stage
from vigor_jax.training.checkpoint import latest_step, read_record

OVERWRITE = ("--run.overwrite", "true")

pytestmark = pytest.mark.slow  # `test_ppo.py` has what is fast of the same kind


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A world, and in it a run of two iterations that is complete."""
    root = make_world(tmp_path_factory.mktemp("ppo") / "w", images=12)
    (root / "judge.txt").write_text("one")
    again(root)
    assert latest_step(root / "run" / "checkpoints" / "ppo") == 2
    return root


@pytest.fixture
def world(begun, tmp_path) -> Path:
    return shutil.copytree(begun, tmp_path / "w")


def again(world: Path, *more: str, stages: str = "ppo") -> None:
    """The run's command, with other options."""
    config = f"""
run: {{dir: {world / "run"}, stages: [{stages}]}}
model: {{path: {world / "model"}, dtype: float32}}
score:
  streams: [{{path: "tests.stages.ppo_world:Watched", options: {{file: judge.txt}}}}]
ppo:
  data: {world / "data.json"}
  images: {world / "images"}
  batch_size: 6
  minibatch: 6
  ppo_epochs: 1
  learning_rate: 1.0e-3
  bucket: 32
  sampling: {{temperature: 1.0, num_candidates: 2, max_new_tokens: 8, batch_size: 6, prompt_bucket: 8}}
"""
    (world / "config.yaml").write_text(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        train.main(["--config", str(world / "config.yaml"), *more])


def facts(world: Path, step: int) -> dict[str, Any]:
    """What the newest checkpoint, of that step, was made with."""
    checkpoints = world / "run" / "checkpoints" / "ppo"
    assert latest_step(checkpoints) == step
    return read_record(checkpoints, step)["fingerprint"]


def forget_last(world: Path) -> None:
    """As a run that was killed in its second iteration."""
    shutil.rmtree(world / "run" / "checkpoints" / "ppo" / "2")


@pytest.mark.main
def test_nothing_is_opened_where_nothing_is_left_to_do(world, monkeypatch):
    before = list(Watched.opened)
    (world / "judge.txt").unlink()  # without it the stream cannot be made

    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("the policy was loaded")

    monkeypatch.setattr(stage, "Policy", fails)
    again(world)
    again(world, stages="ppo, export")
    assert (world / "run" / "export" / "config.json").exists()
    assert Watched.opened == before


def refused(world: Path, message: str) -> None:
    """Without `run.overwrite`, in a line that names it, and nothing is lost."""
    kept = sorted((world / "run").rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        again(world)
    assert "--run.overwrite true" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted((world / "run").rglob("*")) == kept


@pytest.mark.main
def test_another_judge(world):
    forget_last(world)
    (world / "judge.txt").write_text("two")
    refused(world, r"was made with streams\.watched .*, which is now ")
    before = facts(world, 1)
    again(world, *OVERWRITE)
    assert facts(world, 2)["streams"] != before["streams"]
    assert "ppo" in json.loads((world / "run" / "stages.json").read_text())


def test_an_image_less(world):
    """Also where all was done; and the row that names it is left out only on demand."""
    (world / "images" / "03.png").unlink()
    with pytest.raises(InputError, match=r"03\.png"):
        again(world, *OVERWRITE)
    forgiving = ("--ppo.skip_bad", "true")
    with pytest.raises(InputError, match=r"was made with data\.questions") as caught:
        again(world, *forgiving)
    assert "--run.overwrite true" in str(caught.value)
    again(world, *forgiving, *OVERWRITE)
    assert facts(world, 1)["data"]["count"] == 11
    rollouts = list(read_parts(world / "run" / "ppo", Rollout))
    assert len(rollouts) == 2 * 6
    assert "03.png" not in {rollout.image for rollout in rollouts}


def test_other_conversations(world):
    records = json.loads((world / "data.json").read_text())
    for record in records:
        record["conversations"][0]["value"] = "<image>\nWhat is that?"
    (world / "data.json").write_text(json.dumps(records))
    refused(world, r"was made with ppo\.data .*, which is now ")
    again(world, *OVERWRITE)
    assert {rollout.prompt for rollout in read_parts(world / "run" / "ppo", Rollout)} == {"What is that?"}


@pytest.mark.main
def test_killed_before_its_first_checkpoint(world):
    """Its responses are of no use, and would not fit if there are fewer images now."""
    shutil.rmtree(world / "run" / "checkpoints")
    (world / "images" / "03.png").unlink()
    again(world, "--ppo.skip_bad", "true")
    assert part_count(world / "run" / "ppo") == 1
