"""Calibrates when a claim of a caption is wrong: which thresholds of the judge agree best with people.

    python -m vigor_jax.claims --annotations annotations.jsonl --images photos/ \\
        --detection.model checkpoints/groundingdino-swint --out judge.json

Annotations are those that a reward model learns from (docs/artifacts.md). The detector is asked once, or with
`--verdicts RUN` not at all: that run's detector has judged these texts. For each kind of claim it prints how well "the
judge says wrong" agrees with "a person says wrong", and suggests the thresholds with the highest recall at the asked
precision; with `--clip_attributes.model CLIP` also for attributes that a CLIP judges by crops of the images.
`judge.json` has all tables; `judge.yaml` is for `python -m vigor_jax.train --config`.
"""

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tqdm import tqdm

from vigor_jax import cli
from vigor_jax.data.images.store import open_images
from vigor_jax.data.records.annotations import read_annotations
from vigor_jax.data.records.store import join, read_parts
from vigor_jax.disk import naming
from vigor_jax.errors import InputError
from vigor_jax.parallel.config import Compiled, MeshConfig
from vigor_jax.records import CLAIM_KINDS, Annotation, Candidate, ScoreItem, Verdict
from vigor_jax.rewards.claims.calibrate import (
    CROPS,
    Calibrated,
    Counts,
    Table,
    ThresholdGrid,
    calibrate,
    calibrate_crops,
    choices,
)
from vigor_jax.rewards.claims.calibration_text import described
from vigor_jax.rewards.claims.cases import Cases
from vigor_jax.rewards.claims.crops import ClipAttributesConfig
from vigor_jax.rewards.claims.judge import JudgeConfig
from vigor_jax.rewards.claims.stream import ClaimReader, ClaimsConfig
from vigor_jax.rewards.detection import DetectorStream
from vigor_jax.rewards.detector_config import DetectionConfig

if TYPE_CHECKING:
    from vigor_jax.rewards.claims.clip_attributes import ClipAttributeStream

logger = logging.getLogger(__name__)

CropTable: TypeAlias = Table[ClipAttributesConfig]
Verdicts: TypeAlias = dict[tuple[str, str], Verdict]  # (image, text) → the detector's


@dataclasses.dataclass(frozen=True)
class ClaimsCommand:
    """Options of the command.

    Attributes:
      annotations: descriptions with judgments of every sentence, JSON lines.
      out: all tables, JSON; the thresholds are written next to it, with the suffix .yaml.
      images: what the descriptions are about (docs/images.md), if the detector is asked or a CLIP judges.
      verdicts: instead of a detector: a run whose detector has judged these descriptions as candidates.
      precision: how often a person must agree where the judge says wrong, (0, 1].
      claims: which claims are judged, and the thresholds as they are.
      detection: the detector, as in a run's config.
      clip_attributes: the CLIP that judges attributes, if its `model` is given.
      grid: the thresholds that are tried.
      mesh: how the devices are arranged for the CLIP.
      compiled: where compiled programs are kept for the next command: a folder, by default in the user's cache
        (docs/performance.md); off: nowhere.
    """

    annotations: str
    out: Path
    images: str | None = None
    verdicts: str | None = None
    precision: float = 0.95
    claims: ClaimsConfig = dataclasses.field(default_factory=ClaimsConfig)
    detection: DetectionConfig = dataclasses.field(default_factory=DetectionConfig)
    clip_attributes: ClipAttributesConfig = dataclasses.field(default_factory=ClipAttributesConfig)
    grid: ThresholdGrid = dataclasses.field(default_factory=ThresholdGrid)
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=-1, fsdp=1))
    compiled: Compiled = None

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


@dataclasses.dataclass(frozen=True)
class _Crops:
    least_right: float
    most_wrong: float
    least_rival: float


@dataclasses.dataclass(frozen=True)
class _Sections(_Section):
    """The same where a CLIP judges, too."""

    clip_attributes: _Crops


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
    choices(CROPS, command.clip_attributes, command.grid)
    if command.images is None and not command.verdicts:
        raise InputError("--images is not given; give the images of the descriptions, or --verdicts of a run")
    if command.images is None and command.clip_attributes.model:
        raise InputError("--images is not given; the CLIP of --clip_attributes.model judges by them")
    if not command.verdicts:
        command.detection.check_given()
    stream = _clip(command) if command.clip_attributes.model else None
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
    crops = None
    if stream:
        _add_crops(command, stream, [each for each in annotations if _key(each) in verdicts], verdicts, cases)
        crops = calibrate_crops(cases.crops, command.clip_attributes, command.grid, command.precision)
    _write(command, found, crops, cases, len(annotations) - skipped)
    return describe(command, found, crops, cases, skipped)


def _key(annotation: Annotation) -> tuple[str, str]:
    return annotation.image, annotation.description


def _clip(command: ClaimsCommand) -> "ClipAttributeStream":
    """The judge of crops, opened.

    Raises:
      InputError: the CLIP cannot be used, or the mesh does not fit the devices.
    """
    from vigor_jax.parallel.compilation_cache import keep_compiled  # JAX, which only a CLIP needs
    from vigor_jax.parallel.sharding import make_mesh
    from vigor_jax.rewards.claims.clip_attributes import ClipAttributeStream
    from vigor_jax.stages.clip_stream import open_model

    keep_compiled(command.compiled)
    clip = open_model(command.clip_attributes.model, "clip_attributes.model")
    mesh = make_mesh(command.mesh)
    return ClipAttributeStream(clip, command.clip_attributes, command.claims, command.detection.phrases, mesh)


def _add_crops(
    command: ClaimsCommand,
    stream: "ClipAttributeStream",
    annotations: Sequence[Annotation],
    verdicts: Verdicts,
    cases: Cases,
) -> None:
    """Adds the cases that the CLIP judges.

    Raises:
      InputError: images are missing or cannot be read.
    """
    items = [
        item._replace(verdicts={DetectorStream.name: tuple(verdicts[item.image, text] for text in item.texts)})
        for item in _items(command, annotations)
    ]
    judged = stream.evidence(tqdm(items, desc="crops", unit="image", dynamic_ncols=True))
    found = {(item.image, text): own for item, claims in judged for text, own in claims.items()}
    for annotation in annotations:
        cases.add_crops(annotation, found[_key(annotation)])


def _asked(command: ClaimsCommand, annotations: Sequence[Annotation], reader: ClaimReader) -> Verdicts:
    """The verdicts of the detector.

    Raises:
      InputError: images are missing, or the detector cannot be asked.
    """
    items = _items(command, annotations)
    asks = reader if "attribute" in command.claims.kinds else None
    verdicts: Verdicts = {}
    with DetectorStream(command.detection, asks) as stream:
        judged = stream.judge(tqdm(items, desc="detector", unit="image", dynamic_ncols=True))
        for item, own in zip(items, judged, strict=True):
            verdicts |= {(item.image, text): verdict for text, verdict in zip(item.texts, own, strict=True)}
    return verdicts


def _items(command: ClaimsCommand, annotations: Iterable[Annotation]) -> list[ScoreItem]:
    """The descriptions of each image.

    Raises:
      InputError: images are missing.
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
    return [ScoreItem(image, images.file(image), "", tuple(own)) for image, own in texts.items()]


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


def _write(command: ClaimsCommand, found: Calibrated, crops: CropTable | None, cases: Cases, described: int) -> None:
    content: dict[str, Any] = {
        "annotations": command.annotations,
        "descriptions": described,
        "precision": command.precision,
        "kinds": {
            table.kind: _content(table, cases.unclear[kind])
            for kind, table in zip(CLAIM_KINDS, found.tables, strict=True)
            if kind in command.claims.kinds
        },
        "judge": dataclasses.asdict(found.judge),
    }
    section = _Section(_Claims(found.judge))
    if crops:
        content["kinds"][CROPS] = _content(crops, cases.unclear_crops)
        judge = (crops.suggested or crops.given).config
        section = _Sections(_Claims(found.judge), _Crops(judge.least_right, judge.most_wrong, judge.least_rival))
    with naming(command.out):
        command.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    head = (
        f"# Thresholds of claims, by python -m vigor_jax.claims on {described} descriptions, for a precision of "
        f"{command.precision:g}.\n"
    )
    with naming(_yaml(command)):
        _yaml(command).write_text(head + cli.dump(section), encoding="utf-8")


def _content(table: Table, unclear: int) -> dict[str, Any]:
    return {
        "unclear": unclear,
        "with_one_claim": table.clean,
        "too_few_cases": table.is_too_few,
        "suggested": table.thresholds(table.suggested) if table.suggested else None,
        "held_out": _figures(table.held_out) if table.held_out else None,
        "rows": [table.thresholds(row) | _figures(row.counts) for row in table.rows],
    }


def _yaml(command: ClaimsCommand) -> Path:
    return command.out.with_suffix(".yaml")


def _figures(counts: Counts) -> dict[str, Any]:
    return dataclasses.asdict(counts) | {"precision": counts.precision, "recall": counts.recall}


def describe(command: ClaimsCommand, found: Calibrated, crops: CropTable | None, cases: Cases, skipped: int) -> str:
    """The figures for people."""
    lines = [f"{skipped} descriptions are left out: the run has no verdict on them"] if skipped else []
    for kind, table in zip(CLAIM_KINDS, found.tables, strict=True):
        if kind in command.claims.kinds:
            lines += [*described(table, cases.unclear[kind], command.precision), ""]
    if crops:
        lines += [*described(crops, cases.unclear_crops, command.precision), ""]
    lines.append(f"* as given, > suggested; all choices are in {command.out}")
    lines.append(f"use the suggestions with python -m vigor_jax.train --config {_yaml(command)}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
