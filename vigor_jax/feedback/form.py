"""The form that people fill in: sentences that are marked already, and labels for them (ViGoR, section 3.1).

Sentences are regions of the text, and a judgment is the labels of its region. So a person steps from sentence to
sentence (Alt and the period) and presses one key for what is wrong, the colors show what is done, and both exports of
Label Studio say of each label which sentence it is about. JSON_MIN does not say that of a choice that belongs to a
region if it is the only one, and choices for each sentence would need other keys for each.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

from vigor_jax.errors import InputError, nearest
from vigor_jax.records import AnnotatedSentence, ErrorType, Span

# Names of the controls, as results have them.
JUDGMENT, DESCRIPTION, DETAIL, MISSING, NOTE = "judgment", "description", "detail", "missing", "note"
MOST_DETAIL = 5

RIGHT, CREATIVE = "No error", "Creative"
KINDS: dict[ErrorType, str] = {
    "object": "Object",
    "location": "Location",
    "relationship": "Relationship",
    "conjecture": "Conjecture",
    "attribute": "Attribute",
}
ATTRIBUTES = ("color", "count", "size", "shape", "material", "action")
_NAMED = f"{KINDS['attribute']}: "
_LABELS: dict[str, ErrorType] = {label: kind for kind, label in KINDS.items()}

# Of the labels in their order; "c" is the creative one's.
_KEYS = "1234567890qwetyopasfgjklzxvbnm"
_COLORS = ("#2e7d32", "#c62828", "#ad1457", "#6a1b9a", "#4527a0", "#ef6c00", "#f9a825")
_CREATIVE_COLOR = "#1565c0"


class Judged(NamedTuple):
    """What the labels of a sentence say.

    Attributes:
      errors: each kind once, in the order of the labels.
      attribute: which one is wrong, if one is named.
      creative: whether it is called so.
      is_ambiguous: two attributes are named, and a record has room for one, so that `attribute` is empty.
    """

    errors: tuple[ErrorType, ...]
    attribute: str
    creative: bool
    is_ambiguous: bool = False


def labels(attributes: Sequence[str] = ATTRIBUTES) -> tuple[str, ...]:
    """All labels that a sentence can have, in the order of the form.

    Args:
      attributes: those that can be named.
    """
    return (RIGHT, *KINDS.values(), *(_NAMED + attribute for attribute in attributes), CREATIVE)


def check_attributes(attributes: Sequence[str]) -> None:
    """Refuses attributes that a form cannot have.

    Raises:
      InputError: one is empty or there twice, or they are more than there are keys.
    """
    if any(not each.strip() or each != each.strip() or not each.isprintable() for each in attributes):
        raise InputError(f"attributes: expected words such as {', '.join(ATTRIBUTES)}, got {list(attributes)}")
    if len(set(attributes)) < len(attributes):
        raise InputError(f"attributes: expected each once, got {', '.join(attributes)}")
    most = len(_KEYS) - 1 - len(KINDS)
    if len(attributes) > most:
        raise InputError(f"attributes: expected {most} at most, each needs a key, got {len(attributes)}")


def hotkeys(attributes: Sequence[str] = ATTRIBUTES) -> dict[str, str]:
    """The key of each label."""
    *others, creative = labels(attributes)
    return dict(zip(others, _KEYS, strict=False)) | {creative: "c"}


def labels_of(sentence: AnnotatedSentence, attributes: Sequence[str] = ATTRIBUTES) -> list[str]:
    """The labels that say what a judgment says; `read_labels` reads them.

    Raises:
      InputError: it names an attribute that the form lacks.
    """
    found = [] if sentence.errors else [RIGHT]
    for error in sentence.errors:
        if error == "attribute" and sentence.attribute:
            if sentence.attribute not in attributes:
                raise InputError(
                    f"attribute {sentence.attribute!r} is not in the form, which has {', '.join(attributes)}; name it "
                    "in --attributes"
                )
            found.append(_NAMED + sentence.attribute)
        else:
            found.append(KINDS[error])
    return [*found, CREATIVE] if sentence.creative else found


def read_labels(found: Iterable[str]) -> Judged:
    """What the labels of a sentence say; "Creative" alone says that nothing is wrong, too.

    Raises:
      InputError: a label is unknown, there is none, or two contradict each other.
    """
    given = dict.fromkeys(found)
    if not given:
        raise InputError("has no judgment")
    errors: dict[ErrorType, None] = {}
    attributes: list[str] = []
    for label in given:
        if label.startswith(_NAMED) and (name := label.removeprefix(_NAMED).strip()):
            errors["attribute"] = None
            attributes.append(name)
        elif label in _LABELS:
            errors[_LABELS[label]] = None
        elif label not in (RIGHT, CREATIVE):
            raise InputError(f"unknown choice {label!r}; {nearest(label, labels(), noun='choice', quoted=True)}")
    if errors and RIGHT in given:
        raise InputError(f"is called both {RIGHT!r} and {next(each for each in given if each != RIGHT)!r}")
    named = attributes[0] if len(attributes) == 1 else ""
    return Judged(tuple(errors), named, CREATIVE in given, len(attributes) > 1)


def judged_sentence(span: Span, judged: Judged) -> AnnotatedSentence:
    """A sentence with what its labels say."""
    return AnnotatedSentence(span, judged.errors, judged.attribute, judged.creative)


def label_config(attributes: Sequence[str] = ATTRIBUTES) -> str:
    """Label Studio's description of the form, XML: the image at the left, the text and all questions next to it."""
    keys = hotkeys(attributes)
    colors = dict(zip(keys, _COLORS, strict=False)) | {CREATIVE: _CREATIVE_COLOR}
    marks = "\n".join(
        f"        <Label value={quoteattr(label)} hotkey={quoteattr(key)} background="
        f"{quoteattr(colors.get(label, _COLORS[-1]))}/>"
        for label, key in keys.items()
    )
    return f"""<View>
  <View style="display: flex; gap: 24px; align-items: flex-start">
    <View style="flex: 1 1 45%; position: sticky; top: 0">
      <Image name="image" value="$image" zoom="true" zoomControl="true"/>
    </View>
    <View style="flex: 1 1 55%">
      <Header value="What is wrong with each sentence?" size="4"/>
      <Labels name="{JUDGMENT}" toName="{DESCRIPTION}" choice="multiple">
{marks}
      </Labels>
      <View style="font-size: 17px; line-height: 2; margin: 12px 0">
        <Text name="{DESCRIPTION}" value="$description" granularity="sentence"/>
      </View>
      <Header value="Level of detail: 1 poor, {MOST_DETAIL} all that matters" size="5"/>
      <Rating name="{DETAIL}" toName="{DESCRIPTION}" maxRating="{MOST_DETAIL}"/>
      <Header value="What is missing? One thing, Enter; then the next" size="5"/>
      <TextArea name="{MISSING}" toName="{DESCRIPTION}" rows="1" editable="true" placeholder="the traffic light"/>
      <Header value="Note" size="5"/>
      <TextArea name="{NOTE}" toName="{DESCRIPTION}" rows="1" editable="true" maxSubmissions="1"/>
    </View>
  </View>
</View>
"""
