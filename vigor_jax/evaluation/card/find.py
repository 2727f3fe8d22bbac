"""Which benchmarks a folder has, by the names that their authors gave the files (docs/card.md lists them)."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from vigor_jax.errors import InputError
from vigor_jax.evaluation.card.results import Skipped
from vigor_jax.evaluation.commands.amber import AmberCommand
from vigor_jax.evaluation.commands.chair import ChairCommand
from vigor_jax.evaluation.commands.detailcaps import DetailcapsCommand
from vigor_jax.evaluation.commands.grounding import GroundingCommand
from vigor_jax.evaluation.commands.hallucination import MmeCommand, PopeCommand
from vigor_jax.evaluation.commands.judged import HallusionCommand, MmhalCommand
from vigor_jax.evaluation.commands.llava_bench import LlavaBenchCommand
from vigor_jax.evaluation.commands.object_halbench import ObjectHalbenchCommand
from vigor_jax.evaluation.commands.questions import CaptionsCommand, QuestionsCommand


@dataclasses.dataclass(frozen=True)
class Found:
    """A benchmark that is there.

    Attributes:
        name: Of its folder.
        benchmark: As `vigor_jax.evaluate` calls it.
        command: What evaluates it.
        options: Of the command, but for `out` and the judge.
        images: Where its images are, None where the command knows.
    """

    name: str
    benchmark: str
    command: Callable[..., Any]
    options: Mapping[str, Any]
    images: Path | None

    @property
    def needs_judge(self) -> bool:
        """Whether nothing comes of it without a judge."""
        return self.benchmark in ("mmhal", "llava-bench") or self.name == "mmvet"

    @property
    def takes_judge(self) -> bool:
        """Whether it takes a judge, needed or not."""
        return self.needs_judge or self.benchmark in ("hallusion", "object-halbench", "detailcaps")


class _MissingError(Exception):
    """What a folder lacks."""


def find(root: Path, only: Collection[str] = (), images: Path | None = None) -> tuple[list[Found], list[Skipped]]:
    """The benchmarks in a folder, and those that are not there or lack a file.

    Args:
        root: With a folder for each benchmark, called as in `BENCHMARKS`.
        only: Names of benchmarks; empty: all.
        images: Where the images are, for a benchmark that has no folder `images` itself; by default `root/images`.

    Raises:
        InputError: There is no such folder, none has anything, or `only` has an unknown name.
    """
    if unknown := [name for name in only if name not in BENCHMARKS]:
        raise InputError(f"card: --benchmarks: expected some of {', '.join(BENCHMARKS)}, got {unknown[0]!r}")
    if not root.is_dir():
        raise InputError(f"card: --data {root} is no directory; name one with folders such as pope and chair")
    found, skipped = [], []
    for name, (benchmark, command, options) in BENCHMARKS.items():
        folder = root / name
        if only and name not in only:
            continue
        if not folder.is_dir():
            skipped.append(Skipped(name, f"there is no folder {folder}"))
            continue
        try:
            given = options(folder)
        except _MissingError as error:
            skipped.append(Skipped(name, str(error)))
            continue
        own = next((place for place in (folder / "images", folder / "image") if place.is_dir()), None)
        if name == "hallusion":  # whose images are next to its file
            own = folder
        place = None if name in ("mme", "mmbench") else own or images or root / "images"
        found.append(Found(name, benchmark, command, given, place))
    if not found:
        raise InputError(f"card: {root} has no benchmark: {'; '.join(each.reason for each in skipped[:3])}")
    return found, skipped


def _all(folder: Path, *patterns: str) -> tuple[Path, ...]:
    """The files with the first of the patterns that some have."""
    for pattern in patterns:
        if paths := tuple(sorted(path for path in folder.glob(pattern) if path.is_file())):
            return paths
    raise _MissingError(f"{folder} has no file {' or '.join(patterns)}")


def _one(folder: Path, *patterns: str) -> Path:
    paths = _all(folder, *patterns)
    if len(paths) > 1:
        raise _MissingError(f"{folder}: expected one file, found {paths[0].name} and {paths[1].name}; keep one")
    return paths[0]


def _optional(folder: Path, *patterns: str) -> Path | None:
    return next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)


def _scienceqa(folder: Path) -> dict[str, Any]:
    if llava := _optional(folder, "llava_test_CQM-A.json"):
        return {"layout": "scienceqa", "questions": llava}
    return {
        "layout": "scienceqa",
        "questions": _one(folder, "problems.json"),
        "splits": _one(folder, "pid_splits.json"),
    }


def _mme(folder: Path) -> dict[str, Any]:
    if not any(folder.glob("*/*.txt")) and not any(folder.glob("*/questions_answers_YN/*.txt")):
        raise _MissingError(f"{folder} has no folder with a subtask's questions")
    return {"data": folder}


# Folder → the benchmark, what evaluates it, and its options.
BENCHMARKS: Mapping[str, tuple[str, Callable[..., Any], Callable[[Path], dict[str, Any]]]] = {
    "chair": (
        "chair",
        ChairCommand,
        lambda folder: {"objects": _all(folder, "*.json"), "synonyms": _optional(folder, "synonyms.txt")},
    ),
    "amber": (
        "amber",
        AmberCommand,
        lambda folder: {"data": _all(folder, "data/annotations.json", "annotations.json")[0].parent},
    ),
    "object-halbench": (
        "object-halbench",
        ObjectHalbenchCommand,
        lambda folder: {
            "questions": _one(folder, "obj_halbench*.jsonl", "*.jsonl"),
            "objects": _all(folder, "*.json"),
            "synonyms": _one(folder, "synonyms*.txt"),
        },
    ),
    "mmhal": ("mmhal", MmhalCommand, lambda folder: {"questions": _one(folder, "response_template.json", "*.json")}),
    "pope": ("pope", PopeCommand, lambda folder: {"questions": _all(folder, "*.json", "*.jsonl")}),
    "hallusion": (
        "hallusion",
        HallusionCommand,
        lambda folder: {"questions": _one(folder, "HallusionBench.json")},
    ),
    "mme": ("mme", MmeCommand, _mme),
    "grounding": (
        "grounding",
        GroundingCommand,
        lambda folder: {"objects": _all(folder, "*.json"), "synonyms": _optional(folder, "synonyms.txt")},
    ),
    "referring": ("grounding", GroundingCommand, lambda folder: {"refs": _all(folder, "**/refs(*).p", "*.jsonl")}),
    "llava-bench": (
        "llava-bench",
        LlavaBenchCommand,
        lambda folder: {
            "questions": _one(folder, "questions.jsonl", "qa90_questions.jsonl"),
            "context": _one(folder, "context.jsonl", "caps_boxes_coco2014_val_80.jsonl"),
            "references": _one(folder, "answers_gpt4.jsonl", "qa90_gpt4_answer.jsonl"),
            "rule": _optional(folder, "rule.json"),
        },
    ),
    "detailcaps": (
        "detailcaps",
        DetailcapsCommand,
        lambda folder: {
            "references": _one(folder, "*.parquet", "*.json*"),
            "stop_words": _optional(folder, "stop_words*"),
        },
    ),
    "captions": ("captions", CaptionsCommand, lambda folder: {"references": _one(folder, "*.json")}),
    "seed": ("questions", QuestionsCommand, lambda folder: {"layout": "seed", "questions": _one(folder, "*.json")}),
    "mmbench": (
        "questions",
        QuestionsCommand,
        lambda folder: {"layout": "mmbench", "questions": _one(folder, "*.tsv")},
    ),
    "scienceqa": ("questions", QuestionsCommand, _scienceqa),
    "gqa": ("questions", QuestionsCommand, lambda folder: {"layout": "gqa", "questions": _one(folder, "*.json")}),
    "mmvet": ("questions", QuestionsCommand, lambda folder: {"layout": "mmvet", "questions": _one(folder, "*.json")}),
}
