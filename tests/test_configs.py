"""Every shipped config parses, and what a command refuses it refuses in one line with exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest

from vigor_jax import cli
from vigor_jax.config import TrainConfig
from vigor_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PODS = sorted((ROOT / "configs" / "pods").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_config_parses_and_names_its_command(path):
    config = cli.parse(TrainConfig, ["--config", str(path)], description="")
    assert config.run.stages
    assert path.read_text().startswith("# python -m vigor_jax.train")


def test_there_are_configs():
    assert CONFIGS
    assert PODS


@pytest.mark.parametrize("pod", PODS, ids=lambda path: path.name)
def test_pods_are_added_to_a_config(pod):
    path = str(ROOT / "configs" / "vigor_all_7b.yaml")
    alone = cli.parse(TrainConfig, ["--config", path], description="")
    both = cli.parse(TrainConfig, ["--config", path, "--config", str(pod)], description="")
    assert both.inference_mesh.tensor == 4
    assert both.sample.images == alone.sample.images
    assert both.sft == alone.sft  # what is learnt does not depend on the pod


def test_dump_reads_back(tmp_path):
    path = str(ROOT / "configs" / "sft.yaml")
    config = cli.parse(
        TrainConfig, ["--config", path, "--sft.freeze", "vision_tower,language_model.norm"], description=""
    )
    assert config.sft.freeze == ("vision_tower", "language_model.norm")
    (tmp_path / "config.yaml").write_text(cli.dump(config))
    assert cli.parse(TrainConfig, ["--config", str(tmp_path / "config.yaml")], description="") == config


def test_command_line_wins_over_file_and_later_over_earlier(tmp_path):
    (tmp_path / "c.yaml").write_text("run: {dir: a}\nmodel: {path: b}\nsft: {epochs: 3, learning_rate: 1e-4}\n")
    arguments = ["--config", str(tmp_path / "c.yaml"), "--sft.epochs", "4", "--run.stages", "export,sft"]
    config = cli.parse(TrainConfig, arguments, description="")
    assert (config.sft.epochs, config.sft.learning_rate) == (4, 1e-4)
    assert config.run.stages == ("export", "sft")
    assert config.run.dir == Path("a")


BASE = ["--run.dir", "r", "--model.path", "m"]
REFUSED = {
    "unknown key": ([*BASE, "--sft.learning_rte", "3"], "unknown key sft.learning_rte; the nearest known one"),
    "unknown section": ([*BASE, "--sfft.epochs", "3"], "the nearest known one is sft.epochs"),
    "wrong type": ([*BASE, "--sft.epochs", "many"], "many"),
    "out of range": ([*BASE, "--sft.epochs", "0"], "epochs: expected at least 1, got 0"),
    "unknown stage": ([*BASE, "--run.stages", "sft,expor"], "expor"),
    "no stage": ([*BASE, "--run.stages", "[]"], "at least one stage"),
    "missing value": (["--run.dir", "r"], "model.path"),
    "no such file": (["--config", "nowhere.yaml"], "nowhere.yaml"),
    "unknown remat": ([*BASE, "--sft.remat", "some"], "remat: expected one of none, full, dots"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_line(what):
    arguments, message = REFUSED[what]
    with pytest.raises(InputError) as error:
        cli.parse(TrainConfig, arguments, description="")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sft: {epochz: 3}", "unknown key sft.epochz; the nearest known one is sft.epochs"),
        ("trane: 3", "unknown key trane"),
        ("sft: [", "parsing"),
    ],
)
def test_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        cli.parse(TrainConfig, ["--config", str(path)], description="")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_exit_codes():
    """A real process: 2 and one line for the user's mistake, 0 for help."""
    command = [sys.executable, "-m", "vigor_jax.train"]
    bad = subprocess.run([*command, *BASE, "--sft.epochz", "3"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert len(bad.stderr.splitlines()) == 1
    assert bad.stderr.startswith("error: ")
    good = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert good.returncode == 0
    assert "--sft.learning_rate" in good.stdout
