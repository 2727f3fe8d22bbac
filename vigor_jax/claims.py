"""Calibrates when a claim of a caption is wrong: which thresholds of the judge agree best with people.

    python -m vigor_jax.claims --annotations annotations.jsonl --images photos/ \\
        --detection.model checkpoints/groundingdino-swint --out judge.json

Annotations are those that a reward model learns from (docs/artifacts.md). The detector is asked once, or with
`--verdicts RUN` not at all: that run's detector has judged these texts. For each kind of claim it prints how well "the
judge says wrong" agrees with "a person says wrong", and suggests the thresholds with the highest recall at the asked
precision. `judge.json` has all tables; `judge.yaml` is for `python -m vigor_jax.train --config`.
"""

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tqdm import tqdm

from vigor_jax import cli
from vigor_jax.data.images.store import open_images
from vigor_jax.data.records.annotations import read_annotations
from vigor_jax.data.records.store import join, read_parts
from vigor_jax.disk import naming
from vigor_jax.errors import InputError
from vigor_jax.percent import percent
from vigor_jax.records import CLAIM_KINDS, Annotation, Candidate, ScoreItem, Verdict
from vigor_jax.rewards.claims.calibrate import (
    FEWEST_CASES,
    THRESHOLDS,
    Calibrated,
    Counts,
    Row,
    Table,
    ThresholdGrid,
    calibrate,
    choices,
)
from vigor_jax.rewards.claims.cases import Cases
from vigor_jax.rewards.claims.judge import JudgeConfig
from vigor_jax.rewards.claims.stream import ClaimReader, ClaimsConfig
from vigor_jax.rewards.detection import DetectionConfig, DetectorStream

logger = logging.getLogger(__name__)

Verdicts: TypeAlias = dict[tuple[str, str], Verdict]  # (image, text) → the detector's


@dataclasses.dataclass(frozen=True)
class ClaimsCommand:
    """Options of the command.

    Attributes:
      annotations: descriptions with judgments of every sentence, JSON lines.
      out: all tables, JSON; the thresholds are written next to it, with the suffix .yaml.
      images: what the descriptions are about (docs/images.md), if the detector is asked.
      verdicts: instead of a detector: a run whose detector has judged these descriptions as candidates.
      precision: how often a person must agree where the judge says wrong, (0, 1].
      claims: which claims are judged, and the thresholds as they are.
      detection: the detector, as in a run's config.
      grid: the thresholds that are tried.
    """

    annotations: str
    out: Path
    images: str | None = None
    verdicts: str | None = None
    precision: float = 0.95
    claims: ClaimsConfig = dataclasses.field(default_factory=ClaimsConfig)
    detection: DetectionConfig = dataclasses.field(default_factory=DetectionConfig)
    grid: ThresholdGrid = dataclasses.field(default_factory=ThresholdGrid)

    def __post_init__(self) -> None:
        if not 0 < self.precision <= 1:
            raise InputError(f"precision: expected a share in (0, 1], got {self.precision:g}")
        if self.out.suffix in (".yaml", ".yml"):
            raise InputError(
                f"out: expected a file of JSON, next to which the YAML is written, got {self.out}; give judge.json"
            )


@dataclasses.dataclass(frozen=True)
class _Claims:
    judge: JudgeConfig


@dataclasses.dataclass(frozen=True)
class _Section:
    """What the YAML file holds."""

    claims: _Claims


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    cli.show_progress()
    print(run(cli.parse(ClaimsCommand, arguments, description=__doc__ or "")))


def run(command: ClaimsCommand) -> str:
    """Calibrates, writes the files, and returns the figures for people.

    Raises:
      InputError: an option or a file cannot be used, the detector cannot be asked, or no description has a verdict.
    """
    for kind in CLAIM_KINDS:  # before the detector is asked
        choices(kind, command.claims.judge, command.grid)
    if not command.verdicts:
        if command.images is None:
            raise InputError("--images is not given; give the images of the descriptions, or --verdicts of a run")
        command.detection.check_given()
    annotations = list(read_annotations(command.annotations))
    if not annotations:
        raise InputError(f"{command.annotations}: expected descriptions with judgments, got none")
    reader = ClaimReader(command.claims, command.detection.phrases)
    with naming(command.out):
        command.out.parent.mkdir(parents=True, exist_ok=True)
    verdicts = _stored(command.verdicts, annotations) if command.verdicts else _asked(command, annotations, reader)
    cases, skipped = Cases(), 0
    for annotation in annotations:
        if verdict := verdicts.get((annotation.image, annotation.description)):
            cases.add(annotation, verdict, reader)
        else:
            skipped += 1
    found = calibrate(cases.by_kind, command.claims.judge, command.grid, command.precision, _progress)
    _write(command, found, cases, len(annotations) - skipped)
    return describe(command, found, cases, skipped)


def _asked(command: ClaimsCommand, annotations: Sequence[Annotation], reader: ClaimReader) -> Verdicts:
    """The verdicts of the detector.

    Raises:
      InputError: images are missing, or the detector cannot be asked.
    """
    texts: dict[str, dict[str, None]] = {}
    for annotation in annotations:
        texts.setdefault(annotation.image, {})[annotation.description] = None
    images = open_images(command.images or "")
    if missing := images.missing(texts):
        raise InputError(
            f"images: {images.place} lacks {len(missing)} of {len(texts)} images that are described, {missing[0]!r} "
            "first; give the folder that the descriptions are of"
        )
    items = [ScoreItem(image, images.file(image), "", tuple(own)) for image, own in texts.items()]
    asks = reader if "attribute" in command.claims.kinds else None
    verdicts: Verdicts = {}
    with DetectorStream(command.detection, asks) as stream:
        judged = stream.judge(tqdm(items, desc="detector", unit="image", dynamic_ncols=True))
        for item, own in zip(items, judged, strict=True):
            verdicts |= {(item.image, text): verdict for text, verdict in zip(item.texts, own, strict=True)}
    return verdicts


def _stored(run_directory: str, annotations: Iterable[Annotation]) -> Verdicts:
    """The verdicts that a run has stored.

    Raises:
      InputError: the run has none, or none on these descriptions.
    """
    wanted = {(annotation.image, annotation.description) for annotation in annotations}
    verdicts: Verdicts = {}
    for candidate, verdict in _pairs(run_directory):
        if (key := (candidate.image, candidate.text)) in wanted:
            verdicts[key] = verdict
    if not verdicts:
        raise InputError(
            f"verdicts: none of the {len(wanted)} descriptions is a candidate of {run_directory}; annotate some of "
            "its candidates, or give --images and a detector"
        )
    if not any(verdict.attributes for verdict in verdicts.values()):
        logger.info("verdicts: %s did not ask its detector about attributes, so none is judged", run_directory)
    return verdicts


def _pairs(run_directory: str) -> Iterator[tuple[Candidate, Verdict]]:
    verdicts = read_parts(join(run_directory, "verdicts", DetectorStream.name), Verdict)
    for candidate in read_parts(join(run_directory, "candidates"), Candidate):
        verdict = next(verdicts, None)
        if verdict is None or (verdict.image, verdict.candidate) != (candidate.image, candidate.candidate):
            raise InputError(
                f"verdicts: {run_directory} has no verdict of the detector on candidate {candidate.candidate} of "
                f"{candidate.image!r}; let the run finish its stage score"
            )
        yield candidate, verdict


def _progress(configs: Iterable[JudgeConfig]) -> Iterable[JudgeConfig]:
    return tqdm(configs, desc="thresholds", dynamic_ncols=True, leave=False)


def _write(command: ClaimsCommand, found: Calibrated, cases: Cases, described: int) -> None:
    content = {
        "annotations": command.annotations,
        "descriptions": described,
        "precision": command.precision,
        "kinds": {
            table.kind: {
                "unclear": cases.unclear[table.kind],
                "with_one_claim": table.clean,
                "too_few_cases": table.is_too_few,
                "suggested": table.thresholds(table.suggested) if table.suggested else None,
                "held_out": _figures(table.held_out) if table.held_out else None,
                "rows": [table.thresholds(row) | _figures(row.counts) for row in table.rows],
            }
            for table in found.tables
            if table.kind in command.claims.kinds
        },
        "judge": dataclasses.asdict(found.judge),
    }
    with naming(command.out):
        command.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    head = (
        f"# Thresholds of claims, by python -m vigor_jax.claims on {described} descriptions, for a precision of "
        f"{command.precision:g}.\n"
    )
    section = cli.dump(_Section(_Claims(found.judge)))
    with naming(_yaml(command)):
        _yaml(command).write_text(head + section, encoding="utf-8")


def _yaml(command: ClaimsCommand) -> Path:
    return command.out.with_suffix(".yaml")


def _figures(counts: Counts) -> dict[str, Any]:
    return dataclasses.asdict(counts) | {"precision": counts.precision, "recall": counts.recall}


def describe(command: ClaimsCommand, found: Calibrated, cases: Cases, skipped: int) -> str:
    """The figures for people."""
    lines = [f"{skipped} descriptions are left out: the run has no verdict on them"] if skipped else []
    for table in found.tables:
        if table.kind in command.claims.kinds:
            lines += [*_described(table, cases.unclear[table.kind], command.precision), ""]
    lines.append(f"* as given, > suggested; all choices are in {command.out}")
    lines.append(f"use the suggestions with python -m vigor_jax.train --config {_yaml(command)}")
    return "\n".join(lines)


def _described(table: Table, unclear: int, precision: float) -> list[str]:
    counts, names = table.given.counts, THRESHOLDS[table.kind]
    left_out = f"; {unclear} more are unclear" if unclear else ""
    lines = [
        f"{table.kind}: {counts.cases} sentences, {table.clean} with one claim; people call {counts.wrong} wrong"
        f"{left_out}"
    ]
    if not counts.cases:
        return lines
    widths = [max(12, len(name)) for name in names]
    header = "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    lines.append(f"    {'precision':>9}  {'recall':>6}  {'decided':>7}  {header}")
    shown = [table.given] + [row for row in (table.suggested,) if row and row is not table.given]
    marked = [row.counts for row in shown]
    shown += [row for row in table.frontier() if row.counts not in marked]
    for row in sorted(shown, key=lambda row: (row.counts.recall or 0, row.counts.precision or 0), reverse=True):
        values = table.thresholds(row).values()
        cells = "  ".join(f"{value:>{width}.3g}" for value, width in zip(values, widths, strict=True))
        lines.append(f"  {_mark(table, row)} {_agreement(row.counts)}  {cells}")
    return [*lines, _conclusion(table, precision)]


def _mark(table: Table, row: Row) -> str:
    return ">" if row is table.suggested else "*" if row is table.given else " "


def _agreement(counts: Counts) -> str:
    precision, recall = _share(counts.precision), _share(counts.recall)
    return f"{precision:>9}  {recall:>6}  {_share(counts.decided / counts.cases):>7}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{percent(share, 1)}%"


def _conclusion(table: Table, precision: float) -> str:
    asked = f"{percent(precision)}%"
    if table.is_too_few:
        return (
            f"    too few cases: people call {table.given.counts.wrong} wrong, a suggestion needs {FEWEST_CASES}; "
            "the thresholds stay as given"
        )
    if table.suggested is None:
        return f"    no choice has a precision of {asked}; the thresholds stay as given"
    held_out = table.held_out
    if held_out is None:
        return f"    chosen on half of the images alone, no choice has a precision of {asked}: expect less on others"
    return (
        f"    chosen on half of the images and measured on the other half: precision {_share(held_out.precision)}, "
        f"recall {_share(held_out.recall)}"
    )


if __name__ == "__main__":
    cli.run(main)
