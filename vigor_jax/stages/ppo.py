"""PPO with a reward for each token (FiSAO, section 3.3; docs/ppo.md).

An iteration: responses are drawn from the policy as it is, reward streams judge them, each token gets its reward, and
several passes of updates learn from them. The images' prompts are in the update once, whatever the number of responses.

All that tells a run from its continuation is the state, the KL factor and the number of iterations done: a run that was
killed loses the iterations after its last checkpoint, draws them again, and ends with the same bits.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vigor_jax import fingerprint
from vigor_jax.data.batches.loader import batch_indices
from vigor_jax.data.records.checksum import file_digest
from vigor_jax.data.records.store import join, remove, write_part
from vigor_jax.data.text.conversation import DEFAULT_TEMPLATE
from vigor_jax.errors import InputError
from vigor_jax.hf.load import Checkpoint
from vigor_jax.hf.peft import begun_with
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampler import check_request
from vigor_jax.parallel.processes import is_first, same_everywhere, together
from vigor_jax.parallel.sharding import check_batch_divides, local_rows
from vigor_jax.records import Rollout
from vigor_jax.rewards.stream import RewardStream
from vigor_jax.stages import ppo_programs
from vigor_jax.stages.ppo_config import PpoConfig
from vigor_jax.stages.ppo_learner import Learner, Publisher
from vigor_jax.stages.ppo_questions import Question, digest, read_questions
from vigor_jax.stages.ppo_rewards import advice
from vigor_jax.stages.ppo_rollout import Rollouts, TokenArrays
from vigor_jax.stages.ppo_update import PpoRows, Scores
from vigor_jax.stages.programs import Cost, Program, Target, Work
from vigor_jax.stages.score import ScoreStage
from vigor_jax.stages.stage import Lazy, Progress, Result, RunContext, Stage
from vigor_jax.training import ppo as formulas
from vigor_jax.training.checkpoint import Checkpoints, read_record
from vigor_jax.training.log import TrainingLog
from vigor_jax.training.loop import TrainingDiverged
from vigor_jax.training.preemption import Preemption
from vigor_jax.training.trackers import NOWHERE, Reporting

logger = logging.getLogger(__name__)

NAME = "ppo"
# Mean distance of the log-probabilities of two passes over the same tokens under the same weights: rounding.
MOST_ROUNDING = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.05}


def ppo(
    config: PpoConfig,
    checkpoint: Checkpoint,
    run_dir: Path,
    mesh: Mesh,
    inference_mesh: Mesh,
    open_judges: Callable[[], Mapping[str, RewardStream]],
    *,
    dtype: Any,
    records: str | Path | None = None,
    made_with: str = "",
    reporting: Reporting = NOWHERE,
) -> Path:
    """Trains a policy by PPO; the same call again resumes, or returns at once if all is done.

    Args:
      config: settings.
      checkpoint: the checkpoint to start from, which is the reference.
      run_dir: gets `checkpoints/ppo/`, and `metrics/ppo.jsonl` with TensorBoard events next to it.
      mesh: all devices of all processes, for training.
      inference_mesh: the same for sampling.
      open_judges: gives the reward streams by name, each after those whose verdicts it needs; called if something is
        left to do.
      dtype: type to compute in; trained weights and optimizer are float32 in any case.
      records: gets `ppo/`, a part an iteration; local or remote. By default `run_dir`.
      made_with: names the settings, for the parts' seals.
      reporting: trackers that get the metrics too; changes nothing about the result.

    Returns:
      The directory of the checkpoints.

    Raises:
      InputError: settings, images or streams cannot be used, or no token is rewarded.
      StaleError: the run directory belongs to another run.
      TrainingDiverged: something became infinite or NaN.
      SystemExit: with `preemption.EXIT_CODE`, after SIGTERM and a checkpoint.
    """
    check_batch_divides(config.minibatch, mesh, config.accumulate, name="ppo.minibatch")
    questions = together(lambda: read_questions(config, checkpoint, run_dir))
    num_iterations = len(questions) * config.epochs // config.batch_size
    if not num_iterations:
        raise InputError(
            f"ppo: {len(questions)} images x {config.epochs} epochs are fewer than one batch of {config.batch_size}; "
            "lower ppo.batch_size or raise ppo.epochs"
        )
    facts = _fingerprint(config, checkpoint, questions, dtype)
    same_everywhere(fingerprint.of(config, with_neutral=True) | facts)
    folder, directory = join(records or run_dir, NAME), run_dir / "checkpoints" / NAME
    updates = config.ppo_epochs * (config.batch_size // config.minibatch)
    controller = formulas.AdaptiveKl(config.kl_target or None, config.kl_horizon)
    with Checkpoints(directory, keep=config.keep) as checkpoints:
        start = checkpoints.latest_step() or 0
        if start:  # who judged is compared when the judges are open, which they need not be if all is done
            streams = read_record(directory, start)["fingerprint"].get("streams")
            checkpoints.record(start, facts | {"streams": streams})
        if start == num_iterations:
            logger.info("ppo: all %d iterations are done", start)
            return directory
        judges = open_judges()
        facts |= {"streams": {name: judge.digest for name, judge in judges.items()}}
        same_everywhere(facts)
        record = checkpoints.record(start, facts) if start else begun_with(checkpoint)
        if not start and is_first():
            remove(folder)  # responses of a run that was killed before its first checkpoint
        policy = Policy(checkpoint, inference_mesh, template=config.template, dtype=dtype)
        together(lambda: _check_questions(policy, questions))
        if left := len(questions) * config.epochs % config.batch_size:
            logger.warning("ppo: the last %d images fill no batch and are left out", left)
        with jax.set_mesh(mesh):
            learner = Learner(config, checkpoint, mesh, dtype, num_iterations * updates)
            shapes = learner.split(learner.abstract)
            checkpoints.check_room(*shapes)  # now rather than after hours
            if start:
                learner.state = learner.abstract  # makes room
                learner.join(*checkpoints.restore(start, *shapes))
        kl_factor = float(record.get("kl_factor", config.kl_factor))
        publish = Publisher(policy, config, learner.policy_params, mesh)
        with Preemption() as preemption, _open_log(config, run_dir, start, num_iterations, reporting, facts) as log:
            for iteration in range(start + 1, num_iterations + 1):
                first = (iteration - 1) * config.batch_size
                taken = batch_indices(len(questions), config.seed, range(first, first + config.batch_size))
                with jax.set_mesh(mesh):
                    publish(learner.policy_params)
                rollouts = Rollouts(config, policy, judges, [questions[index] for index in taken], iteration)
                _check_rewards(config, rollouts, judges, iteration)
                scores, ref_scores = _score(config, learner, mesh, rollouts)
                arrays = rollouts.token_arrays(scores, ref_scores, kl_factor)
                _check_finite(arrays, rollouts, iteration)
                metrics = _describe(arrays, rollouts, kl_factor)
                if iteration % jax.process_count() == jax.process_index():
                    kept = rollouts.records(arrays)
                    write_part(folder, iteration - 1, num_iterations, kept, Rollout, made_with=made_with)
                metrics |= _learn(config, learner, mesh, rollouts, arrays, kl_factor, iteration, dtype)
                kl_factor = controller.next(kl_factor, metrics["kl"], arrays.mask.shape[0] * arrays.mask.shape[1])
                if log:
                    log.write(iteration, metrics, num_tokens=int(arrays.mask.sum()), flops=0.0)
                stop = preemption.reached(iteration)
                if stop or iteration % config.save_every == 0 or iteration == num_iterations:
                    if log:
                        log.sync()
                    position = {"step": iteration, "kl_factor": kl_factor, "metrics": metrics}
                    checkpoints.save(
                        iteration, *learner.split(learner.state), {**record, "fingerprint": facts, **position}
                    )
                if stop:
                    break
            checkpoints.wait()
    return directory


def _check_questions(policy: Policy, questions: Sequence[Question]) -> None:
    """Refuses what sampling would refuse, before anything is computed."""
    for question in questions:
        check_request(policy.request(question.image, question.file, question.prompt), policy.checkpoint.config)


def _fingerprint(config: PpoConfig, checkpoint: Checkpoint, questions: list[Question], dtype: Any) -> dict[str, Any]:
    """All that decides the numbers of a run but the streams, as JSON values."""
    return {
        "model": checkpoint.digest(),
        "dtype": jnp.dtype(dtype).name,
        "tokenizer": checkpoint.tokenizer.digest(),
        **fingerprint.of(config),
        "template": config.template or DEFAULT_TEMPLATE,
        "data": {"questions": digest(questions), "count": len(questions)},
    }


def _check_rewards(config: PpoConfig, rollouts: Rollouts, judges: Mapping[str, RewardStream], iteration: int) -> None:
    """Stops before training where no token is rewarded or punished; later it is only said."""
    empty = sum(not each.text for some in rollouts.completions for each in some)
    if empty == rollouts.shares.responses:
        what = "give questions (ppo.prompts, ppo.data) that the model answers"
    else:
        what = advice(judges, [own for some in rollouts.verdicts for own in some], config.token_rewards)
    try:
        rollouts.shares.check(what)
    except InputError as error:
        said = f"ppo: iteration {iteration}: {empty} responses are empty, and {error}"
        if iteration == 1:
            raise InputError(said) from None
        logger.warning("%s", said)


def _score(config: PpoConfig, learner: Learner, mesh: Mesh, rollouts: Rollouts) -> tuple[Scores, Scores]:
    """What the policy and the reference say of all the responses."""
    size = config.minibatch // config.accumulate  # as many rows as an update computes at a time
    own = local_rows(size, mesh)
    found, found_ref = [], []
    for first in range(0, len(rollouts.questions), size):
        rows = rollouts.rows([first + row for row in own])
        with jax.set_mesh(mesh):
            found.append(learner.score(rows))
            found_ref.append(learner.score_reference(rows))
    return _concatenate(found), _concatenate(found_ref)


def _concatenate(scores: Sequence[Scores]) -> Scores:
    return Scores(*(np.concatenate(parts) for parts in zip(*scores, strict=True)))


def _check_finite(arrays: TokenArrays, rollouts: Rollouts, iteration: int) -> None:
    for name, values in arrays._asdict().items():
        if not np.isfinite(values).all():
            index, candidate, token = (int(place[0]) for place in np.nonzero(~np.isfinite(values)))
            place = f"token {token} of candidate {candidate} of {rollouts.questions[index].image}"
            raise TrainingDiverged(
                f"ppo: iteration {iteration}: {name} is {values[index, candidate, token]} at {place}; nothing was "
                f"learned from it; {_what_to_change(name, iteration)}"
            )


def _what_to_change(name: str, iteration: int) -> str:
    """Where one of `TokenArrays`, and none before it, is not finite."""
    if name in ("rewards", "advantages", "returns"):  # of what the policies say all is finite
        return "such rewards are too large: lower what the streams give, or the weights of ppo.token_rewards"
    if iteration == 1 or name == "ref_logps":
        return "the model that training began with gives no finite scores; are its weights sound?"
    return (
        "the updates before it have spoiled the policy, and the last checkpoint has that, too; lower "
        "ppo.learning_rate and begin again"
    )


def _learn(
    config: PpoConfig,
    learner: Learner,
    mesh: Mesh,
    rollouts: Rollouts,
    arrays: TokenArrays,
    kl_factor: float,
    iteration: int,
    dtype: Any,
) -> dict[str, float]:
    """All updates on the responses; the means of their metrics.

    Raises:
      TrainingDiverged: a loss or gradient is not finite, or the first update sees another policy than that which drew
        the responses.
    """
    own, found = local_rows(config.minibatch, mesh), []
    for epoch in range(config.ppo_epochs):
        order = np.random.default_rng([config.seed, iteration, epoch]).permutation(len(rollouts.questions))
        for first in range(0, len(order), config.minibatch):
            indices = [int(order[first + row]) for row in own]
            rows = PpoRows(
                responses=rollouts.rows(indices),
                old_logps=rollouts.join(arrays.old_logps, indices),
                ref_logps=rollouts.join(arrays.ref_logps, indices),
                old_values=rollouts.join(arrays.values, indices),
                advantages=rollouts.join(arrays.advantages, indices),
                returns=rollouts.join(arrays.returns, indices),
                kl_factor=np.full(len(indices), kl_factor, np.float32),
                is_old=np.full(len(indices), epoch == first == 0),
            )
            with jax.set_mesh(mesh):
                found.append(learner.update(rows))
    each = [{name: float(value) for name, value in metrics.items()} for metrics in jax.device_get(found)]
    for number, metrics in enumerate(each, 1):
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            raise TrainingDiverged(
                f"ppo: iteration {iteration}, update {number} of {len(each)}: loss {metrics['loss']}, gradient norm "
                f"{metrics['grad_norm']}; the checkpoints before it are good; lower ppo.learning_rate"
            )
    if (error := each[0].pop("logps_error")) > MOST_ROUNDING[jnp.dtype(dtype).name]:
        raise TrainingDiverged(
            f"ppo: iteration {iteration}: the first update finds log-probabilities {error:.3g} away from those of the "
            "policy that drew the responses, and should find the same but for rounding; this is a defect"
        )
    means = {name: float(np.mean([metrics[name] for metrics in each])) for name in each[0]}
    return means | {"rounding": error, "learning_rate": each[-1]["learning_rate"]}


def _describe(arrays: TokenArrays, rollouts: Rollouts, kl_factor: float) -> dict[str, float]:
    """An iteration in numbers: means over responses, unless their names say otherwise."""
    mask, count = arrays.mask, arrays.mask.shape[0] * arrays.mask.shape[1]
    tokens = int(mask.sum())
    return {
        "reward": float(arrays.rewards.sum(dtype=np.float64) / count),
        "rewarded": rollouts.shares.share_rewarded,
        "punished": rollouts.shares.share_punished,
        "kl": float((arrays.old_logps - arrays.ref_logps).sum(dtype=np.float64) / count),
        "kl_factor": kl_factor,
        "entropy": float(arrays.entropies.sum(dtype=np.float64) / tokens),
        "length": tokens / count,
        "unfinished": float((~rollouts.has_ended).mean()),
        "empty": float(np.mean([not each.text for some in rollouts.completions for each in some])),
        "explained_variance": float(
            formulas.explained_variance(*map(jnp.asarray, (arrays.values, arrays.returns, mask)))
        ),
        "sampling_gap": float(np.abs(arrays.old_logps - arrays.sampled_logps).sum(dtype=np.float64) / tokens),
    }


def _open_log(
    config: PpoConfig, run_dir: Path, start: int, total: int, reporting: Reporting, facts: dict[str, Any]
) -> contextlib.AbstractContextManager[TrainingLog | None]:
    """The log, in the one process that writes it."""
    if not is_first():
        return contextlib.nullcontext()
    return TrainingLog(
        run_dir / "metrics",
        NAME,
        start=start,
        total=total,
        every=config.log_every,
        peak_flops=None,
        reporting=reporting,
        settings=fingerprint.plain(facts),
    )


class PpoStage(Stage):
    """Images and questions → checkpoints of a policy that the reward streams like better.

    Args:
      config: settings.
      score: opens the streams that judge.
    """

    name = NAME

    def __init__(self, config: PpoConfig, score: ScoreStage) -> None:
        self._config, self._score = config, score

    def results(self, context: RunContext) -> list[Result]:
        outputs = (context.dir / "checkpoints" / self.name, join(context.records, self.name))
        settings = Lazy(functools.partial(self._settings, context))
        return [Result(self.name, settings, self._score.trained_by, outputs)]

    def _settings(self, context: RunContext) -> dict[str, Any]:
        data = self._config.data
        content = {"ppo.data": file_digest(data)} if data and data.is_file() else {}
        settings = context.model_settings | fingerprint.of(self._config, self.name) | content
        return settings | self._score.judge_settings(context)

    def run(self, context: RunContext, progress: Progress) -> None:
        def open_judges() -> Mapping[str, RewardStream]:
            judges = self._score.judges(context)
            progress.begin(self.name)
            return judges

        ppo(
            self._config,
            context.checkpoint,
            context.dir,
            context.training_mesh,
            context.inference_mesh,
            open_judges,
            dtype=context.dtype,
            records=context.records,
            made_with=progress.mark(self.name),
            reporting=context.reporting,
        )
        self._score.release()

    def programs(self, target: Target) -> Iterator[Program]:
        judges = self._score.judging_programs(self.name, target)
        return ppo_programs.programs(self.name, self._config, target, judges)

    def cost(self, work: Work, programs: Sequence[Cost]) -> tuple[int, float]:
        return ppo_programs.cost(self._config, work, programs)
