"""Agreement for people: tables on a terminal, and the same as a page; and as JSON for programs."""

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from vigor_jax.feedback.agreement import ASKED, ERROR, Agreement, Person
from vigor_jax.percent import percent


class Table(NamedTuple):
    """A table of figures, as text."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def text(found: Agreement) -> str:
    """Tables, and then what to do."""
    parts = [summary(found)]
    for table in tables(found):
        lines = [table.head, *table.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
        shown = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        parts.append("\n".join([table.title, *(f"  {line}" for line in shown)]))
    return "\n\n".join([*parts, "\n".join(found.advice)]).rstrip()


def page(found: Agreement) -> str:
    """The same as one HTML file that needs no other."""
    parts = [f"<h1>How well people agree</h1>\n<p>{escape(summary(found))}</p>"]
    if found.advice:
        parts.append("<ul>\n" + "\n".join(f"<li>{escape(each)}</li>" for each in found.advice) + "\n</ul>")
    for table in tables(found):
        rows = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in table.head)}</tr>"]
        rows += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows]
        parts.append(f"<h2>{escape(table.title)}</h2>\n<table>\n" + "\n".join(rows) + "\n</table>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>How well people agree</title>\n'
        f"<style>{_STYLE}</style>\n<main>\n" + "\n".join(parts) + "\n</main>\n</html>\n"
    )


_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em}"
    "main{overflow-x:auto}h2{font-size:1.1em;margin-top:1.6em}table{border-collapse:collapse}"
    "td,th{padding:.25em .8em;text-align:right;border-bottom:1px solid #8886;font-variant-numeric:tabular-nums}"
    "td:first-child,th:first-child{text-align:left}"
)


def record(found: Agreement) -> dict[str, Any]:
    """All figures, for JSON."""
    return {
        "descriptions": found.descriptions,
        "judged_by_several": found.overlapping,
        "sentences_judged_by_several": found.sentences,
        "alpha": found.alpha,
        "positives": found.positives,
        "pairs": [
            {"annotators": list(names), "sentences": count, "kappa": kappas}
            for names, (count, kappas) in found.pairs.items()
        ],
        "annotators": [person._asdict() for person in found.people],
        "advice": list(found.advice),
    }


def summary(found: Agreement) -> str:
    """How many people judged how much."""
    return (
        f"{found.descriptions} descriptions by {len(found.people)} people; {found.overlapping} of them, with "
        f"{found.sentences} sentences, by several"
    )


def tables(found: Agreement) -> list[Table]:
    """All figures, in the tables that have any."""
    kinds = list(ASKED)
    made = [
        Table(
            "Krippendorff's alpha",
            ["kind", "alpha", "said yes"],
            [[kind, _number(found.alpha[kind]), str(found.positives[kind])] for kind in kinds],
        ),
        Table(
            "Each person",
            ["annotator", "descriptions", "share", "seconds", "calls wrong", "like the others", "kappa"],
            [_person(person) for person in found.people],
        ),
        Table(
            "Kappa with the majority of the others",
            ["annotator", *kinds],
            [[person.annotator, *(_number(person.kappa[kind]) for kind in kinds)] for person in found.people],
        ),
        Table(
            "Kappa of two people",
            ["annotators", "sentences", *kinds],
            [
                [" and ".join(names), str(count), *(_number(kappas[kind]) for kind in kinds)]
                for names, (count, kappas) in found.pairs.items()
            ],
        ),
        Table(
            "First and second half of the work",
            ["annotator", "seconds 1st", "2nd", "calls wrong 1st", "2nd", "like the others 1st", "2nd"],
            [
                [
                    person.annotator,
                    *(_seconds(each) for each in person.halves["seconds"]),
                    *(_share(each) for kind in ("errors", "agreement") for each in person.halves[kind]),
                ]
                for person in found.people
            ],
        ),
    ]
    if known := [person for person in found.people if person.gold_sentences]:
        made.append(
            Table(
                "Against gold",
                ["annotator", "sentences", "kappa", "errors missed", "errors invented"],
                [
                    [
                        person.annotator,
                        str(person.gold_sentences),
                        _number(person.gold_kappa[ERROR]),
                        _share(person.gold_missed[ERROR]),
                        _share(person.gold_invented[ERROR]),
                    ]
                    for person in known
                ],
            )
        )
    return [table for table in made if table.rows]


def _person(person: Person) -> list[str]:
    return [
        person.annotator,
        str(person.descriptions),
        _share(person.share),
        _seconds(person.seconds),
        _share(person.errors),
        _share(person.agreement),
        _number(person.kappa[ERROR]),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{percent(value, 1)}%"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
