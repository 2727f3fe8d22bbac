"""English sentences that only continue an earlier one: their first words, such as "It" or "Some of them", point back.

Nothing is parsed. A sentence is taken to point to the one right before it, with two exceptions: "He" behind a sentence
that begins with "He" means whoever that one meant, and "Another dog" needs a dog in any sentence before it. "It is a
sunny day" and "This image shows" point to nothing that a caption could have left out.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from vigor_jax.data.text.box_text import without_boxes


class _Reference(NamedTuple):
    """What the first words of a sentence point back to.

    Attributes:
      kind: "he", "she", "it" or "they"; "" for none of these.
      noun: the thing that they name, "" if they name none.
    """

    kind: str
    noun: str = ""


def continuations(sentences: Sequence[str], left_out: Sequence[bool]) -> list[bool]:
    """Which of the other sentences continue one that is left out, directly or by way of each other.

    Args:
      sentences: of a caption, in order.
      left_out: whether each of them is.
    """

    @functools.cache
    def reference_of(number: int) -> _Reference | None:
        return _reference(_plain(sentences[number]))

    gone = list(left_out)
    for number in range(1, len(sentences)):
        if gone[number] or not gone[number - 1] or (reference := reference_of(number)) is None:
            continue
        if reference.noun:
            before = (sentences[i] for i in range(number) if not gone[i])
            gone[number] = not any(_names(sentence, reference.noun) for sentence in before)
        else:
            meant = number - 1
            while meant >= 0 and reference.kind and reference_of(meant) == reference:
                meant -= 1
            gone[number] = meant < 0 or gone[meant]
    return [is_gone and not was for is_gone, was in zip(gone, left_out, strict=True)]


def _any(words: str) -> str:
    """A pattern of any of some words; "_" is a space."""
    return f"(?:{'|'.join(words.split())})".replace("_", " ")


_KINDS = {
    word: words.split()[0]
    for words in ("he his him", "she her hers", "it its", "they their others")
    for word in words.split()
}
_BE = _any("is are was were may_be might_be could_be can_be must_be would_be should_be will_be")
_VERBS = _any(
    """is are was were has have had can could may might must will would seems? appears? looks? stands? sits? lies?
    rests? walks? holds? wears? hangs? rides? waits? adds? gives? creates? makes? suggests? indicates? shows?"""
)
_PREPOSITIONS = _any("in on at with of by for from to near under over behind next during who which that")

# What may stand before all of this: "Additionally,", "In total,", "And".
_LEAD = re.compile(
    rf"(?:(?:\w+ly|{_any('also moreover furthermore however meanwhile overall altogether together then still')}"
    rf"|{_any('in_addition in_total in_fact in_all as_a_result for_example on_the_other_hand')}), "
    r"|(?:and|but|so|yet) )+"
)
_PRONOUN = re.compile(r"(he|his|him|she|hers?|it|its|they|their|others)\b")
_SOME = _any(
    """some one two three four five many most all several none few each both another half couple majority rest others?
    latter former first second third last"""
)
_PART = re.compile(
    rf"(?:the |a )?{_SOME} of (?:them|these|those)\b|(?:the |an? )?(?:\w+ )?\w+ of (?:it|him|her|them)\b"
    rf"|there {_BE} (?:also )?(?:another one|others)\b|(?:the )?{_SOME} (?:(?:also|even|ones?) )?{_VERBS}\b"
)
_PLACE = re.compile(
    _any(
        """in_front_of on_top_of to_the_(?:left|right|side)_of next_to close_to among around behind beside beneath below
        above under near inside surrounding alongside along_with with besides"""
    )
    + r" (?:it|them|him|her)\b"
)
_DETERMINER = re.compile(r"(another|these|those|this|that|such(?: an?)?|each|both|either|neither|the other)\b(.*)")
_BOTH_AND = re.compile(r"both (?:(?:the|an?|his|her|its|their) (?:\w+ ){1,3}|\w+ )and\b")
_NOUN_ENDS = re.compile(rf"\b(?:{_VERBS}|{_PREPOSITIONS}|and|or|placed|located|positioned|visible|\w+ing)\b|[^\w\s'-]")

_PLURAL = re.compile(r"(?:[^su]s|men|people|children)$")

# Of these, "another person" may be said.
_PEOPLE = re.compile(
    rf"\b{_any('persons? people individuals? m[ae]n wom[ae]n boys? girls? child(?:ren)? kids? baby lady guys? s?he')}\b"
)

# What "It" may stand for in vain.
_PICTURE = _any(
    "images? pictures? photos? photographs? scenes? views? shots? snapshots? paintings? drawings? collages?"
)
_HOUR = _any(
    """day daytime night nighttime morning afternoon evening dusk dawn noon sunset sunrise twilight winter wintertime
    summer summertime spring autumn weather season"""
)
_IT_IS = rf"(?:it|this)(?: {_BE}| (?:appears|seems|looks)(?: to be| like)?)"
_ADJECTIVES = rf"(?:(?!(?:{_VERBS}|{_PREPOSITIONS})\b)[\w'-]+,? ){{0,5}}?"
_IMPERSONAL = re.compile(
    rf"(?:{_IT_IS}|this|these) {_ADJECTIVES}(?:{_PICTURE}|{_HOUR})\b"
    rf"|{_IT_IS} (?:\w+ )?{_any('sunny cloudy overcast rainy raining snowing windy foggy late early getting_dark')}\b"
    rf"|{_IT_IS} (?:\w+ )?(?:{_any('difficult hard easy important possible impossible interesting')} to|worth)\b"
)
# "It seems that ..." and "It is likely that ..." only introduce what they say.
_THAT = re.compile(
    rf"it (?:also |even )?(?:(?:appears|seems|looks|feels),? (?:that|as if|as though|like(?! an?\b)) "
    rf"|{_BE} (?:\w+ )?"
    rf"{_any('clear unclear likely unlikely possible evident obvious apparent plausible uncertain unknown')} "
    rf"(?:to \w+ )?{_any('that whether if how what why where who')} |can be \w+ that )"
)


def _plain(sentence: str) -> str:
    """In lower case, without what stands before the first word that counts."""
    text = " ".join(without_boxes(sentence).lower().replace("’", "'").split())
    text = re.sub(r"^(?:\(?(?:\d{1,3}|[a-z])[.)] |[^\w\s]+ ?)+", "", text)
    lead = _LEAD.match(text)
    return re.sub(r"^(it|this|that)'s\b", r"\1 is", text[lead.end() :] if lead else text)


def _reference(text: str) -> _Reference | None:
    if said := _THAT.match(text):
        return _reference(text[said.end() :])
    if _IMPERSONAL.match(text) or _BOTH_AND.match(text):
        return None
    if pronoun := _PRONOUN.match(text):
        return _Reference(_KINDS[pronoun[1]])
    if _PART.match(text):
        return _Reference("they")
    if _PLACE.match(text):
        return _Reference("")
    if determiner := _DETERMINER.match(text):
        words = _NOUN_ENDS.split(determiner[2], maxsplit=1)[0].split()
        # A verb that is not on the list comes last, the noun ends otherwise: "another dog sleeps", "both dogs sleep"
        is_plural = determiner[1] in ("these", "those", "both")
        nouns = [word for word in words if bool(_PLURAL.search(word)) == is_plural] or words
        return _Reference("", nouns[-1] if nouns else "")
    return None


def _names(sentence: str, noun: str) -> bool:
    """Whether a sentence has the noun, in the singular or the plural; of "person" anybody is one."""
    text, forms = sentence.lower(), _forms(noun)
    if noun in ("person", "individual") and _PEOPLE.search(text):
        return True
    return any(forms & _forms(word) for word in re.findall(r"[\w'-]+", text))


def _forms(word: str) -> set[str]:
    """A word, and what it may be the plural of."""
    endings = (("s", ""), ("es", ""), ("ies", "y"), ("men", "man"))
    return {word} | {word.removesuffix(end) + other for end, other in endings if word.endswith(end)}
