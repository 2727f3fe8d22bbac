"""What variants of one seed share: candidates, verdicts and reward models, each made once, and what they cost."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from vigor_jax.config import Stage, TrainConfig
from vigor_jax.data.records import store
from vigor_jax.demo.erring import agreeing, erring, misjudge
from vigor_jax.demo.picking import ASKED, FIRST, POOL, taught_by, write_asked, write_pool
from vigor_jax.demo.variants import CLAIMS, CLAIMS_AND_CROPS, OF_DESCRIPTIONS, VERIFIER, SharedRecords, replaced
from vigor_jax.pipeline.run import Run

COUNT = "cpu_seconds.json"


def make_shared(config: TrainConfig, directory: Path, judged: Collection[str]) -> None:
    """Candidates, verdicts and reward models that variants share."""
    shared, holistic, verifier, claims, crops = (
        directory / name
        for name in ("shared", "holistic_reward", "verifier_verdicts", "judged_claims", "claims_and_crops")
    )
    seed = config.sft.seed
    is_whole = not ASKED.keys() >= set(judged)
    with counting(shared, is_last=is_whole):  # where nothing else is wanted, the candidates alone
        Run(in_directory(config, shared, ("train_reward", "sample", "score") if is_whole else ("sample",))).go()
    if holistic.name in judged:
        with counting(holistic):
            copy_folders(shared, holistic, ("candidates",))
            other = replaced(config, OF_DESCRIPTIONS | {"score.streams": ("reward_model",)})
            Run(in_directory(other, holistic, ("train_reward", "score"))).go()
    if verifier.name in judged:
        with counting(verifier):
            copy_folders(shared, verifier, ("candidates",))
            Run(in_directory(replaced(config, VERIFIER), verifier, ("score",))).go()
    if crops.name in judged:
        with counting(crops):
            copy_folders(shared, crops, ("candidates", "verdicts/detector"))
            Run(in_directory(replaced(config, CLAIMS_AND_CROPS), crops, ("score",))).go()
    judging_claims = in_directory(replaced(config, CLAIMS), claims, ("score",))
    if not {claims.name, "erring_boxes", "agreeing_boxes"}.isdisjoint(judged):
        with counting(claims):
            copy_folders(shared, claims, ("candidates", "verdicts/reward_model"))
            Run(judging_claims).go()
    for name, source, judge in (
        ("erring_detector", shared, erring(seed)),
        ("agreeing_detectors", shared, agreeing(seed)),
        ("erring_boxes", claims, erring(seed)),
        ("agreeing_boxes", claims, agreeing(seed)),
    ):
        if name in judged:
            with counting(directory / name):
                copy_folders(source, directory / name, ("candidates", "verdicts/reward_model"))
                misjudge(source / "verdicts" / "detector", directory / name / "verdicts" / "detector", judge)
                if source is claims:
                    Run(in_directory(judging_claims, directory / name, ("score",))).go()
    for name in ASKED:
        if name in judged:
            _make_asked(config, directory, name)


def _make_asked(config: TrainConfig, directory: Path, name: SharedRecords) -> None:
    """A reward model that learns from a part of the annotations, and its verdicts on the shared candidates."""
    asked, pool, seed = ASKED[name], directory / POOL, config.sft.seed
    data, annotations = directory / "data", directory / "data" / "annotations.jsonl"
    with counting(pool):
        write_pool(annotations, pool)
        write_asked(FIRST, annotations, pool, pool / "annotations.jsonl", seed)
        judges = replaced(taught_by(config, pool / "annotations.jsonl", FIRST), {"sample.images": str(data / "images")})
        Run(in_directory(judges, pool, ("train_reward", "score"))).go()
    with counting(directory / name):
        own = directory / name / "annotations.jsonl"
        write_asked(asked, annotations, pool, own, seed)
        copy_folders(directory / "shared", directory / name, ("candidates",))
        judges = replaced(taught_by(config, own, asked), {"score.streams": ("reward_model",)})
        Run(in_directory(judges, directory / name, ("train_reward", "score"))).go()


@contextlib.contextmanager
def counting(directory: Path, *, is_last: bool = True) -> Iterator[None]:
    """Adds the CPU seconds of the block, those of its child processes included, to the directory's count.

    When a block that is the last one has ended without an error, its directory is done, and what finds that out costs
    nothing.
    """
    count = _read_count(directory)
    start, is_done = _cpu_seconds(), False
    try:
        yield
        is_done = is_last
    finally:
        if not count["done"]:
            directory.mkdir(parents=True, exist_ok=True)
            count = {"seconds": count["seconds"] + _cpu_seconds() - start, "done": is_done}
            with store.write_atomically(directory / COUNT) as file:
                file.write(json.dumps(count).encode() + b"\n")


def counted(directory: Path) -> float:
    """The CPU seconds of a directory."""
    return _read_count(directory)["seconds"]


def _read_count(directory: Path) -> dict[str, Any]:
    path = directory / COUNT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"seconds": 0.0, "done": False}


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def in_directory(config: TrainConfig, run_dir: Path, stages: Sequence[Stage], rounds: int = 1) -> TrainConfig:
    run = dataclasses.replace(config.run, dir=run_dir, stages=tuple(stages), rounds=rounds)
    return dataclasses.replace(config, run=run)


def copy_folders(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copies folders that are not there yet, each as a whole."""
    for name in names:
        if not (target / name).exists():
            partial = target / ".partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source / name, partial)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            partial.rename(target / name)
