"""Metrics for experiment trackers that the user chooses: Weights & Biases and trackio, which share one interface."""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from vigor_jax.errors import InputError

logger = logging.getLogger(__name__)

TrackerName: TypeAlias = Literal["wandb", "trackio"]
PROJECT = "vigor-jax"


@dataclasses.dataclass(frozen=True)
class Reporting:
    """What gets the metrics, next to the files in the run directory.

    Attributes:
      to: the trackers.
      project: theirs; by default the environment's `WANDB_PROJECT` or `TRACKIO_PROJECT`, else "vigor-jax".
      run_name: begins the name of each run there; the stage's name follows.
    """

    to: tuple[TrackerName, ...] = ()
    project: str | None = None
    run_name: str = "run"

    def check_installed(self) -> None:
        """Looks for the packages without importing them.

        Raises:
          InputError: one is missing; names the extra that installs it.
        """
        for name in self.to:
            found = importlib.util.find_spec(name)
            if found is None or found.origin is None:  # wandb leaves folders named wandb behind, which have none
                raise InputError(
                    f"run.report_to: {name} is not installed here; pip install 'vigor-jax[{name}]', or leave it out"
                )


NOWHERE = Reporting()


class TrackerRun(NamedTuple):
    """A stage's run at a tracker.

    Attributes:
      id: its name there.
      logged: the last update that it has: it does not get what comes before again.
    """

    id: str
    logged: int


def recall(reporting: Reporting, stage: str, directory: Path, *, start: int, logged: int) -> dict[str, TrackerRun]:
    """The runs that a stage continues or begins, by tracker; keeps them in `STAGE.trackers.json`.

    Args:
      reporting: which trackers.
      stage: is the file's name.
      directory: has the file.
      start: updates done. At 0 the runs are new.
      logged: the last update whose metrics were logged before this process. If the process before this one was killed
        before it got as far as the one before it, the file has a later update.
    """
    file = directory / f"{stage}.trackers.json"
    before = _read(file) if start else {}
    runs = dict[str, TrackerRun]()
    for name in reporting.to:
        run = before.get(name)
        runs[name] = TrackerRun(run.id, max(run.logged, logged)) if run else TrackerRun(uuid.uuid4().hex[:8], 0)
    if reporting.to:
        kept = {name: run._asdict() for name, run in (before | runs).items()}
        file.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    return runs


class Trackers:
    """The trackers' runs of one stage, in the one process that reports.

    A tracker that fails is left out from then on, with one warning: training needs none.

    Args:
      reporting: which ones.
      stage: is part of the runs' names.
      directory: for what they write.
      runs: what `recall` gives.
      settings: JSON values that the trackers show.
    """

    def __init__(
        self,
        reporting: Reporting,
        stage: str,
        directory: Path,
        runs: Mapping[str, TrackerRun],
        settings: Mapping[str, Any],
    ) -> None:
        self._runs: dict[str, Any] = {}
        self._had = {name: run.logged for name, run in runs.items()}
        for name in reporting.to:
            run_name = f"{reporting.run_name}-{stage}"
            project = reporting.project or os.environ.get(f"{name.upper()}_PROJECT") or PROJECT
            with self._surviving(name):
                self._runs[name] = _open(name, project, run_name, runs[name].id, directory, dict(settings))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Reports the metrics of an update, by their names in TensorBoard."""
        for name, run in list(self._runs.items()):
            if step > self._had[name]:
                with self._surviving(name):
                    run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Sends what is still to be sent."""
        for name, run in list(self._runs.items()):
            with self._surviving(name):
                run.finish()

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._runs.pop(name, None)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("%s gets no metrics from here on (%s); training continues without it", name, reason)


def _open(name: str, project: str, run_name: str, run_id: str, directory: Path, settings: dict[str, Any]) -> Any:
    module = importlib.import_module(name)
    if name == "trackio":  # continues runs by their names, so these must differ
        return module.init(project, name=f"{run_name}-{run_id}", config=settings, resume="allow", embed=False)
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "120")  # seconds; without it, a lost network holds the run up
    place = os.environ.get("WANDB_DIR") or str(directory)
    return module.init(project=project, name=run_name, id=run_id, config=settings, resume="allow", dir=place)


def _read(file: Path) -> dict[str, TrackerRun]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {name: TrackerRun(str(run["id"]), int(run["logged"])) for name, run in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
