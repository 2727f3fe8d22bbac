"""The entry: reads a config and runs its stages in order; what is already done is found and left alone.

    python -m vigor_jax.train --config configs/vigor_all_7b.yaml --model.path CHECKPOINT --sample.images FOLDER

Without a config it runs the embedded demo.
"""

import dataclasses
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax

from vigor_jax import cli
from vigor_jax.config import TrainConfig, with_pinned_models
from vigor_jax.data.records.store import join
from vigor_jax.demo.show import show
from vigor_jax.demo.world import WorldConfig, prepare
from vigor_jax.disk import describe
from vigor_jax.errors import InputError
from vigor_jax.parallel.processes import is_first, same_everywhere, together
from vigor_jax.parallel.sharding import join_processes
from vigor_jax.pipeline.run import EXPORT, REWARD_MODEL, Run
from vigor_jax.run_lock import RunLock

logger = logging.getLogger(__name__)

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    cli.show_progress()
    is_demo = not any(argument.split("=")[0] in ("--config", "--model.path", "-h", "--help") for argument in arguments)
    if is_demo:
        arguments = ["--config", str(DEMO), *arguments]
    config = cli.parse(TrainConfig, arguments, description=__doc__ or "")
    join_processes(config.distributed)
    if config.run.compiled:
        keep_compiled(config.run.compiled)
    with lock(config.run.dir):
        if is_demo:
            prepare(Path(config.model.path).parent, WorldConfig())
        train(config)
        if is_demo:
            show(config.run.dir, Path(config.model.path).parent)
            from vigor_jax.report import build_report  # needs the extra `report`

            page = build_report([config.run.dir], config.run.dir / "report" / "index.html")
            print(f"report:  {page} (opens in any browser)", flush=True)


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


def train(config: TrainConfig) -> None:
    """Runs the stages of a config, as many rounds as it says."""
    together(config.run.reporting.check_installed)
    config = together(lambda: with_pinned_models(config))
    if config.run.rounds == 1:
        _open(config).go()
        return
    for number in range(1, config.run.rounds + 1):
        logger.info("round %d of %d", number, config.run.rounds)
        _open(of_round(config, number)).go()


def _open(config: TrainConfig) -> Run:
    """The stages of one round, if all processes can open them, and have the same files and settings."""
    run = together(lambda: Run(config))
    same_everywhere(run.settings())
    return run


def keep_compiled(folder: Path) -> None:
    """Lets JAX keep what it compiles in a folder, and look there first."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def of_round(config: TrainConfig, number: int) -> TrainConfig:
    """One round of an online run: the policy is what the round before exported, the reward model stays the first's.

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
    stages = tuple(stage for stage in run.stages if stage != "train_reward")
    sampling = dataclasses.replace(config.sample.sampling, seed=config.sample.sampling.seed + number - 1)
    return dataclasses.replace(
        config,
        run=dataclasses.replace(one, stages=stages),
        model=dataclasses.replace(config.model, path=run.dir / f"round-{number - 1}" / EXPORT),
        sample=dataclasses.replace(config.sample, sampling=sampling),
        score=dataclasses.replace(config.score, reward_model=config.score.reward_model or first / REWARD_MODEL),
    )


if __name__ == "__main__":
    cli.run(main)
