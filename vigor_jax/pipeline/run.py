"""One pass through the stages of a config, in one run directory."""

import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from vigor_jax import cli
from vigor_jax.config import TrainConfig
from vigor_jax.data.records.store import join, part_count, part_name, part_seal, parts_done
from vigor_jax.data.text.conversation import DEFAULT_TEMPLATE
from vigor_jax.disk import naming
from vigor_jax.errors import InputError, StaleError
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.inference.policy import check_dtype
from vigor_jax.parallel.processes import is_first
from vigor_jax.pipeline.ending import naming_the_stage
from vigor_jax.pipeline.manifest import RunManifest
from vigor_jax.pipeline.table import make_stages
from vigor_jax.stages.stage import RunContext, Stage

logger = logging.getLogger(__name__)


class Run:
    """The stages of one round; what a stage tells of its results (`stages.stage.Progress`) goes to the run manifest.

    Args:
      config: `rounds` is not read.
      base: the model that the first round began with, if this is a later one.

    Raises:
      InputError: the devices do not fit the mesh, the model cannot be used, settings contradict each other, or what a
        stage to be run, or that was begun, depends on cannot be read.
    """

    def __init__(self, config: TrainConfig, base: str | Path | None = None) -> None:
        self.config = config
        self.context = RunContext(
            dir=config.run.dir,
            records=config.run.records or str(config.run.dir),
            model=config.model,
            checkpoint=open_checkpoint(config.model.path, config.model.vision_tower, config.model.adapter, base=base),
            training=config.mesh,
            inference=config.inference_mesh,
            reporting=config.run.reporting,
            base=base,
        )
        self.context.training_mesh  # noqa: B018 (does it fit the devices?)
        check_dtype(config.model.dtype)
        own = self.context.checkpoint.family.template
        if own != DEFAULT_TEMPLATE and config.model.template != own:
            told = "%s is of a family whose conversation format is %s, and gets %s; give --model.template %s"
            logger.warning(told, config.model.path, own, config.model.template, own)
        self.stages = make_stages(config)
        self._results = {name: stage.results(self.context) for name, stage in self.stages.items()}
        self.manifest = RunManifest(config.run.dir, [each for found in self._results.values() for each in found])
        self.settings(), self.manifest.stale()  # reads all that will be compared: now rather than later

    def settings(self) -> dict[str, Any]:
        """All that decides on the results of the stages to be run, by option."""
        entries = [self.manifest.today(name) for name in self._wanted()]
        return {key: value for entry in entries for key, value in entry["settings"].items()}

    def go(self) -> None:
        """Runs the stages that the config names.

        Raises:
          InputError: settings have changed, or a stage cannot use what it was given.
          RunEndedError: memory is full; loss or gradient became infinite or NaN.
          SystemExit: as `stages.sft.sft`.
        """
        to_run = [self.stages[name] for name in self.config.run.stages]
        if not self.config.run.overwrite:
            for result in (each for stage in to_run for each in self._results[stage.name] if each.checks_itself):
                self.manifest.leave_to_stage(result.name, result.checks_itself)
        self._remove(self.manifest.check(self._wanted(), overwrite=self.config.run.overwrite))
        for stage in to_run:
            if what := stage.changed(self.context):
                self.make_again(stage.name, what)
        self._check_made_with()
        if is_first():
            with naming(self.context.dir):
                self.context.dir.mkdir(parents=True, exist_ok=True)
                (self.context.dir / "config.yaml").write_text(cli.dump(self.config), encoding="utf-8")
        with ExitStack() as opened:
            opened.enter_context(_log_file(self.context.dir / "log.txt"))
            for stage in self.stages.values():
                opened.callback(stage.close)
            for stage in to_run:
                logger.info("stage %s", stage.name)
                with naming(self.context.dir), naming_the_stage(stage.name, self.config):
                    self._run(stage)
                gc.collect()  # models are in cycles of references, and the next stage wants the memory of their weights
                self.barrier(stage.name)

    # What stages tell

    def begin(self, result: str) -> None:
        """A result is being made, with the settings of today."""
        if is_first():
            self.manifest.begin(result)

    def mark(self, result: str) -> str:
        """Names the settings of today that a result depends on."""
        return self.manifest.mark(result)

    def make_again(self, result: str, what: str) -> None:
        """Removes a result and all that was made of it, if that is allowed; `what` says what has changed."""
        if not self.config.run.overwrite:
            raise InputError(
                f"{what}; go back to what it was, choose another run.dir, or give --run.overwrite true to make it again"
            )
        logger.warning("%s; it is made again", what)
        self._remove(self.manifest.after(result))

    def barrier(self, name: str) -> None:
        """Returns when all processes have come here."""
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(name)

    def _run(self, stage: Stage) -> None:
        """Runs a stage; again from the beginning if what it had made is of something else, and may be removed."""
        try:
            stage.run(self.context, self)
            return
        except StaleError as error:
            if not self.config.run.overwrite:
                raise
            what = error.what
        self.make_again(stage.name, what)
        stage.run(self.context, self)

    def _wanted(self) -> list[str]:
        """The results of the stages to be run."""
        return [result.name for stage in self.config.run.stages for result in self._results[stage]]

    def _check_made_with(self) -> None:
        """Refuses parts that were copied here from a run with other settings; one a folder tells, for the stages
        compare the parts of a folder with each other."""
        for result in self.manifest.results:
            for folder in map(str, result.outputs):
                if (count := part_count(folder)) is None:
                    continue
                first = min(parts_done(folder, count))
                if part_seal(folder, first, count).made_with not in ("", self.manifest.mark(result.name)):
                    what = f"{join(folder, part_name(first, count))} is from a run with other settings"
                    self.make_again(result.name, what)
                    break

    def _remove(self, names: list[str]) -> None:
        if names:
            logger.info("removing what is stale: %s", ", ".join(names))
            self.barrier("before removing")
            if is_first():
                for name, stage in self.stages.items():
                    if any(result.name in names for result in self._results[name]):
                        stage.before_removal(self.context)
                self.manifest.remove(names)
            self.barrier("removed")


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Appends what is logged to a file, in the one process that writes it; also the traceback of an error that ends a
    stage, of which a command may print one line only.

    Where the program around this one lets no INFO through, the file gets ours all the same, and its own handlers get no
    more than before.
    """
    if not is_first():
        yield
        return
    root, ours = logging.getLogger(), logging.getLogger("vigor_jax")
    others, level, shown = (*root.handlers, *ours.handlers), ours.level, ours.getEffectiveLevel()

    def as_before(record: logging.LogRecord) -> bool:
        return record.levelno >= shown or not record.name.startswith(ours.name)

    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    root.addHandler(handler)
    if shown > logging.INFO:
        for other in others:
            other.addFilter(as_before)
        ours.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        if not isinstance(error, InputError | OSError):
            how = (logger.name, logging.ERROR, __file__, 0, "ended by an error", (), sys.exc_info())
            handler.handle(logging.LogRecord(*how))
        raise
    finally:
        ours.setLevel(level)
        for other in others:
            other.removeFilter(as_before)
        root.removeHandler(handler)
        with suppress(OSError):
            handler.close()


class _LogFile(logging.FileHandler):
    """Leaves out what a full disk has no room for: the error of the stage says so, a traceback a line would not."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
