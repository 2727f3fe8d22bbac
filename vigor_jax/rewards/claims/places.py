"""Claims of place: "on the left side of the image", "in the upper right corner", "one on the left, the other ..."."""

from collections.abc import Iterator
from typing import NamedTuple, cast

from vigor_jax.rewards.claims.attachment import Attachment
from vigor_jax.rewards.claims.claim import Claim, Horizontal, Place, Thing, Vertical
from vigor_jax.rewards.language.claim_words import NumberWords, PlaceWords
from vigor_jax.rewards.language.noun_groups import GroupedSentence, NounGroup

_OF = frozenset(("of", "in", "from", "within"))


class _Found(NamedTuple):
    """Words [start, end) that name a place; of what, "" for nothing that is named."""

    start: int
    end: int
    place: Place
    container: str


def find_places(sentence: GroupedSentence, words: PlaceWords, numbers: NumberWords) -> Iterator[Claim]:
    """The claims of place in a sentence, in order."""
    if not (every := list(_read(sentence, words))):
        return
    attachment = Attachment(sentence, words)
    # "One on the left side and another on the right side of the table": both of the table.
    container = next(_containers(sentence, words), "")
    last = None
    for found in every:
        container = found.container or container
        if not _is_of_picture(found.place, container, words) or sentence.clause_is_unsure(found.start):
            last = None
            continue
        groups, pointer = attachment.subjects(found.start, found.end)
        things = [group.thing for group in groups if group.thing]
        if pointer:
            if pointer == "one":
                last = _first_of(sentence, found.start, numbers)
            elif last is None and container:
                last = _of_one(sentence, found.start, numbers)
            target = last
            things = [target] if target else []
        if things:
            last = things[0]
        if container or pointer or _is_free(sentence, found, groups):
            for thing in things:
                yield Claim(thing, sentence.span(found.start, found.end), found.place)


def _is_of_picture(place: Place, container: str, words: PlaceWords) -> bool:
    if not container or container in words.pictures:
        return True
    return container in words.rooms and place.horizontal in ("left", "right") and place.vertical is None


def _is_free(sentence: GroupedSentence, found: _Found, groups: tuple[NounGroup, ...]) -> bool:
    """Whether a place of nothing named is the picture's: "at the top" may be that of anything named before."""
    if found.place.horizontal in ("left", "right"):
        return True
    return len(groups) == 1 and sentence.groups[0] is groups[0] and sentence.word(found.end) in (".", "!", "")


def _first_of(sentence: GroupedSentence, place: int, numbers: NumberWords) -> Thing | None:
    """What "one" is one of: the nearest things before in the plural."""
    for group in reversed(sentence.groups):
        if group.end < place and group.thing and sentence.is_plural(group, numbers.same_plural):
            return group.thing
    return None


def _of_one(sentence: GroupedSentence, place: int, numbers: NumberWords) -> Thing | None:
    """What "the other" is another of, where nothing is known of the place of "one" or "one dog" before it."""
    for one in reversed(range(place)):
        if sentence.lower[one] == "one" and sentence.word(one - 1) not in ("other", "another"):
            group = sentence.group_from(one)
            is_named = group is not None and group.start == one and group.thing is not None
            return group.thing if group and is_named else _first_of(sentence, one, numbers)
    return None


def _read(sentence: GroupedSentence, words: PlaceWords) -> Iterator[_Found]:
    free = 0
    for start, word in enumerate(sentence.lower):
        if word in words.leads and start >= free and (found := _read_at(sentence, words, start)):
            free = found.end
            yield found


def _read_at(sentence: GroupedSentence, words: PlaceWords, lead: int) -> _Found | None:
    """A preposition, "the", sides, maybe "side" or "corner", maybe "of the image"."""
    place = lead + 1
    has_article = sentence.word(place) == "the"
    place += has_article
    place += sentence.word(place) in words.degrees
    sides: list[str] = []
    while parts := _sides(sentence, words, place):
        sides += parts
        place += 1
        place += sentence.word(place) == "-"
    if not sides or (where := _place(sides)) is None:
        return None
    if sentence.word(place) in words.fillers:
        place += 1
        if sentence.word(place) not in words.parts:
            return None
    has_part = sentence.word(place) in words.parts
    if not has_part and not has_article:
        return None
    place += has_part
    if place < len(sentence.lower) and sentence.is_noun[place]:
        return None  # "on the left shoulder", "the right side table"
    container, end = _container(sentence, words, place)
    # "To the left" alone compares with something, or says where somebody looks.
    if sentence.word(lead) in ("to", "within") and not has_part and not _is_of_picture(where, container or "?", words):
        return None
    joined = sentence.word(end) in ("and", "or", ",") and (
        _sides(sentence, words, end + 1) or _sides(sentence, words, end + 2)
    )
    if sentence.word(lead - 1) == "from" or joined:  # "from the left to", "on the left and right side"
        return None
    return _Found(lead, end, where, container)


def _sides(sentence: GroupedSentence, words: PlaceWords, place: int) -> list[str]:
    """What one word says: "left", "top-left", "left-hand"; none where it says something else."""
    sides = []
    for part in sentence.word(place).split("-"):
        if part in words.sides:
            sides.append(words.sides[part])
        elif part not in words.fillers and part not in ("most", "side"):
            return []
    return sides


def _place(sides: list[str]) -> Place | None:
    """None if the sides contradict each other."""
    horizontal = {side for side in sides if side in ("left", "right")}
    vertical = {side for side in sides if side in ("top", "bottom")}
    if len(horizontal) > 1 or len(vertical) > 1:
        return None
    middle = "center" if "center" in sides else None
    return Place(
        cast("Horizontal | None", next(iter(horizontal), middle)), cast("Vertical | None", next(iter(vertical), middle))
    )


def _containers(sentence: GroupedSentence, words: PlaceWords) -> Iterator[str]:
    """What the sentence names the sides of, whatever it says of them: "from the left side of the table"."""
    for place, word in enumerate(sentence.lower):
        if word in words.parts and _sides(sentence, words, place - 1) and sentence.word(place + 1) == "of":
            yield _container(sentence, words, place + 1)[0]


def _container(sentence: GroupedSentence, words: PlaceWords, place: int) -> tuple[str, int]:
    """The head of "of the image", and where that ends."""
    if sentence.word(place) not in _OF:
        return "", place
    end = place + 1
    while sentence.tag(end) in ("DT", "PRP$", "JJ", "NN", "NNS", "NNP") and sentence.tag(end + 1) != "POS":
        end += 1
    head = sentence.word(end - 1)
    if head in words.pictures or head in words.rooms or sentence.word(place) == "of":
        return head, end
    return "", place
