"""What a stage leaves on the devices for the next one: nothing."""

import gc
from pathlib import Path

import jax
import pytest

from tests.stages import ppo_world
from tests.stages.run_ppo import make_config
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.hf.options import ModelConfig
from vigor_jax.pipeline.run import Run
from vigor_jax.stages.export import ExportStage
from vigor_jax.stages.ppo_learner import Learner
from vigor_jax.stages.score_config import ScoreConfig


def held() -> int:
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.mark.slow
def test_the_weights_of_a_stage_are_gone_when_the_next_one_begins(tmp_path, monkeypatch):
    """Learner, reference, sampler, and all that judged; whatever Python's collector does by itself."""
    world = ppo_world.make_world(tmp_path / "w", images=8)
    seen: dict[str, int] = {}
    update, export = Learner.update, ExportStage.run
    monkeypatch.setattr(Learner, "update", lambda *given: (seen.update(update=held()), update(*given))[1])
    monkeypatch.setattr(ExportStage, "run", lambda *given: (seen.update(export=held()), export(*given))[1])
    config = TrainConfig(
        RunConfig(tmp_path / "run", ("ppo", "export")),
        ModelConfig(world / "model", dtype="float32"),
        score=ScoreConfig(streams=(f"{Path(ppo_world.__file__)}:Letters",)),
        ppo=make_config(world),
    )
    gc.collect()
    gc.disable()
    try:
        before = held()
        Run(config).go()
    finally:
        gc.enable()
    assert seen["update"] - before > 500_000  # masters, moments, reference and sampler of a model of 280 kB
    assert seen["export"] - before < 20_000  # what the metrics were made of
