"""Training of a reward model on preferences: one number for a response, higher for the better of two (LLaVA-RLHF).

A row holds an image and its prompt once, and each response as a branch with what is asked of its quality behind it. The
reward is read off the state at the branch's last token.
"""

import dataclasses
import functools
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from vigor_jax.data.batches.preference_rows import PreferenceRow, PreferenceRows
from vigor_jax.data.batches.tree_batches import PLACES_BUCKET
from vigor_jax.data.records.checksum import file_digest
from vigor_jax.data.text.image_captions import read_captions
from vigor_jax.errors import InputError
from vigor_jax.hf import reward_head
from vigor_jax.hf.export import find_layout
from vigor_jax.hf.load import Checkpoint
from vigor_jax.hf.options import ExportConfig
from vigor_jax.inference.response_rewards import HEAD
from vigor_jax.parallel.processes import is_first, together
from vigor_jax.parallel.sharding import check_batch_divides, local_rows
from vigor_jax.rewards.preference_reward import make_encoder
from vigor_jax.stages import reward_evaluation
from vigor_jax.stages.export import export
from vigor_jax.stages.preference_data import data_of, make_loader, own_preferences, usable_preferences
from vigor_jax.stages.preference_reward_config import NAME, PreferenceRewardConfig
from vigor_jax.stages.preference_reward_rows import Evaluation, is_left_for_evaluation, preference_reward_loss
from vigor_jax.stages.programs import Cost, Program, Target, Work, array, tree_rows, update, update_flops
from vigor_jax.stages.sft import training_result
from vigor_jax.stages.stage import PREFERENCE_REWARD_MODEL, Progress, Result, RunContext, Stage
from vigor_jax.training.checkpoint import latest_step
from vigor_jax.training.heads import Head
from vigor_jax.training.log import keep_steps
from vigor_jax.training.loop import fine_tune
from vigor_jax.training.resumption import hold_places
from vigor_jax.training.trackers import NOWHERE, Reporting
from vigor_jax.training.train_step import Weights
from vigor_jax.training.trainable import abstract_trainable

logger = logging.getLogger(__name__)


def train_preference_reward(
    config: PreferenceRewardConfig,
    checkpoint: Checkpoint,
    run_dir: Path,
    mesh: Mesh,
    *,
    dtype: Any,
    begin: Callable[[], None] = lambda: None,
    reporting: Reporting = NOWHERE,
) -> Path:
    """Trains a reward model on preferences; the same call again resumes, or returns at once if all is done.

    The loss is the mean over the preferences of a batch, whatever responses they have. The head begins as LLaVA-RLHF's,
    uniform in ±1 / sqrt(width) by `seed`; that of a reward model that is trained further, as its file says.

    Args:
      config: settings.
      checkpoint: the checkpoint to start from.
      run_dir: gets `checkpoints/train_preference_reward/`, `metrics/train_preference_reward.jsonl` and, with a line for
        each evaluation, `metrics/preference_reward_eval.jsonl`.
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
    captions = together(lambda: read_captions(config.captions) if config.captions else None)
    encoder = make_encoder(config, checkpoint, captions, NAME)
    rows = together(lambda: usable_preferences(config, encoder, run_dir, NAME))
    held_out = [row for row in rows if is_left_for_evaluation(row, config.held_out)]
    taught = [row for row in rows if not is_left_for_evaluation(row, config.held_out)]
    loader = make_loader(config, taught, encoder, checkpoint, mesh, widest=rows)
    if loader.num_steps == 0:
        raise InputError(
            f"{config.data}: {len(taught)} preferences x {config.epochs} epochs are fewer than one batch of "
            f"{config.batch_size}; lower batch_size or held_out, or raise epochs"
        )
    filled, facts = hold_places(config, run_dir, NAME, data_of(loader))
    if filled is not None:
        loader = dataclasses.replace(loader, data=[taught[row] if row >= 0 else None for row in filled])
    evaluate = None
    if held_out:
        size = config.batch_size // config.accumulate  # as many rows as an update computes at a time
        held = dataclasses.replace(loader, data=held_out, batch_size=size, rows=local_rows(size, mesh))
        evaluate = Evaluation(held, abstract_trainable(checkpoint, config), mesh, dtype)
    logger.info("%s: %d preferences are held out", NAME, len(held_out))
    path = run_dir / "metrics" / "preference_reward_eval.jsonl"
    if is_first():
        keep_steps(path, latest_step(run_dir / "checkpoints" / NAME) or 0)
    num_rows = len(loader.data)

    def after_update(step: int, weights: Weights) -> None:
        examples = step * config.batch_size
        ends_epoch = examples // num_rows > (examples - config.batch_size) // num_rows
        if evaluate is None or not (ends_epoch or step == loader.num_steps):
            return
        metrics = {"step": step, "epoch": round(examples / num_rows, 3), **evaluate(weights)}
        if is_first():
            reward_evaluation.append(path, metrics)
            logger.info(
                "%s: after epoch %g the better response has more reward in %.1f%% of %d held-out pairs, by %.3f",
                NAME, metrics["epoch"], 100 * metrics["accuracy"], metrics["pairs"], metrics["margin"],
            )  # fmt: skip

    # Each epoch is evaluated on the same rows, or the evaluations could not be compared.
    facts = facts | {"held_out": _digest(held_out)}
    if config.captions:
        facts["captions"] = file_digest(config.captions)
    head = _first_head(config, checkpoint)
    if reward_head.head_file(checkpoint.newest):
        facts["reward_head"] = reward_head.digest(reward_head.RewardHead(head.kernel, head.bias))
    begin()
    return fine_tune(
        config, checkpoint, run_dir, mesh, loader, facts,
        dtype=dtype, name=NAME, loss=preference_reward_loss, head=head, after_update=after_update, reporting=reporting,
    )  # fmt: skip


def _first_head(config: PreferenceRewardConfig, checkpoint: Checkpoint) -> Head:
    width = checkpoint.config.text.hidden_size
    if reward_head.head_file(checkpoint.newest):
        return Head(HEAD, *reward_head.read_head(checkpoint.newest, width))
    return Head.random(HEAD, width, config.seed)


def _digest(rows: Sequence[PreferenceRow]) -> str:
    return hashlib.sha256(b"".join(row.digest() for row in rows)).hexdigest()


class TrainPreferenceRewardStage(Stage):
    """Preferences → a reward model, as a checkpoint with a head.

    Args:
      config: settings; `data` is by default what the stage pair made.
      judges: the run's streams judge with this model, so no pairs of this run can be what it learns from.
    """

    name = NAME

    def __init__(self, config: PreferenceRewardConfig, *, judges: bool = False) -> None:
        self._config, self.takes_own_pairs = config, config.data is None and not judges

    def results(self, context: RunContext) -> list[Result]:
        more, after = context.dir / PREFERENCE_REWARD_MODEL, ("pair",) if self.takes_own_pairs else ()
        made = training_result(self.name, self._config, self._config.data, context, after, more)
        captions = self._config.captions
        content = {f"{NAME}.captions": file_digest(captions)} if captions and captions.is_file() else {}
        return [dataclasses.replace(made, settings={**made.settings, **content})]

    def run(self, context: RunContext, progress: Progress) -> None:
        find_layout(None, context.checkpoint, self._config.lora)  # now rather than after training
        data = own_preferences(context, self.name) if self.takes_own_pairs else self._config.data
        config = dataclasses.replace(self._config, data=data)
        mesh, begin = context.training_mesh, lambda: progress.begin(self.name)
        told: dict[str, Any] = {"dtype": context.dtype, "reporting": context.reporting}
        checkpoints = train_preference_reward(config, context.checkpoint, context.dir, mesh, begin=begin, **told)
        out = context.dir / PREFERENCE_REWARD_MODEL
        export(ExportConfig(), context.checkpoint, checkpoints, out, mesh, head=HEAD)

    def programs(self, target: Target) -> Iterator[Program]:
        config, model, mesh = self._config, target.model, target.training_mesh
        rows, length = config.batch_size, config.max_length
        check_batch_divides(rows, mesh, config.accumulate)
        of = functools.partial(array, mesh)
        one, each = of((rows, 1), jnp.int32), of((rows, PLACES_BUCKET), jnp.int32)
        responses = tree_rows(model, mesh, rows, length, PLACES_BUCKET)
        logps = of((rows, PLACES_BUCKET), jnp.float32)
        shapes = PreferenceRows(responses, each, of((rows, 2), jnp.int32), one, one, of((rows, 1), jnp.bool_), logps)
        flops = update_flops(config, model, examples=rows, tokens=rows * length)
        lower, held = update(config, target, shapes, preference_reward_loss, HEAD)
        yield Program(self.name, "update", lower, flops, held, rows, length)

    def cost(self, work: Work, programs: Sequence[Cost]) -> tuple[int, float]:
        calls = math.ceil(work.descriptions * self._config.epochs / programs[0].rows)
        return calls, calls * programs[0].seconds
