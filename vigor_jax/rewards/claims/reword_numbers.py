"""The right number in place of a wrong one: "three dogs" → "two dogs", "there are two dogs" → "there is one dog".

What else in a caption agrees with a number is looked for, not rewritten: where there is any, nothing is sure.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from vigor_jax.records import Edit
from vigor_jax.rewards.claims.claim import Number
from vigor_jax.rewards.claims.judge import Found, JudgeConfig, count_tolerance, counted_boxes
from vigor_jax.rewards.claims.rewording import Wording
from vigor_jax.rewards.language.noun_groups import GroupedSentence, NounGroup
from vigor_jax.rewards.language.words import all_plurals, plurals, singular

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_PLURAL_OF = {"is": "are", "was": "were", "has": "have"}
_SINGULAR_OF = {plural: one for one, plural in _PLURAL_OF.items()}


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# They take a number for granted: "the other one", "both of them", "the pair".
_POINTS = _set(
    "one ones other others another both either neither former latter first second third fourth fifth pair couple trio "
    "duo twins double triple half remaining rest alone"
)
# Around a number they say that there are more.
_MORE = _set("other another more additional extra remaining further all both every each between no such")
# Of these a list may follow that says which they are: "three animals, a dog and two cats".
_GENERAL = _set("person people individual animal item object thing vehicle piece figure shape adult")
# Some of them are no number but a shape: "in a row of cars", "part of a group of people".
_COLLECTIVES = _set("group groups crowd herd flock row rows line multitude")
_INTRODUCES = _set(
    "there is are was were with and includes including features featuring shows showing see contains depicts has have"
)
# One thing is none of this.
_TOGETHER = _set(
    "together side apart row rows line lined lines scattered spread group groups cluster clustered grouped arranged "
    "stacked gathered assembled surrounding various different similar identical matching respective "
    "respectively distributed throughout between among across around circle pile stack formation conversation "
    "conversing talking interacting competing mixed collection"
)
_ALONE = _set("single lone solitary alone lonely")
_THEY = _set("they them their theirs themselves these those all both each")
_IT = _set("it its itself he him his himself she her hers herself this")
_RELATIVE = _set("which that who whose")
_ADVERBS = _set("only also just still")
_JOINTS = _set("and or , & /")


def reword_number(wording: Wording, subject: Found, config: JudgeConfig) -> tuple[Edit, ...]:
    """What makes a wrong claim of number right; () where that is not sure."""
    value = wording.claim.value
    assert isinstance(value, Number)
    count = len(counted_boxes(subject, config))
    group = next((group for group in wording.sentence.groups if group.thing == wording.claim.subject), None)
    if group is None or not 0 < count <= min(len(NUMBERS), config.most_counted) or count_tolerance(count, config):
        return ()
    if (
        value.narrowed
        and config.narrowed == "at least"
        and wording.reading.introduced[wording.claim.subject.phrase] > 1
    ):
        return ()  # some of the boxes may be of those that are brought in elsewhere
    if _is_spoken_of(wording, group) or _is_counted_again(wording, group):
        return ()
    if group.end <= wording.start:  # "dogs, three of them"
        return () if 1 in (value.most, count) else (_number(wording, count),)
    if value.most == 1:
        return _from_one(wording, group, count)
    return _to_one(wording, group, value) if count == 1 else _to_other(wording, group, count)


def _number(wording: Wording, count: int) -> Edit:
    is_digits = wording.words[-1].isdecimal()
    return wording.edit(wording.start, wording.end, str(count) if is_digits else NUMBERS[count - 1])


def _is_spoken_of(wording: Wording, group: NounGroup) -> bool:
    """Whether other words take for granted how many there are."""
    sentence, behind = wording.sentence, max(group.end, wording.end)
    around = {sentence.word(wording.start - 1), *sentence.lower[group.start : wording.start]}
    around |= {*wording.words, *sentence.lower[wording.end : group.end]}
    if around & _MORE:
        return True
    following = wording.later[0].lower if wording.later else []
    if _has_pointer(sentence.lower[behind:]) or _has_pointer(following):
        return True
    names_them = {sentence.lower[group.end - 1], singular(sentence.lower[group.end - 1])} & _GENERAL
    return group.end == behind and sentence.word(behind) in ((":", ",") if names_them else (":",))


def _has_pointer(words: Sequence[str]) -> bool:
    for place, word in enumerate(words):
        pair = (words[place - 1] if place else "", word)
        following = (word, words[place + 1] if place + 1 < len(words) else "")
        reciprocal = (("each", "other"), ("one", "another"))
        if word in _POINTS and pair not in reciprocal and following not in reciprocal:
            return True
    return False


def _is_counted_again(wording: Wording, group: NounGroup) -> bool:
    """Whether numbers follow that are no claims: "two on the left", "all three"."""
    claimed = [claim.span for claim in wording.reading.claims]
    behind = max(group.end, wording.end)
    for sentence in (wording.sentence, *wording.later):
        is_own = sentence is wording.sentence
        for place in range(behind if is_own else 0, len(sentence.lower)):
            start = sentence.tokens[place].start()
            if (sentence.lower[place] in NUMBERS[1:] if is_own else sentence.lower[place] in wording.words) and (
                sentence.tags[place] == "CD" and not any(span.start <= start < span.end for span in claimed)
            ):
                return True
    return False


def _to_other(wording: Wording, group: NounGroup, count: int) -> tuple[Edit, ...]:
    """From several to several."""
    if not (wording.words[0] in ("a", "an") or wording.words[-1] == "of"):
        return (_number(wording, count),)
    if not _COLLECTIVES.isdisjoint(wording.words) and not (
        wording.start == 0 or wording.sentence.word(wording.start - 1) in _INTRODUCES
    ):
        return ()
    verbs = _verbs(wording, group, _PLURAL_OF)  # "a herd of sheep is" → "two sheep are"
    return () if verbs is None else _sorted(_number(wording, count), *verbs)


def _to_one(wording: Wording, group: NounGroup, value: Number) -> tuple[Edit, ...]:
    sentence, behind = wording.sentence, group.end
    if value.least != value.most or "pair" in wording.words or group.start < wording.start:
        return ()  # of a herd or a pair of shoes there may be one box
    head = sentence.lower[behind - 1]
    one = singular(head)
    if head not in (one, *all_plurals(one)) or _names_it(wording, one, is_one=False):
        return ()
    rest = sentence.lower[behind:]
    if not (_THEY | _RELATIVE | _TOGETHER).isdisjoint(rest) or not _TOGETHER.isdisjoint(sentence.lower[:behind]):
        return ()
    if any(singular(word) != word for word, noun in zip(rest, sentence.is_noun[behind:], strict=True) if noun):
        return ()  # "two men wearing hats"
    if any(not _THEY.isdisjoint(later.lower) for later in wording.later):
        return ()
    verbs = _verbs(wording, group, _SINGULAR_OF)
    if verbs is None or (verbs and sentence.word(behind) in _JOINTS):  # "there are three dogs and a cat"
        return ()
    nouns = [wording.edit(behind - 1, behind, one)] if one != head else []
    return _sorted(_number(wording, 1), *nouns, *verbs)


def _from_one(wording: Wording, group: NounGroup, count: int) -> tuple[Edit, ...]:
    sentence, behind = wording.sentence, group.end
    head = sentence.lower[behind - 1]
    several = plurals(head)[0]
    if group.start < wording.start or singular(several) != head or _names_it(wording, head, is_one=True):
        return ()
    rest = sentence.lower[behind:]
    if not (_IT | _RELATIVE).isdisjoint(rest) or not _ALONE.isdisjoint(sentence.lower[wording.end :]):
        return ()
    if any(later == ("wearing", "a") for later in pairwise(rest)):
        return ()
    if any(not _IT.isdisjoint(later.lower) for later in wording.later):
        return ()
    exists = wording.words[0] == "there"
    verbs = _verbs(wording, group, _PLURAL_OF)
    if verbs is None or (verbs and sentence.word(behind) in _JOINTS):
        return ()
    new = f"there are {NUMBERS[count - 1]}" if exists else NUMBERS[count - 1]
    nouns = [wording.edit(behind - 1, behind, several)] if several != head else []
    return _sorted(wording.edit(wording.start, wording.end, new), *nouns, *verbs)


def _names_it(wording: Wording, one: str, *, is_one: bool) -> bool:
    """Whether the caption names the thing elsewhere in the number that is to be changed."""
    text, thing = wording.reading.text, wording.claim.subject
    phrase = next((phrase for phrase in wording.reading.phrases if phrase.text == thing.phrase), None)
    others = [*phrase.mentions, *phrase.denied, *phrase.supposed] if phrase else []
    heads = [text[slice(*span)].lower().split()[-1] for span in others if span != thing.span]
    return any((head == one) == is_one or one in all_plurals(one) for head in heads)


def _verbs(wording: Wording, group: NounGroup, forms: Mapping[str, str]) -> list[Edit] | None:
    """The verbs of a group in its new number; None if there may be others."""
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
        if edits or sentence.word(before) in _JOINTS or sentence.tag(before) == "IN":
            return None  # "a cat and two dogs are", "a man with two dogs is"
        edits.append(wording.edit(place, place + 1, forms[sentence.word(place)]))
        place += 1
    if any(_is_in_number(sentence, other, forms) for other in range(place, len(sentence.lower))):
        return None
    return edits


def _is_in_number(sentence: GroupedSentence, place: int, forms: Mapping[str, str]) -> bool:
    """Whether a finite verb there is in the number of the keys of `forms`."""
    word, tag = sentence.word(place), sentence.tag(place)
    if place < 0 or word in ("", *forms.values()) or sentence.is_noun[place]:
        return False
    if forms is _PLURAL_OF:
        return word in forms or tag in ("VBZ", "NNS")
    return word in forms or tag == "VBP" or (tag == "VB" and sentence.tag(place - 1) not in ("MD", "TO", "RB"))


def _has_subject(sentence: GroupedSentence, verb: int) -> bool:
    """Whether a verb's subject stands before it: "we see", "the picture shows"."""
    return sentence.tag(verb - 1) == "PRP" or verb in sentence.ending


def _sorted(*edits: Edit) -> tuple[Edit, ...]:
    return tuple(sorted(edits))
