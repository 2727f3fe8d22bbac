"""The public layouts: M-HalDetect's, RLHF-V's and HalLoc's."""

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from vigor_jax.errors import InputError
from vigor_jax.feedback.public.parsed import Layout, Mark, Parsed, Row, listed, short, span_of, text_of
from vigor_jax.records import Span
from vigor_jax.rewards.sentences import split_sentences


def m_haldetect(row: Row) -> Parsed:
    """M-HalDetect (Gunjal et al. 2023): parts of a response to a COCO image, each with a class."""
    text = text_of(row, "response")
    given = _decoded(row.get("annotations"), "annotations")
    marks = []
    for index, part in enumerate(listed(given, "annotations")):
        where = f"annotations, part {index}"
        span = span_of(part, text, where)
        label = next((part[key] for key in ("label", "class", "class_label") if isinstance(part.get(key), str)), None)
        if label is None:
            raise InputError(f"{where}: expected a class under 'label', got {short(part)}")
        marks.append(Mark(span, label))
    return Parsed(_coco(row), text, tuple(marks), covers=False)


def _coco(row: Row) -> tuple[str, ...]:
    """Names of an image of COCO 2014's validation split, which may be its number, its file or a path."""
    value = next((row[key] for key in ("image_id", "image", "image_path") if row.get(key) not in (None, "")), None)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"expected a number or a name of COCO's under 'image_id' or 'image', got {short(value)}")
    name = str(value)
    if name.isdecimal():
        number = int(name)
        return f"COCO_val2014_{number:012d}.jpg", f"val2014/COCO_val2014_{number:012d}.jpg", f"{number:012d}.jpg"
    path = PurePosixPath(name)
    named = path if path.suffix else path.with_name(f"{path.name}.jpg")
    return tuple(dict.fromkeys((named.as_posix(), named.name, f"val2014/{named.name}")))


def rlhf_v(row: Row) -> Parsed:
    """RLHF-V (Yu et al. 2023): a response, and how people corrected it: sentences that they changed are wrong.

    The rejected text is the description. A sentence that stands in the corrected text, too, is right.
    """
    value = _decoded(row.get("text"), "text")
    if not isinstance(value, Mapping):
        raise InputError(f"expected JSON with question, chosen and rejected under 'text', got {short(value)}")
    text, corrected = text_of(value, "rejected"), text_of(value, "chosen")
    spans = split_sentences(text)
    before = [" ".join(text[slice(*span)].split()) for span in spans]
    after = [" ".join(corrected[slice(*span)].split()) for span in split_sentences(corrected)]
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    kept = {block.a + offset for block in blocks for offset in range(block.size)}
    marks = tuple(Mark(span, "kept" if number in kept else "changed") for number, span in enumerate(spans))
    return Parsed(_named(row, "image_path", "image", "image_name"), text, marks, covers=False)


def halloc(row: Row) -> Parsed:
    """HalLoc (Park et al. 2025): words of a text that are made up, by kind of error; of Visual Genome and COCO.

    `annotations` is kind → list of errors, and an error is role → word: the thing and what is wrong about it are marked
    both, each with its `name` and, under `char_index`, "START:END" or the place of its only letter.
    """
    text = text_of(row, "hallucinated_text")
    given = _decoded(row.get("annotations"), "annotations")
    if not isinstance(given, Mapping):
        raise InputError(f"expected lists of object, attribute and so on under 'annotations', got {short(given)}")
    marks = []
    for kind, errors in given.items():
        for index, words in enumerate(listed(errors, f"annotations, {kind}")):
            where = f"annotations, {kind} {index}"
            if not isinstance(words, Mapping):
                raise InputError(f"{where}: expected an object of words with name and char_index, got {short(words)}")
            marks += [Mark(_letters(word, text, f"{where}, {role}"), str(kind)) for role, word in words.items()]
    (name,) = _named(row, "image_id", "image")
    folders = ("", "VG_100K/", "VG_100K_2/") if name.isdecimal() else ("", "train2014/", "val2014/")
    names = tuple(f"{folder}{name}{'.jpg' if name.isdecimal() else ''}" for folder in folders)
    return Parsed(names, text, tuple(marks), covers=True)


def _letters(word: Any, text: str, where: str) -> Span:
    """The place of a word of HalLoc's; its name says the same letters, maybe with other spaces and points."""
    place = word.get("char_index") if isinstance(word, Mapping) else None
    if not (found := re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", str(place))):
        raise InputError(f"{where}: expected START:END under 'char_index', got {short(word)}")
    start = int(found[1])
    end = int(found[2] or start + 1)
    if isinstance(said := word.get("name"), str) and _plain(said) != _plain(text[start:end]):
        raise InputError(f"{where}: {place} is {short(text[start:end])}, but its name is {short(said)}")
    return Span(start, end)


def _plain(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _decoded(value: Any, key: str) -> Any:
    """A value that may be JSON in a string, as in a column of Parquet."""
    if value is None:
        raise InputError(f"{key!r} is missing")
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected JSON under {key!r}, got {short(value)}") from error


def _named(row: Row, *keys: str) -> tuple[str, ...]:
    for key in keys:
        value = row.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return (str(value),)
    raise InputError(f"expected the image's name under {' or '.join(map(repr, keys))}")


LAYOUTS = {
    "m_haldetect": Layout(
        m_haldetect,
        (("response", "annotations"),),
        {
            "accurate": "right", "inaccurate": "wrong", "analysis": "right", "unsure": "unsure",
        },
    ),
    "rlhf_v": Layout(rlhf_v, (("text",),), {"kept": "right", "changed": "wrong"}),
    "halloc": Layout(
        halloc,
        (("hallucinated_text", "annotations"),),
        {
            "object": "object", "attribute": "attribute", "relationship": "relationship", "scene": "conjecture",
            "other": "wrong",
        },
    ),
}  # fmt: skip
