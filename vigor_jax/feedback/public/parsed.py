"""What the readers of public layouts share: what a row says, and how it becomes an annotation.

What a source says of parts of a text is said of the sentences that the parts lie in.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, get_args

from vigor_jax.errors import InputError, nearest
from vigor_jax.records import AnnotatedSentence, Annotation, ErrorType, Span
from vigor_jax.rewards.sentences import split_sentences

Row: TypeAlias = Mapping[str, Any]

# What a source may say of a part, other than a kind of error: nothing is wrong; something is, and it is not said what;
# people were not sure, so that nothing is known.
MEANINGS: tuple[str, ...] = (*get_args(ErrorType), "right", "creative", "wrong", "unsure")
ERRORS: tuple[ErrorType, ...] = get_args(ErrorType)


class Mark(NamedTuple):
    """A part of a text and what the source says of it.

    Attributes:
      span: of the text, in code points.
      label: the source's own word.
    """

    span: Span
    label: str


class Parsed(NamedTuple):
    """A row, as its layout has it.

    Attributes:
      images: names that its image may have; the first that exists is meant.
      text: the description.
      marks: what is said of its parts.
      covers: what is not marked is right; otherwise nobody judged it.
      detail: level of detail.
      missing: what the description leaves out.
      sentences: as the source has them; None to split the text.
    """

    images: tuple[str, ...]
    text: str
    marks: tuple[Mark, ...]
    covers: bool
    detail: int | None = None
    missing: tuple[str, ...] = ()
    sentences: tuple[Span, ...] | None = None


class Layout(NamedTuple):
    """A public layout.

    Attributes:
      parse: what makes of a row what it says.
      keys: by which a row is known.
      meanings: of the source's words, written in any case.
    """

    parse: Callable[[Row], Parsed]
    keys: tuple[tuple[str, ...], ...]
    meanings: Mapping[str, str]


class LeftOut(Exception):  # noqa: N818 (no error)
    """A row that cannot become an annotation and is no mistake; its one argument is the reason, in the plural."""


def annotate(
    parsed: Parsed, image: str, meanings: Mapping[str, str], unnamed: ErrorType, counts: Counter[str]
) -> Annotation:
    """The annotation that a row states.

    Args:
      parsed: the row.
      image: its image's name.
      meanings: of the source's words, in lower case.
      unnamed: the kind that an error gets of which the source does not say the kind.
      counts: gets what was counted: words by what they became.

    Raises:
      InputError: a part is outside of the text.
      LeftOut: a sentence was judged by nobody, or a word has no meaning here.
    """
    text = parsed.text
    if not text.strip():
        raise InputError("the description is empty")
    spans = split_sentences(text) if parsed.sentences is None else list(parsed.sentences)
    if not spans:
        raise LeftOut("descriptions without a sentence")
    said: list[dict[str, None]] = [{} for _ in spans]
    own: Counter[str] = Counter()
    for (start, end), label in parsed.marks:
        if not 0 <= start <= end <= len(text):
            raise InputError(f"a part from {start} to {end} is outside of the {len(text)} letters of the text")
        meaning = meanings.get(label.strip().lower())
        if meaning is None:
            raise LeftOut(f"descriptions with {label!r}, which has no meaning here; give --kind {label!r}=MEANING")
        touched = [number for number, span in enumerate(spans) if start < span.end and span.start < end]
        own[f"{label} -> {_kind(meaning, unnamed)}"] += bool(touched)
        for number in touched:
            said[number][meaning] = None
    sentences = []
    for span, meant in zip(spans, said, strict=True):
        errors = tuple(dict.fromkeys(_kind(each, unnamed) for each in meant if each in (*ERRORS, "wrong")))
        if not errors and "unsure" in meant:
            raise LeftOut("descriptions with a sentence that people were not sure about")
        if not meant and not parsed.covers:
            raise LeftOut("descriptions with a sentence that nobody judged")
        kinds = tuple(kind for kind in ERRORS if kind in errors)
        sentences.append(AnnotatedSentence(span, kinds, "", "creative" in meant))
    counts += own
    return Annotation(image, text, tuple(sentences), parsed.detail, parsed.missing)


def _kind(meaning: str, unnamed: ErrorType) -> str:
    return unnamed if meaning == "wrong" else meaning


def check_meanings(meanings: Mapping[str, str]) -> None:
    """Refuses meanings that are none.

    Raises:
      InputError: one is unknown.
    """
    for label, meaning in meanings.items():
        if meaning not in MEANINGS:
            hint = nearest(meaning, MEANINGS, noun="meaning", quoted=True)
            raise InputError(f"--kind: {label!r} cannot mean {meaning!r}; {hint}")


def text_of(row: Row, *keys: str) -> str:
    """The first of some values that is there, which must be text.

    Raises:
      InputError: none is there, or it is something else.
    """
    for key in keys:
        if (value := row.get(key)) is not None:
            if not isinstance(value, str):
                raise InputError(f"expected text under {key!r}, got {short(value)}")
            return value
    raise InputError(f"{' or '.join(map(repr, keys))} is missing")


def listed(value: Any, what: str) -> Sequence[Any]:
    """A value that is a list.

    Raises:
      InputError: it is something else.
    """
    if not isinstance(value, list | tuple):
        raise InputError(f"expected a list under {what!r}, got {short(value)}")
    return value


def span_of(part: Any, text: str, where: str) -> Span:
    """The place of a part: its start and end, or else where its text stands, if it stands in one place only.

    Raises:
      InputError: it has neither, or they do not fit each other.
    """
    if not isinstance(part, Mapping):
        raise InputError(f"{where}: expected an object with start, end and a label, got {short(part)}")
    start, end, said = part.get("start"), part.get("end"), part.get("text")
    if isinstance(start, bool) or isinstance(end, bool) or not isinstance(start, int) or not isinstance(end, int):
        if not isinstance(said, str) or start is not None or end is not None:
            raise InputError(f"{where}: expected whole numbers under start and end, got {short(part)}")
        if text.count(said) != 1 or not said:
            raise InputError(
                f"{where}: {short(said)} stands {text.count(said)} times in the text; start and end say where"
            )
        return Span(text.index(said), text.index(said) + len(said))
    if isinstance(said, str) and text[start:end].strip() != said.strip():
        raise InputError(f"{where}: {start} to {end} is {short(text[start:end])}, but its text says {short(said)}")
    return Span(start, end)


def short(value: Any) -> str:
    """A value in few words, on one line."""
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
