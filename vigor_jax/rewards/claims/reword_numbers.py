"""The right number in place of a wrong one: "three dogs" → "two dogs", "there are two dogs" → "there is one dog".

Whatever else in a caption speaks of the number is not rewritten: where something does, nothing is repaired.
"""

from vigor_jax.records import Edit
from vigor_jax.rewards.claims import number_agreement
from vigor_jax.rewards.claims.claim import Number
from vigor_jax.rewards.claims.judge import Found, JudgeConfig, count_tolerance, counted_boxes
from vigor_jax.rewards.claims.rewording import Wording
from vigor_jax.rewards.language.noun_groups import NounGroup
from vigor_jax.rewards.language.words import all_plurals, plurals, repair_words, singular

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_MORE, _GENERAL, _MANY = map(repair_words, ("more", "general", "many"))
_COLLECTIVE, _INTRODUCES = repair_words("collective"), repair_words("introduces")
_TOGETHER, _ALONE = repair_words("together"), repair_words("alone")
_THEY, _IT, _RELATIVE = map(repair_words, ("they", "it", "relative"))
_EACH = frozenset(("each", "every", "per"))


def reword_number(wording: Wording, subject: Found, config: JudgeConfig) -> tuple[Edit, ...]:
    """What makes a wrong claim of number right; () where that is not sure."""
    claim, sentence = wording.claim, wording.sentence
    assert isinstance(claim.value, Number)
    least, most, narrowed = claim.value.least, claim.value.most, claim.value.narrowed
    count = len(counted_boxes(subject, config))
    group = next((group for group in sentence.groups if group.thing == claim.subject), None)
    if group is None or not 0 < count <= min(len(NUMBERS), config.most_counted) or count_tolerance(count, config):
        return ()
    if narrowed and config.narrowed == "at least" and wording.reading.introduced[claim.subject.phrase] > 1:
        return ()  # some of the boxes may be of those that are brought in elsewhere
    if least != most and not _MANY.isdisjoint([*sentence.lower[: wording.start], *sentence.lower[wording.end :]]):
        return ()
    if _is_spoken_of(wording, group, count) or _is_counted_again(wording, group):
        return ()
    if group.end <= wording.start:  # "dogs, three of them"
        return () if 1 in (most, count) else (_number(wording, count),)
    if number_agreement.shares_number(sentence, group):
        return ()
    if most == 1:
        return _from_one(wording, group, count)
    if count == 1:
        return _to_one(wording, group) if least == most else ()  # of a herd there may be one box
    return _to_other(wording, group, count)


def _number(wording: Wording, count: int) -> Edit:
    is_digits = wording.words[-1].isdecimal()
    return wording.edit(wording.start, wording.end, str(count) if is_digits else NUMBERS[count - 1])


def _is_spoken_of(wording: Wording, group: NounGroup, count: int) -> bool:
    """Whether other words take for granted how many there are."""
    sentence, behind = wording.sentence, max(group.end, wording.end)
    around = {sentence.word(wording.start - 1), *sentence.lower[group.start : wording.start], *wording.words}
    around.update(sentence.lower[wording.end : group.end])
    if not (_MORE.isdisjoint(around) and _EACH.isdisjoint(sentence.lower[: wording.start])):
        return True
    if number_agreement.has_pointer(wording, sentence, behind):
        return True
    if wording.later and number_agreement.has_pointer(wording, wording.later[0]):
        return True
    if count == 2 and any(
        sentence.word(i) == "all" for i in range(behind, len(sentence.lower)) if sentence.word(i - 1) != "in"
    ):
        return True
    heads = {sentence.lower[group.end - 1], singular(sentence.lower[group.end - 1])}
    return group.end == behind and sentence.word(behind) in ((":",) if heads.isdisjoint(_GENERAL) else (":", ","))


def _is_counted_again(wording: Wording, group: NounGroup) -> bool:
    """Whether numbers follow that are no claims: "two on the left", "all three"."""
    claimed = [claim.span for claim in wording.reading.claims]
    behind = max(group.end, wording.end)
    for sentence in (wording.sentence, *wording.later):
        is_own = sentence is wording.sentence
        counts = NUMBERS[1:] if is_own else wording.words
        for place in range(behind if is_own else 0, len(sentence.lower)):
            start = sentence.tokens[place].start()
            is_claimed = any(span.start <= start < span.end for span in claimed)
            if sentence.lower[place] in counts and sentence.tags[place] == "CD" and not is_claimed:
                return True
    return False


def _to_other(wording: Wording, group: NounGroup, count: int) -> tuple[Edit, ...]:
    """From several to several."""
    if not (wording.words[0] in ("a", "an") or wording.words[-1] == "of"):
        return (_number(wording, count),)
    is_introduced = wording.start == 0 or wording.sentence.word(wording.start - 1) in _INTRODUCES
    if not (is_introduced or _COLLECTIVE.isdisjoint(wording.words)):
        return ()
    verbs = number_agreement.verbs(wording, group, number_agreement.PLURAL_OF)  # "a pair of dogs is" → "three dogs are"
    return () if verbs is None else _in_order(_number(wording, count), *verbs)


def _to_one(wording: Wording, group: NounGroup) -> tuple[Edit, ...]:
    sentence, behind = wording.sentence, group.end
    head = sentence.lower[behind - 1]
    one = singular(head)
    if group.start < wording.start or "pair" in wording.words or head not in (one, *all_plurals(one)):
        return ()
    if not _TOGETHER.isdisjoint(sentence.lower) or number_agreement.is_named_so(wording, one, is_one=False):
        return ()
    rest = sentence.lower[behind:]
    if not (_THEY | _RELATIVE).isdisjoint(rest) or any(not _THEY.isdisjoint(later.lower) for later in wording.later):
        return ()
    if any(singular(word) != word for word, noun in zip(rest, sentence.is_noun[behind:], strict=True) if noun):
        return ()  # "two men wearing hats"
    verbs = number_agreement.verbs(wording, group, number_agreement.SINGULAR_OF)
    if verbs is None:
        return ()
    nouns = [wording.edit(behind - 1, behind, one)] if one != head else []
    return _in_order(_number(wording, 1), *nouns, *verbs)


def _from_one(wording: Wording, group: NounGroup, count: int) -> tuple[Edit, ...]:
    sentence, behind = wording.sentence, group.end
    head = sentence.lower[behind - 1]
    several = plurals(head)[0]
    if (
        group.start < wording.start
        or singular(several) != head
        or number_agreement.is_named_so(wording, head, is_one=True)
    ):
        return ()
    if not _ALONE.isdisjoint(sentence.lower[wording.end :]) or any(
        not _IT.isdisjoint(later.lower) for later in wording.later
    ):
        return ()
    rest = sentence.lower[behind:]
    if not (_IT | _RELATIVE).isdisjoint(rest) or ("VBG", "DT") in zip(
        sentence.tags[behind:], sentence.tags[behind + 1 :], strict=False
    ):
        return ()  # "one man wearing a hat"
    verbs = number_agreement.verbs(wording, group, number_agreement.PLURAL_OF)
    if verbs is None:
        return ()
    number = NUMBERS[count - 1]
    new = f"there are {number}" if wording.words[0] == "there" else number
    nouns = [wording.edit(behind - 1, behind, several)] if several != head else []
    return _in_order(wording.edit(wording.start, wording.end, new), *nouns, *verbs)


def _in_order(*edits: Edit) -> tuple[Edit, ...]:
    return tuple(sorted(edits))
