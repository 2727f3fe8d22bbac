"""Claims of attribute: "a red car", "a metal fence", "the walls are white", "a circle in red", "made of wood"."""

from collections.abc import Iterator

from vigor_jax.rewards.claims.attachment import Attachment
from vigor_jax.rewards.claims.claim import Attribute, Claim, Thing
from vigor_jax.rewards.language.claim_words import AttributeWords, PlaceWords
from vigor_jax.rewards.language.noun_groups import GroupedSentence, NounGroup

_BE = frozenset(("is", "are", "was", "were"))
_COLOR = ("color", "colors", "colour")
_JOINTS = ("and", ",", "&", "/", "-")
# What may follow "is red": "is red with white stripes", but not "is red wine".
_ENDS = frozenset((".", ",", ";", ":", "!", "and", "with", "in", "on", "while", "which", "but", ")", ""))


def find_attributes(sentence: GroupedSentence, words: AttributeWords, places: PlaceWords) -> Iterator[Claim]:
    """The claims of attribute in a sentence, in order."""
    claims = [claim for group in sentence.groups for claim in _before_noun(sentence, words, group)]
    if not words.values.keys().isdisjoint(sentence.lower):
        claims += _behind_verb(sentence, words, places)
        claims += _behind_noun(sentence, words)
    yield from sorted(claims, key=lambda claim: claim.span)


def _before_noun(sentence: GroupedSentence, words: AttributeWords, group: NounGroup) -> Iterator[Claim]:
    thing = group.thing
    if thing is None or not _is_judged(thing, words):
        return
    if tuple(sentence.lower[group.end - 2 : group.end]) in words.fixed or sentence.group_is_supposed(group):
        return
    place = group.start
    while place < group.end - 1:
        end, found = _read(sentence, words, place, group.end - 1)
        if found and _modifies(sentence, words, group, place, found.kind):
            yield Claim(thing, sentence.span(place, end), found)
        place = end


def _modifies(sentence: GroupedSentence, words: AttributeWords, group: NounGroup, place: int, kind: str) -> bool:
    """Whether a word before a head is its attribute where it stands, and no part of a name."""
    token = sentence.tokens[place]
    if place and token.group()[0].isupper():
        return False  # "the Jet Blue plane"
    if not sentence.is_noun[place]:
        return True
    # Of the nouns only the first: "metal fence", but not "wine glass holder". Names have colors: "black board".
    is_named = group.thing is not None and token.start() >= group.thing.span.start
    is_named = is_named and sentence.lower[place] not in words.shades
    return place == group.noun and not (is_named and kind == "color")


def _read(sentence: GroupedSentence, words: AttributeWords, place: int, stop: int) -> tuple[int, Attribute | None]:
    """The attribute that begins at a word, and where it ends: "dark red", "black and white"."""
    start = place
    while place < stop - 1 and sentence.lower[place] in words.shades:
        place += 1
    found = _value(words, sentence.lower[place])
    if found is None or (place > start and found[0] != "color"):
        return start + 1, None
    kind, values = found
    end = place + 1
    while kind == "color" and (after := _behind_joint(sentence, end)) < stop:
        second = after + (sentence.lower[after] in words.shades and after + 1 < stop)
        other = _value(words, sentence.lower[second])
        if after == end or other is None or other[0] != kind:
            break
        values, end = [*values, *other[1]], second + 1
    return end, Attribute(kind, " and ".join(dict.fromkeys(values)))


def _behind_joint(sentence: GroupedSentence, place: int) -> int:
    while sentence.word(place) in _JOINTS:
        place += 1
    return place


def _value(words: AttributeWords, word: str) -> tuple[str, list[str]] | None:
    """The kind and values of a word: "red", "black-and-white", "dark-blue"."""
    if found := words.values.get(word):
        return found[0], [found[1]]
    if "-" not in word:
        return None
    parts = word.split("-")
    if parts[0] in words.shades:
        parts = parts[1:]
    elif "and" not in parts:
        return None
    found_parts = [words.values.get(part) for part in parts if part != "and"]
    colors = [each[1] for each in found_parts if each and each[0] == "color"]
    return ("color", colors) if colors and len(colors) == len(found_parts) else None


def _behind_verb(sentence: GroupedSentence, words: AttributeWords, places: PlaceWords) -> Iterator[Claim]:
    """ "The walls are white", "the table is made of wood"."""
    for verb, word in enumerate(sentence.lower):
        if word not in _BE:
            continue
        place = verb + 1
        while sentence.word(place) in words.fully:
            place += 1
        is_in = sentence.word(place) == "in"  # "is painted in white and gray colors"
        place += is_in
        is_made = sentence.lower[place : place + 2] in (["made", "of"], ["made", "from"])
        start = place + 2 * is_made
        if start >= len(sentence.lower) or sentence.clause_is_unsure(start):
            continue
        end, found = _read(sentence, words, start, len(sentence.lower))
        if found is None or is_made != (
            found.kind == "material" and sentence.lower[start] not in ("wooden", "metallic")
        ):
            continue
        if is_in and (found.kind != "color" or sentence.word(end) not in _COLOR):
            continue
        if not is_made and not is_in and sentence.is_noun[end - 1]:
            continue
        rest = end + is_in
        if sentence.word(rest) not in _ENDS or (sentence.word(rest) == "in" and sentence.word(rest + 1) not in _COLOR):
            continue
        groups = Attachment(sentence, places).subjects(verb + 1, end).groups
        is_several = len(found.value.split()) > 1 and word in ("are", "were")  # each of them, or some?
        for group in groups:
            if group.thing and _is_judged(group.thing, words) and not is_several:
                yield Claim(group.thing, sentence.span(start, end), found)


def _behind_noun(sentence: GroupedSentence, words: AttributeWords) -> Iterator[Claim]:
    """ "A circle in red", "a table made of wood"."""
    for group in sentence.groups:
        is_made = sentence.lower[group.end : group.end + 2] in (["made", "of"], ["made", "from"])
        start = group.end + 1 + is_made
        if group.thing is None or not (is_made or sentence.word(group.end) == "in") or start >= len(sentence.lower):
            continue
        end, found = _read(sentence, words, start, len(sentence.lower))
        if found is None or found.kind != ("material" if is_made else "color"):
            continue
        if end < len(sentence.lower) and (sentence.is_noun[end] or sentence.tags[end].startswith(("JJ", "NN"))):
            continue
        if _is_judged(group.thing, words) and not sentence.group_is_supposed(group):
            yield Claim(group.thing, sentence.span(start, end), found)


def _is_judged(thing: Thing, words: AttributeWords) -> bool:
    return thing.head not in words.people


def attributed_phrases(claim: Claim, words: AttributeWords) -> tuple[str, tuple[str, ...]]:
    """What to ask a detector for about a claim of attribute: the thing as claimed, and as it may be instead.

    Args:
        claim: Of attribute.
        words: The list that it was found with.

    Returns:
        ("red car", ("blue car", ...)). A value of several colors is ruled out by those that are not among them.
    """
    if not isinstance(claim.value, Attribute):
        raise TypeError(f"expected a claim of attribute, got one of {claim.kind}")
    kind, value = claim.value.kind, claim.value.value
    base = claim.subject.phrase.split()
    while len(base) > 1 and (base[0] in words.shades or words.values.get(base[0]) == (kind, value)):  # "metal fence"
        base = base[1:]
    thing = " ".join(base)
    return f"{value} {thing}", tuple(f"{rival} {thing}" for rival in rival_values(claim.value, words))


def rival_values(attribute: Attribute, words: AttributeWords) -> tuple[str, ...]:
    """The values that rule an attribute out, in the order of the rivals of `attributed_phrases`."""
    kind, values = attribute.kind, attribute.value.split(" and ")
    rivals = [rival for rival in words.rivals[kind, values[0]] if rival not in values]
    return tuple(rival for rival in rivals if all(rival in words.rivals[kind, each] for each in values))
