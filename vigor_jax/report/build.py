"""Assembles the page of a report: one file, which needs no other file."""

import base64
import gzip
import hashlib
import json
import logging
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

import vigor_jax
from vigor_jax.data.images.store import open_images
from vigor_jax.data.records import store
from vigor_jax.errors import InputError
from vigor_jax.evaluation.card.card import Value
from vigor_jax.percent import percent
from vigor_jax.records import ImageFile
from vigor_jax.report import annotators, charts, panels, ppo_panels, preferences
from vigor_jax.report.collect import Figures, collect, expand, headline
from vigor_jax.report.reading import Records, image_names, read_records
from vigor_jax.report.reward_models import reward_rows
from vigor_jax.report.rollouts import MAX_EXAMPLES, Rollouts, pack_examples, pick_examples, read_rollouts
from vigor_jax.report.settings import LABELS
from vigor_jax.report.thumbnails import Thumbnail, make_thumbnails
from vigor_jax.report.word_scores import KnownObjects, ObjectFiles

logger = logging.getLogger(__name__)

LIMIT = 5000
# The page is to stay below 15 MB; what records and charts leave of this is for the thumbnails.
MAX_BYTES = 15_000_000
_TARGET_BYTES = 14_500_000
# About this many are needed to say how large a thumbnail is.
_SIZE_BYTES = 20
_SCRIPTS = ("data.js", "tooltip.js", "strip.js", "sentences.js", "detail.js", "gallery.js", "tokens.js", "main.js")


class _Run(NamedTuple):
    """A run as the template has it; `records` is None where there are no candidates, `rollouts` where PPO kept none,
    `pairs` empty where the run has made none."""

    figures: Figures
    records: Records | None
    rollouts: Rollouts | None
    pairs: list[preferences.Pair]


def build_report(
    run_dirs: Sequence[Path],
    out: Path,
    images: str | Path | None = None,
    *,
    limit: int = LIMIT,
    objects: ObjectFiles | None = None,
) -> Path:
    """Writes the page about one or several runs; what a run does not have is left out.

    Args:
      run_dirs: of the runs; one of several rounds counts as this many runs.
      out: the HTML file.
      images: where the images are, instead of where each run's config says.
      limit: most images in the gallery, all runs' together, at least 1; spread evenly over their names.
      objects: what is in the images of PPO, where each run's config does not say so.

    Returns:
      `out`.

    Raises:
      InputError: a run has nothing to show, or one of its files is damaged.
    """
    if limit < 1:
        raise InputError(f"report: expected --limit of at least 1, got {limit}")
    figures = [collect(name, directory, images, objects) for name, directory in expand(run_dirs).items()]
    names = sorted({name for each in figures for name in image_names(each.records)})
    most = max(limit // len(figures), 1)
    shown = [names[int(i)] for i in np.linspace(0, len(names) - 1, min(most, len(names)))]
    most_pairs = max(preferences.MAX_PAIRS // len(figures), 1)
    runs = [
        _Run(
            each,
            read_records(each.records, frozenset(shown)),
            read_rollouts(each.records),
            preferences.read_pairs(each.records, most_pairs),
        )
        for each in figures
    ]
    for each, records, rollouts, pairs in runs:
        if not (records or rollouts or pairs or each.evaluation or each.reward_model or each.ppo or each.dpo):
            raise InputError(
                f"report: {each.directory} has neither candidates nor responses of PPO nor an evaluation nor a reward "
                "model; is it a run's?"
            )

    context = _context(runs, len(names), len(shown))
    gallery, paths, numbers = _gallery(runs)
    context["preferences"] = preferences.shown(
        {run.figures.name: (run.figures.dpo, run.pairs) for run in runs}, numbers
    )
    context["records"] = _pack(gallery)
    empty = _render({**context, "thumbnails": "", "sizes": "[]"})
    room = (_TARGET_BYTES - len(empty)) * 3 // 4 - _SIZE_BYTES * len(paths)
    found = make_thumbnails(paths, room)
    page = _render({**context, "sizes": _sizes(found), "thumbnails": _blob(found)})
    if len(page) > MAX_BYTES:
        logger.warning("%s has %.1f MB; a smaller --limit makes it smaller", out, len(page) / 1e6)
    with store.write_atomically(out) as file:
        file.write(page)
    return out


def _gallery(runs: Sequence[_Run]) -> tuple[dict[str, Any], list[ImageFile | None], dict[str, list[int]]]:
    """The data of the gallery and of PPO's responses, the files of the pictures that it numbers, and the numbers of
    each run's pairs; runs on one place share pictures."""
    numbers: dict[tuple[str | None, str], int] = {}
    found, ppo = [], []

    def number(place: str | None, name: str) -> int:
        return numbers.setdefault((place, name), len(numbers))

    for figures, records, *_ in runs:
        if records:
            groups = [{**each, "image": number(figures.images, each["name"])} for each in records.examples]
            found.append({"name": figures.name, "streams": records.streams, "terms": records.terms, "groups": groups})
    with_ppo = [run for run in runs if run.rollouts]
    for figures, _, rollouts, _ in with_ppo:
        assert rollouts
        packed = pack_examples(rollouts, pick_examples(rollouts, max(MAX_EXAMPLES // len(with_ppo), 2)))
        for group in (group for example in packed["examples"] for group in example):
            group["image"] = number(figures.ppo_images, group["name"])
        ppo.append({"name": figures.name, **packed})
    pairs = {run.figures.name: [number(run.figures.images, pair.image) for pair in run.pairs] for run in runs}
    opened = {place: open_images(place) for place, _ in numbers if place}
    files = [opened[place].file(name) if place else None for place, name in numbers]
    return {"runs": found, "ppo": ppo}, files, pairs


def _context(runs: Sequence[_Run], num_images: int, num_shown: int) -> dict[str, Any]:
    """What the template is filled with, but for the gallery's data."""
    plotted: dict[str, dict[str, tuple[Value, Value]]] = {}
    for each, *_ in runs:
        found = {
            model: (_cell(metrics["chair"], "recall"), _cell(metrics["chair"], "chair_i"))
            for model, metrics in each.evaluation.items()
            if "chair" in metrics
        }
        plotted |= {each.name: found} if found else {}
    tables = {each.name: rows for each, *_ in runs if (rows := headline(each.evaluation))}
    reward_models: dict[str, dict[str, Any]] = {
        each.name: {"metrics": metrics, "chart": Markup(charts.calibration(metrics["calibration"]))}
        for each, *_ in runs
        if (metrics := each.reward_model)
    }
    summaries = [each.summary for each, *_ in runs if each.summary]
    return {
        "runs": runs,
        "has_records": any(run.records for run in runs),
        "reasons": list(dict.fromkeys(reason for summary in summaries for reason in summary["dropped"])),
        "decisive": list(dict.fromkeys(stream for summary in summaries for stream in summary["decisive_stream"])),
        "ties": list(dict.fromkeys(how for summary in summaries for how in summary["decided_by"] if how != "penalty")),
        "settings": [label for label in LABELS if any(label in each.settings for each, *_ in runs)],
        "measures": list(dict.fromkeys(name for summary in summaries for name in ("words", *summary["mentions"]))),
        "tables": tables,
        "models": {each.name: list(each.evaluation) for each, *_ in runs},
        "better": {row.label: row.better for rows in tables.values() for row in rows},
        "chair": Markup(charts.chair_against_recall(plotted)) if plotted else "",
        "rewards": panels.rewards({each.name: records for each, records, *_ in runs if records}),
        "lengths": panels.lengths({each.name: (each, records) for each, records, *_ in runs}),
        "ppo": _ppo(runs),
        "reward_models": reward_models,
        "reward_rows": reward_rows({name: each["metrics"] for name, each in reward_models.items()}),
        "annotators": annotators.shown({each.name: each.judgments for each, *_ in runs}),
        "num_images": num_images,
        "num_shown": num_shown,
        "version": vigor_jax.__version__,
    }


def _ppo(runs: Sequence[_Run]) -> dict[str, Any]:
    """What the template is filled with about PPO; empty if no run has any."""
    lines = {each.name: each.ppo for each, *_ in runs if each.ppo}
    kept = {each.name: rollouts for each, _, rollouts, _ in runs if rollouts}
    if not lines and not kept:
        return {}
    drawn, scores = ppo_panels.scores(kept, _known_objects(runs))
    done = {name: own[-1].get("step") for name, own in lines.items()}
    done = {name: rollouts.iterations[-1].number for name, rollouts in kept.items()} | done
    counts = {name: f"{count} of {kept[name].total}" if name in kept else str(count) for name, count in done.items()}
    return {
        "runs": counts,
        "changes": {"Iterations": counts} | ppo_panels.changes(lines),
        "curves": ppo_panels.curves(lines),
        "points": ppo_panels.points_of(lines),
        "kept": kept,
        "panels": drawn,
        "scores": scores,
        "labels": ppo_panels.labels(scores),
    }


def _known_objects(runs: Sequence[_Run]) -> dict[str, KnownObjects]:
    """Run → what is in the images of PPO, of those where files say so; each file is read once."""
    asked: dict[ObjectFiles, dict[str, set[str]]] = {}
    for figures, _, rollouts, _ in runs:
        if figures.objects and rollouts:
            images = {one.image for each in rollouts.iterations for one in each.rollouts}
            asked.setdefault(figures.objects, {})[figures.name] = images
    read = {files: KnownObjects(files, sorted(set().union(*names.values()))) for files, names in asked.items()}
    return {name: read[files] for files, names in asked.items() for name in names}


def _cell(metrics: dict[str, Any], key: str) -> Value:
    low, high = metrics.get("intervals", {}).get(key) or (None, None)
    return Value(metrics[key], low, high)


# The file


def _render(context: dict[str, Any]) -> bytes:
    folder = resources.files("vigor_jax.report") / "page"
    base, own, *scripts = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("base.css", "style.css", *_SCRIPTS)
    )
    script = "\n" + "\n".join(scripts)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vigor_jax.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"readable": panels.readable, "cell": _written, "percent": percent}
    # The browser runs this script and no other, whatever else might get into the page.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("template.html")
    return template.render(**context, style=Markup(base + own), script=Markup(script), script_digest=digest).encode()


def _written(value: float, unit: str, sign: bool = False) -> str:
    """A figure as text, with a true minus."""
    text = percent(abs(value), 1) if unit == "percent" else f"{abs(value):.1f}"
    return ("−" if value < 0 else "+" if sign else "") + text


def _pack(data: Any) -> str:
    """JSON, compressed, in letters that mean nothing to HTML."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _sizes(found: Sequence[Thumbnail | None]) -> str:
    """Width, height and bytes of each, three numbers of 0 for one that is missing."""
    return json.dumps([n for each in found for n in ((each.width, each.height, len(each.data)) if each else (0, 0, 0))])


def _blob(found: Sequence[Thumbnail | None]) -> str:
    return base64.b64encode(b"".join(each.data for each in found if each)).decode()
