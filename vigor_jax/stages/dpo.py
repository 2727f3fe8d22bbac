"""Learning from preferences: direct preference optimization (Rafailov et al. 2023) and its forms for images."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from vigor_jax.data.batches.preference_rows import (
    PreferenceEncoder,
    PreferenceLoader,
    PreferenceRow,
    PreferenceRows,
    in_pairs,
)
from vigor_jax.data.records.store import join
from vigor_jax.data.text.conversation import find_template
from vigor_jax.errors import InputError
from vigor_jax.hf.load import Checkpoint
from vigor_jax.parallel.processes import together
from vigor_jax.parallel.sharding import check_batch_divides
from vigor_jax.stages.dpo_config import DpoConfig
from vigor_jax.stages.dpo_reference import reference_program, references
from vigor_jax.stages.dpo_update import dpo_loss
from vigor_jax.stages.preference_data import data_of, make_loader, own_preferences, usable_preferences
from vigor_jax.stages.programs import Cost, Program, Target, Work, array, tree_rows, update, update_flops
from vigor_jax.stages.sft import training_result
from vigor_jax.stages.stage import Progress, Result, RunContext, Stage
from vigor_jax.training.loop import fine_tune, steps_done
from vigor_jax.training.resumption import Data, hold_places
from vigor_jax.training.trackers import NOWHERE, Reporting

logger = logging.getLogger(__name__)


def dpo(
    config: DpoConfig,
    checkpoint: Checkpoint,
    run_dir: Path,
    mesh: Mesh,
    *,
    dtype: Any,
    records: str | None = None,
    begin: Callable[[], None] = lambda: None,
    barrier: Callable[[], None] = lambda: None,
    name: str = "dpo",
    reporting: Reporting = NOWHERE,
) -> Path:
    """Learns from preferences; the same call again resumes, or returns at once if all is done.

    The loss is the mean over all pairs of a batch, whatever rows they are in.

    Args:
      config: settings; `data` must be given.
      checkpoint: the checkpoint to start from, which is the reference.
      run_dir: as `sft` takes it.
      mesh: all devices of all processes.
      dtype: type to compute in; trained weights and optimizer are float32 in any case.
      records: where what the reference says is kept, the same for all processes; `run_dir` by default.
      begin: as `sft` takes it; it is called before the reference reads.
      barrier: returns when all processes have called it.
      name: of the stage in `run_dir`.
      reporting: trackers that get the metrics too; changes nothing about the result.

    Returns:
      The directory of the checkpoints.

    Raises:
      InputError: settings, data or images cannot be used, or the run directory belongs to another run.
      TrainingDiverged, SystemExit: as `sft`.
    """
    loader, data = together(lambda: _data(config, checkpoint, mesh, run_dir, name))
    filled, facts = hold_places(config, run_dir, name, data)
    rows = loader.data if filled is None else [loader.data[row] if row >= 0 else None for row in filled]
    placed = dataclasses.replace(loader, data=rows)
    # What training refuses is said before the reference's pass, which may take hours.
    done = steps_done(config, checkpoint, run_dir, facts, dtype=dtype, name=name)
    begin()
    if done < placed.num_steps:
        kept = join(records or run_dir, "references", name)
        found = references(config, checkpoint, loader, kept, mesh, dtype, barrier)
        placed = dataclasses.replace(placed, references=found)
    return fine_tune(
        config, checkpoint, run_dir, mesh, placed, facts,
        dtype=dtype, name=name, loss=dpo_loss, reporting=reporting,
    )  # fmt: skip


def _data(
    config: DpoConfig, checkpoint: Checkpoint, mesh: Mesh, run_dir: Path, name: str
) -> tuple[PreferenceLoader, Data]:
    """The batches, and what tells the data from other data."""
    check_batch_divides(config.batch_size, mesh, config.accumulate)
    positions = checkpoint.config.text.max_position_embeddings
    encoder = PreferenceEncoder(
        checkpoint.tokenizer,
        find_template(config.template),
        checkpoint.config.image_token_id,
        checkpoint.config.num_image_tokens,
        max_length=config.max_length,
        max_positions=positions,
        changed_weight=config.changed_weight,
        length_normalized=config.length_normalized,
    )

    split = in_pairs if config.changed_weight != 1 else list

    def check(row: PreferenceRow) -> None:
        if config.image_factor and row.image is None:
            raise InputError(f"has no image, which {name}.image_factor needs; set that to 0 or remove the row")
        for each in split([row]):
            encoder.tokens(each)

    rows = split(usable_preferences(config, check, run_dir, name))
    loader = make_loader(config, rows, encoder, checkpoint, mesh)
    cropped = config.crop if config.shows_crops else None
    loader = dataclasses.replace(loader, cropped=cropped, noised=config.shows_noise)
    if loader.num_steps == 0:
        raise InputError(
            f"{config.data}: {len(rows)} preferences x {config.epochs} epochs are fewer than one batch of "
            f"{config.batch_size}; lower {name}.batch_size or raise {name}.epochs"
        )
    return loader, data_of(loader)


class DpoStage(Stage):
    """Preferences → checkpoints.

    Args:
      config: settings; `data` is by default what the stage pair made.
    """

    name = "dpo"

    def __init__(self, config: DpoConfig) -> None:
        self._config = config

    def results(self, context: RunContext) -> list[Result]:
        after = () if self._config.data else ("pair",)
        # What the reference says is no output: it knows what it depends on, and may outlive what was learned with it.
        return [training_result(self.name, self._config, self._config.data, context, after)]

    def run(self, context: RunContext, progress: Progress) -> None:
        data = self._config.data or own_preferences(context, self.name)
        dpo(
            dataclasses.replace(self._config, data=data),
            context.checkpoint,
            context.dir,
            context.training_mesh,
            dtype=context.dtype,
            records=context.records,
            begin=lambda: progress.begin(self.name),
            barrier=lambda: progress.barrier("references"),
            reporting=context.reporting,
        )

    def programs(self, target: Target) -> Iterator[Program]:
        config, model, mesh, sizes = self._config, target.model, target.training_mesh, target.sizes
        check_batch_divides(config.batch_size, mesh, config.accumulate)
        rows, places = config.batch_size, 2 * sizes.response
        length = min(config.max_length, sizes.prompt + places)
        flops = update_flops(config, model, examples=rows, tokens=rows * length)
        passes = 1 + config.shows_crops + config.shows_noise / 3  # what is said under noise has no gradient
        lower, held = update(config, target, preference_rows(config, target, rows, length, places), dpo_loss)
        yield Program(self.name, "update", lower, flops * passes, held, rows, length)
        at_a_time = preference_rows(config, target, rows // config.accumulate, length, places)
        yield reference_program(config, target, at_a_time)

    def cost(self, work: Work, programs: Sequence[Cost]) -> tuple[int, float]:
        calls = math.ceil(work.images * self._config.epochs / self._config.batch_size)
        passes = 1 + 1 / (3 * self._config.epochs)  # the reference's pass has no gradient
        return calls, calls * programs[0].seconds * passes


def preference_rows(config: DpoConfig, target: Target, rows: int, length: int, places: int) -> PreferenceRows:
    """Shapes of a batch of pairs."""
    mesh = target.training_mesh

    def of(*shape: int, dtype: Any = jnp.int32) -> Any:
        return array(mesh, (rows, *shape), dtype)

    responses, logps = tree_rows(target.model, mesh, rows, length, places), of(places, dtype=jnp.float32)
    return PreferenceRows(
        responses, of(places), of(2), of(1), of(1), of(1, dtype=jnp.bool_), logps,
        logps if config.image_factor else None,
        responses.pixels if config.shows_crops else None,
        of(2, dtype=jnp.uint32) if config.shows_noise else None,
    )  # fmt: skip
