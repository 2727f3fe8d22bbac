"""Supervised fine-tuning on conversations, with the objective of LLaVA's authors (Liu et al. 2023, section 4.2)."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from vigor_jax.data.batches.loader import Loader, Rows
from vigor_jax.data.batches.places import row_keys
from vigor_jax.data.batches.trainable import Encoder, usable_examples
from vigor_jax.data.records.checksum import check_checksum, file_digest, files_digest
from vigor_jax.data.records.store import join
from vigor_jax.data.text.conversation import find_template
from vigor_jax.errors import InputError
from vigor_jax.fingerprint import of
from vigor_jax.hf.load import Checkpoint
from vigor_jax.parallel.processes import is_first, together
from vigor_jax.parallel.sharding import check_batch_divides, local_rows
from vigor_jax.stages.programs import Cost, Program, Target, Work, array, update, update_flops
from vigor_jax.stages.stage import TARGETS, Progress, Result, RunContext, Stage
from vigor_jax.training.config import SftConfig, TrainingConfig
from vigor_jax.training.loop import fine_tune
from vigor_jax.training.resumption import Data, hold_places, places_file
from vigor_jax.training.trackers import NOWHERE, Reporting
from vigor_jax.training.train_step import conversation_loss

logger = logging.getLogger(__name__)


def sft(
    config: SftConfig,
    checkpoint: Checkpoint,
    run_dir: Path,
    mesh: Mesh,
    *,
    dtype: Any,
    begin: Callable[[], None] = lambda: None,
    name: str = "sft",
    reporting: Reporting = NOWHERE,
) -> Path:
    """Fine-tunes a checkpoint; the same call again resumes, or returns at once if all is done.

    Each update's loss is looked at while the next update runs, so that the devices never wait for the host. An
    update that is not finite changes nothing, and no checkpoint is written after it.

    Args:
      config: settings.
      checkpoint: the checkpoint to start from.
      run_dir: gets `checkpoints/NAME/`, and `metrics/NAME.jsonl` with TensorBoard events next to it.
      mesh: all devices of all processes.
      dtype: type to compute in; trained weights and optimizer are float32 in any case.
      begin: is called before anything is learned or kept, and after settings and data were found to be usable: a run
        that is refused is not bound to them.
      name: of the stage in `run_dir`.
      reporting: trackers that get the metrics too; changes nothing about the result.

    Returns:
      The directory of the checkpoints (`training.checkpoint.restore_params_only` reads the latest).

    Raises:
      InputError: settings, data or images cannot be used, or the run directory belongs to another run.
      TrainingDiverged: loss or gradient became infinite or NaN.
      SystemExit: with `preemption.EXIT_CODE`, after SIGTERM and a checkpoint.
    """
    loader, data = together(lambda: _data(config, checkpoint, mesh, run_dir, name))
    filled, facts = hold_places(config, run_dir, name, data)
    if filled is not None:
        examples = [loader.examples[row] if row >= 0 else None for row in filled]
        loader = dataclasses.replace(loader, examples=examples)
    begin()
    return fine_tune(config, checkpoint, run_dir, mesh, loader, facts, dtype=dtype, name=name, reporting=reporting)


def _data(config: SftConfig, checkpoint: Checkpoint, mesh: Mesh, run_dir: Path, name: str) -> tuple[Loader, Data]:
    """The batches, and what tells the data from other data."""
    loader = _loader(config, checkpoint, mesh, run_dir, name)
    examples = [example for example in loader.examples if example is not None]
    facts = {"sha256": file_digest(loader.data_file), "examples": len(examples)}
    keys = row_keys((example.digest, example.name) for example in examples)

    def label(index: int) -> str:
        example = examples[index]
        return example.label if example.name is None else f"{example.label} (id {example.name!r})"

    return loader, Data(loader.data_file, facts, keys, label)


def _loader(
    config: SftConfig, checkpoint: Checkpoint, mesh: Mesh, run_dir: Path | None = None, name: str = "sft"
) -> Loader:
    """The data, with this process's share of the rows; all of them were looked at."""
    if config.data is None:
        raise InputError("data: no file is given; name a file of conversations")
    check_batch_divides(config.batch_size, mesh, config.accumulate, config.pack)
    positions = checkpoint.config.text.max_position_embeddings
    if config.max_length > positions:
        raise InputError(
            f"max_length: {config.max_length} is more than the {positions} positions that {checkpoint.directory} has "
            f"learned; expected at most {positions}"
        )
    encoding: dict[str, Any] = {
        "tokenizer": checkpoint.tokenizer,
        "template": find_template(config.template),
        "image_token_id": checkpoint.config.image_token_id,
        "num_image_tokens": checkpoint.config.num_image_tokens,
        "max_length": config.max_length,
        "max_positions": positions,
    }
    examples = usable_examples(
        config.data, config.images, Encoder(**encoding),
        skip=config.skip_bad, option=f"{name}.skip_bad", report=(run_dir or Path()) / "bad_rows.jsonl",
        writes=is_first(),
    )  # fmt: skip
    return Loader(
        examples=examples,
        data_file=config.data,
        preprocessing=checkpoint.preprocessing,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        bucket=config.bucket,
        pack=config.pack,
        rows=local_rows(config.batch_size // config.pack, mesh),
        **encoding,
    )


class SftStage(Stage):
    """Targets → checkpoints.

    Args:
      config: settings; `data` is by default the run's own targets.
    """

    name = "sft"

    def __init__(self, config: SftConfig) -> None:
        self._config = config

    def results(self, context: RunContext) -> list[Result]:
        return [
            training_result(
                self.name, self._config, self._config.data, context, () if self._config.data else ("select",)
            )
        ]

    def run(self, context: RunContext, progress: Progress) -> None:
        config = dataclasses.replace(self._config, data=self._config.data or _own_targets(context))
        begin = lambda: progress.begin(self.name)  # noqa: E731
        told: dict[str, Any] = {"dtype": context.dtype, "reporting": context.reporting}
        sft(config, context.checkpoint, context.dir, context.training_mesh, begin=begin, **told)

    def programs(self, target: Target) -> Iterator[Program]:
        config, model, mesh = self._config, target.model, target.training_mesh
        check_batch_divides(config.batch_size, mesh, config.accumulate, config.pack)
        rows, length = config.batch_size // config.pack, min(config.max_length, target.sizes.example) * config.pack
        edge, ids = model.vision.image_size, array(mesh, (rows, length), jnp.int32)
        pixels = array(mesh, (rows, config.pack, edge, edge, 3), jnp.uint8)
        shapes = Rows(ids, ids, pixels, ids, ids) if config.pack > 1 else Rows(ids, ids, pixels)
        flops = update_flops(config, model, examples=config.batch_size, tokens=rows * length)
        lower, held = update(config, target, shapes, conversation_loss)
        yield Program(self.name, "update", lower, flops, held, rows, length)

    def cost(self, work: Work, programs: Sequence[Cost]) -> tuple[int, float]:
        calls = math.ceil(work.images * self._config.epochs / self._config.batch_size)
        return calls, calls * programs[0].seconds


def training_result(
    name: str,
    config: TrainingConfig,
    data: Path | Sequence[Path] | None,
    context: RunContext,
    after: tuple[str, ...],
    *more: str | Path,
) -> Result:
    """What a stage of training makes: its checkpoints, which continue where they can when `data` has changed."""
    files = (data,) if isinstance(data, Path) else data or ()
    content = {f"{name}.data": files_digest(files)} if files and all(file.exists() for file in files) else {}
    outputs = (context.dir / "checkpoints" / name, *more, places_file(context.dir, name))
    settings = context.model_settings | of(config, name) | content
    return Result(name, settings, after, outputs, checks_itself=f"{name}.data")


def _own_targets(context: RunContext) -> Path:
    """The run's own targets, as a local file."""
    local = context.own_file(TARGETS, made_by="select", option="sft.data")
    check_checksum(join(context.records, TARGETS), stage="select")
    return local
