"""Runs variants of the method on the demo's scenes and compares them, with controls, over seeds.

    python -m vigor_jax.demo.compare --seeds 3
    python -m vigor_jax.demo.compare --variants base,all --seeds 1 --first-seed 3 --json results.json

All variants of a seed share images, candidates, verdicts and reward models; only what is chosen, dropped and learned
differs. Writes `results.md`, `results.json` and `results.png`. The same command again continues where it stopped, and
an existing file of results gets the variants and seeds that it lacks.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vigor_jax import cli
from vigor_jax.config import Stage, TrainConfig
from vigor_jax.data.records import store
from vigor_jax.demo.config import demo_config
from vigor_jax.demo.dataset import COLOR_WORDS, VERSION, DemoDataConfig, prepare, read_scenes
from vigor_jax.demo.metrics import compute_metrics, reward_auc
from vigor_jax.demo.picking import ASKED, POOL, taught_by
from vigor_jax.demo.preferences import write_preferences
from vigor_jax.demo.results import COLUMNS, Results, plot, to_markdown
from vigor_jax.demo.shared import copy_folders, counted, counting, in_directory, make_shared
from vigor_jax.demo.variants import VARIANTS, Variant, choose, replaced
from vigor_jax.demo.verifier import BASELINES, ENTITIES
from vigor_jax.errors import InputError
from vigor_jax.inference.predictor import read_answers
from vigor_jax.parallel.compilation_cache import keep_compiled
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.pipeline.rounds import lock, run_rounds
from vigor_jax.pipeline.run import Run
from vigor_jax.records import Target
from vigor_jax.stages.stage import EVALUATION, REWARD_MODEL
from vigor_jax.verifier import measure

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.Parser("demo.compare", __doc__)
    parser.epilog = _listed("variants", {variant.name: variant.description for variant in VARIANTS})
    parser.epilog += _listed("columns of the file", {column.name: column.description for column in COLUMNS})
    names = ",".join(variant.name for variant in VARIANTS)
    parser.add_argument("--variants", default=names, metavar="A,B", help="which, by name; by default all")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many times, each with other scenes (3)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="K", help="the seeds are K, K + 1, and so on (0)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of the runs (runs/compare)")
    parser.add_argument("--json", type=Path, metavar="F", help="file of the results; by default OUT/results.json")
    options = parser.parse_args(arguments)
    variants = choose([name.strip() for name in options.variants.split(",") if name.strip()])
    for option, least in (("seeds", 1), ("first_seed", 0)):
        if (value := getattr(options, option)) < least:
            raise InputError(f"--{option.replace('_', '-')}: expected at least {least}, got {value}")
    cli.show_progress()
    results = Results(options.json or options.out / "results.json", settings(DemoDataConfig()))
    with lock(options.out):
        results.write()  # now, and not after an hour, if it cannot be written
        keep_compiled(options.out / "compiled")  # each variant compiles the same programs
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            missing = [variant for variant in variants if not results.has(variant, seed)]
            directory = options.out / f"seed-{seed}"
            for variant, figures in compare(directory, DemoDataConfig(seed=seed), missing):
                results.add(variant, seed, figures)
            if any({variant.judged} - {None, *ASKED} for variant in missing) and (auc := find_auc(directory)):
                results.add_auc("reward_auc", seed, auc)
            if any(uses_verifier(variant) for variant in missing) and (found := find_verifier_auc(directory, seed)):
                results.add_auc("verifier_auc", seed, found)
        table = to_markdown(results)
        (options.out / "results.md").write_text(table + "\n", encoding="utf-8")
        plot(results, options.out / "results.png")
    print(table)


def settings(sizes: DemoDataConfig) -> dict[str, Any]:
    """What decides on the figures of all variants and seeds: the sizes of the data and the demo's config."""
    data = dataclasses.asdict(sizes) | {"version": VERSION}
    config = dataclasses.asdict(_config(Path("data"), 0))
    sections = {key: value for key, value in config.items() if key not in ("run", "distributed")}
    return {"data": {key: value for key, value in data.items() if key != "seed"}} | sections


def compare(
    directory: Path, sizes: DemoDataConfig, variants: Sequence[Variant]
) -> Iterator[tuple[Variant, dict[str, float]]]:
    """Runs variants of one seed.

    Args:
      directory: gets the data and a run for each variant.
      sizes: of the data; their seed is that of candidates, training and evaluation, too.
      variants: which.

    Yields:
      Each variant when it is done, and its columns.
    """
    if not variants:
        return
    data = directory / "data"
    prepare(data, sizes)
    config = _config(data, sizes.seed)
    if judged := {variant.judged for variant in variants if variant.judged}:
        make_shared(config, directory, judged)
    for variant in variants:
        logger.info("seed %d: %s", sizes.seed, variant.label)
        run_dir = directory / variant.name
        with counting(run_dir):
            _run(variant, config, directory, run_dir)
        last = run_dir if variant.rounds == 1 else run_dir / f"round-{variant.rounds}"
        found = figures(last / EVALUATION / ("tuned" if "export" in variant.stages else "base"), data)
        if "select" in variant.stages:
            found["taught"] = _taught(last, data)
        rests_on: set[str] = {"shared", variant.judged} if variant.judged else set()
        if variant.judged and variant.judged in ASKED:
            rests_on |= {POOL} if ASKED[variant.judged].way != "random" else set()
            found |= {f"auc_{kind}": value for kind, value in _auc_of(directory / variant.judged, data).items()}
        shared_seconds = sum(counted(directory / name) for name in rests_on)
        yield variant, found | {"seconds": counted(run_dir), "shared_seconds": shared_seconds}


def figures(evaluation: Path, data: Path) -> dict[str, float]:
    """What an evaluation says of a model, by column."""
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    scenes = read_scenes(data, "held_out")
    truth = compute_metrics(
        (line["text"], scenes[line["image"]]) for line in read_answers(evaluation / "captions.jsonl")
    )
    chair, pope = metrics["chair"], metrics["pope"]
    return {
        "chair_i": chair["chair_i"],
        "c3": chair["chair_first"],
        "chair_s": chair["chair_s"],
        "recall": chair["recall"],
        "bad": truth.bad,
        "color": truth.color,
        "count": truth.count,
        "place": truth.place,
        "any": truth.unseen,
        "words": chair["words"],
        "repeats": truth.repeats,
        "again": truth.again,
        "pope": pope["mean"]["accuracy"],
        "pope_adversarial": pope["adversarial"]["accuracy"],
    }


def _taught(run_dir: Path, data: Path) -> float:
    """Of all sentences in a run's targets, those that name what is not there."""
    scenes = read_scenes(data, "unlabeled")
    return compute_metrics(
        (target.text, scenes[target.image]) for target in store.read_parts(run_dir / "targets", Target)
    ).absent


def find_auc(directory: Path) -> dict[str, float] | None:
    """The reward model's AUC, kind by kind, on the candidates that the variants share; None where there are none."""
    return _auc_of(directory / "shared", directory / "data") if (directory / "shared").is_dir() else None


def _auc_of(records: Path, data: Path) -> dict[str, float]:
    found = reward_auc(records, read_scenes(data, "unlabeled"))
    return {str(kind): value for kind, value in found.items()}


def uses_verifier(variant: Variant) -> bool:
    """Whether its rewards are those of the verifier."""
    return "clip" in variant.overrides.get("score.streams", ())


def find_verifier_auc(directory: Path, seed: int) -> dict[str, float | None] | None:
    """How well the verifier tells correct from hallucinated mentions in the base's captions of the held-out scenes:
    by the score of the word, and by that of the whole caption (the FiSAO paper's figure 1); None without captions."""
    captions = directory / "base" / EVALUATION / "base" / "captions.jsonl"
    if not captions.exists():
        return None
    data = directory / "data"
    clip, mesh = _config(data, seed).clip, make_mesh(MeshConfig(data=-1, fsdp=1))
    found = measure((captions,), (data / "objects.json",), str(data / "images" / "held_out"), clip, mesh)
    return {"word": found.auc("cosine"), "caption": found.auc("caption")}


@functools.cache
def _config(data: Path, seed: int) -> TrainConfig:
    """The demo's, with other data."""
    config = demo_config()
    captioned = {"train_reward.annotations": data / "annotations.jsonl", "train_reward.images": str(data / "images")}
    evaluated = {
        "evaluate.images": str(data / "images" / "held_out"),
        "evaluate.objects": (data / "objects.json",),
        "evaluate.pope": tuple(data / "pope" / path.name for path in config.evaluate.pope),
        "evaluate.mme": None,
        "evaluate.base": False,
    }
    verifier = {
        "clip_attributes.model": data / "verifier",
        "clip.model": data / "verifier",
        "clip.baselines": data / "verifier" / BASELINES["word"],
        "clip.entities": data / "verifier" / ENTITIES,
    }
    seeded = (
        *("train_reward.seed", "train_preference_reward.seed", "sample.sampling.seed", "select.seed"),
        *("pair.sampling.seed", "sft.seed", "dpo.seed"),
        *("ppo.seed", "ppo.sampling.seed", "evaluate.captions.seed"),
    )
    return replaced(
        config,
        {
            "model.path": data / "policy",
            "sample.images": str(data / "images" / "unlabeled"),
            "train_preference_reward.images": str(data / "images" / "unlabeled"),
            "ppo.images": str(data / "images" / "unlabeled"),
            "detection.model": data / "detector",
            "detection.phrases.tagger": data / "tagger",
            "claims.words.attributes": data / COLOR_WORDS,
            **captioned,
            **verifier,
            **evaluated,
            **dict.fromkeys(seeded, seed),
        },
    )


def _run(variant: Variant, config: TrainConfig, directory: Path, run_dir: Path) -> None:
    """A variant's own stages, on the candidates and verdicts that it shares."""
    config = replaced(config, variant.overrides)
    config = replaced(config, {"clip.baselines": directory / "data" / "verifier" / BASELINES[config.clip.per]})
    if variant.preferences:
        path = write_preferences(variant.preferences, directory, DemoDataConfig(seed=config.sft.seed))
        config = replaced(config, {"dpo.data": path, "train_preference_reward.data": path})
    if variant.judged and variant.judged in ASKED:
        config = taught_by(config, directory / variant.judged / "annotations.jsonl", ASKED[variant.judged])
    is_one, streams = variant.rounds == 1, config.score.streams
    if variant.judged:
        source, target = directory / variant.judged, run_dir if is_one else run_dir / "round-1"
        if "select" in variant.stages:
            copy_folders(source, target, ["candidates", *(f"verdicts/{stream}" for stream in streams)])
        if "reward_model" in streams and not (is_one and "select" in variant.stages):  # it judges other texts, too
            copy_folders(source if (source / REWARD_MODEL).is_dir() else directory / "shared", target, [REWARD_MODEL])
    if is_one:
        Run(in_directory(config, run_dir, variant.stages)).go()
    else:
        judged: tuple[Stage, ...] = ("sample", "score") if variant.judged else ()
        run_rounds(in_directory(config, run_dir, (*judged, *variant.stages), variant.rounds))


def _listed(title: str, entries: Mapping[str, str]) -> str:
    width = max(map(len, entries))
    return "".join(f"{line}\n" for line in [f"{title}:", *(f"  {k:{width}}  {v}" for k, v in entries.items()), ""])


if __name__ == "__main__":
    cli.run(main)
