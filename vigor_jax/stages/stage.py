"""What a stage is to the rest: its results and what they depend on, how it runs, what it compiles and what that costs.

The runner, the manifest and the planner know stages by this alone (docs/extending.md adds one).
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import fsspec
import jax
from jax.sharding import Mesh

from vigor_jax.data.records.store import join
from vigor_jax.errors import InputError
from vigor_jax.hf.load import Checkpoint, open_checkpoint
from vigor_jax.hf.options import ModelConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.processes import together
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.stages.programs import Cost, Program, Target, Work
from vigor_jax.training.trackers import NOWHERE, Reporting

# Takes the index of a part of the records and the number of all.
OnPart: TypeAlias = Callable[[int, int], None]

# Names below the run directory.
REWARD_MODEL, EXPORT, TARGETS, EVALUATION = "reward_model", "export", "targets.json", "evaluation"
PREFERENCE_REWARD_MODEL = "preference_reward_model"
PREFERENCES = "preferences.parquet"


@dataclasses.dataclass(frozen=True)
class Result:
    """Something that a stage makes: a stage whose result depends on other settings than it was made with is stale.

    Attributes:
      name: of the stage; scoring has a result for each stream.
      settings: option → value, all that decide on it; made by `fingerprint.of`. `Lazy`, if files are read for it.
      after: names of the results that it is made of.
      outputs: files and folders, local or remote.
      checks_itself: an option whose change the stage understands: it continues if it can.
    """

    name: str
    settings: Mapping[str, Any]
    after: tuple[str, ...]
    outputs: tuple[str | Path, ...]
    checks_itself: str = ""


class Lazy(Mapping[str, Any]):
    """Settings that are read when they are first wanted: a result that plays no part today may lack what it needs.

    Args:
      read: gives them, or raises InputError.
    """

    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        self._read = read

    @functools.cached_property
    def _settings(self) -> Mapping[str, Any]:
        return self._read()

    def __getitem__(self, option: str) -> Any:
        return self._settings[option]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)


@dataclasses.dataclass(frozen=True)
class RunContext:
    """What the stages of a run share.

    Attributes:
      dir: the run directory.
      records: where candidates, verdicts, selections and targets are; local or remote.
      model: the config of the checkpoint that the run begins with.
      checkpoint: it, opened.
      training: how the devices are arranged for training.
      inference: the same for sampling, scoring and asking.
      reporting: trackers that get the metrics of training.
      base: the model that the run's first round began with, if that is another one than `model.path`.
    """

    dir: Path
    records: str
    model: ModelConfig
    checkpoint: Checkpoint
    training: MeshConfig
    inference: MeshConfig
    reporting: Reporting = NOWHERE
    base: str | Path | None = None

    def open(self, name: str | Path) -> Checkpoint:
        """Opens a model of a run: an adapter is put on the model that this run began with, if it was made for that.

        Raises:
          InputError: as `open_checkpoint`.
        """
        return open_checkpoint(name, self.model.vision_tower, base=self.base or self.model.path)

    def own_file(self, name: str, *, made_by: str, option: str) -> Path:
        """A file that an earlier stage of the run made, as a local one: of remote records each process gets a copy.

        All processes call it.

        Args:
          name: of the file among the records.
          made_by: the stage.
          option: what names another file, such as "sft.data".

        Raises:
          InputError: there is no such file.
        """
        path = join(self.records, name)

        def fetch() -> Path:
            system, inside = fsspec.core.url_to_fs(path)
            if not system.exists(inside):
                stage = option.partition(".")[0]
                raise InputError(f"{stage}: there is no {path}; run the stage {made_by}, or give {option}")
            if self.records == str(self.dir):
                return self.dir / name
            local = self.dir / f"{Path(name).stem}-{jax.process_index()}{Path(name).suffix}"
            system.get_file(inside, str(local))
            return local

        return together(fetch)

    @property
    def dtype(self) -> str:
        """Type to compute in."""
        return self.model.dtype

    @functools.cached_property
    def training_mesh(self) -> Mesh:
        return make_mesh(self.training)

    @functools.cached_property
    def inference_mesh(self) -> Mesh:
        return make_mesh(self.inference)

    @functools.cached_property
    def model_settings(self) -> dict[str, Any]:
        """What results depend on of the checkpoint, whatever a stage's own settings are."""
        return {
            "model": self.checkpoint.digest(),
            "model.tokenizer": self.checkpoint.tokenizer.digest(),
            "model.dtype": self.dtype,
        }

    @property
    def share(self) -> dict[str, int]:
        """Which part of what is divided among processes is this one's."""
        return {"process_index": jax.process_index(), "process_count": jax.process_count()}


class Progress(Protocol):
    """What a stage tells the run of its results."""

    def begin(self, result: str) -> None:
        """A result is being made, with the settings of today."""

    def mark(self, result: str) -> str:
        """Names these settings, for the seals of parts."""

    def make_again(self, result: str, what: str) -> None:
        """Removes a result, and all that was made of it, for what it was made of has changed.

        Args:
          result: its name.
          what: what has changed.

        Raises:
          InputError: `run.overwrite` is off.
        """

    def barrier(self, name: str) -> None:
        """Returns when all processes have come here."""


class Stage(abc.ABC):
    """One step of the pipeline, made of its config."""

    name: str

    @abc.abstractmethod
    def results(self, context: RunContext) -> Sequence[Result]:
        """What it makes, whether it is to be run or not."""

    @abc.abstractmethod
    def run(self, context: RunContext, progress: Progress) -> None:
        """Makes its results, from where an earlier run of it stopped."""

    def changed(self, context: RunContext) -> str:
        """What differs between its inputs and those that its result was made of, which settings do not tell; or ""."""
        return ""

    def before_removal(self, context: RunContext) -> None:  # noqa: B027 (most stages keep nothing)
        """Keeps what is not its own of results that are about to be removed."""

    def close(self) -> None:  # noqa: B027 (most stages hold nothing)
        """Frees what it still holds; called once the run is over, however it ends."""

    def programs(self, target: Target) -> Iterator[Program]:
        """The device programs that it compiles, in the order of their first use.

        Raises:
          InputError: a mesh does not fit the devices, or a batch the mesh.
        """
        return iter(())

    def cost(self, work: Work, programs: Sequence[Cost]) -> tuple[int, float]:
        """Calls of its first program for some work, and seconds of all its programs.

        Args:
          work: how much there is to do.
          programs: those of `programs`, with the time of one call.
        """
        raise NotImplementedError(f"{self.name} compiles programs, and does not say how often they run")
