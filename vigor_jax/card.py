"""Makes a hallucination card: one page with all benchmarks of a model, or of two models side by side (docs/card.md).

    python -m vigor_jax.card --model DIR [--against DIR] --data ROOT --out DIR
    python -m vigor_jax.card --results DIR [DIR] --out DIR

ROOT has a folder for each benchmark (pope, chair, mme, amber, ...), and each that is there is asked; or saved results
of `vigor_jax.evaluate`, or the folder `evaluation` of a run, are shown. `--out` gets `card.html`, `card.md` for a model
card and `card.json`. All answers are kept there, and the same command again continues where it stopped. Benchmarks that
need a judge are left out unless there is one (`--judge.model`); what asking it costs is told first, and with
`--judge.ask false` nothing else.
"""

import dataclasses
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vigor_jax import cli
from vigor_jax.errors import InputError
from vigor_jax.evaluation.card.card import Card
from vigor_jax.evaluation.card.compare import make_card
from vigor_jax.evaluation.card.find import find
from vigor_jax.evaluation.card.markdown import to_text
from vigor_jax.evaluation.card.results import Skipped, System, names_of, read_systems
from vigor_jax.evaluation.card.run import ask_all
from vigor_jax.evaluation.card.write import write_card
from vigor_jax.evaluation.commands.evaluated_model_config import EvaluatedModelConfig
from vigor_jax.evaluation.judge.client import JudgeConfig
from vigor_jax.evaluation.protocol import names as protocols


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardOfResults:
    """Options of a card of saved results.

    Attributes:
      out: gets `card.html`, `card.md` and `card.json`.
      results: folders with what `vigor_jax.evaluate` wrote, a model each, the one to compare with first; or the folder
        `evaluation` of a run.
    """

    out: Path
    results: tuple[Path, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardOptions:
    """Options of a card in addition to those of the model.

    Attributes:
      out: gets `card.html`, `card.md` and `card.json`, and a folder of answers for each model.
      data: a folder with a folder for each benchmark.
      against: the model to compare with: a directory, or a name on the Hub; `adapter` is not put on it.
      benchmarks: only these, by the names of their folders.
      limit: only this many images for captions, the first by name; 0 takes all.
      protocol: by which protocol the benchmarks that have it are run; the others by their default.
      judge: the model that judges.
    """

    out: Path
    data: Path
    against: str | Path | None = None
    benchmarks: tuple[str, ...] = ()
    limit: int = 0
    protocol: str | None = None
    judge: JudgeConfig | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    cli.show_progress()
    if (saved := cli.parse_if_known(CardOfResults, arguments)) is not None:
        _show(make_card(*read_systems(saved.results)), saved.out)
        return
    both = dataclasses.make_dataclass("card", [], bases=(EvaluatedModelConfig, CardOptions), frozen=True)
    card = _ask(cli.parse(both, arguments, description=__doc__ or ""))
    if card is not None:
        _show(*card)


def _ask(options: Any) -> tuple[Card, Path] | None:
    """The card, in the process that writes; None in others."""
    from vigor_jax.evaluation.commands.evaluated_model import EvaluatedModel

    if options.model is None:
        raise InputError("card: give --model and --data, or --results")
    images = None if options.images is None else Path(options.images)
    found, skipped = find(options.data, options.benchmarks, images)
    known = sorted({name for each in found for name in protocols(each.name)})
    if options.protocol not in (None, *known):
        raise InputError(
            f"card: --protocol: expected one that a benchmark in {options.data} has ({', '.join(known) or 'none'}), "
            f"got {options.protocol!r}"
        )
    more = {"limit": options.limit, **({"protocol": options.protocol} if options.protocol else {})}
    models = {"model": options}
    if options.against is not None:
        models = {"against": dataclasses.replace(options, model=options.against, adapter=None), **models}
    names = names_of([f"{each.model}+{each.adapter}" if each.adapter else each.model for each in models.values()])
    systems = []
    for name, (folder, config) in zip(names, models.items(), strict=True):
        model = EvaluatedModel(config, options.out)
        results, left = ask_all(found, model, options.out / folder, options.judge, more)
        systems.append(System(name, results))
        skipped += [Skipped(f"{each.name}, {name}" if len(models) > 1 else each.name, each.reason) for each in left]
        is_first = model.is_first
        del model
        gc.collect()  # a model is in cycles of references, and the next one wants the memory of its weights
    return (make_card(systems, skipped), options.out) if is_first else None


def _show(card: Card, out: Path) -> None:
    page, *_ = write_card(card, out)
    print(f"{to_text(card)}\ncard: {page}", flush=True)


if __name__ == "__main__":
    cli.run(main)
