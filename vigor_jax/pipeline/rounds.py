"""A run of one round or of several, in a run directory that no other run uses at the same time."""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vigor_jax.config import TrainConfig, with_pinned_models
from vigor_jax.data.records.store import join
from vigor_jax.disk import describe
from vigor_jax.errors import InputError
from vigor_jax.parallel.processes import is_first, same_everywhere, together
from vigor_jax.pipeline.run import Run
from vigor_jax.run_lock import RunLock
from vigor_jax.stages.stage import EXPORT, PREFERENCE_REWARD_MODEL, REWARD_MODEL

logger = logging.getLogger(__name__)


@contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """Holds the run directory for the processes of this run: the first of them takes the lock, the others wait for it.

    Raises:
      InputError: another run has it, or it cannot be written.
    """
    with ExitStack() as held:

        def acquire() -> None:
            try:
                held.enter_context(RunLock(run_dir))
            except OSError as error:
                raise InputError(describe(error) or str(error)) from error

        together(acquire if is_first() else lambda: None)
        yield


def run_rounds(config: TrainConfig) -> None:
    """Runs the stages of a config, as many rounds as it says."""
    together(config.run.reporting.check_installed)
    config = together(lambda: with_pinned_models(config))
    if config.run.rounds == 1:
        _open(config, None).go()
        return
    for number in range(1, config.run.rounds + 1):
        logger.info("round %d of %d", number, config.run.rounds)
        _open(of_round(config, number), config.model.path).go()


def _open(config: TrainConfig, base: str | Path | None) -> Run:
    """The stages of one round, if all processes can open them, and have the same files and settings."""
    run = together(lambda: Run(config, base))
    same_everywhere(run.settings())
    return run


def of_round(config: TrainConfig, number: int) -> TrainConfig:
    """One round of an online run: the policy is what the round before exported, reward models stay the first's.

    Args:
      config: of the whole run.
      number: of the round, from 1.
    """
    run, first = config.run, config.run.dir / "round-1"
    records = run.records and join(run.records, f"round-{number}")
    name = f"{run.reporting.run_name}-round-{number}"
    one = dataclasses.replace(run, dir=run.dir / f"round-{number}", records=records, rounds=1, run_name=name)
    config = dataclasses.replace(config, run=one)
    if number == 1:
        return config
    stages = tuple(stage for stage in run.stages if stage not in ("train_reward", "train_preference_reward"))
    sampling, sentences, rollouts = (
        dataclasses.replace(each, seed=each.seed + number - 1)
        for each in (config.sample.sampling, config.pair.sampling, config.ppo.sampling)
    )
    return dataclasses.replace(
        config,
        run=dataclasses.replace(one, stages=stages),
        model=dataclasses.replace(config.model, path=run.dir / f"round-{number - 1}" / EXPORT, adapter=None),
        sample=dataclasses.replace(config.sample, sampling=sampling),
        pair=dataclasses.replace(config.pair, sampling=sentences),
        ppo=dataclasses.replace(config.ppo, sampling=rollouts, seed=config.ppo.seed + number - 1),
        score=dataclasses.replace(config.score, reward_model=config.score.reward_model or first / REWARD_MODEL),
        preference_reward=dataclasses.replace(
            config.preference_reward, model=config.preference_reward.model or first / PREFERENCE_REWARD_MODEL
        ),
    )
