"""What agrees with a number: verbs, nouns elsewhere, and words that take it for granted, such as "the other one"."""

from collections.abc import Collection, Mapping

from vigor_jax.records import Edit
from vigor_jax.rewards.claims.rewording import Wording
from vigor_jax.rewards.language.noun_groups import GroupedSentence, NounGroup
from vigor_jax.rewards.language.words import all_plurals, repair_words

PLURAL_OF = {"is": "are", "was": "were", "has": "have"}
SINGULAR_OF = {plural: one for one, plural in PLURAL_OF.items()}
_POINTS = repair_words("points")
_RECIPROCAL = (("each", "other"), ("one", "another"))
_ADVERBS = frozenset(("only", "also", "just", "still"))
_JOINTS = frozenset(("and", "or", ",", "&", "/"))
_DETERMINERS = ("DT", "CD", "PRP$")


def has_pointer(wording: Wording, sentence: GroupedSentence, start: int = 0) -> bool:
    """Whether words from `start` point to one or some of the things of a claim: "the other one", "another dog"."""
    phrase = wording.claim.subject.phrase
    claimed = [claim.span for claim in wording.reading.claims if claim.subject.phrase != phrase]
    for place in range(start, len(sentence.lower)):
        if sentence.lower[place] not in _POINTS:
            continue
        before, after = (
            (sentence.word(place - 1), sentence.word(place)),
            (sentence.word(place), sentence.word(place + 1)),
        )
        if before in _RECIPROCAL or after in _RECIPROCAL:
            continue
        group, token = sentence.group_from(place), sentence.tokens[place]
        is_of_others = bool(group and group.start <= place and group.thing and group.thing.phrase != phrase)
        if not is_of_others and not any(span.start <= token.start() < span.end for span in claimed):
            return True
    return False


def is_joined(sentence: GroupedSentence, place: int) -> bool:
    """Whether "and" or the like is there."""
    return sentence.word(place) in _JOINTS


def shares_number(sentence: GroupedSentence, group: NounGroup) -> bool:
    """Whether a number before a group may count what "and" adds to it as well: "several cars and trucks"."""
    place = group.end
    while sentence.word(place) in _JOINTS:
        place += 1
    following = sentence.starting.get(place)
    return place > group.end and following is not None and sentence.tag(following.start) not in _DETERMINERS


def is_named_so(wording: Wording, one: str, *, is_one: bool) -> bool:
    """Whether the caption names a claim's thing elsewhere in a number, singular or plural."""
    text, thing = wording.reading.text, wording.claim.subject
    phrase = next((phrase for phrase in wording.reading.phrases if phrase.text == thing.phrase), None)
    others = [*phrase.mentions, *phrase.denied, *phrase.supposed] if phrase else []
    heads = [text[slice(*span)].lower().split()[-1] for span in others if span != thing.span]
    return any((head == one) == is_one or one in all_plurals(one) for head in heads)


def verbs(wording: Wording, group: NounGroup, forms: Mapping[str, str]) -> list[Edit] | None:
    """The verbs of a group in its new number.

    Args:
        wording: Of the claim.
        group: The noun group that changes its number.
        forms: `PLURAL_OF` or `SINGULAR_OF`.

    Returns:
        What is to be replaced; None if other verbs may agree with the group.
    """
    sentence, edits = wording.sentence, []
    before = min(wording.start, group.start) - 1
    while sentence.word(before) in _ADVERBS:
        before -= 1
    if sentence.word(before) in forms and sentence.word(before - 1) == "there":
        edits.append(wording.edit(before, before + 1, forms[sentence.word(before)]))
    elif _is_in_number(sentence, before, forms) and not _has_subject(sentence, before):
        return None  # "on the left are two dogs"
    place = group.end
    if sentence.word(place) in forms:
        if edits or is_joined(sentence, before) or sentence.tag(before) == "IN":
            return None  # "a cat and two dogs are", "a man with two dogs is"
        edits.append(wording.edit(place, place + 1, forms[sentence.word(place)]))
        place += 1
    if any(_is_in_number(sentence, other, forms) for other in range(place, len(sentence.lower))):
        return None
    return None if edits and is_joined(sentence, group.end) else edits  # "there are three dogs and a cat"


def _is_in_number(sentence: GroupedSentence, place: int, forms: Collection[str]) -> bool:
    """Whether a finite verb there is in the number of some forms."""
    word, tag = sentence.word(place), sentence.tag(place)
    if place < 0 or word in PLURAL_OF or word in SINGULAR_OF:
        return word in forms
    if sentence.is_noun[place]:
        return False
    if "is" in forms:
        return tag in ("VBZ", "NNS")  # what is tagged as a plural, and is no noun, is a verb: "hangs"
    return tag == "VBP" or (tag == "VB" and sentence.tag(place - 1) not in ("MD", "TO", "RB"))


def _has_subject(sentence: GroupedSentence, verb: int) -> bool:
    """Whether a verb's subject stands before it: "we see", "the pictures show"."""
    return sentence.tag(verb - 1) == "PRP" or verb in sentence.ending
