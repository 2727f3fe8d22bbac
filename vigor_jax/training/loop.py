"""The training loop of every stage that trains: updates, logs, checkpoints, and what tells a run from another.

All that tells a run from its continuation is the state and the number of updates done, so a run that was killed
and resumed ends with the same bits as one that was not. (On GPUs some sums are taken in no fixed order unless
`XLA_FLAGS=--xla_gpu_deterministic_ops=true` is set.)
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from vigor_jax.data.batches.loader import Batch
from vigor_jax.data.text.conversation import DEFAULT_TEMPLATE
from vigor_jax.errors import RunEndedError, StaleError
from vigor_jax.fingerprint import of, plain
from vigor_jax.hf.load import Checkpoint
from vigor_jax.hf.peft import begun_with
from vigor_jax.models.lora import lora_paths
from vigor_jax.models.vlm import VlmConfig
from vigor_jax.parallel.processes import is_first, same_everywhere
from vigor_jax.parallel.sharding import to_global
from vigor_jax.training.checkpoint import Checkpoints, latest_step, matching_record
from vigor_jax.training.config import TrainingConfig
from vigor_jax.training.flops import peak_flops, train_flops
from vigor_jax.training.heads import Head, with_head
from vigor_jax.training.log import TrainingLog
from vigor_jax.training.preemption import Preemption
from vigor_jax.training.trackers import NOWHERE, Reporting
from vigor_jax.training.train_step import (
    Loss,
    Metrics,
    TrainState,
    Weights,
    abstract_state,
    init_state,
    learning_rate,
    make_optimizer,
    make_train_step,
)
from vigor_jax.training.trainable import load_trainable, trainable_paths

logger = logging.getLogger(__name__)


class TrainingDiverged(RunEndedError):  # noqa: N818 (what happened, as in KeyboardInterrupt)
    """Loss or gradient stopped being finite."""


class Batches(Protocol):
    """The data of a run, as `Loader` gives it.

    Attributes:
      num_steps: updates in all.
      num_dropped: examples that fill no batch.
    """

    @property
    def num_steps(self) -> int: ...

    @property
    def num_dropped(self) -> int: ...

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches of steps `start`, `start` + 1, ... to the last."""


class _Update(NamedTuple):
    """An update whose metrics nobody has waited for yet."""

    step: int
    metrics: Metrics
    batch: Batch
    flops: float


def fine_tune(
    config: TrainingConfig,
    checkpoint: Checkpoint,
    run_dir: Path,
    mesh: Mesh,
    batches: Batches,
    data: dict[str, Any],
    *,
    dtype: Any,
    name: str,
    loss: Loss | None = None,
    head: Head | None = None,
    after_update: Callable[[int, Weights], None] | None = None,
    reporting: Reporting = NOWHERE,
) -> Path:
    """The loop of `sft` over any batches and any loss.

    Args:
      config: settings of the optimizer and of the loop.
      checkpoint: the checkpoint to start from.
      run_dir: as `sft` takes it.
      mesh: all devices of all processes.
      batches: the data.
      data: names the data, for the fingerprint of the run.
      dtype: type to compute in.
      name: of the stage in `run_dir`.
      loss: as `make_train_step` takes it.
      head: that the checkpoint has not, and is trained with the rest.
      after_update: is given the number of updates done and all the weights, before a checkpoint of them is written.
        It may read the weights until it returns.
      reporting: trackers that get the metrics too; changes nothing about the result.
    """
    trained = trainable_paths(checkpoint, config)
    fingerprint = _fingerprint(config, checkpoint, data, dtype)
    same_everywhere(of(config, with_neutral=True) | fingerprint)
    directory = run_dir / "checkpoints" / name
    with Checkpoints(directory, keep=config.keep) as checkpoints, jax.set_mesh(mesh):
        start = checkpoints.latest_step() or 0
        record = checkpoints.record(start, fingerprint) if start else None
        if start == batches.num_steps:
            logger.info("%s: all %d updates are done", name, start)
            return directory
        if batches.num_dropped:
            logger.warning("%s: the last %d examples fill no batch and are left out", name, batches.num_dropped)

        loaded = load_trainable(checkpoint, config, mesh, dtype)
        if head:
            loaded = with_head(loaded, head, mesh)
        graphdef, params, frozen = loaded.graphdef, loaded.params, loaded.frozen
        del loaded  # its trained weights are replaced or donated below
        digest = _digest(frozen)
        if record is None:
            record = {**begun_with(checkpoint), "frozen": digest, "fingerprint": fingerprint}
        elif record["frozen"] != digest:
            raise StaleError(
                f"{directory / str(start)} was trained with the frozen weights of {record['base']}, and those of "
                f"{checkpoint.directory} differ",
                "go back to that model",
            )
        optimizer = make_optimizer(config, batches.num_steps)
        abstract = abstract_state(params, optimizer, mesh)
        checkpoints.check_room(abstract.params, _all_but_params(abstract))  # now rather than after hours
        if start:
            del params
            params, rest = checkpoints.restore(start, abstract.params, _all_but_params(abstract))
            state = TrainState(params=params, **rest)
        else:
            state = init_state(params, optimizer, mesh, config.seed)
        del params

        schedule = learning_rate(config, batches.num_steps)
        train_step = make_train_step(graphdef, abstract, optimizer, schedule, config, dtype, loss)
        modules = frozenset(path.split(".")[0] for path in trained)
        adapted = frozenset(path.split(".")[0] for path in lora_paths(trained))
        unseen: _Update | None = None
        shown = {**fingerprint, "base": record["base"]}
        with (
            Preemption() as preemption,
            _open_log(config, run_dir, name, start, batches, mesh, reporting, shown) as log,
        ):
            for step, batch in enumerate(batches.batches(start), start + 1):
                state, metrics = train_step(state, frozen, to_global(batch.rows, mesh))
                if unseen:
                    _look(unseen, log)
                unseen = _Update(step, metrics, batch, _flops(checkpoint.config, modules, adapted, batch))
                if after_update:
                    after_update(step, state.params | frozen)
                stop = preemption.reached(step)
                if stop or step % config.save_every == 0 or step == batches.num_steps:
                    seen = _look(unseen, log)  # before the save: what diverged is not to be kept
                    unseen = None
                    if log:
                        log.sync()
                    position = {"step": step, "examples": step * config.batch_size, "metrics": seen}
                    checkpoints.save(step, state.params, _all_but_params(state), {**record, **position})
                if stop:
                    break
            checkpoints.wait()
    return directory


def steps_done(
    config: TrainingConfig, checkpoint: Checkpoint, run_dir: Path, data: dict[str, Any], *, dtype: Any, name: str
) -> int:
    """Updates that a run has done, 0 if it was not begun: for what comes before `fine_tune` and takes long.

    Raises:
      InputError: `fine_tune` would refuse these settings, or the checkpoints that are there.
    """
    trainable_paths(checkpoint, config)
    directory = run_dir / "checkpoints" / name
    done = latest_step(directory) or 0
    if done:
        matching_record(directory, done, _fingerprint(config, checkpoint, data, dtype))
    return done


def _fingerprint(config: TrainingConfig, checkpoint: Checkpoint, data: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """All that decides the numbers of a run, as JSON values."""
    return {
        "model": dataclasses.asdict(checkpoint.config),
        "dtype": jnp.dtype(dtype).name,
        "tokenizer": checkpoint.tokenizer.digest(),
        "preprocessing": dataclasses.asdict(checkpoint.preprocessing),
        **({"adapter": checkpoint.digest()} if checkpoint.adapter else {}),
        **of(config),
        "template": config.template or DEFAULT_TEMPLATE,
        "data": data,
    }


def _digest(weights: Weights) -> str:
    """Of the bits of all weights, the same on every mesh: for each weight the sum of its bits as integers."""

    @jax.jit
    def sum_of_bits(x: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        return jnp.sum(bits, dtype=jnp.uint32)

    sums = {path: int(sum_of_bits(weight)) for path, weight in sorted(weights.items())}
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _all_but_params(state: TrainState) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "params"}


def _look(update: _Update, log: TrainingLog | None) -> dict[str, float]:
    """Waits for an update's metrics and logs them.

    Raises:
      TrainingDiverged: they are not finite.
    """
    names = dict.fromkeys(("loss", "grad_norm", "learning_rate", "tokens", *update.metrics))
    metrics = {name: update.metrics[name].item() for name in names}
    if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
        raise TrainingDiverged(
            f"update {update.step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}; it was not applied "
            "and the checkpoints before it are good; look at its examples or lower the learning rate: "
            + ", ".join(update.batch.ids)
        )
    if log:
        log.write(update.step, metrics, num_tokens=update.batch.num_tokens, flops=update.flops)
    return metrics


def _flops(config: VlmConfig, trained: frozenset[str], adapted: frozenset[str], batch: Batch) -> float:
    examples = len(batch.ids)  # packed or not, they attend to themselves only
    images = examples * bool(batch.rows.pixels.shape[1])
    return train_flops(config, trained, rows=examples, tokens=batch.num_tokens, images=images, adapted=adapted)


def _open_log(
    config: TrainingConfig,
    run_dir: Path,
    name: str,
    start: int,
    batches: Batches,
    mesh: Mesh,
    reporting: Reporting,
    settings: dict[str, Any],
) -> contextlib.AbstractContextManager[TrainingLog | None]:
    """The log, in the one process that writes it."""
    if not is_first():
        return contextlib.nullcontext()
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    return TrainingLog(
        run_dir / "metrics",
        name,
        start=start,
        total=batches.num_steps,
        every=config.log_every,
        peak_flops=peak and peak * mesh.size,
        reporting=reporting,
        settings=plain(settings),
    )
