"""What the page shows of PPO in numbers: curves of its iterations, and the scores that words got."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from markupsafe import Markup

from vigor_jax.percent import percent
from vigor_jax.report import charts
from vigor_jax.report.panels import Panel, histograms, readable
from vigor_jax.report.rollouts import Rollouts
from vigor_jax.report.word_scores import KnownObjects, WordScores, streams_of, word_scores

Lines = Sequence[Mapping[str, Any]]


class Measure(NamedTuple):
    """A panel of curves.

    Attributes:
      title: of it.
      unit: of what is drawn.
      keys: of a line of `metrics/STAGE.jsonl`, with what they are called; "" for the only one.
    """

    title: str
    unit: Literal["percent", "number"]
    keys: Mapping[str, str]


_MEASURES = (
    Measure("Reward of a response", "number", {"reward": ""}),
    Measure("Tokens with a reward", "percent", {"rewarded": "rewarded", "punished": "punished"}),
    Measure("KL from the reference, of a response", "number", {"kl": ""}),
    Measure("KL factor", "number", {"kl_factor": ""}),
    Measure("Tokens that the clip held", "percent", {"clip_share": "ratio", "value_clip_share": "value"}),
    Measure("Value loss", "number", {"value_loss": ""}),
    Measure("Explained variance of the value head", "number", {"explained_variance": ""}),
    Measure("Entropy of a token", "number", {"entropy": ""}),
    Measure("Tokens of a response", "number", {"length": ""}),
    Measure("Responses", "percent", {"unfinished": "unfinished", "empty": "empty"}),
)
_LEVELS = "one", "other"
_OPINIONS = {"rewarded": 1, "neither": 0, "punished": -1}


class Column(NamedTuple):
    """What one stream said of the words of one iteration, in the table.

    Attributes:
      iteration: its number.
      rows: label → figure, as text.
    """

    iteration: int
    rows: dict[str, str]


class StreamScores(NamedTuple):
    """Scores of one stream in one run: a column of the table for each iteration.

    Attributes:
      run: by name.
      stream: by name.
      columns: of the first iteration and of the last.
    """

    run: str
    stream: str
    columns: list[Column]


def curves(runs: Mapping[str, Lines], measures: Sequence[Measure] = _MEASURES) -> list[Panel]:
    """Curves of the iterations: a panel for each measure that a run has.

    Args:
      runs: name → lines of `metrics/ppo.jsonl`, or of another stage's file.
      measures: of that stage.
    """
    found = []
    for measure in measures:
        drawn = {name: series for name, lines in runs.items() if (series := _series(lines, measure))}
        if not drawn:
            continue
        every = [curve for series in drawn.values() for curve in series.values()]
        x_limits = min(float(each.steps[0]) for each in every), max(float(each.steps[-1]) for each in every)
        y_limits = min(float(each.lowest.min()) for each in every), max(float(each.highest.max()) for each in every)
        svgs = {
            name: Markup(charts.curves(series, measure.title, x_limits, y_limits, unit=measure.unit))
            for name, series in drawn.items()
        }
        colors = dict.fromkeys(color for series in drawn.values() for color in series)
        names = dict(zip(_colors(measure), measure.keys.values(), strict=True))
        found.append(Panel(measure.title, svgs, {color: names[color] for color in colors if names[color]}))
    return found


def changes(runs: Mapping[str, Lines], measures: Sequence[Measure] = _MEASURES) -> dict[str, dict[str, str]]:
    """Label → run → a figure of its first iteration and that of its last, as text.

    Args:
      runs: as in `curves`.
      measures: the same.
    """
    found: dict[str, dict[str, str]] = {}
    for measure in measures:
        for key, label in measure.keys.items():
            for name, lines in runs.items():
                _, values = _numbers(lines, key)
                if values.size:
                    title = f"{measure.title}: {label}" if label else measure.title
                    ends = values[:1].tolist() + values[1:][-1:].tolist()
                    found.setdefault(title, {})[name] = " → ".join(_written(value, measure.unit) for value in ends)
    return found


def points_of(runs: Mapping[str, Lines]) -> int:
    """How many iterations a point of a curve stands for, at most."""
    return max((-(-len(lines) // charts.MAX_POINTS) for lines in runs.values()), default=1)


def scores(runs: Mapping[str, Rollouts], known: Mapping[str, KnownObjects]) -> tuple[list[Panel], list[StreamScores]]:
    """Scores of words in the first iteration and in the last: panels, and the figures that belong to them.

    Args:
      runs: by name.
      known: name → what is in a run's images, where that is known.
    """
    by_stream: dict[str, dict[str, list[WordScores]]] = {}
    for name, rollouts in runs.items():
        every = [rollout for each in rollouts.iterations for rollout in each.rollouts]
        for stream in streams_of(every):
            own = [word_scores(each.rollouts, stream, known.get(name)) for each in rollouts.iterations]
            if any(each.scores.size for each in own):
                by_stream.setdefault(stream, {})[name] = own
    panels, table = [], []
    for stream, found in by_stream.items():
        panels += _panels(stream, found, {name: [each.number for each in runs[name].iterations] for name in found})
        for name, own in found.items():
            pairs = zip(runs[name].iterations, own, strict=True)
            table.append(StreamScores(name, stream, [Column(each.number, _rows(one)) for each, one in pairs]))
    return panels, table


def labels(table: Sequence[StreamScores]) -> list[str]:
    """The rows of the table, in the order of the longest column."""
    columns = [column.rows for each in table for column in each.columns]
    return list(dict.fromkeys(label for rows in sorted(columns, key=len, reverse=True) for label in rows))


def _panels(stream: str, runs: Mapping[str, Sequence[WordScores]], numbers: Mapping[str, Sequence[int]]) -> list[Panel]:
    pooled = np.concatenate([one.scores for own in runs.values() for one in own])
    edges, label = charts.bin_edges(pooled, whole_range=False), f"score, {readable(stream)}"
    found = []
    for place in range(max(map(len, runs.values()))):
        here = {name: own[place] for name, own in runs.items() if place < len(own)}
        iterations = sorted({numbers[name][place] for name in here})
        title = f"{readable(stream).capitalize()}: {_iterations(iterations)}"
        found.append(histograms(title, {name: _by_kind(one) for name, one in here.items()}, label, edges))
    captions = {name: _by_caption(own[0]) for name, own in runs.items() if own[0].is_known.any()}
    if captions:
        title = f"{readable(stream).capitalize()}: the same by caption, first iteration"
        found.append(histograms(title, captions, "mean score of the words of the response", edges))
    both = {name: own for name, own in runs.items() if len(own) == 2}
    kinds = {"all scores": None, "correct words": 1, "hallucinated words": 0}
    for kind, truth in kinds.items():
        ends = {
            name: _ends(own, truth)
            for name, own in both.items()
            if truth is None or all(one.is_known.any() for one in own)
        }
        if ends:
            found.append(histograms(f"{readable(stream).capitalize()}: {kind}, first and last", ends, label, edges))
    return found


def _by_kind(one: WordScores) -> dict[str, np.ndarray]:
    """Correct against hallucinated words, where that is known; else as the stream saw it."""
    if one.is_known.any():
        return {"correct": one.scores[one.is_there == 1], "hallucinated": one.scores[one.is_there == 0]}
    return {opinion: one.scores[np.sign(one.worth) == sign] for opinion, sign in _OPINIONS.items()}


def _by_caption(one: WordScores) -> dict[str, np.ndarray]:
    is_there = one.is_there[one.is_known] == 1
    return {"correct": one.caption_scores[is_there], "hallucinated": one.caption_scores[~is_there]}


def _ends(own: Sequence[WordScores], truth: int | None) -> dict[str, np.ndarray]:
    taken = [one.scores if truth is None else one.scores[one.is_there == truth] for one in own]
    return dict(zip(("first", "last"), taken, strict=True))


def _iterations(numbers: Sequence[int]) -> str:
    return f"iteration{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _rows(one: WordScores) -> dict[str, str]:
    total = len(one.scores)
    rows = {"Responses": f"{one.num_responses:,}", "Words or sentences with a score": f"{total:,}"}
    if one.denied:
        rows["Left out: denied in the response"] = f"{one.denied:,}"
    if total:
        rows["Mean score"] = f"{one.scores.mean():.3f}"
        for opinion, sign in _OPINIONS.items():
            rows[opinion.capitalize()] = f"{percent(float((np.sign(one.worth) == sign).mean()), 1)}%"
    known = one.is_known
    if not known.any():
        return rows
    rows["Images whose objects are known"] = f"{one.num_known:,} of {one.num_images:,}"
    rows["Words for no known object"] = f"{total - int(known.sum()):,}"
    for label, truth in (("Correct", 1), ("Hallucinated", 0)):
        of_kind = one.is_there == truth
        count = int(of_kind.sum())
        rows[f"{label} words"] = f"{count:,} ({percent(count / int(known.sum()), 1)}%)"
        rows[f"{label}: mean score"] = f"{one.scores[of_kind].mean():.3f}" if count else "–"
        for opinion, sign in (("rewarded", 1), ("punished", -1)):
            share = float((np.sign(one.worth[of_kind]) == sign).mean()) if count else None
            rows[f"{label}: {opinion}"] = "–" if share is None else f"{percent(share, 1)}%"
    for label, scores in (("AUC by word", one.scores[known]), ("AUC by caption", one.caption_scores)):
        value = one.auc(scores)
        rows[label] = "–" if value is None else f"{value:.3f}"
    return rows


# Curves


def _series(lines: Lines, measure: Measure) -> dict[str, charts.Curve]:
    found = {}
    for color, key in zip(_colors(measure), measure.keys, strict=True):
        steps, values = _numbers(lines, key)
        if values.size:
            found[color] = charts.Curve.of(steps, values)
    return found


def _colors(measure: Measure) -> tuple[str, ...]:
    return tuple(measure.keys) if set(measure.keys) <= charts.COLORS.keys() else _LEVELS[: len(measure.keys)]


def _numbers(lines: Lines, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations in which a measure is a finite number, and what it is."""
    pairs = [(line.get("step"), line.get(key)) for line in lines]
    numbers = [pair for pair in pairs if all(isinstance(x, int | float) and np.isfinite(x) for x in pair)]
    table = np.array(numbers, float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _written(value: float, unit: str) -> str:
    text = f"{percent(abs(value), 1)}%" if unit == "percent" else f"{abs(value):.3g}"
    return f"−{text}" if value < 0 else text
