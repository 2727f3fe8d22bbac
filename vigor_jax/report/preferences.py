"""What the page shows of learning from preferences: curves of its updates, and some of the run's own pairs."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vigor_jax.data.records import store
from vigor_jax.data.records.schemas import reader_of
from vigor_jax.disk import naming
from vigor_jax.errors import InputError
from vigor_jax.records import Preference
from vigor_jax.report import ppo_panels
from vigor_jax.report.panels import Panel
from vigor_jax.report.ppo_panels import Lines, Measure

FILE = "preferences.parquet"
MAX_PAIRS = 8  # of all runs together

_MEASURES = (
    Measure("Loss", "number", {"loss": ""}),
    Measure("Pairs whose better response scores higher", "percent", {"accuracy": ""}),
    Measure("Margin of a pair", "number", {"margin": ""}),
    Measure("Reward of a response", "number", {"better_reward": "better", "worse_reward": "worse"}),
    Measure("Log-probability of the better response", "number", {"better_logps": ""}),
    Measure("Loss with another image", "number", {"image_loss": ""}),
)
# Pieces of a text, each with whether the other text of its pair has other words there.
Pieces: TypeAlias = list[tuple[str, bool]]


class Pair(NamedTuple):
    """A pair as the page shows it.

    Attributes:
      image: name below the image folder.
      prompt: the question.
      context: how the answer begins that both continue; "" if they are whole answers.
      better: the better response.
      worse: the worse one.
    """

    image: str
    prompt: str
    context: str
    better: Pieces
    worse: Pieces


def curves(runs: Mapping[str, Lines]) -> list[Panel]:
    """As `ppo_panels.curves`, of `metrics/dpo.jsonl`."""
    return ppo_panels.curves(runs, _MEASURES)


def changes(runs: Mapping[str, Lines]) -> dict[str, dict[str, str]]:
    """As `ppo_panels.changes`, of `metrics/dpo.jsonl`."""
    return ppo_panels.changes(runs, _MEASURES)


def read_pairs(records: str, most: int) -> list[Pair]:
    """Some of the pairs that a run has made, spread evenly; of several responses the best and the worst.

    Args:
      records: folder or URL of the run's records.
      most: how many.

    Raises:
      InputError: the file is damaged.
    """
    path = store.join(records, FILE)
    system, inside = fsspec.core.url_to_fs(path)
    if not system.exists(inside):
        return []
    try:
        with naming(path), system.open(inside, "rb") as file:
            table = pq.read_table(file)
        places = np.linspace(0, table.num_rows - 1, min(most, table.num_rows)).astype(int)
        of_row = reader_of(Preference)
        return [_pair(of_row(row)) for row in table.take(places).to_pylist()]
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); run the stage pair again") from error


def _pair(preference: Preference) -> Pair:
    best, worst = (pick(range(len(preference.ratings)), key=preference.ratings.__getitem__) for pick in (max, min))
    better, worse = difference(preference.responses[best], preference.responses[worst])
    return Pair(preference.image, preference.prompt, preference.context, better, worse)


def difference(one: str, other: str) -> tuple[Pieces, Pieces]:
    """Both texts in pieces: what they have in common, word by word, and what they have not."""
    words: list[list[str]] = [re.findall(r"\s*\S+\s*$|\s*\S+", text) for text in (one, other)]
    found: tuple[Pieces, Pieces] = ([], [])
    for tag, *ends in difflib.SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes():
        for side, (start, end) in enumerate((ends[:2], ends[2:])):
            if start < end:
                found[side].append(("".join(words[side][start:end]), tag != "equal"))
    return found


def shown(runs: Mapping[str, tuple[Lines, list[Pair]]], numbers: Mapping[str, list[int]]) -> dict[str, Any]:
    """What the template is filled with; empty if no run has learned from preferences.

    Args:
      runs: name → lines of `metrics/dpo.jsonl`, and pairs.
      numbers: name → numbers of the pairs' pictures.
    """
    lines = {name: own for name, (own, _) in runs.items() if own}
    pairs = {name: list(zip(found, numbers[name], strict=True)) for name, (_, found) in runs.items() if found}
    if not lines and not pairs:
        return {}
    counts = {"Updates": {name: str(own[-1].get("step")) for name, own in lines.items()}}
    return {
        "runs": list(lines),
        "changes": counts | changes(lines),
        "curves": curves(lines),
        "points": ppo_panels.points_of(lines),
        "pairs": pairs,
    }
