"""Runs the stages of a config in order; what is done already is found and left alone. Without a config and a model it
runs the demo, which takes options of run, mesh, inference_mesh and distributed, and no others.

    python -m vigor_jax.train --config configs/vigor_all_7b.yaml --model.path CHECKPOINT --sample.images FOLDER
    python -m vigor_jax.train [--run.dir DIR]
"""

import dataclasses
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax

from vigor_jax import cli
from vigor_jax.config import TrainConfig
from vigor_jax.data.records.store import join
from vigor_jax.demo.config import DemoOptions, demo_config
from vigor_jax.demo.show import is_evaluated, show
from vigor_jax.demo.world import WorldConfig, prepare
from vigor_jax.disk import describe
from vigor_jax.errors import InputError
from vigor_jax.parallel.processes import is_first, same_everywhere, together
from vigor_jax.parallel.sharding import join_processes
from vigor_jax.pipeline.run import Run
from vigor_jax.run_lock import RunLock
from vigor_jax.stages.stage import EXPORT, REWARD_MODEL

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    cli.show_progress()
    config, is_demo = read(arguments)
    join_processes(config.distributed)
    if config.run.compiled:
        keep_compiled(config.run.compiled)
    with lock(config.run.dir):
        if is_demo:
            prepare(config.model.path.parent, WorldConfig())
        train(config)
        if is_demo:
            _show_demo(config)


def read(arguments: Sequence[str]) -> tuple[TrainConfig, bool]:
    """What the command line asks for, and whether that is the demo: all its options are `DemoOptions`.

    Raises:
      InputError: as `cli.parse`.
    """
    if cli.parse_if_known(DemoOptions, arguments, with_config=False):
        return demo_config(arguments), True
    try:
        return cli.parse(TrainConfig, arguments, description=__doc__ or ""), False
    except cli.MissingKeyError as error:
        taken = ", ".join(field.name for field in dataclasses.fields(DemoOptions))
        raise InputError(f"{error} (without a config and a model the demo runs; it takes options of {taken})") from None


def _show_demo(config: TrainConfig) -> None:
    """What has come of the demo, once both models are evaluated: `run.stages` may name some stages only."""
    last = config.run if config.run.rounds == 1 else of_round(config, config.run.rounds).run
    if not is_evaluated(last.dir):
        return
    show(last.dir, config.model.path.parent, last.records)
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
    one = dataclasses.replace(run, dir=run.dir / f"round-{number}", records=records, rounds=1)
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
