"""Charts as SVG that takes its colors and its font from the page around it."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from matplotlib.transforms import Bbox

from vigor_jax.evaluation.card.card import Value

# What matplotlib draws in, and the page's variable that takes its place.
_INK, _FAINT, _LINE = "#010101", "#020202", "#030303"
COLORS = {
    "base": "#040404",
    "tuned": "#050505",
    "candidates": "#060606",
    "rejected": "#090909",
    "chosen": "#070707",
    "targets": "#080808",
    # Of PPO.
    "first": "#010102",
    "last": "#010103",
    "correct": "#010104",
    "hallucinated": "#010105",
    "rewarded": "#010106",
    "neither": "#010107",
    "punished": "#010108",
    "one": "#010109",
    "other": "#010201",
}
_VARIABLES = {_INK: "ink", _FAINT: "faint", _LINE: "line"} | {color: name for name, color in COLORS.items()}

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _FAINT,
    "ytick.labelcolor": _FAINT,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
}
_SIZE = (4.4, 2.7)  # inches of 72 units
_MARKERS = "os^Dvp*X"
_MAX_BINS = 30
MAX_POINTS, _MAX_MARKERS = 150, 20


def bin_edges(values: np.ndarray, *, whole_range: bool = True) -> np.ndarray:
    """Edges of at most 30 bins up to the 99.5% quantile, between whole numbers if all values are whole.

    Args:
      values: at least one.
      whole_range: take bins from 0 to 1 if all values are there.
    """
    low, high = float(values.min()), float(np.quantile(values, 0.995))
    if np.all(values == np.round(values)):
        width = int(np.ceil((high - low + 1) / _MAX_BINS))
        return np.arange(low, high + width + 1, width) - 0.5
    if whole_range and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.linspace(low, high if high > low else low + 1, _MAX_BINS + 1)


def histogram(series: Mapping[str, np.ndarray], edges: np.ndarray, label: str) -> str:
    """How several collections of numbers are distributed, each as its own shares.

    Args:
      series: name of a color in `COLORS` → numbers; the first is filled.
      edges: of the bins. What lies beyond the last, a few in a thousand, is counted in the last bin.
      label: of the numbers.
    """
    with rc_context(_STYLE):
        figure, axes = _axes("y")
        for number, (name, values) in enumerate(series.items()):
            counts, _ = np.histogram(np.minimum(values, edges[-1]), edges)
            shares, color = counts / len(values), COLORS[name]
            axes.stairs(shares, edges, fill=True, color=color, alpha=0.4 if number == 0 else 0.12, linewidth=0)
            axes.stairs(shares, edges, color=color, linewidth=1.4, baseline=None if number else 0)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}%"))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=bool(np.all(edges % 1 == 0.5))))
        axes.set_xlabel(label, parse_math=False)  # it may hold a name of the user's
        return _to_svg(figure, f"Histogram of {label}: {', '.join(series)}")


class Curve(NamedTuple):
    """How a number went; each point may be the mean of several.

    Attributes:
      steps: float64 [P], ascending.
      values: float64 [P].
      lowest: of those that each point is the mean of, float64 [P].
      highest: the same.
    """

    steps: np.ndarray
    values: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray

    @classmethod
    def of(cls, steps: np.ndarray, values: np.ndarray) -> "Curve":
        """Means of neighbors, so that there are no more than 150 points; of at least one value, all finite."""
        count = min(MAX_POINTS, len(values))
        parts = [np.array_split(x.astype(float), count) for x in (steps, values)]
        means = (np.array([part.mean() for part in own]) for own in parts)
        return cls(*means, *(np.array([limit(part) for part in parts[1]]) for limit in (np.min, np.max)))


def curves(
    series: Mapping[str, Curve], label: str, x_limits: tuple[float, float], y_limits: tuple[float, float], *, unit: str
) -> str:
    """How numbers went over the iterations, with the range of those that a point stands for.

    Args:
      series: name of a color in `COLORS` → the curve.
      label: of the numbers.
      x_limits: first and last iteration.
      y_limits: lowest and highest value.
      unit: "percent" of shares, else "number".
    """
    with rc_context(_STYLE):
        figure, axes = _axes("y", size=(3.6, 2.2))
        for name, curve in series.items():
            color = COLORS[name]
            axes.fill_between(curve.steps, curve.lowest, curve.highest, color=color, alpha=0.18, linewidth=0)
            marker = "o" if len(curve.steps) <= _MAX_MARKERS else None
            axes.plot(curve.steps, curve.values, color=color, linewidth=1.4, marker=marker, markersize=3.5)
        for limits, set_limits in ((x_limits, axes.set_xlim), (y_limits, axes.set_ylim)):
            room = 0.04 * (limits[1] - limits[0]) or 0.5 * (abs(limits[0]) or 1)
            set_limits(limits[0] - room, limits[1] + room)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda y, _: f"{round(100 * y, 6):g}%" if unit == "percent" else f"{float(f'{y:.6g}'):g}")
        )
        axes.set_xlabel("iteration")
        return _to_svg(figure, f"Curve of {label}")


def chair_against_recall(runs: Mapping[str, Mapping[str, tuple[Value, Value]]]) -> str:
    """CHAIR_i over recall, with intervals.

    Args:
      runs: name → model ("base", "tuned") → recall and CHAIR_i.
    """
    with rc_context(_STYLE):
        figure, axes = _axes("both", size=(4.4, 3.4))
        labels: list[tuple[str, tuple[float, float], str]] = []
        for number, (run, models) in enumerate(runs.items()):
            points = [(100 * recall.value, 100 * chair.value) for recall, chair in models.values()]
            axes.plot(*zip(*points, strict=True), color=_FAINT, alpha=0.5, linewidth=0.9, zorder=1)
            for (model, cells), point in zip(models.items(), points, strict=True):
                (x_error, y_error), color = map(_error, cells), COLORS[model]
                axes.errorbar(
                    *point,
                    xerr=x_error,
                    yerr=y_error,
                    fmt=_MARKERS[number % len(_MARKERS)],
                    color=color,
                    markersize=6,
                    elinewidth=1.1,
                    zorder=2 + number,
                )
                name = model if len(runs) == 1 else run if model == "tuned" or len(models) == 1 else ""
                labels.append((name, point, color))
        axes.margins(0.16)
        axes.set_ylim(bottom=0 if axes.get_ylim()[0] < 0 else None)
        _annotate(axes, [label for label in labels if label[0]])
        axes.set_xlabel("Recall, % (more is better)")
        axes.set_ylabel("CHAIR_i, % (less is better)", parse_math=False)
        return _to_svg(figure, f"CHAIR_i against recall of {', '.join(runs)}")


def calibration(bins: Sequence[Mapping[str, Any]]) -> str:
    """The share of good sentences over p(good), and how many sentences there are.

    Args:
      bins: `calibration` of a line of `reward_eval.jsonl`.
    """
    filled = [each for each in bins if each["count"]]
    counts = np.array([each["count"] for each in bins], float)
    with rc_context(_STYLE):
        figure, axes = _axes("both", size=(3.9, 3.4))
        edges = np.linspace(0, 1, len(bins) + 1)
        axes.stairs(0.3 * counts / max(counts.max(), 1), edges, fill=True, color=COLORS["candidates"], alpha=0.4)
        axes.plot((0, 1), (0, 1), color=_FAINT, linewidth=1, linestyle=(0, (3, 3)))
        points = [each["p_good"] for each in filled], [each["good"] for each in filled]
        axes.plot(*points, color=COLORS["chosen"], linewidth=1.4, marker="o", markersize=5, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="p(good), mean of the bin", ylabel="share that is good")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MultipleLocator(0.2))
        return _to_svg(figure, "Calibration of the reward model: share of good sentences over p(good)")


def _axes(grid: Literal["both", "y"], size: tuple[float, float] = _SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.grid(axis=grid)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", pad=8)  # else the labels of both axes meet where these do
    return figure, axes


def _annotate(axes: Axes, labels: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Writes a name next to each point, where no other name stands yet.

    Args:
      axes: with its limits.
      labels: name, point, color.
    """
    taken: list[Bbox] = []
    for name, point, color in labels:
        places = [(7 if right else -7, 6 + 11 * row) for row in (0, -2, 1, -3, 2, -4) for right in (True, False)]
        for x, y in places:
            text = axes.annotate(
                name,
                point,
                xytext=(x, y),
                textcoords="offset points",
                horizontalalignment="left" if x > 0 else "right",
                color=color,
                fontsize=9,
                parse_math=False,
            )
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken) or (x, y) == places[-1]:
                break
            text.remove()
        taken.append(box)


def _error(cell: Value) -> list[list[float]] | None:
    """Lengths of the bars below and above, in percent."""
    if cell.low is None or cell.high is None:
        return None
    return [[100 * max(cell.value - cell.low, 0)], [100 * max(cell.high - cell.value, 0)]]


def _to_svg(figure: Figure, title: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z]+[\d_]*_\d+"', "", svg)  # "axes_1" would be there once a chart
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r'<svg ([^>]*?)height="[\d.]+pt"', r"<svg \1", svg)
    svg = re.sub(r'<svg ([^>]*?)width="([\d.]+)pt"', r'<svg role="img" \1width="\2"', svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return re.sub(r"\n\s*", "\n", svg.replace("<svg ", f'<svg aria-label="{label}" ', 1))
