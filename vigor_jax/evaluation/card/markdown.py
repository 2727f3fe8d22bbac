"""The card as Markdown: GitHub's tables, which the Hub shows in a model card, and no HTML."""

import re
from collections.abc import Sequence

from vigor_jax.evaluation.card.card import DRAWS, Card, Row, Section, Value, shown
from vigor_jax.evaluation.card.figures import Unit
from vigor_jax.percent import percent

HEADING = "Hallucination card"
# Not an underscore within a word, which is no emphasis.
_SPECIAL = re.compile(r"([\\`*\[\]<>&|~$#]|(?<!\w)_|_(?!\w))")


def to_markdown(card: Card) -> str:
    """The whole card, from a heading of the second level on."""
    lines = [f"## {HEADING}", "", _escaped(headline(card)), ""]
    for section in card.sections:
        lines += [f"### {_escaped(section.title)}", "", f"Protocol: {_escaped(section.protocol)}.", ""]
        lines += [*_table(card, section), ""]
        lines += [f"- {_escaped(note)}" for note in section.notes] + [""] * bool(section.notes)
        lines += [*_settings(card.systems, section), ""]
    if card.skipped:
        lines += ["### Not evaluated", ""]
        lines += [f"- {_escaped(each.name)}: {_escaped(each.reason)}" for each in card.skipped] + [""]
    return "\n".join(lines).rstrip() + "\n"


def to_text(card: Card) -> str:
    """The figures for a terminal, a column for each model."""
    rows = [(section, row) for section in card.sections for row in section.rows]
    labels = [f"{section.title} {row.label}" for section, row in rows]
    width = max(map(len, labels), default=0) + 2
    column = max(12, *(len(name) + 2 for name in card.systems))
    told = "difference, paired" if len(card.systems) == 2 else ""
    lines = [" " * width + "".join(f"{name:>{column}}" for name in card.systems) + f"  {told}".rstrip()]
    for label, (_, row) in zip(labels, rows, strict=True):
        values = "".join(f"{written(each.value, row.unit) if each else '-':>{column}}" for each in row.values)
        lines.append(f"{label:{width}}{values}  {difference(row)}".rstrip())
    return "\n".join(lines + [f"not evaluated: {each.name}: {each.reason}" for each in card.skipped])


def written(value: float, unit: Unit, *, sign: bool = False) -> str:
    """A figure as text, with a true minus: "43.2", of a share in percent, or "0.432"."""
    digits = 3 if unit == "score" else 1
    text = percent(abs(value), 1) if unit == "percent" else f"{abs(value):.{digits}f}"
    is_zero = not float(text.lstrip("<>"))
    return ("" if is_zero else "−" if value < 0 else "+" if sign else "") + text


def interval(value: Value, unit: Unit) -> str:
    """ "40.1 to 46.3", or "" where there is none."""
    return (
        "" if value.low is None or value.high is None else f"{written(value.low, unit)} to {written(value.high, unit)}"
    )


def difference(row: Row) -> str:
    """ "−4.1 (−6.0 to −2.3), p = 0.002, better", or "" where it cannot be told."""
    if (found := row.difference) is None:
        return ""
    value, low, high = (written(each, row.unit, sign=True) for each in (found.value, found.low, found.high))
    return f"{value} ({low} to {high}), {p_value(found.p_value)}" + (f", {row.verdict}" if row.verdict else "")


def p_value(value: float) -> str:
    """ "p = 0.012", and below what the draws can tell "p < 0.002"."""
    least = 2 / (DRAWS + 1)
    return f"p < {least * 1.0001:.3f}" if value <= least * 1.0001 else f"p = {value:.3f}"


def headline(card: Card) -> str:
    """What the card is about, and how to read it."""
    intervals = "Intervals of 95% are by a bootstrap over images"
    if len(card.systems) == 1:
        return f"{intervals}."
    rows = [row for section in card.sections for row in section.rows if row.better and row.difference]
    better, worse = (sum(row.verdict == verdict for row in rows) for verdict in ("better", "worse"))
    told = f"of {len(rows)} figures {better} are better, {worse} worse" if rows else "no figure compares"
    return (
        f"{card.systems[1]} against {card.systems[0]}: {told}. "
        f"{intervals}; those of a difference, and its two-sided p, by a paired one over the images of both. A "
        "difference is called better or worse where its interval leaves out 0, as about one of twenty does by chance."
    )


def _table(card: Card, section: Section) -> list[str]:
    places = shown(card, section)
    both = len(places) == 2
    head = ["figure", *(card.systems[place] for place in places), *(["difference"] if both else [])]
    lines = [f"| {' | '.join(map(_escaped, head))} |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in section.rows:
        unit = " (%)" if row.unit == "percent" else ""
        arrow = {"lower": " ↓", "higher": " ↑", "": ""}[row.better]
        cells = [f"{_escaped(row.label)}{unit}{arrow}"]
        for place in places:
            cells.append(_cell(row.values[place], row.unit))
        cells += [difference(row)] if both else []
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(value: Value | None, unit: Unit) -> str:
    if value is None:
        return ""
    limits = interval(value, unit)
    return written(value.value, unit) + (f" ({limits})" if limits else "")


def _settings(systems: Sequence[str], section: Section) -> list[str]:
    """How the answers were drawn, once if all models were asked the same."""
    told = {name: settings(own) for name, own in zip(systems, section.settings, strict=True) if own}
    return [f"- Settings, {_escaped(name)}: {_escaped(text)}" for name, text in told.items()]


def settings(own: object) -> str:
    """Settings as "key value, key value", those of objects with dots."""
    return ", ".join(f"{key} {value}" for key, value in _flat(own))


def _flat(own: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(own, dict):
        return [pair for key, value in own.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(own, list):
        return [(prefix, " and ".join(map(str, own)))]
    return [(prefix, str(own))]


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
