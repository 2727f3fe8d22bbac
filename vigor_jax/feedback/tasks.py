"""Descriptions as tasks of Label Studio: the sentences are marked, and nobody has to draw them.

Label Studio counts the characters of a text as Python does, in code points.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from vigor_jax.errors import InputError
from vigor_jax.feedback.form import ATTRIBUTES, DESCRIPTION, DETAIL, JUDGMENT, MISSING, NOTE, labels_of
from vigor_jax.records import AnnotatedSentence, Annotation, Span

Json: TypeAlias = dict[str, Any]

# What predictions are called: boundaries of sentences alone, or with what the rewards say.
SENTENCES, VERDICTS = "sentences", "verdicts"


class Description(NamedTuple):
    """What people are asked about.

    Attributes:
      image: path below the image folder.
      text: the description.
      sentences: in order, without overlap; together they cover every letter of the text.
      expected: what the rewards say of each sentence; None to show nothing.
    """

    image: str
    text: str
    sentences: tuple[Span, ...]
    expected: tuple[AnnotatedSentence, ...] | None = None

    @classmethod
    def of(cls, annotation: Annotation) -> "Description":
        """What an annotation is about, without what it says."""
        spans = tuple(sentence.span for sentence in annotation.sentences)
        return cls(annotation.image, annotation.description, spans)

    @property
    def key(self) -> str:
        """What a task is known by: a digest of image, text and sentences, so that it tells if one of them changed."""
        content = json.dumps([self.image, self.text, self.sentences])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def task_of(description: Description, image_url: str, attributes: Sequence[str] = ATTRIBUTES) -> Json:
    """A task, in the JSON that Label Studio imports.

    Args:
      description: what is asked about.
      image_url: where a browser finds the image.
      attributes: those that the form names; another one that the rewards name is shown without its name.
    """
    version = SENTENCES if description.expected is None else VERDICTS
    shown = description.expected or [None] * len(description.sentences)
    regions = [
        _region(description.text, number, span, [] if judged is None else _expected(judged, attributes))
        for number, (span, judged) in enumerate(zip(description.sentences, shown, strict=True), 1)
    ]
    return {
        "data": {
            "image": image_url,
            "description": description.text,
            "image_name": description.image,
            "sentences": [list(span) for span in description.sentences],
            "key": description.key,
        },
        "predictions": [{"model_version": version, "result": regions}],
    }


def _expected(judged: AnnotatedSentence, attributes: Sequence[str]) -> list[str]:
    named = judged if judged.attribute in attributes else dataclasses.replace(judged, attribute="")
    return labels_of(named, attributes)


def described(data: Any) -> Description:
    """The description of a task, from its data.

    Raises:
      InputError: it is not a task of ours, or was changed.
    """
    if not isinstance(data, dict) or not {"image_name", "description", "sentences", "key"} <= data.keys():
        raise InputError("is not a task that python -m vigor_jax.annotate export made")
    try:
        spans = tuple(Span(int(start), int(end)) for start, end in data["sentences"])
        description = Description(str(data["image_name"]), str(data["description"]), spans)
        unchanged = description.key == data["key"]
    except (TypeError, ValueError):
        unchanged = False
    if not unchanged:
        raise InputError("its image, description or sentences were changed after the export; restore them")
    return description


def results_of(annotation: Annotation, attributes: Sequence[str] = ATTRIBUTES, *, note: str = "") -> list[Json]:
    """What Label Studio stores for a person who says what an annotation says.

    Raises:
      InputError: the annotation is about an attribute that the form lacks.
    """
    results = [
        _region(annotation.description, number, sentence.span, labels_of(sentence, attributes))
        for number, sentence in enumerate(annotation.sentences, 1)
    ]
    if annotation.detail is not None:
        results.append(_of_all(DETAIL, "rating", {"rating": annotation.detail}))
    if annotation.missing:
        results.append(_of_all(MISSING, "textarea", {"text": list(annotation.missing)}))
    if note:
        results.append(_of_all(NOTE, "textarea", {"text": [note]}))
    return results


def _region(text: str, number: int, span: Span, labels: list[str]) -> Json:
    value = {"start": span.start, "end": span.end, "text": text[slice(*span)], "labels": labels}
    names = {"from_name": JUDGMENT, "to_name": DESCRIPTION, "type": "labels"}
    return {"id": f"sentence{number}", **names, "value": value}


def _of_all(name: str, kind: str, value: Json) -> Json:
    return {"id": name, "from_name": name, "to_name": DESCRIPTION, "type": kind, "value": value}
