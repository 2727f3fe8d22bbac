"""Runs, fine-tuning and export from Python."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from vigor_jax import cli
from vigor_jax.api.options import PathLike, arguments_of, plain
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.errors import InputError
from vigor_jax.export import export_model as export
from vigor_jax.parallel.compilation_cache import keep_compiled
from vigor_jax.parallel.sharding import join_processes
from vigor_jax.stages.stage import EXPORT

__all__ = ["Config", "export", "run", "sft"]

Config: TypeAlias = TrainConfig | PathLike | Mapping[str, Any]


def sft(config: Config | None = None, **sections: Any) -> Path:
    """Fine-tunes on conversations and exports the result; the stages `sft` and `export` of a run.

    Args:
      config: a `TrainConfig`, a YAML file, or a mapping of the same form.
      **sections: what the config does not say, or says otherwise: `model={"path": ...}, sft={"data": ...}`.

    Returns:
      The directory of the exported model, which `load` takes; of several rounds, the last one's.

    Raises:
      InputError: a setting or the data cannot be used.
    """
    from vigor_jax.pipeline.rounds import of_round

    given = sections.get("run", {})
    if not isinstance(given, Mapping | RunConfig):
        raise InputError(f"run: expected a mapping or a RunConfig, got {type(given).__name__}")
    own = given if isinstance(given, Mapping) else plain(given)
    whole = _train_config(config, {**sections, "run": {**own, "stages": ("sft", "export")}})
    _run(whole)
    last = whole if whole.run.rounds == 1 else of_round(whole, whole.run.rounds)
    return last.run.dir / EXPORT


def run(config: Config | None = None, **sections: Any) -> Path:
    """Runs the stages of a config, as `python -m vigor_jax.train --config` does; what is done already is kept.

    Args:
      config: a `TrainConfig`, a YAML file, or a mapping of the same form.
      **sections: what the config does not say, or says otherwise: `run={"dir": ...}, sft={"epochs": 2}`.

    Returns:
      The run directory.

    Raises:
      InputError: a setting cannot be used, or a stage cannot use what it was given.
    """
    whole = _train_config(config, sections)
    _run(whole)
    return whole.run.dir


def _run(whole: TrainConfig) -> None:
    from vigor_jax.pipeline.rounds import lock, run_rounds  # the pipeline, which nothing else needs

    join_processes(whole.distributed)
    if whole.run.compiled:
        keep_compiled(whole.run.compiled)
    with lock(whole.run.dir):
        run_rounds(whole)


def _train_config(config: Config | None, sections: Mapping[str, Any]) -> TrainConfig:
    arguments: list[str] = []
    if isinstance(config, TrainConfig):
        arguments = arguments_of(TrainConfig, plain(config))
    elif isinstance(config, Mapping):
        arguments = arguments_of(TrainConfig, config)
    elif isinstance(config, str | os.PathLike):
        arguments = ["--config", os.fspath(config)]
    elif config is not None:
        raise InputError(f"config: expected a TrainConfig, a YAML file or a mapping, got {type(config).__name__}")
    return cli.parse(TrainConfig, [*arguments, *arguments_of(TrainConfig, sections)], description="")
