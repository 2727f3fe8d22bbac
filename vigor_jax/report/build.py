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
from vigor_jax.percent import percent
from vigor_jax.records import ImageFile
from vigor_jax.report import charts, panels
from vigor_jax.report.collect import Cell, Figures, collect, expand, headline
from vigor_jax.report.reading import Records, image_names, read_records
from vigor_jax.report.settings import LABELS
from vigor_jax.report.thumbnails import Thumbnail, make_thumbnails

logger = logging.getLogger(__name__)

LIMIT = 5000
# The page is to stay below 15 MB; what records and charts leave of this is for the thumbnails.
MAX_BYTES = 15_000_000
_TARGET_BYTES = 14_500_000
# About this many are needed to say how large a thumbnail is.
_SIZE_BYTES = 20
_SCRIPTS = ("data.js", "strip.js", "sentences.js", "detail.js", "gallery.js")


class _Run(NamedTuple):
    """A run as the template has it; `records` is None where there are no candidates."""

    figures: Figures
    records: Records | None


def build_report(run_dirs: Sequence[Path], out: Path, images: str | Path | None = None, *, limit: int = LIMIT) -> Path:
    """Writes the page about one or several runs; what a run does not have is left out.

    Args:
      run_dirs: of the runs; one of several rounds counts as this many runs.
      out: the HTML file.
      images: where the images are, instead of where each run's config says.
      limit: most images in the gallery, all runs' together, at least 1; spread evenly over their names.

    Returns:
      `out`.

    Raises:
      InputError: a run has nothing to show, or one of its files is damaged.
    """
    if limit < 1:
        raise InputError(f"report: expected --limit of at least 1, got {limit}")
    figures = [collect(name, directory, images) for name, directory in expand(run_dirs).items()]
    names = sorted({name for each in figures for name in image_names(each.records)})
    most = max(limit // len(figures), 1)
    shown = [names[int(i)] for i in np.linspace(0, len(names) - 1, min(most, len(names)))]
    runs = [_Run(each, read_records(each.records, frozenset(shown))) for each in figures]
    for each, records in runs:
        if not (records or each.evaluation or each.reward_model):
            raise InputError(
                f"report: {each.directory} has neither candidates nor an evaluation nor a reward model; is it a run's?"
            )

    context = _context(runs, len(names), len(shown))
    gallery, paths = _gallery(runs)
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


def _gallery(runs: Sequence[_Run]) -> tuple[dict[str, Any], list[ImageFile | None]]:
    """The gallery's data, and the files of the pictures that it numbers; runs on one place share them."""
    numbers: dict[tuple[str | None, str], int] = {}
    found = []
    for figures, records in runs:
        if records:
            groups = [
                {**example, "image": numbers.setdefault((figures.images, example["name"]), len(numbers))}
                for example in records.examples
            ]
            found.append({"name": figures.name, "streams": records.streams, "terms": records.terms, "groups": groups})
    opened = {place: open_images(place) for place, _ in numbers if place}
    return {"runs": found}, [opened[place].file(name) if place else None for place, name in numbers]


def _context(runs: Sequence[_Run], num_images: int, num_shown: int) -> dict[str, Any]:
    """What the template is filled with, but for the gallery's data."""
    plotted: dict[str, dict[str, tuple[Cell, Cell]]] = {}
    for each, _ in runs:
        found = {
            model: (_cell(metrics["chair"], "recall"), _cell(metrics["chair"], "chair_i"))
            for model, metrics in each.evaluation.items()
            if "chair" in metrics
        }
        plotted |= {each.name: found} if found else {}
    tables = {each.name: rows for each, _ in runs if (rows := headline(each.evaluation))}
    reward_models: dict[str, dict[str, Any]] = {
        each.name: {"metrics": metrics, "chart": Markup(charts.calibration(metrics["calibration"]))}
        for each, _ in runs
        if (metrics := each.reward_model)
    }
    summaries = [each.summary for each, _ in runs if each.summary]
    return {
        "runs": runs,
        "has_records": any(records for _, records in runs),
        "reasons": list(dict.fromkeys(reason for summary in summaries for reason in summary["dropped"])),
        "decisive": list(dict.fromkeys(stream for summary in summaries for stream in summary["decisive_stream"])),
        "ties": list(dict.fromkeys(how for summary in summaries for how in summary["decided_by"] if how != "penalty")),
        "settings": [label for label in LABELS if any(label in each.settings for each, _ in runs)],
        "measures": list(dict.fromkeys(name for summary in summaries for name in ("words", *summary["mentions"]))),
        "tables": tables,
        "models": {each.name: list(each.evaluation) for each, _ in runs},
        "better": {row.label: row.better for rows in tables.values() for row in rows},
        "chair": Markup(charts.chair_against_recall(plotted)) if plotted else "",
        "rewards": panels.rewards({each.name: records for each, records in runs if records}),
        "lengths": panels.lengths({run.figures.name: run for run in runs}),
        "reward_models": reward_models,
        "kinds": ["all", *dict.fromkeys(kind for each in reward_models.values() for kind in each["metrics"]["errors"])],
        "num_images": num_images,
        "num_shown": num_shown,
        "version": vigor_jax.__version__,
    }


def _cell(metrics: dict[str, Any], key: str) -> Cell:
    low, high = metrics.get("intervals", {}).get(key) or (None, None)
    return Cell(metrics[key], low, high)


# The file


def _render(context: dict[str, Any]) -> bytes:
    folder = resources.files("vigor_jax.report") / "page"
    style, *scripts = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("style.css", *_SCRIPTS))
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
    return template.render(**context, style=Markup(style), script=Markup(script), script_digest=digest).encode()


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
