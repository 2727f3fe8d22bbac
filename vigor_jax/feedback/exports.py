"""Reads what Label Studio exports, JSON or JSON_MIN, as judgments.

What a person did not finish or did wrongly is told by task and person, and never guessed.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import fsspec

from vigor_jax.data.records.bad_rows import BadRow, bad_row
from vigor_jax.errors import InputError, some
from vigor_jax.feedback.form import DETAIL, JUDGMENT, MISSING, MOST_DETAIL, NOTE, judged_sentence, read_labels
from vigor_jax.feedback.judgments import Judgment
from vigor_jax.feedback.tasks import Description, described
from vigor_jax.records import Annotation, Span


@dataclasses.dataclass
class Exported:
    """What an export holds.

    Attributes:
      judgments: in its order.
      bad: tasks and judgments that cannot be used, with the reason.
      total: judgments, with the bad ones and without those that were skipped or not handed in.
      left_out: what else there was, by its name in the plural.
    """

    judgments: list[Judgment] = dataclasses.field(default_factory=list)
    bad: list[BadRow] = dataclasses.field(default_factory=list)
    total: int = 0
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)


class _Given(NamedTuple):
    """What one person handed in.

    Attributes:
      task: number of the task, as text.
      annotator: who, as text.
      regions: start, end and labels of each.
      answers: to the questions about the whole description.
    """

    task: str
    annotator: str
    data: Any
    regions: list[Any]
    answers: Mapping[str, Any]
    seconds: Any
    created: str


def read_export(place: str) -> Exported:
    """Reads an export from a file, local or remote.

    Raises:
      InputError: it cannot be read, or is not an export.
    """
    try:
        with fsspec.open(place, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{place}: cannot read the export ({reason}); check the path") from error
    try:
        tasks = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{place}: expected Label Studio's export as JSON or JSON_MIN, got no JSON ({error})"
        ) from error
    return exported(tasks, place)


def exported(tasks: Any, place: str) -> Exported:
    """Reads an export from its JSON.

    Args:
      tasks: the JSON.
      place: where it is from, for messages.

    Raises:
      InputError: it is not an export.
    """
    if not isinstance(tasks, list):
        raise InputError(f"{place}: expected a list, as Label Studio exports JSON and JSON_MIN, got {_short(tasks)}")
    found = Exported()
    seen: dict[tuple[str, str], list[tuple[str, Judgment | None]]] = {}
    for index, task in enumerate(tasks):
        if not isinstance(task, dict):
            found.bad.append(bad_row(place, index, f"index {index}", None, f"expected a task, got {_short(task)}"))
            continue
        number = str(task.get("id", f"at index {index}"))
        try:
            description = described(task.get("data", task))
        except InputError as error:
            found.bad.append(bad_row(place, index, f"task {number}", None, str(error)))
            continue
        for given in _given(task, number, found.left_out):
            found.total += 1
            label = f"task {number}, annotator {given.annotator}"
            judgment = None
            try:
                judgment = _judgment(given, description, found.left_out)
            except InputError as error:
                found.bad.append(bad_row(place, index, label, None, str(error)))
            seen.setdefault((description.key, given.annotator), []).append((number, judgment))
    for (_, annotator), own in seen.items():
        if len(own) > 1:
            numbers = some(dict.fromkeys(number for number, _ in own))
            reason = f"judged the same description {len(own)} times; delete all but one in Label Studio"
            found.bad.append(bad_row(place, 0, f"task {numbers}, annotator {annotator}", None, reason))
        elif own[0][1]:
            found.judgments.append(own[0][1])
    return found


def _given(task: dict[str, Any], number: str, left_out: Counter[str]) -> Iterator[_Given]:
    """What people handed in for a task, or for the one judgment of JSON_MIN."""
    if "annotations" not in task:
        if task.get("annotation_id") is None:
            left_out["tasks that nobody judged"] += 1
            return
        regions = task.get(JUDGMENT) or []
        answers = {name: task[name] for name in (DETAIL, MISSING, NOTE) if name in task}
        who = _name(task.get("annotator"))
        yield _Given(number, who, task, regions, answers, task.get("lead_time"), str(task.get("created_at") or ""))
        return
    drafts = [draft for draft in task.get("drafts") or [] if not (isinstance(draft, dict) and draft.get("annotation"))]
    left_out["drafts that were not handed in"] += len(drafts)
    given = [each for each in task["annotations"] or [] if isinstance(each, dict)]
    if not given and not drafts:
        left_out["tasks that nobody judged"] += 1
    for each in given:
        if each.get("was_cancelled") or each.get("skipped"):
            left_out["descriptions that a person skipped"] += 1
            continue
        regions, answers = _sorted(each.get("result") or [])
        who, created = _name(each.get("completed_by")), str(each.get("created_at") or "")
        yield _Given(number, who, task["data"], regions, answers, each.get("lead_time"), created)


def _sorted(results: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Regions, and answers about the whole, of the results of JSON."""
    regions: list[Any] = []
    answers: dict[str, Any] = {}
    for result in results:
        name = result.get("from_name") if isinstance(result, dict) else None
        value = result.get("value") if isinstance(result, dict) else result
        if name == JUDGMENT:
            regions.append(value)
        else:
            answers.setdefault(str(name), []).append(value)
    return regions, answers


def _name(who: Any) -> str:
    if isinstance(who, dict):  # an export of a server that spells users out
        return str(who.get("email") or who.get("id") or "")
    return "" if who is None else str(who)


def _judgment(given: _Given, description: Description, left_out: Counter[str]) -> Judgment:
    if not given.annotator:
        raise InputError("does not say who judged it; export again with the annotators")
    if unknown := [name for name in given.answers if name not in (DETAIL, MISSING, NOTE)]:
        raise InputError(f"has results of {some(unknown)}, which the form lacks; restore the labeling interface")
    if not isinstance(given.regions, list):
        raise InputError(f"expected a list of regions, got {_short(given.regions)}")
    judged: list[list[str]] = [[] for _ in description.sentences]
    for region in given.regions:
        number, labels, is_edited = _placed(region, description)
        judged[number] += labels
        left_out["regions that were drawn smaller than their sentence, and taken"] += is_edited
    sentences = []
    for number, (span, labels) in enumerate(zip(description.sentences, judged, strict=True), 1):
        try:
            read = read_labels(labels)
        except InputError as error:
            raise InputError(f"sentence {number} ({_short(description.text[slice(*span)])}) {error}") from error
        left_out["sentences with two wrong attributes, stored without their names"] += read.is_ambiguous
        sentences.append(judged_sentence(span, read))
    annotation = Annotation(
        description.image, description.text, tuple(sentences), _detail(given.answers.get(DETAIL)),
        tuple(_texts(given.answers.get(MISSING), MISSING)),
    )  # fmt: skip
    note = "\n".join(_texts(given.answers.get(NOTE), NOTE))
    seconds = given.seconds
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
        seconds = None
    return Judgment(given.annotator, annotation, given.task, seconds, given.created, note)


def _placed(region: Any, description: Description) -> tuple[int, list[str], bool]:
    """The sentence that a region is in, its labels, and whether it is smaller than that."""
    text = description.text
    labels = region.get("labels") or [] if isinstance(region, dict) else None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"expected a region with labels, got {_short(region)}")
    start, end = (region.get(key) for key in ("start", "end"))
    try:
        start, end = int(start), int(end)
    except (TypeError, ValueError):
        raise InputError(f"expected a region with start and end, got {_short(region)}") from None
    if not 0 <= start < end <= len(text):
        raise InputError(f"has a region {start} to {end}, which is outside of the {len(text)} letters of its text")
    if isinstance(said := region.get("text"), str) and _words(said) != _words(text[start:end]):
        raise InputError(f"region {start} to {end} is {_short(text[start:end])}, but the export says {_short(said)}")
    part = text[start:end]
    first = start + len(part) - len(part.lstrip())
    last = max(first, start + len(part.rstrip()))
    touched = [number for number, span in enumerate(description.sentences) if first < span.end and span.start < last]
    if len(touched) != 1:
        over = f"sentences {touched[0] + 1} and {touched[-1] + 1}" if touched else "no sentence"
        raise InputError(f"region {start} to {end} ({_short(part)}) is over {over}; delete it, and judge each sentence")
    span = description.sentences[touched[0]]
    return touched[0], labels, bool(labels) and Span(first, last) != span


def _words(text: str) -> list[str]:
    return text.replace("\\n", "\n").split()  # line breaks of a region may be written out


def _detail(value: Any) -> int | None:
    value = value[-1] if isinstance(value, list) and value else value
    value = value.get("rating") if isinstance(value, dict) else value
    if value is None or value == [] or value == 0:  # no star
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_DETAIL:
        raise InputError(f"expected a level of detail from 1 to {MOST_DETAIL}, got {_short(value)}")
    return value


def _texts(value: Any, name: str) -> Iterator[str]:
    """Texts of a field, which JSON_MIN shortens if it is one."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict):
            yield from _texts(each.get("text"), name)
        elif isinstance(each, str):
            if each.strip():
                yield each
        elif each is not None:
            raise InputError(f"expected text under {name!r}, got {_short(each)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
