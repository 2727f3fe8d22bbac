"""How well the people agree whose judgments a run's reward model learns from."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vigor_jax.errors import InputError
from vigor_jax.feedback.agreement import measure
from vigor_jax.feedback.agreement_text import Table, summary, tables
from vigor_jax.feedback.judgments import read_judgments

logger = logging.getLogger(__name__)

JUDGMENTS = ".judgments.jsonl"  # in place of .jsonl, next to annotations that people made in Label Studio
MOST_ROWS = 30


class Annotators(NamedTuple):
    """The people behind one file of annotations.

    Attributes:
      title: whose annotations: of which runs and sources.
      file: of the judgments.
      summary: how many people judged how much.
      advice: what to do, a sentence each.
      tables: of at most `MOST_ROWS` rows.
      longer: titles of those that have more.
    """

    title: str
    file: str
    summary: str
    advice: list[str]
    tables: list[Table]
    longer: list[str]


def annotation_files(train_reward: Any) -> Iterator[tuple[str, str]]:
    """The files of annotations that a config's section names, each with its source's name ("" if it has none)."""
    section = train_reward if isinstance(train_reward, Mapping) else {}
    if isinstance(own := section.get("annotations"), str):
        yield "", own
    sources = section.get("sources")
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, Mapping) and isinstance(source.get("annotations"), str):
            yield str(source.get("name", "")), source["annotations"]


def judgments_of(annotations: str) -> str:
    """Where `annotate import` writes what each person said."""
    return annotations.removesuffix(".jsonl") + JUDGMENTS


def shown(judgments: Mapping[str, Mapping[str, Path]]) -> list[Annotators]:
    """What the page says of people; each file once. One that cannot be read is told and left out.

    Args:
      judgments: run → source → file of judgments.
    """
    titles: dict[Path, list[str]] = {}
    for run, files in judgments.items():
        for source, path in files.items():
            parts = ([run] if len(judgments) > 1 else []) + ([source] if source else [])
            titles.setdefault(path.resolve(), []).append(": ".join(parts))
    found = []
    for path, names in titles.items():
        try:
            agreement = measure(read_judgments(path))
        except InputError as error:
            logger.warning("the report says nothing of annotators: %s", error)
            continue
        every = tables(agreement)
        found.append(
            Annotators(
                title=", ".join(filter(None, names)),
                file=path.name,
                summary=summary(agreement),
                advice=list(agreement.advice),
                tables=[table for table in every if len(table.rows) <= MOST_ROWS],
                longer=[table.title for table in every if len(table.rows) > MOST_ROWS],
            )
        )
    return found
