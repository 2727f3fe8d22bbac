"""Instruction tuning of the reward model on annotated descriptions (ViGoR, section 3.2).

The model learns to answer, at the end of every sentence, whether it is true of the image and what kinds of error it
has. In branch form a row holds all the descriptions of an image and all their questions: the same loss and gradient as
from one conversation a sentence, at a fraction of the work.
"""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from vigor_jax.data.batches.tree_batches import TreeLoader
from vigor_jax.errors import InputError
from vigor_jax.hf.export import find_layout
from vigor_jax.hf.load import Checkpoint
from vigor_jax.hf.options import ExportConfig
from vigor_jax.parallel.processes import is_first, together
from vigor_jax.parallel.sharding import check_batch_divides, local_rows
from vigor_jax.stages import reward_evaluation
from vigor_jax.stages.export import export
from vigor_jax.stages.programs import Cost, Program, Target, Work, tree_rows, update, update_flops
from vigor_jax.stages.reward_evaluation import Evaluation
from vigor_jax.stages.reward_rows import answer_loss, make_encoder
from vigor_jax.stages.reward_sources import Source, contents, data_of, learned_rows, questions, read_sources
from vigor_jax.stages.sft import training_result
from vigor_jax.stages.stage import REWARD_MODEL, Progress, Result, RunContext, Stage
from vigor_jax.stages.train_reward_config import TrainRewardConfig
from vigor_jax.training.checkpoint import latest_step
from vigor_jax.training.log import keep_steps
from vigor_jax.training.loop import fine_tune
from vigor_jax.training.resumption import hold_places
from vigor_jax.training.trackers import NOWHERE, Reporting
from vigor_jax.training.train_step import Weights
from vigor_jax.training.trainable import abstract_trainable

logger = logging.getLogger(__name__)

NAME = "train_reward"


def train_reward(
    config: TrainRewardConfig,
    checkpoint: Checkpoint,
    run_dir: Path,
    mesh: Mesh,
    *,
    dtype: Any,
    begin: Callable[[], None] = lambda: None,
    reporting: Reporting = NOWHERE,
) -> Path:
    """Trains the reward model; the same call again resumes, or returns at once if all is done.

    Args:
      config: settings.
      checkpoint: the checkpoint to start from: the policy's, as in the paper.
      run_dir: gets `checkpoints/train_reward/`, `metrics/train_reward.jsonl` and, with a line for each evaluation,
        `metrics/reward_eval.jsonl`.
      mesh: all devices of all processes.
      dtype: type to compute in; trained weights and optimizer are float32 in any case.
      begin: as `stages.sft.sft`.
      reporting: the same.

    Returns:
      The directory of the checkpoints.

    Raises:
      InputError, TrainingDiverged, SystemExit: as `stages.sft.sft`.
    """
    check_batch_divides(config.batch_size, mesh, config.accumulate)
    encoder = make_encoder(config, checkpoint)
    sources = together(lambda: read_sources(config, encoder, run_dir))
    taught, held_out = ([source.part(held_out=which) for source in sources] for which in (False, True))
    rows = learned_rows(taught, config, encoder)
    sequences, asked = [row for own in rows for row in own], questions(held_out, encoder)
    filled, facts = hold_places(config, run_dir, NAME, data_of(config, sources, rows))
    loader = TreeLoader(
        sequences=sequences if filled is None else [sequences[row] if row >= 0 else None for row in filled],
        encoder=encoder,
        pad_id=checkpoint.tokenizer.pad_id,
        preprocessing=checkpoint.preprocessing,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        bucket=config.bucket,
        rows=local_rows(config.batch_size, mesh),
    )
    num_rows = len(loader.sequences)
    if loader.num_steps == 0:
        files = ", ".join(map(str, config.files))
        raise InputError(
            f"{files}: {num_rows} rows x {config.epochs} epochs are fewer than one batch of {config.batch_size}; lower "
            "batch_size or held_out, or raise epochs"
        )
    evaluate = None
    if asked:
        size = config.batch_size // config.accumulate  # as many rows as an update computes at a time
        evaluate = Evaluation(
            dataclasses.replace(loader, sequences=asked, batch_size=size, rows=local_rows(size, mesh)),
            {source.name: source.errors for source in held_out}, abstract_trainable(checkpoint, config), mesh, dtype,
        )  # fmt: skip
    trained = {source.name: _answers(source) for source in taught}
    total = {kind: sum(counts[kind] for counts in trained.values()) for kind in ("good", "bad")}
    for source, left, own in zip(taught, held_out, rows, strict=True):
        logger.info(
            "%s: %s%d images in %d rows, %d good and %d bad answers; %d images held out",
            NAME, f"{source.name} (weight {source.weight:g}): " if source.name else "", len(source.annotations),
            len(own), *trained[source.name].values(), len(left.annotations),
        )  # fmt: skip
    path = run_dir / "metrics" / "reward_eval.jsonl"
    if is_first():
        keep_steps(path, latest_step(run_dir / "checkpoints" / NAME) or 0)

    def after_update(step: int, weights: Weights) -> None:
        examples = step * config.batch_size
        ends_epoch = examples // num_rows > (examples - config.batch_size) // num_rows
        if evaluate is None or not (ends_epoch or step == loader.num_steps):
            return
        found = evaluate(weights)
        for source in taught:
            if source.name in found.get("sources", {}):
                found["sources"][source.name] |= {"weight": source.weight, "trained": trained[source.name]}
        metrics = {"step": step, "epoch": round(examples / num_rows, 3), "trained": total, **found}
        if is_first():
            reward_evaluation.append(path, metrics)
            logger.info("%s: %s", NAME, reward_evaluation.table(metrics))

    # Each epoch is evaluated on the same images, or the evaluations could not be compared.
    facts |= {"held_out": hashlib.sha256(repr(contents(asked)).encode()).hexdigest()}
    begin()
    return fine_tune(
        config, checkpoint, run_dir, mesh, loader, facts,
        dtype=dtype, name=NAME, loss=answer_loss, after_update=after_update, reporting=reporting,
    )  # fmt: skip


def _answers(source: Source) -> dict[str, int]:
    good = sum(not errors for errors in source.errors)
    return {"good": good, "bad": len(source.errors) - good}


class TrainRewardStage(Stage):
    """Annotations → a reward model, as a checkpoint."""

    name = NAME

    def __init__(self, config: TrainRewardConfig) -> None:
        self._config = config

    def results(self, context: RunContext) -> list[Result]:
        more = context.dir / REWARD_MODEL
        return [training_result(self.name, self._config, self._config.files, context, (), more)]

    def run(self, context: RunContext, progress: Progress) -> None:
        find_layout(None, context.checkpoint, self._config.lora)  # now rather than after training
        mesh, begin = context.training_mesh, lambda: progress.begin(self.name)
        told: dict[str, Any] = {"dtype": context.dtype, "reporting": context.reporting}
        checkpoints = train_reward(self._config, context.checkpoint, context.dir, mesh, begin=begin, **told)
        export(ExportConfig(), context.checkpoint, checkpoints, context.dir / REWARD_MODEL, mesh)

    def programs(self, target: Target) -> Iterator[Program]:
        config, model, mesh = self._config, target.model, target.training_mesh
        rows, length = config.batch_size, min(config.max_length, target.sizes.branch_row)
        check_batch_divides(rows, mesh, config.accumulate)
        shapes = tree_rows(model, mesh, rows, length, target.sizes.sentences)
        flops = update_flops(config, model, examples=rows, tokens=rows * length)
        lower, held = update(config, target, shapes, answer_loss)
        yield Program(self.name, "update", lower, flops, held, rows, length)

    def cost(self, work: Work, programs: Sequence[Cost]) -> tuple[int, float]:
        calls = math.ceil(work.descriptions * self._config.epochs / programs[0].rows)
        return calls, calls * programs[0].seconds
