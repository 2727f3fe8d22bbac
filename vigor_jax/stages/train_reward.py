"""Instruction tuning of the reward model on annotated descriptions (ViGoR, section 3.2).

The model learns to answer, at the end of every sentence, whether it is true of the image and what kinds of error it
has. In branch form a row holds all the descriptions of an image and all their questions: the same loss and gradient as
from one conversation a sentence, at a fraction of the work.
"""

import dataclasses
import hashlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from vigor_jax.data.batches.places import row_keys
from vigor_jax.data.batches.tree_batches import TreeLoader
from vigor_jax.data.batches.tree_sequences import TreeEncoder, TreeSequence
from vigor_jax.data.images.store import open_images
from vigor_jax.data.records.annotations import scan_annotations
from vigor_jax.data.records.bad_rows import BadRow, settle
from vigor_jax.data.records.checksum import file_digest
from vigor_jax.errors import InputError
from vigor_jax.hf.export import find_layout
from vigor_jax.hf.load import Checkpoint
from vigor_jax.hf.options import ExportConfig
from vigor_jax.parallel.processes import is_first, together
from vigor_jax.parallel.sharding import check_batch_divides, local_rows
from vigor_jax.records import Annotation
from vigor_jax.stages import reward_evaluation
from vigor_jax.stages.export import export
from vigor_jax.stages.programs import Cost, Program, Target, Work, tree_rows, update, update_flops
from vigor_jax.stages.reward_evaluation import Evaluation
from vigor_jax.stages.reward_rows import (
    Annotations,
    all_errors,
    answer_loss,
    class_weights,
    descriptions,
    is_held_out,
    make_encoder,
    make_sequences,
)
from vigor_jax.stages.sft import training_result
from vigor_jax.stages.stage import REWARD_MODEL, Progress, Result, RunContext, Stage
from vigor_jax.stages.train_reward_config import TrainRewardConfig
from vigor_jax.training.checkpoint import latest_step
from vigor_jax.training.log import keep_steps
from vigor_jax.training.loop import fine_tune
from vigor_jax.training.resumption import Data, hold_places
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
    if config.annotations is None or config.images is None:
        raise InputError("annotations, images: name the file of judged descriptions and the folder of their images")
    check_batch_divides(config.batch_size, mesh, config.accumulate)
    encoder = make_encoder(config, checkpoint)
    annotations = together(lambda: _read(config, encoder, run_dir))
    held_out = {image: group for image, group in annotations.items() if is_held_out(image, config.held_out)}
    taught = {image: group for image, group in annotations.items() if image not in held_out}

    balance = Counter(not errors for errors in all_errors(taught, config.per))
    weights = class_weights(balance) if config.balance == "weighted" else {}
    sequences = make_sequences(taught, config, encoder, learn=True, weights=weights)
    questions = make_sequences(held_out, config, encoder, learn=False)
    filled, facts = hold_places(config, run_dir, NAME, _data(config.annotations, annotations, sequences))
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
        raise InputError(
            f"{config.annotations}: {num_rows} rows x {config.epochs} epochs are fewer than one batch of "
            f"{config.batch_size}; lower batch_size or held_out, or raise epochs"
        )
    evaluate = None
    if held_out:
        size = config.batch_size // config.accumulate  # as many rows as an update computes at a time
        evaluate = Evaluation(
            dataclasses.replace(loader, sequences=questions, batch_size=size, rows=local_rows(size, mesh)),
            all_errors(held_out, config.per), abstract_trainable(checkpoint, config), mesh, dtype,
        )  # fmt: skip
    logger.info(
        "%s: %d images in %d rows, %d good and %d bad answers; %d images held out",
        NAME, len(taught), num_rows, balance[True], balance[False], len(held_out),
    )  # fmt: skip
    path = run_dir / "metrics" / "reward_eval.jsonl"
    if is_first():
        keep_steps(path, latest_step(run_dir / "checkpoints" / NAME) or 0)

    def after_update(step: int, weights: Weights) -> None:
        examples = step * config.batch_size
        ends_epoch = examples // num_rows > (examples - config.batch_size) // num_rows
        if evaluate is None or not (ends_epoch or step == loader.num_steps):
            return
        metrics = {
            "step": step,
            "epoch": round(examples / num_rows, 3),
            "trained": {"good": balance[True], "bad": balance[False]},
            **evaluate(weights),
        }
        if is_first():
            reward_evaluation.append(path, metrics)
            logger.info("%s: %s", NAME, reward_evaluation.table(metrics))

    # Each epoch is evaluated on the same images, or the evaluations could not be compared.
    facts |= {"held_out": hashlib.sha256(repr(_contents(questions)).encode()).hexdigest()}
    begin()
    return fine_tune(
        config, checkpoint, run_dir, mesh, loader, facts,
        dtype=dtype, name=NAME, loss=answer_loss, after_update=after_update, reporting=reporting,
    )  # fmt: skip


def _read(config: TrainRewardConfig, encoder: TreeEncoder, run_dir: Path) -> dict[str, list[Annotation]]:
    """The annotations that have sentences, by their images; those that cannot be learned are left out or refused."""
    path, images = config.annotations or Path(), open_images(config.images or ".")
    found = list(scan_annotations(path))
    bad = [row for _, row in found if isinstance(row, BadRow)]
    lines = [(number, row) for number, row in found if not isinstance(row, BadRow) and row.sentences]
    wanted = list(dict.fromkeys(annotation.image for _, annotation in lines))
    missing = images.missing(wanted)
    if len(missing) == len(wanted) > 1:
        raise InputError(
            f"{path}: image {images.file(missing[0])} does not exist, nor does any of its {len(wanted)} images; check "
            "the image folder"
        )
    annotations: dict[str, list[Annotation]] = {}
    gone = set(missing)
    for number, annotation in lines:
        image = annotation.image
        group = annotations.get(image, [])
        try:
            if image in gone:
                raise InputError(f"image {images.file(image)} does not exist; check the image folder")
            learn = not is_held_out(image, config.held_out)
            for description in descriptions(annotation, len(group), config, learn=learn):
                encoder.length(image, description)
        except InputError as error:
            bad.append(BadRow(number, f"line {number}", image, str(error), f"{path}:{number}: {error}"))
        else:
            annotations[image] = [*group, annotation]
    settle(
        path, bad, len(found),
        skip=config.skip_bad, option=f"{NAME}.skip_bad", report=run_dir / "bad_annotations.jsonl", writes=is_first(),
    )  # fmt: skip
    return annotations


def _data(path: Path, annotations: Annotations, sequences: Sequence[TreeSequence]) -> Data:
    """What tells the rows from those of other annotations."""
    facts = {"sha256": file_digest(path), "examples": sum(map(len, annotations.values()))}
    seen: Counter[str] = Counter()
    names = []
    for sequence in sequences:
        names.append(f"{sequence.image} {seen[sequence.image]}")
        seen[sequence.image] += 1
    digests = [hashlib.blake2b(repr(content).encode(), digest_size=8).digest() for content in _contents(sequences)]
    keys = row_keys(zip(digests, names, strict=True))
    return Data(path, facts, keys, lambda row: f"row of {sequences[row].image}")


def _contents(sequences: Sequence[TreeSequence]) -> list[Any]:
    """All of the rows but where their images are."""
    return [(sequence.image, sequence.descriptions) for sequence in sequences]


class TrainRewardStage(Stage):
    """Annotations → a reward model, as a checkpoint."""

    name = NAME

    def __init__(self, config: TrainRewardConfig) -> None:
        self._config = config

    def results(self, context: RunContext) -> list[Result]:
        more = context.dir / REWARD_MODEL
        return [training_result(self.name, self._config, self._config.annotations, context, (), more)]

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
