"""Runs the stages of a config in order; what is done already is found and left alone. Without a config and a model it
runs the demo, which takes options of run, mesh, inference_mesh and distributed, and no others.

    python -m vigor_jax.train --config configs/vigor_all_7b.yaml --model.path CHECKPOINT --sample.images FOLDER
    python -m vigor_jax.train [--run.dir DIR]
"""

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from vigor_jax import cli
from vigor_jax.config import TrainConfig
from vigor_jax.demo.config import DemoOptions, demo_config
from vigor_jax.errors import InputError

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    cli.show_progress()
    config, is_demo = parse_arguments(arguments)
    _run(config, is_demo)


def _run(config: TrainConfig, is_demo: bool) -> None:
    from vigor_jax.demo.dataset import DemoDataConfig, prepare  # these bring JAX, which --help need not wait for
    from vigor_jax.parallel.compilation_cache import keep_compiled
    from vigor_jax.parallel.sharding import join_processes
    from vigor_jax.pipeline.rounds import lock, run_rounds

    join_processes(config.distributed)
    keep_compiled(config.run.compiled)
    with lock(config.run.dir):
        if is_demo:
            prepare(Path(config.model.path).parent, DemoDataConfig())
        run_rounds(config)
        if is_demo:
            _show_demo(config)


def parse_arguments(arguments: Sequence[str]) -> tuple[TrainConfig, bool]:
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
    from vigor_jax.demo.show import is_evaluated, show
    from vigor_jax.evaluation.card.compare import make_card
    from vigor_jax.evaluation.card.markdown import to_text
    from vigor_jax.evaluation.card.results import read_systems
    from vigor_jax.pipeline.rounds import of_round
    from vigor_jax.stages.stage import EVALUATION

    last = config.run if config.run.rounds == 1 else of_round(config, config.run.rounds).run
    if not is_evaluated(last.dir):
        return
    show(last.dir, Path(config.model.path).parent, last.records)
    from vigor_jax.report import build_report  # needs the extra `report`

    card = make_card(*read_systems([last.dir / EVALUATION]))
    print(f"\n{to_text(card)}\ncard:    {last.dir / EVALUATION / 'card.html'} (and card.md, card.json)", flush=True)
    page = build_report([config.run.dir], config.run.dir / "report" / "index.html")
    print(f"report:  {page} (opens in any browser)", flush=True)


if __name__ == "__main__":
    cli.run(main)
