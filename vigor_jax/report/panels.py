"""The page's groups of charts: a panel is one question, answered by a chart for each run, all on one scale."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from vigor_jax.report import charts
from vigor_jax.report.collect import Figures
from vigor_jax.report.reading import Records

Series = Mapping[str, np.ndarray]


class Panel(NamedTuple):
    """Charts next to each other.

    Attributes:
      title: of all.
      charts: run → SVG.
      legend: color → what is drawn in it.
    """

    title: str
    charts: dict[str, Markup]
    legend: dict[str, str]


def readable(name: str) -> str:
    """`reward_model` → "reward model"."""
    return name.replace("_", " ")


def rewards(runs: Mapping[str, Records]) -> list[Panel]:
    """Penalties and scores, chosen against rejected.

    Args:
      runs: by name.
    """
    fused: dict[str, Series] = {}
    streams: dict[str, tuple[dict[str, Series], dict[str, Series]]] = {}
    for name, records in runs.items():
        if records.penalties.size and len(records.terms) > 1:
            fused[name] = _split(records.penalties, records.chosen)
        for stream in records.streams:
            penalties, scores = streams.setdefault(stream, ({}, {}))
            penalties[name] = _split(records.negatives[stream], records.chosen)
            if records.scores[stream].size:
                scores[name] = _split(records.scores[stream], records.score_chosen[stream])
    found = [histograms("Penalty, all streams", fused, "penalty of a candidate")] if fused else []
    for stream, (penalties, scores) in streams.items():
        found.append(histograms(f"Penalty, {readable(stream)}", penalties, "penalty of a candidate"))
        if scores:
            found.append(histograms(f"Score, {readable(stream)}", scores, "score of a signal"))
    return found


def lengths(runs: Mapping[str, tuple[Figures, Records | None]]) -> list[Panel]:
    """How long captions are: of the candidates, and of those that the evaluation asked for."""
    sampled = {
        name: {
            "candidates": records.words,
            "chosen": records.words[records.chosen],
            "targets": records.target_words,
        }
        for name, (_, records) in runs.items()
        if records
    }
    asked = {
        name: {model: np.array(words, float) for model, words in figures.caption_words.items()}
        for name, (figures, _) in runs.items()
        if figures.caption_words
    }
    found = []
    if sampled:
        found.append(histograms("Candidates and what became of them", sampled, "words"))
    if asked:
        found.append(histograms("Captions of the evaluation", asked, "words"))
    return found


def _split(values: np.ndarray, chosen: np.ndarray) -> Series:
    return {"rejected": values[~chosen], "chosen": values[chosen]}


def histograms(title: str, runs: Mapping[str, Series], label: str, edges: np.ndarray | None = None) -> Panel:
    """One histogram for each run, all with the same bins.

    Args:
      title: of the panel.
      runs: name → series; what is empty or not finite is left out.
      label: of the numbers.
      edges: of the bins; by default those that fit all the numbers.
    """
    filled = {
        run: {name: finite for name, values in series.items() if (finite := values[np.isfinite(values)]).size}
        for run, series in runs.items()
    }
    names = list(dict.fromkeys(name for series in filled.values() for name in series))
    if edges is None:
        pooled = [values for series in filled.values() for values in series.values()]
        edges = charts.bin_edges(np.concatenate(pooled) if pooled else np.zeros(1))
    drawn = {run: Markup(charts.histogram(series, edges, label)) for run, series in filled.items()}
    return Panel(title, drawn, {name: name for name in names})
