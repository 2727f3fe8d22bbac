"""One pass through the stages of the paper, in one run directory."""

import dataclasses
import functools
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import jax
from jax.experimental import multihost_utils

from vigor_jax import cli
from vigor_jax.config import TrainConfig
from vigor_jax.data.records.checksum import check_checksum
from vigor_jax.data.records.store import join, part_count, part_name, part_seal, parts_done
from vigor_jax.disk import naming
from vigor_jax.errors import InputError
from vigor_jax.hf.export import ExportConfig, check_layout
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.json_fields import Fields
from vigor_jax.models.layers import stacks_inference
from vigor_jax.parallel.processes import is_first
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.pipeline.manifest import RunManifest
from vigor_jax.pipeline.stage_inputs import EVALUATION, EXPORT, REWARD_MODEL, TARGETS, score_name, stage_inputs
from vigor_jax.rewards.detection import DetectorStream
from vigor_jax.rewards.reward_model import RewardModel, RewardModelConfig
from vigor_jax.rewards.stream import RewardStream
from vigor_jax.stages.evaluate import evaluate
from vigor_jax.stages.export import PROVENANCE, export
from vigor_jax.stages.sample import check_images, images_of, sample
from vigor_jax.stages.score import check_digest, score, scoring_ahead, stream_class
from vigor_jax.stages.select import OtherPartsError, select
from vigor_jax.stages.sft import sft
from vigor_jax.stages.train_reward import train_reward

logger = logging.getLogger(__name__)

# Seconds that a detector has to say who it is, where nothing else is wanted from it.
GREETING_TIMEOUT = 10.0


class Run:
    """The stages of one round.

    Args:
      config: `rounds` is not read.

    Raises:
      InputError: the devices do not fit the mesh, or the model cannot be used.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.dir = config.run.dir
        self.records = config.run.records or str(config.run.dir)
        self.mesh = make_mesh(config.mesh)
        self.checkpoint = open_checkpoint(config.model.path, config.model.vision_tower)
        check_layout(config.export.layout, self.checkpoint)
        self.stream_names = {spec: stream_class(spec).name for spec in config.score.streams}
        config.select.fusion.check_streams(tuple(self.stream_names.values()))
        uses_own = "reward_model" in config.score.streams and config.score.reward_model is None
        if uses_own and "train_reward" in config.run.stages:
            _check_same_question(config.reward_model, dataclasses.asdict(config.train_reward), "train_reward")
        self.manifest = RunManifest(self.dir, stage_inputs(config, self.checkpoint))
        self._opened = ExitStack()
        self._streams: dict[str, RewardStream] = {}

    def settings(self) -> dict[str, Any]:
        """All that decides on the results of the stages to be run, by option."""
        entries = [self.manifest.today[name] for name in self._names(self.config.run.stages)]
        return {key: value for entry in entries for key, value in entry["settings"].items()}

    def go(self) -> None:
        """Runs the stages that the config names.

        Raises:
          InputError: settings have changed, or a stage cannot use what it was given.
          TrainingDiverged, SystemExit: as `stages.sft.sft`.
        """
        wanted = self._names(self.config.run.stages)
        if not self.config.run.overwrite:
            for stage in {"train_reward", "sft"}.intersection(wanted):
                self.manifest.leave_to_stage(stage, f"{stage}.data")
        self._remove(self.manifest.check(wanted, overwrite=self.config.run.overwrite))
        if "sample" in self.config.run.stages and (what := check_images(images_of(self.config.sample), self.records)):
            self._make_again("sample", what)
        self._check_made_with()
        if is_first():
            with naming(self.dir):
                self.dir.mkdir(parents=True, exist_ok=True)
                (self.dir / "config.yaml").write_text(cli.dump(self.config), encoding="utf-8")
        stages = {
            "train_reward": self.train_reward,
            "sample": self.sample,
            "score": self.score,
            "select": self.select,
            "sft": self.sft,
            "export": self.export,
            "evaluate": self.evaluate,
        }
        with self._opened, _log_file(self.dir / "log.txt"):
            for stage in self.config.run.stages:
                logger.info("stage %s", stage)
                with naming(self.dir):
                    stages[stage]()
                barrier(stage)

    def train_reward(self) -> None:
        """Annotations → a reward model, as a checkpoint of its own."""
        config = self.config.train_reward
        config = dataclasses.replace(config, images=config.images or self.config.sample.images)
        self._begin("train_reward")
        checkpoints = train_reward(config, self.checkpoint, self.dir, self.mesh, dtype=self.config.model.dtype)
        export(ExportConfig(), self.checkpoint, checkpoints, self.dir / REWARD_MODEL, self.mesh)

    def sample(self) -> None:
        """Images → candidates; who can judge them beside the accelerator begins at once."""
        with ExitStack() as ahead:
            followers: list[Callable[[int, int], None]] = []
            for spec in self.config.score.streams if "score" in self.config.run.stages else ():
                if spec != "reward_model" and not self._is_scored(spec):
                    made_with = self.manifest.mark(score_name(spec))
                    judging = scoring_ahead(
                        self._stream(spec), self.records, self._images(), made_with=made_with, **self._share()
                    )
                    followers.append(ahead.enter_context(judging))
            self._begin("sample")

            def on_part(index: int, count: int) -> None:
                for follow in followers:
                    follow(index, count)

            mesh = make_mesh(self.config.inference_mesh)
            dtype = self.config.model.dtype
            made_with = self.manifest.mark("sample")
            sample(
                self.config.sample,
                self.checkpoint,
                self.records,
                mesh,
                dtype=dtype,
                on_part=on_part,
                made_with=made_with,
            )

    def score(self) -> None:
        """Candidates → verdicts of every stream."""
        for spec in self.config.score.streams:
            if self._is_scored(spec):
                self._greet(spec)
                logger.info("score: all verdicts of %s are there", self.stream_names[spec])
            else:
                together, made_with = spec == "reward_model", self.manifest.mark(score_name(spec))
                stream, images = self._stream(spec), self._images()
                score(stream, self.records, images, together=together, made_with=made_with, **self._share())
        self._streams.clear()
        self._opened.close()  # the sidecar's memory is wanted elsewhere

    def select(self) -> None:
        """Candidates and verdicts → targets."""
        choose = functools.partial(
            select,
            self.config.select,
            self.records,
            streams=tuple(self.stream_names.values()),
            barrier=lambda: barrier("targets"),
            made_with=self.manifest.mark("select"),
            **self._share(),
        )
        self._begin("select")
        try:
            choose()
        except OtherPartsError as error:
            self._make_again("select", str(error))
            self._begin("select")
            choose()

    def sft(self) -> None:
        """Targets → checkpoints."""
        self._begin("sft")
        images = self.config.sft.images or self.config.sample.images
        config = dataclasses.replace(self.config.sft, data=self.config.sft.data or self._targets(), images=images)
        sft(config, self.checkpoint, self.dir, self.mesh, dtype=self.config.model.dtype)

    def export(self) -> None:
        """The latest checkpoint → a directory that others load."""
        self._begin("export")
        export(self.config.export, self.checkpoint, self.dir / "checkpoints" / "sft", self.dir / EXPORT, self.mesh)

    def evaluate(self) -> None:
        """The model before and the model after → `evaluation/`."""
        self._begin("evaluate")
        models = {"base": self.checkpoint} if self.config.evaluate.base else {}
        if (self.dir / EXPORT).is_dir():
            models["tuned"] = open_checkpoint(self.dir / EXPORT)
        mesh = make_mesh(self.config.inference_mesh)
        evaluate(self.config.evaluate, models, self.dir / EVALUATION, mesh, dtype=self.config.model.dtype)

    # Streams

    def _stream(self, spec: str) -> RewardStream:
        """The stream, opened; its verdicts on disk, if any, were made by the same."""
        if spec not in self._streams:
            stream = self._reward_model() if spec == "reward_model" else self._enter(spec)
            self._check_digest(spec, stream)
            self._begin(score_name(spec))
            self._streams[spec] = stream
        return self._streams[spec]

    def _enter(self, spec: str) -> RewardStream:
        stream: Any = DetectorStream(self.config.detection) if spec == "detector" else stream_class(spec)()
        return self._opened.enter_context(stream) if isinstance(stream, AbstractContextManager) else stream

    def _reward_model(self) -> RewardModel:
        directory = self.config.score.reward_model or self.dir / REWARD_MODEL
        if not directory.is_dir():
            raise InputError(
                f"score: there is no reward model in {directory}; run the stage train_reward, or give "
                "score.reward_model"
            )
        checkpoint = open_checkpoint(directory, self.config.model.vision_tower)
        config, mesh = self.config.reward_model, make_mesh(self.config.inference_mesh)
        if (directory / PROVENANCE).exists():
            training = Fields.read(directory / PROVENANCE).object("training")
            _check_same_question(config, training.values if training else {}, str(directory))
        model = load_model(checkpoint, mesh=mesh, dtype=self.config.model.dtype, scan=stacks_inference())
        digest = checkpoint.digest()
        return RewardModel(model, checkpoint.tokenizer, checkpoint.preprocessing, config, mesh, weights_digest=digest)

    def _is_scored(self, spec: str) -> bool:
        count = part_count(join(self.records, "candidates"))
        folder = join(self.records, "verdicts", self.stream_names[spec])
        return count is not None and len(parts_done(folder, count)) == count

    def _greet(self, spec: str) -> None:
        """Asks the detector whether it is the one that the verdicts are of; it need not be there any more."""
        if spec != "detector":
            return
        stream = DetectorStream(dataclasses.replace(self.config.detection, connect_timeout=GREETING_TIMEOUT))
        try:
            self._opened.enter_context(stream)
        except InputError as error:
            logger.warning("score: all verdicts of the detector are there; who made them is not asked (%s)", error)
        else:
            self._check_digest(spec, stream)

    def _check_digest(self, spec: str, stream: RewardStream) -> None:
        if what := check_digest(stream, self.records):
            self._make_again(score_name(spec), what)

    # What is done, and by whom

    def _names(self, stages: tuple[str, ...]) -> list[str]:
        """Stages by their names in the manifest, which has each stream's scoring apart."""
        scores = [score_name(spec) for spec in self.config.score.streams]
        return [name for stage in stages for name in (scores if stage == "score" else [stage])]

    def _check_made_with(self) -> None:
        """Refuses parts that were copied here from a run with other settings; one a folder tells, for the stages
        compare the parts of a folder with each other."""
        for stage in self.manifest.stages:
            for folder in map(str, stage.outputs):
                if (count := part_count(folder)) is None:
                    continue
                first = min(parts_done(folder, count))
                if part_seal(folder, first, count).made_with not in ("", self.manifest.mark(stage.name)):
                    what = f"{join(folder, part_name(first, count))} is from a run with other settings"
                    self._make_again(stage.name, what)
                    break

    def _make_again(self, name: str, what: str) -> None:
        if not self.config.run.overwrite:
            raise InputError(
                f"{what}; go back to what it was, choose another run.dir, or give --run.overwrite true to make it again"
            )
        logger.warning("%s; it is made again", what)
        self._remove(self.manifest.after(name))

    def _remove(self, names: list[str]) -> None:
        if names:
            logger.info("removing what is stale: %s", ", ".join(names))
            barrier("before removing")
            if is_first():
                self.manifest.remove(names)
            barrier("removed")

    def _begin(self, name: str) -> None:
        if is_first():
            self.manifest.begin(name)

    def _share(self) -> dict[str, int]:
        return {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def _images(self) -> str:
        if self.config.sample.images is None:
            raise InputError("sample.images is not given; name the folder of images")
        return self.config.sample.images

    def _targets(self) -> Path:
        """The run's own targets, as a local file."""
        system, path = fsspec.core.url_to_fs(join(self.records, TARGETS))
        if not system.exists(path):
            raise InputError(f"sft: there is no {join(self.records, TARGETS)}; run the stage select, or give sft.data")
        check_checksum(join(self.records, TARGETS), stage="select")
        if self.config.run.records is None:
            return self.dir / TARGETS
        local = self.dir / f"targets-{jax.process_index()}.json"
        system.get_file(path, str(local))
        return local


def _check_same_question(config: RewardModelConfig, training: Mapping[str, Any], who: str) -> None:
    """A reward model is asked what it has learnt to answer."""
    for key in ("per", "question", "template"):
        learnt, asked = training.get(key, getattr(config, key)), getattr(config, key)
        if learnt != asked:
            raise InputError(f"reward_model.{key} is {asked!r}, and {who} has {learnt!r}; make them the same")


def barrier(name: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Appends what is logged to a file, in the one process that writes it."""
    if not is_first():
        yield
        return
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        with suppress(OSError):
            handler.close()


class _LogFile(logging.FileHandler):
    """Leaves out what a full disk has no room for: the error of the stage says so, a traceback a line would not."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
