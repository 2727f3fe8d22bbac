"""Metrics for Weights & Biases and trackio: a stand-in for what goes wrong, and both themselves."""

import json
import logging
import os
import signal
import subprocess
import sys
import types
import venv
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.stages.sft_world import curve, make_world
from vigor_jax import cli, fingerprint
from vigor_jax.config import TrainConfig
from vigor_jax.errors import InputError
from vigor_jax.pipeline.rounds import of_round
from vigor_jax.training.log import TrainingLog
from vigor_jax.training.preemption import EXIT_CODE
from vigor_jax.training.trackers import Reporting

ROOT = Path(__file__).resolve().parents[2]
BOTH = ("wandb", "trackio")


class StandIn(types.ModuleType):
    """A tracker that keeps what it gets, and fails when told to."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.opened: list[dict[str, Any]] = []
        self.points: list[tuple[int, dict[str, float]]] = []
        self.fails: set[str] = set()
        self.closed = 0

    def init(self, project: str, **settings: Any) -> "StandIn":
        self._fail("init")
        self.opened.append({"project": project, **settings})
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._fail("log")
        self.points.append((step, metrics))

    def finish(self) -> None:
        self._fail("finish")
        self.closed += 1

    def _fail(self, what: str) -> None:
        if what in self.fails:
            raise ConnectionError(f"no network in {what}\nsecond line")


@pytest.fixture
def trackers(monkeypatch):
    modules = {name: StandIn(name) for name in BOTH}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    return modules


def log(directory: Path, steps: range, *, start: int, to: tuple = BOTH, every: int = 1, **given: Any) -> None:
    reporting = Reporting(to, run_name="few", **given)
    settings = {"learning_rate": 1.0}
    with TrainingLog(
        directory, "sft", start=start, total=9, every=every, peak_flops=None, reporting=reporting, settings=settings
    ) as log:
        for step in steps:
            log.write(step, {"loss": 1 / step, "grad_norm": 2.0}, num_tokens=step, flops=1.0)


def test_trackers_get_what_tensorboard_gets(trackers, tmp_path):
    log(tmp_path, range(1, 10), start=0, every=2)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    names = events.Tags()["tensors"]
    assert set(names) == {"sft/loss", "sft/grad_norm", "sft/tokens_per_second"}
    for module in trackers.values():
        assert [step for step, _ in module.points] == [2, 4, 6, 8]
        for name in names:
            theirs = [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(name)]
            assert [(step, pytest.approx(metrics[name])) for step, metrics in module.points] == theirs
        assert module.closed == 1
        (opened,) = module.opened
        assert opened["project"] == "vigor-jax"
        assert opened["config"] == {"learning_rate": 1.0}
        assert opened["name"].startswith("few-sft")


def test_a_resumed_run_continues_the_trackers_run_without_double_steps(trackers, tmp_path):
    log(tmp_path, range(1, 8), start=0)
    log(tmp_path, range(5, 10), start=4)  # the last checkpoint was of update 4
    for module in trackers.values():
        assert [step for step, _ in module.points] == [*range(1, 8), 8, 9]
        first, second = module.opened
        assert first == second
        assert first["resume"] == "allow"
    assert trackers["wandb"].opened[0]["id"] != trackers["trackio"].opened[0]["name"]


def test_kills_between_two_checkpoints_report_no_update_twice(trackers, tmp_path):
    """However far each process came, and whoever of the trackers was there."""
    log(tmp_path, range(1, 8), start=0, to=("wandb",))
    log(tmp_path, range(5, 6), start=4)
    log(tmp_path, range(5, 7), start=4)
    log(tmp_path, range(5, 10), start=4)
    assert [step for step, _ in trackers["wandb"].points] == [*range(1, 10)]
    assert [step for step, _ in trackers["trackio"].points] == [*range(5, 10)]


def test_a_run_from_the_beginning_is_another_run(trackers, tmp_path):
    for _ in range(2):
        log(tmp_path, range(1, 4), start=0)
    for module in trackers.values():
        assert [step for step, _ in module.points] == [1, 2, 3] * 2
    first, second = (opened["id"] for opened in trackers["wandb"].opened)
    assert first != second
    first, second = (opened["name"] for opened in trackers["trackio"].opened)
    assert first != second


def test_a_tracker_that_comes_later_gets_what_follows(trackers, tmp_path):
    log(tmp_path, range(1, 8), start=0, to=("wandb",))
    log(tmp_path, range(5, 10), start=4)
    assert [step for step, _ in trackers["wandb"].points] == [*range(1, 8), 8, 9]
    assert [step for step, _ in trackers["trackio"].points] == [*range(5, 10)]


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(trackers, tmp_path, caplog, where):
    trackers["wandb"].fails = {where}
    with caplog.at_level(logging.WARNING):
        log(tmp_path, range(1, 6), start=0)
    assert [record.getMessage() for record in caplog.records] == [
        f"wandb gets no metrics from here on (no network in {where}); training continues without it"
    ]
    assert [step for step, _ in trackers["trackio"].points] == [*range(1, 6)]
    assert len((tmp_path / "sft.jsonl").read_text().splitlines()) == 5


def test_the_project_is_the_users(trackers, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "of-the-environment")
    log(tmp_path / "a", range(1, 2), start=0)
    log(tmp_path / "b", range(1, 2), start=0, project="of-the-config")
    assert [opened["project"] for opened in trackers["wandb"].opened] == ["of-the-environment", "of-the-config"]
    assert [opened["project"] for opened in trackers["trackio"].opened] == ["vigor-jax", "of-the-config"]


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()  # what wandb leaves behind is no package
    for name in BOTH:
        monkeypatch.delitem(sys.modules, name, raising=False)
        message = rf"run.report_to: {name} is not installed here; pip install 'vigor-jax\[{name}\]'"
        with pytest.raises(InputError, match=message):
            Reporting((name,)).check_installed()
    Reporting().check_installed()


def config(*more: str) -> TrainConfig:
    return cli.parse(TrainConfig, ["--run.dir", "runs/a", "--model.path", "m", *more], description="")


def test_options():
    given = config("--run.report_to", "wandb,trackio", "--run.project", "p", "--run.run_name", "n")
    assert given.run.reporting == Reporting(BOTH, "p", "n")
    assert config().run.reporting == Reporting((), None, "a")
    assert [of_round(config(), number).run.reporting.run_name for number in (1, 2)] == ["a-round-1", "a-round-2"]
    with pytest.raises(InputError, match="neptune"):
        config("--run.report_to", "neptune")
    # Where metrics are reported decides on no result.
    assert fingerprint.of(given.sft) == fingerprint.of(config().sft)


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An interpreter with all that this one has, and both trackers.

    It is a separate environment, for trackio wants an older Pillow than the newest.
    """
    if all(map(_is_here, BOTH)):
        return Path(sys.executable)
    place = tmp_path_factory.mktemp("trackers")
    venv.create(place)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "all.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    install = [place / "bin" / "python", "-m", "pip", "install", "--quiet", "wandb>=0.31", "trackio>=0.43"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"wandb and trackio cannot be installed: {done.stderr[-300:]}")
    return place / "bin" / "python"


def _is_here(name: str) -> bool:
    try:
        Reporting((name,)).check_installed()
    except InputError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SIGTERM", pytest.param("SIGKILL", marks=pytest.mark.main)])
def test_trackers_have_every_update_once(python, tmp_path, end):
    """Fine-tuning that is stopped and resumed, without a network; read back from the trackers' own files, by trackio's
    own command and with wandb's own messages.

    wandb writes its file every 15 seconds and when it ends, so what is killed leaves a gap there, but nothing twice.
    """
    world, run = make_world(tmp_path / "world", examples=12), tmp_path / "run"
    places = {"WANDB_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path)}
    environment = os.environ | places | {"WANDB_MODE": "offline"}

    def start(*arguments: str, code: int = 0) -> str:
        command = [str(python), "-m", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    job, train = {"world": str(world), "run_dir": str(run), "to": BOTH}, ("tests.training.run_reported", "train")
    start(*train, json.dumps(job | {"end": end}), code=EXIT_CODE if end == "SIGTERM" else -signal.SIGKILL)
    first = len(curve(run))
    assert 6 < first < 12
    start(*train, json.dumps(job))
    start(*train, json.dumps(job | {"to": []}))  # is done, whoever is told

    updates = curve(run)
    assert [update["step"] for update in updates] == list(range(1, 13))
    theirs = json.loads(start("tests.training.run_reported", "wandb", str(tmp_path)))
    assert theirs["name"] == ["tiny", "few-sft"]
    assert len(theirs["runs"]) == 1
    (name,) = json.loads(start("trackio.cli", "list", "runs", "--project", "tiny", "--json"))["runs"]
    for metric in ("loss", "grad_norm", "learning_rate"):
        wanted = [(update["step"], pytest.approx(update[metric])) for update in updates]
        found = [(step, value) for step, key, value in theirs["points"] if key == f"sft/{metric}"]
        assert found[first - 12 :] == wanted[first - 12 :]
        if end == "SIGTERM":
            assert found == wanted
        assert len(dict(found)) == len(found)
        asked = ("get", "metric", "--project", "tiny", "--run", name, "--metric", f"sft/{metric}", "--json")
        found = json.loads(start("trackio.cli", *asked))["values"]
        assert [(point["step"], point["value"]) for point in found] == wanted
    assert {key for _, key, _ in theirs["points"]} == {
        *("sft/loss", "sft/grad_norm", "sft/learning_rate", "sft/tokens", "sft/tokens_per_second"),
    }
