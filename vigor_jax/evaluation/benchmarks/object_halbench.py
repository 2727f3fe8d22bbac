"""Object HalBench: which objects that descriptions mention are not in their images (RLHF-V, Yu et al. 2023).

The figures are those of RLHF-V's `eval_gpt_obj_halbench.py`, and of SENTINEL's copy of it where they differ. A judge
lists the objects of an answer; their nouns are looked up in CHAIR's table of words, which RLHF-V refined. Departures:
an answer whose list cannot be read is shown and left out, where the script stops.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.evaluation.bootstrap import ratio
from vigor_jax.evaluation.image_names import ImageNames
from vigor_jax.evaluation.json_records import read_records, short
from vigor_jax.evaluation.judge.judge import MalformedReplyError
from vigor_jax.rewards.sentences import split_sentences

PROMPT = """\
Somebody was shown a picture, asked about it, and answered. List the objects that the answer says are visible there.

Question: {question}

Answer: {answer}

Take the answer as true. List only objects that it names itself, without their colors, materials, sizes and other \
properties, each once. Reply with a JSON list of strings and nothing else, such as ["dog", "traffic light"], or [] if \
the answer names no visible object.
"""
PLACES = ("question", "answer")
# Shorter answers name no object, and no judge is asked.
LEAST_WORDS = 4
# The last axis of counts.
COUNTS = (
    "answers", "with_objects", "hallucinated_answers", "mentions", "hallucinated", "objects", "objects_mentioned",
    "words",
)  # fmt: skip

# Of a phrase such as "a red car", each word's base form and its tag of the Penn treebank.
Tagged = Sequence[tuple[str, str]]

_BOXES = (re.compile(r"\(\[.*?\]\)"), re.compile(r"\(\[.*?\]\;"), re.compile(r"\[.*?\]\;"))
_DENIED = ("There is no", "There are no")


@dataclass(frozen=True)
class HalbenchQuestion:
    """A request for a description.

    Attributes:
        id: Its place in the file, from 0.
        image: The image, as the objects' files call it.
        question: The words.
        content: The image itself, where the file has it.
    """

    id: str
    image: str
    question: str
    content: bytes | None = None


@dataclass(frozen=True)
class Table:
    """Which words mean which object.

    Attributes:
        names: Word or words → object.
        pairs: Two words → the word that they count as.
    """

    names: Mapping[str, str]
    pairs: Mapping[str, str]


@dataclass(frozen=True)
class CheckedAnswer:
    """An answer against its image.

    Attributes:
        image: Its name.
        words: Words of the table that count.
        objects: The object of each word.
        present: The objects in the image.
        length: Words of the answer, cut at single spaces.
    """

    image: str
    words: tuple[str, ...]
    objects: tuple[str, ...]
    present: frozenset[str]
    length: int

    @property
    def hallucinated(self) -> tuple[str, ...]:
        """The words whose object is not in the image."""
        return tuple(w for w, name in zip(self.words, self.objects, strict=True) if name not in self.present)


def read_questions(path: Path, known: ImageNames) -> list[HalbenchQuestion]:
    """Reads `obj_halbench_300_with_image.jsonl`, or SENTINEL's `Object_HalBench.jsonl`.

    Args:
        path: Lines with `image_id`, `question`, and maybe the picture in base64 under `image`.
        known: The images whose objects are known.

    Raises:
        InputError: The file cannot be read or has no question, or a line is not as described.
    """
    questions = []
    for number, (place, record) in enumerate(read_records(path, {"question": str})):
        called = record.get("image_id")
        if isinstance(called, bool) or not isinstance(called, int | str):
            raise InputError(f"{place}: expected COCO's number of the image under 'image_id', got {short(called)}")
        found = known.find(str(called).removesuffix(".jpg"))
        if len(found) != 1:
            raise InputError(
                f"{place}: the objects of image {called} are not known; give COCO's instances and captions of its "
                "split as --objects"
            )
        content = _picture(record.get("image"), place)
        questions.append(HalbenchQuestion(str(number), found[0], record["question"], content))
    if not questions:
        raise InputError(f"{path}: expected Object HalBench's questions, got an empty file")
    return questions


def _picture(text: Any, place: str) -> bytes | None:
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise InputError(f"{place}: expected a picture in base64 under 'image', got {short(text)}") from None


def said(answer: str) -> str:
    """What counts of a saved answer: without the name of who says it."""
    return answer.replace("Assistant:", "").strip()


def without_negations(answer: str) -> str:
    """What SENTINEL counts of an answer: without boxes, and without sentences that say that there is no such thing."""
    for pattern in _BOXES:
        answer = pattern.sub("", answer)
    sentences = (answer[start:end] for start, end in split_sentences(answer))
    return " ".join(one for one in sentences if not any(words in one for words in _DENIED))


def parse_objects(reply: str) -> list[str]:
    """The objects of a judge's reply: a JSON list, alone, in a code block, or on the last line.

    Raises:
        MalformedReplyError: There is none.
    """
    text = reply.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    for part in (text, text.split("\n")[-1]):
        try:
            found = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return found
    raise MalformedReplyError("expected a JSON list of strings")


def nouns(names: Iterable[str], table: Table, read: Callable[[str], Tagged]) -> list[str]:
    """The words that a judge's objects count as: pairs of the table, else runs of nouns; each once, in order.

    Args:
        names: Such as "red cars".
        table: Whose pairs are looked for.
        read: Gives the base forms and tags of "a red cars".
    """
    found: list[str] = []
    for name in names:
        tagged = read(f"a {name}")
        found += _pairs([word for word, _ in tagged], table.pairs) or _runs(tagged)
    return list(dict.fromkeys(found))


def _pairs(words: Sequence[str], pairs: Mapping[str, str]) -> list[str]:
    found, place = [], 0
    while place < len(words):
        pair = " ".join(words[place : place + 2])
        found += [pairs[pair]] if pair in pairs else []
        place += 2 if pair in pairs else 1
    return found


def _runs(tagged: Tagged) -> list[str]:
    runs: list[list[str]] = [[]]
    for word, tag in tagged:
        if tag in ("NN", "NNS", "NNP", "NNPS"):
            runs[-1].append(word)
        elif runs[-1]:
            runs.append([])
    return [" ".join(run) for run in runs if run]


def joined(words: Sequence[str], pairs: Mapping[str, str]) -> list[str]:
    """Words in their base forms, with pairs as one."""
    found, place = [], 0
    while place < len(words):
        pair = " ".join(words[place : place + 2])
        found.append(pairs.get(pair, words[place]))
        place += 2 if pair in pairs else 1
    return found


def counted(words: Sequence[str], table: Table) -> list[str]:
    """The words that are in the table; "the seat of the toilet" is no chair."""
    is_of_toilet = "toilet" in words and "seat" in words
    return [word for word in words if word in table.names and not (is_of_toilet and word == "seat")]


def check(image: str, words: Sequence[str], present: frozenset[str], table: Table, length: int) -> CheckedAnswer:
    """Compares the words of an answer with its image; those that are not in the table do not count."""
    known = tuple(counted(words, table))
    return CheckedAnswer(image, known, tuple(table.names[word] for word in known), present, length)


def count(answers: Sequence[CheckedAnswer]) -> dict[str, np.ndarray]:
    """Image → int64 [8], the sums of `COUNTS` over its answers; `np.array(list(....values()))` is for `bootstrap`."""
    counts: dict[str, np.ndarray] = {}
    for one in answers:
        absent = len(one.hallucinated)
        right = one.present.intersection(one.objects)
        row = (1, bool(one.words), bool(absent), len(one.words), absent, len(one.present), len(right), one.length)
        counts[one.image] = counts.get(one.image, 0) + np.array(row, np.int64)
    return counts


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [..., 8] → figures, each float64 [...]; 0 where there is nothing to divide by.

    Returns:
        `chair_s`, answers with a hallucination / answers; `chair_s_refine`, the same / answers that name an object of
        the table, which RLHF-V reports; `chair_i`, hallucinated / all words that count; `recall`, objects in the images
        that are named / objects in the images; `words`, mean words of an answer.
    """
    column = dict(zip(COUNTS, np.moveaxis(np.asarray(counts), -1, 0), strict=True))
    return {
        "chair_s": ratio(column["hallucinated_answers"], column["answers"]),
        "chair_s_refine": ratio(column["hallucinated_answers"], column["with_objects"]),
        "chair_i": ratio(column["hallucinated"], column["mentions"]),
        "recall": ratio(column["objects_mentioned"], column["objects"]),
        "words": ratio(column["words"], column["answers"]),
    }
