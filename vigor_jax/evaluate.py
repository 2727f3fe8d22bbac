"""Scores answers that were saved, or asks a model and scores what it says.

    python -m vigor_jax.evaluate pope --questions random.json popular.json --answers a.jsonl b.jsonl --out DIR
    python -m vigor_jax.evaluate pope-questions --objects instances.json --out DIR
    python -m vigor_jax.evaluate chair --captions captions.jsonl --objects instances.json --out DIR
    python -m vigor_jax.evaluate mme --results RESULTS_DIR --out DIR
    python -m vigor_jax.evaluate amber --data AMBER/data --answers a.json --out DIR
    python -m vigor_jax.evaluate hallusion --results HallusionBench_result.json --out DIR
    python -m vigor_jax.evaluate mmhal --questions response_template.json --answers a.jsonl --out DIR
    python -m vigor_jax.evaluate object-halbench --questions obj_halbench_300_with_image.jsonl ... --out DIR
    python -m vigor_jax.evaluate llava-bench --questions questions.jsonl --context context.jsonl ... --out DIR
    python -m vigor_jax.evaluate detailcaps --references DetailCaps-4870.parquet --captions captions.jsonl --out DIR
    python -m vigor_jax.evaluate captions --captions captions.jsonl --references captions_val2014.json --out DIR
    python -m vigor_jax.evaluate questions --layout seed --questions SEED-Bench.json --answers a.jsonl --out DIR
    python -m vigor_jax.evaluate preference --captions base.jsonl tuned.jsonl --images DIR --out DIR
    python -m vigor_jax.evaluate grounding --captions captions.jsonl --objects instances.json --out DIR
    python -m vigor_jax.evaluate grounding --refs "refcoco/refs(unc).p" --answers a.jsonl --out DIR

Saved answers are read in the layouts of many tools (docs/evaluation.md). With `--model DIR --images DIR` instead of
answers or captions (`--data MME_DIR` for MME), the model is asked. Options may stand in a file, too (`--config FILE`).
mmhal, llava-bench, preference and the layout mmvet need a judge, and hallusion, object-halbench and detailcaps may have
one: `--judge.model NAME`, any OpenAI-compatible endpoint. All answers and replies are kept in `--out`, and the same
command again continues where it stopped. `metrics.json` has the figures, `counts.json` what was
counted on each image.
"""

import dataclasses
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vigor_jax import cli
from vigor_jax.disk import naming
from vigor_jax.errors import InputError
from vigor_jax.evaluation.commands.evaluated_model_config import EvaluatedModelConfig
from vigor_jax.evaluation.image_counts import FILE as COUNTS_FILE
from vigor_jax.evaluation.image_counts import take_counts, write_counts
from vigor_jax.evaluation.metrics import table

# Benchmark → module of `evaluation.commands` and class in it: of one command, the others' packages are not needed.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "pope": ("hallucination", "PopeCommand"),
    "pope-questions": ("hallucination", "PopeQuestionsCommand"),
    "chair": ("chair", "ChairCommand"),
    "mme": ("hallucination", "MmeCommand"),
    "amber": ("amber", "AmberCommand"),
    "hallusion": ("judged", "HallusionCommand"),
    "mmhal": ("judged", "MmhalCommand"),
    "object-halbench": ("object_halbench", "ObjectHalbenchCommand"),
    "llava-bench": ("llava_bench", "LlavaBenchCommand"),
    "preference": ("judged", "PreferenceCommand"),
    "captions": ("questions", "CaptionsCommand"),
    "detailcaps": ("detailcaps", "DetailcapsCommand"),
    "questions": ("questions", "QuestionsCommand"),
    "grounding": ("grounding", "GroundingCommand"),
}
# Those that have no model to ask.
WITHOUT_A_MODEL = ("pope-questions", "preference")
# Where saved answers are, by benchmark.
SAVED = ("answers", "captions", "results")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    cli.show_progress()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise InputError(f"evaluate: expected {', '.join(COMMANDS)}, got {name!r}")
    command, model = _parse(name, rest)
    with naming(command.out):
        metrics, counts = take_counts(command.metrics() if name in WITHOUT_A_MODEL else command.metrics(model))
        if model is None or model.is_first:
            command.out.mkdir(parents=True, exist_ok=True)
            (command.out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
            if counts:
                write_counts(command.out / COUNTS_FILE, {name: counts})
    if model is None or model.is_first:
        print(table({name: {name: metrics}}))
        if protocol := metrics.get("protocol"):
            print(f"protocol {protocol['name']}; after each question: {protocol['suffix'] or 'nothing'}")
            print(f"digest {protocol['digest']}")
            for departure in protocol.get("departures", ()):
                print(f"not as the protocol says: {departure}")


def command_class(name: str) -> type:
    """The options of a benchmark, a key of `COMMANDS`, with its `metrics`."""
    module, of_command = COMMANDS[name]
    found: type = getattr(importlib.import_module(f"vigor_jax.evaluation.commands.{module}"), of_command)
    return found


def _parse(name: str, arguments: Sequence[str]) -> tuple[Any, Any]:
    """The options of a benchmark, and what asks the model if they name one."""
    kind = command_class(name)
    description = kind.__doc__ or ""
    if name in WITHOUT_A_MODEL:
        return cli.parse(kind, arguments, description=description), None
    if (command := cli.parse_if_known(kind, arguments)) is not None:
        return command, None
    both = dataclasses.make_dataclass(name, [], bases=(EvaluatedModelConfig, kind), frozen=True)
    asking: Any = cli.parse(both, arguments, description=description)
    if asking.model is None:
        unasked = EvaluatedModelConfig()
        options = [field.name for field in dataclasses.fields(EvaluatedModelConfig)]
        if given := [name for name in options if getattr(asking, name) != getattr(unasked, name)]:
            raise InputError(f"{name}: --{given[0]} is for asking a model, and none is given; add --model DIR")
        return asking, None
    if saved := [option for option in SAVED if getattr(asking, option, None)]:
        raise InputError(f"{name}: --{saved[0]} has saved answers, and --model is asked for new ones; give one of them")
    from vigor_jax.evaluation.commands.evaluated_model import EvaluatedModel  # which brings JAX

    return asking, EvaluatedModel(asking, asking.out)


if __name__ == "__main__":
    cli.run(main)
