"""Asks a model the benchmarks that are there, with the commands of `vigor_jax.evaluate`; what is answered stays."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Protocol

from vigor_jax.disk import naming
from vigor_jax.errors import InputError
from vigor_jax.evaluation.card.find import Found
from vigor_jax.evaluation.card.results import METRICS_FILE, Result, Skipped, read_folder
from vigor_jax.evaluation.commands.hallucination import AnswersQuestions
from vigor_jax.evaluation.image_counts import FILE as COUNTS_FILE
from vigor_jax.evaluation.image_counts import take_counts, write_counts
from vigor_jax.evaluation.judge.client import JudgeConfig, read_key
from vigor_jax.evaluation.judge.estimate import Estimate, NotAskedError
from vigor_jax.evaluation.protocol import names

logger = logging.getLogger(__name__)


class Asked(Protocol):
    """A model, as `commands.evaluated_model.EvaluatedModel` is."""

    is_first: bool

    def at(self, out: Path, images: str | None) -> AnswersQuestions:
        """The same model with other images, which keeps its answers in `out`."""


def ask_all(
    found: Sequence[Found],
    model: Asked,
    out: Path,
    judge: JudgeConfig | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[list[Result], list[Skipped]]:
    """Evaluates a model on all benchmarks; one that cannot be used does not keep the others from it.

    The judge comes last: what it will cost is told, for all benchmarks together, before it is asked anything.

    Args:
        found: The benchmarks.
        model: The model.
        out: Gets a folder for each benchmark.
        judge: Of the benchmarks that take one.
        options: Of all commands that have them, such as `limit`.

    Returns:
        What has come of it, in the order of the benchmarks, and what has not, with the reason.
    """
    results: dict[str, list[Result]] = {}
    skipped: dict[str, str] = {}
    waiting: dict[str, Estimate] = {}
    own = {each.name: each for each in found}

    def evaluate(name: str, config: JudgeConfig | None) -> None:
        try:
            results[name] = _evaluate(own[name], model, out / name, config, options or {})
        except NotAskedError as error:
            waiting[name] = error.estimate
        except InputError as error:
            skipped[name] = str(error)
            logger.warning("card: %s is left out: %s", name, error)

    for name, each in own.items():
        if each.needs_judge and judge is None:
            skipped[name] = "a judge is needed; give --judge.model and its key"
        else:
            # Asks the model, and the judge not yet.
            evaluate(name, dataclasses.replace(judge, ask=False) if judge and each.takes_judge else None)
    if waiting and judge:
        logger.info("card: the judge %s: %s", judge.model, reduce(add, waiting.values()))
        due, waiting = waiting, {}
        for name, estimate in due.items():
            if (reason := _not_asked(judge)) is None:
                evaluate(name, judge)
            else:
                skipped[name] = f"{reason}; the judge would be asked {estimate}"
    return (
        [result for name in own for result in results.get(name, ())],
        [Skipped(name, skipped[name]) for name in own if name in skipped],
    )


def _not_asked(judge: JudgeConfig) -> str | None:
    """Why a judge is not asked; None if it is."""
    if not judge.ask:
        return "judge.ask is false"
    try:
        read_key(judge)
    except InputError as error:
        return str(error)
    return None


def _evaluate(
    found: Found, model: Asked, folder: Path, judge: JudgeConfig | None, options: Mapping[str, Any]
) -> list[Result]:
    known = {field.name for field in dataclasses.fields(found.command)}  # type: ignore[arg-type]
    given = {name: value for name, value in options.items() if name in known}
    if given.get("protocol") not in (None, *names(found.name)):
        del given["protocol"]
    command = found.command(out=folder, **given, **found.options, **({"judge": judge} if judge else {}))
    images = None if found.images is None else str(found.images)
    metrics, counts = take_counts(command.metrics(model.at(folder, images)))
    if model.is_first:
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
            write_counts(folder / COUNTS_FILE, {found.benchmark: counts})
    return list(read_folder(folder)) if model.is_first else []
