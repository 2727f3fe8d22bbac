"""What each person said, before it is put together: `judgments.jsonl`, one person and one description a line.

    {"annotator": "3", "task": 12, "seconds": 41.5, "created": "2026-05-01T10:00:00Z", "note": "",
     "annotation": {"image": "a.jpg", "description": "A car.", "sentences": [{"text": "A car.", "errors": []}]}}

`annotation` is as in `annotations.jsonl`.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vigor_jax.data.records.annotations import annotation_record, parse_annotation
from vigor_jax.data.records.json_rows import json_rows
from vigor_jax.data.records.store import write_atomically
from vigor_jax.errors import InputError
from vigor_jax.records import Annotation


@dataclasses.dataclass(frozen=True)
class Judgment:
    """What one person said of one description.

    Attributes:
      annotator: who: the user's number in Label Studio, or a name.
      annotation: what.
      task: of the description; "" if it has no number.
      seconds: that it took, None if that is not known.
      created: when, as ISO 8601; "" if that is not known.
      note: what else the person wrote.
    """

    annotator: str
    annotation: Annotation
    task: str = ""
    seconds: float | None = None
    created: str = ""
    note: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What it is about."""
        return self.annotation.image, self.annotation.description


def write_judgments(path: str | Path, judgments: Iterable[Judgment]) -> None:
    """Writes what `read_judgments` reads; the file appears when it is complete."""
    with write_atomically(path) as file:
        for judgment in judgments:
            line = dataclasses.asdict(judgment) | {"annotation": annotation_record(judgment.annotation)}
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def read_judgments(path: Path) -> list[Judgment]:
    """Reads a file of judgments.

    Raises:
      InputError: it cannot be read, a line is not as described (its number is named), or one person judges one
        description twice.
    """
    found: dict[tuple[str, str, str], Judgment] = {}
    for row in json_rows(path, "judgments"):
        place = f"{path}, {row.label}"
        try:
            record = row.record()
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        judgment = _judgment(record, place)
        key = (judgment.annotator, *judgment.key)
        if key in found:
            raise InputError(
                f"{place}: annotator {judgment.annotator} judges a description of {judgment.annotation.image!r} a "
                "second time; keep one of the two lines"
            )
        found[key] = judgment
    if not found:
        raise InputError(f"{path}: expected judgments, got none; python -m vigor_jax.annotate import writes them")
    return list(found.values())


def _judgment(record: Any, place: str) -> Judgment:
    if not isinstance(record, dict) or not isinstance(record.get("annotator"), str) or not record["annotator"]:
        raise InputError(f"{place}: expected an object with annotator and annotation, as annotate import writes it")
    seconds = record.get("seconds")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0):
        raise InputError(f"{place}: expected a number of seconds or null, got {seconds!r}")
    annotation = parse_annotation(record.get("annotation"), place)
    texts = (record.get("task", ""), record.get("created", ""), record.get("note", ""))
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{place}: expected text under task, created and note")
    task, created, note = texts
    return Judgment(record["annotator"], annotation, task, seconds, created, note)
