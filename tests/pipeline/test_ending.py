"""How a run ends that cannot continue, though all that it was given could be used: one line, and exit code 3."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.stages.sft_world import curve, make_world
from vigor_jax import cli, train
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.errors import RunEndedError
from vigor_jax.hf.options import ModelConfig
from vigor_jax.pipeline.ending import naming_the_stage
from vigor_jax.pipeline.table import make_stages
from vigor_jax.stages.score_config import ScoreConfig
from vigor_jax.training import loop


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "w", examples=12)


def ended(world, run_dir, capsys, **options) -> str:
    """What `python -m vigor_jax.train` says last."""
    values = {
        "run.dir": run_dir,
        "run.stages": "sft",
        "model.path": world / "model",
        "model.dtype": "float32",
        "sft.data": world / "data.json",
        "sft.images": world / "images",
        "sft.batch_size": 4,
        "sft.max_length": 256,
        "sft.save_every": 1,
        "sample.images": world / "images",
        "sample.sampling.max_new_tokens": 4,
    } | {name.replace("__", "."): value for name, value in options.items()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: train.main([str(part) for name, value in values.items() for part in (f"--{name}", value)]))
    told = capsys.readouterr().err
    assert end.value.code == 3, told
    assert "Traceback" not in told
    assert "Traceback" in (run_dir / "log.txt").read_text()
    line = told.splitlines()[-1]
    assert line.startswith("error: ")
    assert f"{line.removeprefix('error: ')}\n" in (run_dir / "log.txt").read_text()
    return line


@pytest.mark.main
def test_training_that_diverges(world, tmp_path, capsys):
    """A rate of 1e30; the checkpoint before stays, and a lower rate continues."""
    line = ended(world, tmp_path, capsys, sft__learning_rate=1e30, sft__warmup_ratio=0)
    assert "update 2: loss " in line
    assert "lower the learning rate" in line
    assert [each["step"] for each in curve(tmp_path)] == [1]
    assert [path.name for path in (tmp_path / "checkpoints" / "sft").iterdir()] == ["1"]


@pytest.mark.versions
def test_memory_that_is_full(world, tmp_path, capsys, monkeypatch):
    """By what XLA itself says."""
    monkeypatch.setattr(loop, "load_trainable", lambda *_, **__: jnp.zeros(1 << 45).block_until_ready())
    line = ended(world, tmp_path, capsys)
    assert line.startswith(
        "error: stage sft: a device's memory is full: Out of memory allocating 140737488355328 bytes"
    )
    assert "; raise sft.accumulate or lower sft.max_length, or take more devices" in line


def test_a_model_that_gives_no_numbers(world, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    for file in (world / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    name = next(path.name for path in model.glob("*.safetensors"))
    weights = load_file(model / name)
    norm = next(key for key in weights if key.endswith("layers.0.input_layernorm.weight"))
    save_file(weights | {norm: np.full_like(weights[norm], np.nan)}, model / name)
    line = ended(world, tmp_path / "run", capsys, model__path=model, run__stages="sample")
    assert line.endswith(".png: the model's scores are not finite; are its weights sound?")


def test_advice_names_options_that_every_stage_has(tmp_path):
    config = TrainConfig(RunConfig(tmp_path), ModelConfig(tmp_path))
    known = set(cli._keys(TrainConfig))
    for stage in make_stages(config):
        full = pytest.raises(RunEndedError, match=f"^stage {stage}: the machine's memory is full; ")
        with full as caught, naming_the_stage(stage, config):
            raise MemoryError
        named = [word.strip(",;") for word in str(caught.value).split("; ")[1].split("(")[0].split() if "." in word]
        assert named or stage not in ("train_reward", "sample", "score", "sft", "ppo", "evaluate")
        assert set(named) <= known


@pytest.mark.parametrize("streams", [("preference_reward",), ("detector", "clip_attributes"), ("clip", "reward_model")])
def test_advice_is_about_the_streams_that_judge(tmp_path, streams):
    config = TrainConfig(RunConfig(tmp_path), ModelConfig(tmp_path), score=ScoreConfig(streams))
    with pytest.raises(RunEndedError) as caught, naming_the_stage("score", config):
        raise MemoryError
    advice = str(caught.value).split("; ")[1]
    judges = {"reward_model", "preference_reward", "clip", "clip_attributes"}
    assert {name for name in judges if f" {name}.batch_size" in advice} == judges.intersection(streams)
