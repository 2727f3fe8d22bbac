"""The forms that preferences come in, and which one a row has."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vigor_jax.data.preferences import pair_forms, rated_forms
from vigor_jax.data.preferences.parsed import Parsed, Row
from vigor_jax.errors import InputError, nearest, some


class Form(NamedTuple):
    """One form.

    Attributes:
      parse: what makes of a row what it says, but for its image.
      needs_image: a row without an image is a mistake.
      needs_question: so is one without a question, even if it has an image.
    """

    parse: Callable[[Row], Parsed]
    needs_image: bool
    needs_question: bool = True


FORMS = {
    "own": Form(rated_forms.own, needs_image=False, needs_question=False),
    "trl": Form(pair_forms.trl, needs_image=False),
    "rlhf_v": Form(pair_forms.rlhf_v, needs_image=True),
    "rlaif_v": Form(pair_forms.rlaif_v, needs_image=True),
    "vlfeedback": Form(rated_forms.vlfeedback, needs_image=True),
    "povid": Form(rated_forms.povid, needs_image=False),
    "llava_rlhf": Form(rated_forms.llava_rlhf, needs_image=False),
    "sentinel": Form(pair_forms.sentinel, needs_image=True),
}

# Keys by which a form is known. The first that fits is taken, so keys that are nobody else's come first.
_KEYS = (
    ("own", ("prompt", "responses", "ratings")),
    ("vlfeedback", ("prompt", "completions")),
    ("povid", ("conversations", "rejected_conversations")),
    ("llava_rlhf", ("conversations", "output_1", "output_2", "preference")),
    ("sentinel", ("question", "y_win", "y_lose")),
    ("sentinel", ("question", "context", "win", "lose")),
    ("sentinel", ("instruction", "context", "chosen", "rejected")),
    ("trl", ("prompt", "chosen", "rejected")),
    ("rlaif_v", ("question", "chosen", "rejected")),
    ("rlhf_v", ("text", "image")),
)


def find_form(rows: Sequence[tuple[str, dict[Any, Any]]], wanted: str | None) -> str:
    """The form of the first row that has one.

    Args:
      rows: the first rows of a file that are objects: label and what it holds; at least one.
      wanted: the form's name, if that is known.

    Raises:
      InputError: the name is unknown, or no row has that form, or any; says which one they resemble most, and what is
        missing.
    """
    if wanted is not None and wanted not in FORMS:
        raise InputError(f"unknown form {wanted!r} of preferences; {nearest(wanted, FORMS, quoted=True)}")
    keys = [(name, needed) for name, needed in _KEYS if wanted in (None, name)]
    found = [(label, {key for key, value in record.items() if value is not None}) for label, record in rows]
    for (_, present), (_, record) in zip(found, rows, strict=True):
        for name, needed in keys:
            if present.issuperset(needed):
                return name
        if wanted in (None, "trl") and all(isinstance(record.get(key), list) for key in ("chosen", "rejected")):
            return "trl"  # whose messages begin with the prompt
    label, present, name, needed = max(
        ((label, present, name, needed) for label, present in found for name, needed in keys),
        key=lambda each: len(each[1].intersection(each[3])) / len(each[3]),
    )
    lacking = [repr(key) for key in needed if key not in present]
    got = some(sorted(map(str, present))) or "nothing"
    if len(lacking) == len(needed) and wanted is None:
        raise InputError(f"expected one of the forms {', '.join(FORMS)} (docs/preferences.md), got rows of {got}")
    are = "is" if len(lacking) == 1 else "are"
    raise InputError(
        f"{'expected' if wanted else 'resembles'} {name}: {' and '.join(lacking)} {are} missing in {label}, which has "
        f"{got}; docs/preferences.md shows the forms"
    )
