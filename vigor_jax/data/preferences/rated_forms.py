"""Forms in which answers are rated or compared by number: VLFeedback's, POVID's, LLaVA-RLHF's and our own."""

import re
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vigor_jax.data.preferences.parsed import Parsed, Row, Skipped, listed, name_of, short, text, text_or_none, turns
from vigor_jax.data.text.conversation import IMAGE_PLACEHOLDER
from vigor_jax.errors import InputError

LOWEST, HIGHEST = 1, 5  # ratings of VLFeedback

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*")


def vlfeedback(row: Row) -> Parsed:
    """VLFeedback's: several answers, each rated from 1 to 5 in several ways; their mean counts, as Silkie has it.

    An answer with a rating that is no number ("N/A") is left out. Equal answers become one, whose rating is the mean.
    """
    left_out: Counter[str] = Counter()
    ratings: dict[str, list[float]] = {}
    for number, completion in enumerate(_completions(row)):
        where = f"completion {number}"
        if not isinstance(completion, Mapping):
            raise InputError(f"{where}: expected an object with response and annotations, got {short(completion)}")
        try:
            response = text(completion, "response")
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        rating = _mean_rating(completion.get("annotations"), where)
        if rating is None:
            left_out["responses whose rating is no number"] += 1
            continue
        if response in ratings:
            left_out["responses that repeat another"] += 1
        ratings.setdefault(response, []).append(rating)
    if len(ratings) < 2:
        raise InputError(f"expected two rated responses or more, got {len(ratings)}")
    means = tuple(sum(each) / len(each) for each in ratings.values())
    return Parsed(text(row, "prompt"), tuple(ratings), means, name=name_of(row, "id"), left_out=left_out)


def _completions(row: Row) -> list[Any]:
    """Completions as a list, also where `datasets` has made lists of their fields."""
    value = row.get("completions")
    if not isinstance(value, Mapping):
        return list(listed(row, "completions"))
    columns = {key: each for key, each in value.items() if isinstance(each, list | tuple)}
    if len(set(map(len, columns.values()))) != 1:
        raise InputError(f"expected lists of equal length under 'completions', got {short(value)}")
    return [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]


def _mean_rating(annotations: Any, where: str) -> float | None:
    """The mean of all ratings; None if one is no number."""
    if not isinstance(annotations, Mapping) or not annotations:
        raise InputError(f"{where}: expected ratings under 'annotations', got {short(annotations)}")
    found = []
    for aspect, annotation in annotations.items():
        if annotation is None:  # Parquet has every way of rating in every row
            continue
        value = annotation.get("Rating") if isinstance(annotation, Mapping) else None
        if value is None or isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
            return None
        if not isinstance(value, str | int | float):
            raise InputError(f"{where}: expected a rating of {aspect}, got {short(value)}")
        number = float(value) if isinstance(value, str) else value
        if not LOWEST <= number <= HIGHEST:
            raise InputError(f"{where}: expected a rating of {aspect} from {LOWEST} to {HIGHEST}, got {short(value)}")
        found.append(float(number))
    return sum(found) / len(found) if found else None


def povid(row: Row) -> Parsed:
    """POVID's: a conversation as LLaVA has it, and one with worse answers.

    The last answers that differ are compared; what was said before is history, in the better one's words, and what
    follows is left out.
    """
    better, worse = turns(row, "conversations"), turns(row, "rejected_conversations")
    if len(better) != len(worse):
        raise InputError(f"expected conversations of equal length, got {len(better)} and {len(worse)} turns")
    differing = [index for index in range(1, len(better), 2) if better[index].text != worse[index].text]
    if not differing:
        raise InputError("the two conversations have equal answers; nothing is to be learned from them")
    last = differing[-1]
    for index in range(0, last, 2):
        if _words(better[index].text) != _words(worse[index].text):
            raise InputError(f"turn {index}: expected the same question in both conversations, got two")
    *history, question = (turn.text for turn in better[:last])
    responses = (better[last].text, worse[last].text)
    return Parsed(question, responses, history=tuple(history), name=name_of(row, "id"))


def _words(question: str) -> str:
    return question.replace(IMAGE_PLACEHOLDER, "").strip()


def llava_rlhf(row: Row) -> Parsed:
    """LLaVA-RLHF's: two answers to a conversation that ends with a question, and which is better: 1, 2, or 0 for a tie.

    Its own data know 1 and 2 only; a tie as 0 is AlpacaFarm's, whose form it is.
    """
    said = turns(row, "conversations")
    if not said or said[-1].role != "human":
        raise InputError("expected 'conversations' to end with a question, got an answer at its end")
    outputs = tuple(_output(row, key) for key in ("output_1", "output_2"))
    preference = row.get("preference")
    if isinstance(preference, str) and _NUMBER.fullmatch(preference):
        preference = float(preference)
    if isinstance(preference, bool) or preference not in (0, 1, 2):
        raise InputError(f"expected 1, 2 or 0 (a tie) under 'preference', got {short(row.get('preference'))}")
    if not preference:
        raise Skipped("ties")
    *history, question = (turn.text for turn in said)
    ratings = (1.0, 0.0) if preference == 1 else (0.0, 1.0)
    return Parsed(question, outputs, ratings, history=tuple(history), name=name_of(row, "id"))


def _output(row: Row, key: str) -> str:
    value = row.get(key)
    return text(value, "value") if isinstance(value, Mapping) else text(row, key)


def own(row: Row) -> Parsed:
    """Our own: the fields of `vigor_jax.records.Preference`."""
    responses, ratings, history = listed(row, "responses"), listed(row, "ratings"), listed(row, "history", ())
    if not all(isinstance(each, str) for each in (*responses, *history)):
        raise InputError("expected texts under 'responses' and 'history'")
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in ratings):
        raise InputError(f"expected numbers under 'ratings', got {short(ratings)}")
    if len(responses) != len(ratings):
        raise InputError(
            f"expected a rating for each response, got {len(responses)} responses and {len(ratings)} ratings"
        )
    if len(history) % 2:
        raise InputError("expected each question of the history with its answer, got an odd number of texts")
    if not all(abs(each) <= sys.float_info.max for each in ratings):  # nor is it for NaN
        raise InputError(f"expected finite ratings, got {short(list(ratings))}")
    whole = row.get("whole", True)
    if not isinstance(whole, bool):
        raise InputError(f"expected true or false under 'whole', got {short(whole)}")
    return Parsed(
        text(row, "prompt"), tuple(responses), tuple(map(float, ratings)), text_or_none(row, "context") or "", whole,
        tuple(history), name_of(row, "name"),
    )  # fmt: skip
