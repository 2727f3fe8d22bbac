"""Makes a card of results: values next to each other, and a paired test of each difference.

Two models stand next to each other only if both were evaluated by the same protocol.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.evaluation.bootstrap import Difference, bootstrap, paired_bootstrap
from vigor_jax.evaluation.card import texts
from vigor_jax.evaluation.card.card import DRAWS, LEVEL, SEED, Card, Row, Section, Value
from vigor_jax.evaluation.card.figures import FIGURES, TEXTS, TITLES, Figure, Rates, parts_of, rates_of, strata_of
from vigor_jax.evaluation.card.results import Result, Skipped, System
from vigor_jax.evaluation.image_counts import ImageCounts


def make_card(systems: Sequence[System], skipped: Sequence[Skipped] = ()) -> Card:
    """Compares the results of one model or two.

    Raises:
        InputError: There is no result, or one of a benchmark twice by the same protocol, or there are more models.
    """
    if len(systems) > 2:
        raise InputError(f"card: expected the results of one model or two, got those of {len(systems)}; give two")
    if not any(system.results for system in systems):
        told = "; ".join(f"{each.name}: {each.reason}" for each in skipped[:2])
        raise InputError(f"card: expected the results of one model or two, got none{f' ({told})' if told else ''}")
    keyed: list[dict[tuple[str, str], Result]] = []
    for system in systems:
        own: dict[tuple[str, str], Result] = {}
        for result in system.results:
            key = result.name, result.protocol_key
            if key in own:
                raise InputError(
                    f"card: {system.name} has two results of {result.name} by one protocol, {result.protocol}; give one"
                )
            own[key] = result
        keyed.append(own)
    order = {name: place for place, name in enumerate([*FIGURES, *TITLES])}
    keys = sorted({key for own in keyed for key in own}, key=lambda key: (order.get(key[0], len(order)), key))
    names = tuple(system.name for system in systems)
    sections = [_section(names, [own.get(key) for own in keyed], _apart(key, keys, names, keyed)) for key in keys]
    return Card(names, tuple(sections), tuple(skipped))


def _apart(
    key: tuple[str, str],
    keys: Sequence[tuple[str, str]],
    names: Sequence[str],
    keyed: Sequence[Mapping[tuple[str, str], Result]],
) -> list[str]:
    """What to say of a benchmark that was evaluated by several protocols."""
    same = [other for other in keys if other[0] == key[0]]
    if len(same) == 1:
        return []
    told = [
        f"{name} by {own[other].protocol}"
        for name, own in zip(names, keyed, strict=True)
        for other in same
        if other in own
    ]
    return [f"Evaluated by different protocols, so the figures do not compare: {', '.join(told)}."]


def _section(names: Sequence[str], results: Sequence[Result | None], notes: list[str]) -> Section:
    is_mixed = bool(notes)
    there = [result for result in results if result]
    first = there[0]
    rows: list[Row] = []
    parts: dict[str, dict[Figure, None]] = {}
    metrics: list[dict[str, Mapping[str, Any]]] = []
    for result in results:
        own = {}
        for part, values, known in parts_of(result.benchmark, result.metrics) if result else ():
            own[part] = values
            parts.setdefault(part, {}).update(dict.fromkeys(known))
        metrics.append(own)
    for part, of_part in parts.items():
        cells = [values.get(part) for values in metrics]
        rates = rates_of(first.benchmark, part, first.name)
        counts = [result.counts.get(part) if result else None for result in results]
        rows += _rows(part, tuple(of_part), cells, first.benchmark, rates, counts, names, notes)
    own_words = any(row.key == "words" for row in rows)
    counted = [result.texts if result else None for result in results]
    if any(counted):
        told = [_text_metrics(each) if each else None for each in counted]
        own_figures = tuple(
            figure
            for figure in TEXTS
            if any(each and figure.key in each for each in told) and not (own_words and figure.key == "words")
        )
        rows += _rows("", own_figures, told, "texts", texts.rates, counted, names, notes)
    if len(names) == 2 and len(there) == 1 and not notes:
        (lacking,) = (name for name, result in zip(names, results, strict=True) if not result)
        notes.append(f"There is no result of {lacking}.")
    protocol = "; ".join([first.protocol, *first.protocol_notes])
    for name, result in zip(names, results, strict=True):
        for warning in result.metrics.get("warnings", ()) if result else ():
            notes.append(f"{name}: {warning}.")
        if result and (judge := result.metrics.get("judge")):
            notes.append(f"{name}: judged by {judge.get('model')}, {_replies(result.metrics)}.")
    settings = tuple(_settings(result) if result else {} for result in results)
    title = TITLES.get(first.name, first.name)
    if is_mixed:
        title += f", {first.protocol.partition(' (')[0]}"
    return Section(first.name, title, protocol, tuple(rows), tuple(dict.fromkeys(notes)), settings)


def _rows(
    part: str,
    figures: Sequence[Figure],
    metrics: Sequence[Mapping[str, Any] | None],
    benchmark: str,
    rates: Rates | None,
    counts: Sequence[ImageCounts | None],
    names: Sequence[str],
    notes: list[str],
) -> list[Row]:
    differences: Mapping[str, Difference] = {}
    images = 0
    if len(metrics) == 2 and all(metrics):
        differences, images = _differences(part, benchmark, rates, counts, names, notes)
    rows = []
    for figure in figures:
        values = tuple(_value(own, figure.key) if own else None for own in metrics)
        difference = differences.get(figure.key)
        label = f"{part}, {figure.label}" if part else figure.label
        rows.append(Row(part, figure.key, label, figure.unit, figure.better, values, difference, images))
    return rows


def _differences(
    part: str,
    benchmark: str,
    rates: Rates | None,
    counts: Sequence[ImageCounts | None],
    names: Sequence[str],
    notes: list[str],
) -> tuple[Mapping[str, Difference], int]:
    """The last model minus the first, on the images of both, and how many these are."""
    if lacking := [name for name, own in zip(names, counts, strict=True) if not own]:
        notes.append(
            f"No test of the difference: {lacking[0]} has no counts.json with what was counted on each image; evaluate "
            "again with the same --out, which asks nothing again."
        )
        return {}, 0
    first, last = (own or {} for own in counts)
    common = [image for image in first if image in last and np.shape(first[image]) == np.shape(last[image])]
    left = [len(own) - len(common) for own in (first, last)]
    if any(left):
        which = f"{part}: " if part else ""
        notes.append(
            f"{which}{left[0]} images of {names[0]} and {left[1]} of {names[1]} are of one model only; the differences "
            f"are over the other {len(common)}."
        )
    if not common or rates is None:
        return {}, len(common)
    own, other = (np.array([counts[image] for image in common]) for counts in (last, first))
    strata = strata_of(benchmark, own)
    return paired_bootstrap(own, other, rates, num=DRAWS, seed=SEED, level=LEVEL, strata=strata), len(common)


def _value(metrics: Mapping[str, Any], key: str) -> Value | None:
    value = metrics.get(key)
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    limits = metrics.get("intervals", {}).get(key) or ()
    low, high = limits if limits and all(map(math.isfinite, limits)) else (None, None)
    return Value(float(value), low, high)


def _text_metrics(counts: ImageCounts) -> dict[str, Any]:
    rows = np.array(list(counts.values()))
    return {**texts.metrics(counts), "intervals": bootstrap(rows, texts.rates, num=DRAWS, seed=SEED, level=LEVEL)}


def _replies(metrics: Mapping[str, Any]) -> str:
    """How much a judge has said, in this run or in earlier ones."""
    spent = metrics.get("spending", {})
    replies, prompt, completion = (
        sum(spent.get(which, {}).get(key, 0) for which in ("asked", "cached"))
        for key in ("replies", "prompt_tokens", "completion_tokens")
    )
    unread = len(metrics.get("malformed", ()))
    return f"{replies:,} replies, {prompt + completion:,} tokens" + (f", {unread} could not be read" if unread else "")


def _settings(result: Result) -> dict[str, Any]:
    """How a model was asked, without what only the machine knows."""
    own = {
        key: "/".join(PurePath(value).parts[-2:]) if isinstance(value, str) and PurePath(value).is_absolute() else value
        for key, value in result.settings.items()
    }
    policy = result.metrics.get("policy")
    return own | {key: value for key, value in (policy or {}).items() if value is not None}
