"""Which thing a phrase of place or relation speaks of; where two are possible, none."""

from typing import NamedTuple

from vigor_jax.rewards.language.claim_words import PlaceWords
from vigor_jax.rewards.language.noun_groups import GroupedSentence, NounGroup

_BE = frozenset(("is", "are", "was", "were", "'s", "be", "been", "being"))
_PLURAL_BE = frozenset(("are", "were"))
_RELATIVE = frozenset(("which", "who", "that"))
_JOINTS = frozenset(("and", ",", "while", "but", ";", ":", "with"))
_CONJUNCTIONS = frozenset(("while", "as", "because", "if", "that", "though", "although", "whereas", "since", "so"))
_PARTICLES = frozenset(("both", "all", "out", "up", "down", "high"))
_GROUNDS = frozenset(("background", "foreground"))
_EXAMPLES = (("including",), ("such", "as"), ("like",))
# "A cat in a box on the left" is on the left as the box is; "a cat near a box on the left" may not be.
_CONTACTS = frozenset(("on", "in", "at", "inside", "atop"))
_POINTERS = frozenset(("one", "another", "other"))
# "Closer to the left", "further to the right" compare.
_COMPARES = frozenset(("closer", "further", "farther", "nearer", "more", "most", "less", "closest", "extends", "from"))


class Subjects(NamedTuple):
    """What a phrase speaks of.

    Attributes:
        groups: The nearest first; none if that is not sure.
        pointer: "one", "another" or "other" if it speaks of what such a word points to.
    """

    groups: tuple[NounGroup, ...] = ()
    pointer: str = ""


_NONE = Subjects()


class Attachment:
    """Finds the subjects of phrases in a sentence.

    Args:
        sentence: The sentence.
        words: For verbs between a thing and its place.
        holds: Verbs after which a phrase speaks of their object.
    """

    def __init__(self, sentence: GroupedSentence, words: PlaceWords, holds: frozenset[str] = frozenset()) -> None:
        self._sentence, self._words, self._holds = sentence, words, holds

    def subjects(self, start: int, end: int) -> Subjects:
        """The subjects of words [start, end)."""
        if not self._sentence.groups:
            return _NONE
        if groups := self._fronted(start, end):
            return Subjects(groups)
        return self._attached(start)

    def _fronted(self, start: int, end: int) -> tuple[NounGroup, ...]:
        """Of "on the left, there is a dog": the groups that follow."""
        sentence = self._sentence
        before = sentence.word(start - 1)
        place, has_comma = end, sentence.word(end) == ","
        place += has_comma
        exists = sentence.word(place) == "there"
        first = sentence.groups[0]
        opens = (
            start == 0
            or (first.start <= 2 and first.end == start and self._is_ground(first))
            or (start <= 2 and before == "," and sentence.tag(0) in ("RB", "JJ", "IN"))
            or (first.start == 1 and first.end == start and sentence.word(0) == "on")  # "on the wall above the bed"
        )
        if before in ("and", "while", "but", ";"):
            opens = exists or (has_comma and place in sentence.starting)
        if not (opens or (before == "," and exists)):
            return ()
        verb = exists
        while place < len(sentence.lower) and (
            sentence.word(place) in _BE
            or (not has_comma and sentence.tag(place) in ("VBZ", "VBP", "VBN", "VBG") and not sentence.is_noun[place])
            or (verb and sentence.tag(place) in ("RB", "EX", "MD", "VB", "VBN"))
            or sentence.word(place) in ("there", "also")
        ):
            verb = True
            place += 1
        group = self._counted(place)
        if group is None or not (has_comma or verb or start == 0):
            return ()
        if group.thing is None and (listed := self._first_example(group.end)):
            group = listed
        return self._with_coordinated(group)

    def _counted(self, place: int) -> NounGroup | None:
        """The group that starts at `place`; of "a couple of bottles" the bottles."""
        sentence = self._sentence
        group = sentence.starting.get(place)
        if group and group.thing is None and sentence.word(group.end) == "of":
            return sentence.starting.get(group.end + 1)
        if group is None and sentence.word(place) == "a" and sentence.word(place + 2) == "of":
            return sentence.starting.get(place + 3)
        return group

    def _first_example(self, place: int) -> NounGroup | None:
        """The bottle of "various items, including a bottle and a cup"; `place` is behind the items."""
        sentence = self._sentence
        place += sentence.word(place) == ","
        words = next((words for words in _EXAMPLES if tuple(sentence.lower[place : place + len(words)]) == words), ())
        return self._counted(place + len(words)) if words else None

    def _with_coordinated(self, group: NounGroup) -> tuple[NounGroup, ...]:
        """A group and those that "and" adds to it, unless they begin another clause."""
        sentence, found = self._sentence, [group]
        while sentence.word(found[-1].end) in ("and", ","):
            place = found[-1].end + 1
            place += sentence.word(place) == "and"
            following = self._counted(place)
            if following is None:
                break
            if sentence.is_finite(following.end) and sentence.word(following.end) not in _PLURAL_BE:
                break
            found.append(following)
        is_whole = sentence.word(found[-1].end) in (".", ",", ";", "", "on", "in", *_PLURAL_BE)
        return tuple(found) if is_whole else (group,)

    def _attached(self, start: int) -> Subjects:
        """Of "a dog is sitting on the left": the group before, with what may stand between."""
        sentence = self._sentence
        place, finite, relative, verbs, comma = start - 1, "", False, False, False
        while place >= 0 and ((group := sentence.ending.get(place + 1)) is None or self._is_ground(group)):
            if group:  # "a person in the background, positioned on the left"
                place = group.start - 2
                continue
            word, tag = sentence.lower[place], sentence.tags[place]
            if word in _COMPARES:
                return _NONE
            if word in sentence.modifiers and sentence.word(place - 1) == "in":  # "a circle in red"
                place -= 2
                continue
            if word in _POINTERS:
                return self._pointed(place)
            if word in _RELATIVE:
                relative = True
            elif word in _BE or tag.startswith(("VB", "NNS")) or tag == "MD" or word in self._words.stands:
                verbs = True  # what is tagged as a plural, and is no noun, is a verb: "hangs"
                if self._is_verb(place) or tag == "NNS":
                    finite = word
            elif word == "and" and finite and place:
                return self._of_first_verb(place)
            elif word == ",":
                if not (place == start - 1 or relative or verbs):
                    return _NONE
                comma = verbs
            elif tag not in ("RB", "RP") and word not in _PARTICLES:
                return _NONE
            place -= 1
        group = sentence.ending.get(place + 1)
        if group is None:
            return _NONE
        if verbs and comma and not finite and not relative:  # "a hamster in a cage, standing on the left"
            while (holder := self._holder(group)) is not None:
                group = holder
            if subjects := self._of_verb_before(group):
                return subjects
        if relative or (verbs and not finite):
            return Subjects((group,))
        return self._of_verb(group, finite) if finite else self._before(group, is_apart=sentence.word(start - 1) == ",")

    def _of_first_verb(self, joint: int) -> Subjects:
        """The dog of "the dog lies on a mat and is on the left", if there is one other finite verb before "and"."""
        sentence = self._sentence
        verbs = [place for place in range(joint) if sentence.is_finite(place) and sentence.tag(place + 1) != "MD"]
        if not verbs or any(sentence.lower[place] in _RELATIVE | _CONJUNCTIONS for place in range(verbs[0], joint)):
            return _NONE
        if len(verbs) > 1 or (group := sentence.ending.get(verbs[0])) is None or self._is_ground(group):
            return _NONE
        return self._of_verb(group, sentence.lower[verbs[0]])

    def _of_verb_before(self, group: NounGroup) -> Subjects | None:
        """The lamp of "the lamp stands in a corner, leaning to the left", for the corner."""
        sentence, place = self._sentence, group.start
        while place and (self._is_preposition(place - 1) or sentence.tags[place - 1] in ("VBN", "RB", "TO", "VB")):
            place -= 1
        verb = place - 1
        if place < group.start and sentence.is_finite(verb) and (subject := sentence.ending.get(verb)):
            return self._of_verb(subject, sentence.lower[verb])
        return None

    def _is_ground(self, group: NounGroup) -> bool:
        return self._sentence.lower[group.end - 1] in _GROUNDS and self._sentence.word(group.start - 1) == "in"

    def _pointed(self, place: int) -> Subjects:
        word = self._sentence.lower[place]
        if word == "one" and self._sentence.word(place - 1) in ("another", "other"):
            word = self._sentence.word(place - 1)
        return Subjects(pointer=word)

    def _of_verb(self, group: NounGroup, verb: str) -> Subjects:
        """The subjects of a finite verb: the lid of "the lid of the box in the car is", both of "cups and cans are"."""
        is_plural = verb in _PLURAL_BE
        listed = self._list(group) if is_plural else [group]
        while (holder := self._holder(listed[-1])) is not None:
            listed = self._list(holder) if is_plural else [holder]
        before = listed[-1].start - 1
        if self._sentence.lower[max(before - 1, 0) : before + 1] == ["one", "of"]:
            return Subjects(tuple(listed))
        if before >= 0 and (self._is_verb(before) or self._is_preposition(before)):  # "near the car is a dog"
            return _NONE
        return Subjects(tuple(listed))

    def _is_verb(self, place: int) -> bool:
        """Whether a finite verb is there; "situated" and such are none, whatever taggers say."""
        return self._sentence.is_finite(place) and self._sentence.lower[place] not in self._words.stands

    def _holder(self, group: NounGroup) -> NounGroup | None:
        """The lid of "the lid of the box", the man of "the man wearing a hat", the cup of "a cup visible on a tray"."""
        place = group.start
        while place and (
            self._is_preposition(place - 1)
            or self._sentence.tags[place - 1] in ("VBG", "VBN", "RB", "TO")
            or self._sentence.lower[place - 1] in self._words.stands
        ):
            place -= 1
        return self._sentence.ending.get(place) if place < group.start else None

    def _is_preposition(self, place: int) -> bool:
        return self._sentence.tag(place) == "IN" and self._sentence.word(place) not in _CONJUNCTIONS

    def _list(self, last: NounGroup) -> list[NounGroup]:
        """The groups that commas and "and" join before one, from the last."""
        found = [last]
        while self._sentence.word(found[-1].start - 1) in ("and", ",") and (prior := self._prior(found[-1].start - 1)):
            if self._begins(found[-1]) or self._is_of_place(prior):
                break
            found.append(prior)
        return found

    def _begins(self, group: NounGroup) -> bool:
        """Whether a new item starts there: "a dog near the sink and another dog", "one dog"."""
        return self._sentence.lower[group.start] in ("another", "one")

    def _is_of_place(self, group: NounGroup) -> bool:
        """Whether it is the side of "a lamp on the left side, and a clock"."""
        head = self._sentence.lower[group.end - 1]
        return head in self._words.parts or head in self._words.pictures or head in self._words.rooms

    def _before(self, group: NounGroup, *, is_apart: bool) -> Subjects:
        """The group right before a phrase, unless the words before it leave another reading.

        Args:
            group: The group.
            is_apart: Whether a comma stands between.
        """
        sentence, words = self._sentence, self._words
        listed = self._list(group)
        # "Another backpack and handbag": both. "A cat and a dog on the left": who knows.
        is_bare = sentence.tag(group.start) not in ("DT", "CD", "PRP$")
        found = listed[:2] if is_bare else listed[:1]
        before = listed[-1].start - 1
        word = sentence.word(before)
        if word in words.introduces and (holder := sentence.ending.get(before)):
            # "Wearing a hat with antennas on top of": the hat or the antennas?
            of_holder = self._list(holder)[-1].start - 1
            if (
                of_holder >= 0
                and sentence.tags[of_holder].startswith("VB")
                and sentence.lower[of_holder] not in words.shows
            ):
                return _NONE
        if before < 0 or word in _JOINTS or word in words.shows or word in words.introduces or word in _BE:
            return Subjects(tuple(found))
        if word in self._holds:
            return Subjects(tuple(found))
        if sentence.lower[before - 1 : before + 1] == ["such", "as"]:
            return Subjects(tuple(found))
        if self._is_preposition(before) and len(listed) == 1 and (is_apart or word in _CONTACTS) and word != "of":
            return self._standing(before)
        return _NONE

    def _standing(self, preposition: int) -> Subjects:
        """The computer of "a computer sitting on the floor, on the left"."""
        sentence, stands = self._sentence, self._words.stands
        place = preposition
        while (
            place and sentence.tags[place - 1] in ("RB", "IN", "TO", "JJ") and sentence.lower[place - 1] not in stands
        ):
            place -= 1
        behind = place
        while place and (sentence.lower[place - 1] in stands | _BE or sentence.tags[place - 1] in ("MD", "RB")):
            place -= 1
        if place < behind and sentence.word(place - 1) in _RELATIVE:  # "a mirror, which hangs on the wall"
            place -= 1 + (sentence.word(place - 2) == ",")
        holder = sentence.ending.get(place) if place < behind else None
        return Subjects((holder,)) if holder else _NONE

    def _prior(self, joint: int) -> NounGroup | None:
        """The group before "and", "," or both."""
        if self._sentence.word(joint) == "and" and self._sentence.word(joint - 1) == ",":
            joint -= 1
        return self._sentence.ending.get(joint)
