"""Runs every variant of the method on the demo world and compares them, with controls, over seeds.

    python -m vigor_jax.demo.compare --seeds 3

All variants of a seed share images, candidates, verdicts and reward models; only what is chosen, struck and learnt
differs. Writes `results.md`, `results.json` and `results.png`. The same command again goes on where it was stopped.
"""

import dataclasses
import json
import logging
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

from vigor_jax import cli
from vigor_jax.config import Stage, TrainConfig
from vigor_jax.data.records.store import count_parts, has_part, part_metadata, read_part, read_parts, write_part
from vigor_jax.demo.config import demo_config
from vigor_jax.demo.scoring import reward_auc, score
from vigor_jax.demo.world import WorldConfig, prepare, read_scenes
from vigor_jax.inference.predictor import read_answers
from vigor_jax.pipeline.run import Run
from vigor_jax.records import Signal, Target, Verdict
from vigor_jax.rewards.reward_model import Per
from vigor_jax.stages.select import SelectConfig
from vigor_jax.stages.stage import EVALUATION, REWARD_MODEL
from vigor_jax.train import keep_compiled, train

logger = logging.getLogger(__name__)

Replaced = Mapping[str, Any]


class Variant(NamedTuple):
    """One way to make targets of the same candidates.

    Attributes:
      name: of its directory.
      label: in the table.
      streams: who judges.
      select: fields of `SelectConfig` that differ from the demo's.
      rounds: how often.
      judged: whose verdicts: "shared"; "holistic_reward", where the reward model judges whole descriptions; or
        "erring_detector", where the detector misses `MISSES` of what is there and finds `FALSE_ALARMS` of what is not.
    """

    name: str
    label: str
    streams: tuple[str, ...]
    select: Replaced
    rounds: int = 1
    judged: Literal["shared", "holistic_reward", "erring_detector"] = "shared"


MISSES, FALSE_ALARMS = 0.08, 0.05
BOTH = ("detector", "reward_model")
PLAIN, DROPPED, REFINED = {"strategy": "random", "refine": False}, {"strategy": "random_drop"}, {"strategy": "random"}
BALANCED = {"rule": "balanced"}
VARIANTS = (
    Variant("random", "control: random candidate", ("detector",), PLAIN),
    Variant("random_drop", "control: random, sentences dropped at random to the length of All", BOTH, DROPPED),
    Variant("random_refine", "random candidate + refinement", ("detector",), REFINED),
    Variant("rm", "RM, sentence by sentence", ("reward_model",), {"refine": False}),
    Variant("holistic", "RM, holistic", ("reward_model",), {"refine": False}, judged="holistic_reward"),
    Variant("at", "AT", ("detector",), {}),
    Variant("all", "All", BOTH, {}),
    Variant("all_balanced", "All, balanced", BOTH, {"fusion": BALANCED}),
    Variant("all_unrefined", "All without refinement", BOTH, {"refine": False}),
    Variant("all_two_rounds", "All, two rounds", BOTH, {}, rounds=2),
    Variant("at_erring", "AT, detector that errs", ("detector",), {}, judged="erring_detector"),
    Variant("all_erring", "All, detector that errs", BOTH, {}, judged="erring_detector"),
)

COLUMNS = (
    ("CHAIR_i", "chair_i"),
    ("C@3", "chair_first"),
    ("CHAIR_s", "chair_s"),
    ("recall", "recall"),
    ("bad sentences", "bad"),
    ("colour", "colour"),
    ("count", "count"),
    ("place", "place"),
    ("any of the three", "unseen"),
    ("words", "words"),
    ("POPE", "pope"),
    ("POPE adv.", "pope_adversarial"),
    ("absent in targets", "taught"),
)


def main() -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.Parser("demo.compare", __doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many times, each with a world of its own")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    options = parser.parse_args()
    cli.show_progress()
    options.out.mkdir(parents=True, exist_ok=True)
    keep_compiled(options.out / "compiled")  # each variant compiles the same programs
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    found = [compare(options.out / f"seed-{seed}", WorldConfig(seed=seed)) for seed in seeds]
    (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = to_markdown(found)
    (options.out / "results.md").write_text(table + "\n", encoding="utf-8")
    plot(found, options.out / "results.png")
    print(table)


def compare(directory: Path, sizes: WorldConfig, variants: Sequence[Variant] = VARIANTS) -> dict[str, dict[str, float]]:
    """Runs variants of one seed.

    Args:
      directory: gets the world and a run for each variant.
      sizes: of the world; its seed is that of candidates, training and evaluation, too.
      variants: which; the first one's run evaluates the base as well.

    Returns:
      Figures by variant, "base" among them, and column; and under "auc" the reward model's, kind by kind.
    """
    world, shared, seed = directory / "world", directory / "shared", sizes.seed
    prepare(world, sizes)
    config = _config(world, seed)
    judged = dataclasses.replace(
        config.train_reward, annotations=world / "annotations.jsonl", images=str(world / "images"), seed=seed
    )
    first: tuple[Stage, ...] = ("train_reward", "sample", "score")
    config = dataclasses.replace(config, train_reward=judged)
    Run(_in(config, shared, first)).go()
    holistic = dataclasses.replace(
        config,
        train_reward=dataclasses.replace(judged, per="description"),
        reward_model=dataclasses.replace(config.reward_model, per="description"),
        score=dataclasses.replace(config.score, streams=("reward_model",)),
    )
    _copy(shared, directory / "holistic_reward", ("candidates",))
    Run(_in(holistic, directory / "holistic_reward", ("train_reward", "score"))).go()
    _copy(shared, directory / "erring_detector", ("candidates", "verdicts/reward_model"))
    misjudge(shared / "verdicts" / "detector", directory / "erring_detector" / "verdicts" / "detector", seed)

    found: dict[str, dict[str, float]] = {}
    for variant in variants:
        logger.info("seed %d: %s", seed, variant.label)
        run_dir = directory / variant.name
        with_base = variant is variants[0]
        _run(variant, config, directory, run_dir, with_base=with_base)
        if with_base:
            found["base"] = figures(run_dir / EVALUATION / "base", world)
        last = run_dir if variant.rounds == 1 else run_dir / f"round-{variant.rounds}"
        found[variant.name] = figures(last / EVALUATION / "tuned", world) | {"taught": _taught(last, world)}
    found["auc"] = {str(kind): value for kind, value in reward_auc(shared, read_scenes(world, "unlabelled")).items()}
    return found


def misjudge(verdicts: Path, erring: Path, seed: int) -> None:
    """Copies a detector's verdicts, some of them turned round: of an image and a phrase in all captions alike."""

    def turned(image: str, signal: Signal) -> Signal:
        if random.Random(f"{seed} {image} {signal.label}").random() >= (FALSE_ALARMS if signal.absent else MISSES):
            return signal
        return dataclasses.replace(
            signal, negative=signal.positive, positive=signal.negative, score=1 - signal.score, absent=not signal.absent
        )

    count = count_parts(verdicts)
    for part in (part for part in range(count) if not has_part(erring, part, count)):
        records = (
            dataclasses.replace(verdict, signals=tuple(turned(verdict.image, signal) for signal in verdict.signals))
            for verdict in read_part(verdicts, part, count, Verdict)
        )
        write_part(erring, part, count, records, Verdict, part_metadata(verdicts))


def figures(evaluation: Path, world: Path) -> dict[str, float]:
    """What the table has of one model."""
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    scenes = read_scenes(world, "held_out")
    truth = score((line["text"], scenes[line["image"]]) for line in read_answers(evaluation / "captions.jsonl"))
    pope = metrics["pope"]
    return {
        **{name: metrics["chair"][name] for name in ("chair_i", "chair_first", "chair_s", "recall", "words")},
        **dataclasses.asdict(truth),
        "pope": pope["mean"]["accuracy"],
        "pope_adversarial": pope["adversarial"]["accuracy"],
    }


def _taught(run_dir: Path, world: Path) -> float:
    """Of all sentences in a run's targets, those that name what is not there."""
    scenes = read_scenes(world, "unlabelled")
    return score((target.text, scenes[target.image]) for target in read_parts(run_dir / "targets", Target)).absent


def to_markdown(found: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Means over seeds ± standard deviations, in percent but for words."""
    head = ["variant", *(label for label, _ in COLUMNS)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, label in _labels(found[0]).items():
        cells = []
        for _, column in COLUMNS:
            factor = 1 if column == "words" else 100
            values = [factor * seed[name][column] for seed in found if column in seed[name]]
            spread = f" ±{stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.1f}{spread}" if values else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    aucs = ", ".join(f"{kind} {fmean(seed['auc'][kind] for seed in found):.3f}" for kind in found[0]["auc"])
    return "\n".join([*lines, "", f"AUC of the reward model within a form of sentence, kind by kind: {aucs}."])


def plot(found: Sequence[Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """CHAIR_i against recall, a point for each variant and a bar of a standard deviation each way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 5.5), dpi=130)
    colours = pyplot.get_cmap("tab20").colors
    for number, (name, label) in enumerate(_labels(found[0]).items()):
        points = [(100 * seed[name]["recall"], 100 * seed[name]["chair_i"]) for seed in found]
        mean = [fmean(values) for values in zip(*points, strict=True)]
        spread = [stdev(values) if len(points) > 1 else math.nan for values in zip(*points, strict=True)]
        style = "s" if name == "base" or "control" in label else "o"
        axes.errorbar(*mean, xerr=spread[0], yerr=spread[1], fmt=style, color=colours[number], label=label)
    axes.set(xlabel="recall, %", ylabel="CHAIR_i, % (lower is better)", title="Held-out scenes, temperature 0.7")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _labels(found: Mapping[str, Any]) -> dict[str, str]:
    return {"base": "base", **{variant.name: variant.label for variant in VARIANTS if variant.name in found}}


def _config(world: Path, seed: int) -> TrainConfig:
    """The demo's, in another world."""
    config = demo_config()
    phrases = dataclasses.replace(config.detection.phrases, tagger=world / "tagger")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=world / "policy"),
        sample=dataclasses.replace(
            config.sample,
            images=str(world / "images" / "unlabelled"),
            sampling=dataclasses.replace(config.sample.sampling, seed=seed),
        ),
        detection=dataclasses.replace(config.detection, model=world / "detector", phrases=phrases),
        sft=dataclasses.replace(config.sft, seed=seed),
        evaluate=dataclasses.replace(
            config.evaluate,
            images=str(world / "images" / "held_out"),
            objects=(world / "objects.json",),
            pope=tuple(world / "pope" / path.name for path in config.evaluate.pope),
            mme=None,
            captions=dataclasses.replace(config.evaluate.captions, seed=seed),
        ),
    )


def _in(config: TrainConfig, run_dir: Path, stages: Sequence[Stage], rounds: int = 1) -> TrainConfig:
    run = dataclasses.replace(config.run, dir=run_dir, stages=tuple(stages), rounds=rounds)
    return dataclasses.replace(config, run=run)


def _run(variant: Variant, config: TrainConfig, directory: Path, run_dir: Path, *, with_base: bool) -> None:
    """Selection, fine-tuning and evaluation of a variant, on the seed's candidates and verdicts."""
    source, is_holistic = directory / variant.judged, variant.judged == "holistic_reward"
    reward_model = (source if is_holistic else directory / "shared") / REWARD_MODEL
    per: Per = "description" if is_holistic else "sentence"
    fusion = dataclasses.replace(config.select.fusion, **variant.select.get("fusion", {}))
    others = {name: value for name, value in variant.select.items() if name != "fusion"}
    select: SelectConfig = dataclasses.replace(config.select, seed=config.sft.seed, fusion=fusion, **others)
    config = dataclasses.replace(
        config,
        score=dataclasses.replace(config.score, streams=variant.streams, reward_model=reward_model),
        reward_model=dataclasses.replace(config.reward_model, per=per),
        select=select,
        evaluate=dataclasses.replace(config.evaluate, base=with_base),
    )
    copied = ["candidates", *(f"verdicts/{stream}" for stream in variant.streams)]
    last: tuple[Stage, ...] = ("select", "sft", "export", "evaluate")
    if variant.rounds == 1:
        _copy(source, run_dir, copied)
        Run(_in(config, run_dir, last)).go()
    else:
        _copy(source, run_dir / "round-1", copied)
        train(_in(config, run_dir, ("sample", "score", *last), variant.rounds))


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        if not (target / name).exists():
            shutil.copytree(source / name, target / name)


if __name__ == "__main__":
    cli.run(main)
