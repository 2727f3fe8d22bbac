"""Claims of number: "three dogs", "a pair of cats", "several", "only one", "dogs, three of them"."""

from collections.abc import Iterator
from typing import NamedTuple

from vigor_jax.rewards.claims.claim import Claim, Number
from vigor_jax.rewards.language.claim_words import NumberWords, PlaceWords
from vigor_jax.rewards.language.noun_groups import GroupedSentence, NounGroup

_LARGEST = 999
_SEEN = frozenset(("visible", "present", "seen", "shown", "depicted", "total", "all"))
_STARTS = frozenset((".", ";", ":", "while", "but"))
_ENDS = frozenset((".", ",", ";", ":", "!", "?", ")", "and", ""))


class _Found(NamedTuple):
    start: int
    end: int
    least: int
    most: int | None


def find_numbers(sentence: GroupedSentence, words: NumberWords, places: PlaceWords) -> Iterator[Claim]:
    """The claims of number in a sentence, in order."""
    for found in _read(sentence, words):
        if group := _antecedent(sentence, words, found):
            yield _claim(sentence, found, group, narrowed=_is_narrowed_after(sentence, group, places, found.start))
        elif group := _counted(sentence, words, found):
            yield _claim(sentence, found, group, narrowed=_is_narrowed(sentence, words, found, group, places))


def _claim(sentence: GroupedSentence, found: _Found, group: NounGroup, *, narrowed: bool) -> Claim:
    assert group.thing is not None
    return Claim(group.thing, sentence.span(found.start, found.end), Number(found.least, found.most, narrowed))


def _read(sentence: GroupedSentence, words: NumberWords) -> Iterator[_Found]:
    """Numbers with what stands around them: "at least three", "two or three", "three or more"."""
    plain = [_Found(start, end, *words.ranges[value]) for start, end, value in words.match(sentence.lower)]
    plain += [
        _Found(place, place + 1, int(word), int(word))
        for place, word in enumerate(sentence.lower)
        if word.isdecimal() and word.isascii() and 0 < int(word) <= _LARGEST
    ]
    if not plain:
        return
    plain.sort()
    at_least = {end: start for start, end, _ in words.at_least(sentence.lower)}
    more_than = {end: start for start, end, _ in words.more_than(sentence.lower)}
    not_after = {end for _, end, _ in words.not_after(sentence.lower)}
    by_start = {found.start: found for found in plain}
    free = 0
    for found in plain:
        start, end, least, most = found
        # "a group of three people" counts once
        if start < free or (end in by_start and sentence.word(end - 1) == "of"):
            continue
        if sentence.lower[end : end + 2] == ["or", "more"]:
            end, most = end + 2, None
        elif sentence.word(end) in ("or", "to") and (second := by_start.get(end + 1)):
            end, most = second.end, second.most
            free = end
            if most is not None and most < least:
                continue
        if start in at_least:
            start, most = at_least[start], None
        elif start in more_than:
            start, least, most = more_than[start], least + 1, None
        elif start in not_after:
            continue
        yield _Found(start, end, least, most)


def _counted(sentence: GroupedSentence, words: NumberWords, found: _Found) -> NounGroup | None:
    """The group that a number before it counts."""
    start, end, least, most = found
    group = sentence.group_from(end)
    if group is None or group.thing is None or (start and sentence.is_noun[start - 1] and least == most):
        return None  # "player 7"
    if end <= group.start and sentence.tag(group.start) in ("DT", "PRP$"):
        return None  # "a couple of the dogs"
    if sentence.tag(group.end) == "POS":
        return None
    if sentence.word(start) == "both" and sentence.word(group.end) == "and":
        return None
    if not _is_countable(sentence, words, group, is_one=most == 1):
        return None
    if sentence.clause_is_denied(start) or sentence.group_is_supposed(group):
        return None
    return group


def _is_countable(sentence: GroupedSentence, words: NumberWords, group: NounGroup, *, is_one: bool) -> bool:
    head = sentence.lower[group.end - 1]
    assert group.thing is not None
    if head in words.never_counted or group.thing.head in words.never_counted:
        return False
    if is_one:
        return sentence.tags[group.end - 1] not in ("NNS", "NNPS") or head in words.same_plural
    return sentence.is_plural(group, words.same_plural)


def _antecedent(sentence: GroupedSentence, words: NumberWords, found: _Found) -> NounGroup | None:
    """The things of "dogs on a couch, three of them" or "three in all": the only ones in the clause before."""
    if sentence.word(found.start - 1) != ",":
        return None
    rest = sentence.lower[found.end :]
    again = next((entry for entry in words.counted_again if tuple(rest[: len(entry)]) == entry), None)
    if again is None or sentence.word(found.end + len(again)) not in _ENDS:
        return None
    before = [
        group
        for group in sentence.groups
        if group.end < found.start and group.thing and _is_countable(sentence, words, group, is_one=found.most == 1)
    ]
    return before[0] if len(before) == 1 and not sentence.clause_is_unsure(found.start - 1) else None


def _is_narrowed(
    sentence: GroupedSentence, words: NumberWords, found: _Found, group: NounGroup, places: PlaceWords
) -> bool:
    """Whether the words may single out some of those in the image."""
    if found.start > group.start or found.end < group.noun:  # "the two dogs", "two white dogs"
        return True
    allowed = words.introductions | places.shows | places.pictures
    place = found.start
    while place and sentence.lower[place - 1] not in _STARTS:
        if sentence.lower[place - 1] not in allowed:
            return True
        place -= 1
    if (
        place == found.start
        and sentence.lower[place] != "there"
        and _SEEN.isdisjoint(sentence.lower[group.end : group.end + 4])
    ):
        return True  # "two dogs sleep": others may not
    return _is_narrowed_after(sentence, group, places, len(sentence.lower))


def _is_narrowed_after(sentence: GroupedSentence, group: NounGroup, places: PlaceWords, end: int) -> bool:
    """Whether more follows than that they are to be seen in the image."""
    place = group.end
    allowed = _SEEN | places.pictures | {"in", "the", "this", "can", "be", "are", "is"}
    while place < end and sentence.word(place) not in _ENDS:
        if sentence.lower[place] not in allowed:
            return True
        place += 1
    return False
