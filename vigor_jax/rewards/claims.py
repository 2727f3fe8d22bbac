"""What a caption says of the things that it names: that they are there, that they are not, or only that they may be.

A sentence is read as tags of the Penn Treebank. Without a tagger `guess_tags` makes them from closed classes of words
and from endings, which is enough: a scope ends at marks, verbs and prepositions, and these can be listed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from vigor_jax.records import Span


class Claim(IntEnum):
    """What a sentence says of a thing at one place.

    ASSERTED: it is there.
    DENIED: the picture has none: "there are no people".
    DENIED_HERE: something or some place has none: "a man without a helmet". Others may have one.
    SUPPOSED: none of these: "possibly a school", "for children to sit", "no other people", "shaped like a heart".
    QUOTED: the words are on a sign, or are no mention at all: "a sign that says 'Stop'", "no sign of".
    """

    ASSERTED = 0
    DENIED = 1
    DENIED_HERE = 2
    SUPPOSED = 3
    QUOTED = 4


@dataclass(frozen=True)
class Phrase:
    """Something a caption names; each place lies within one sentence, and each kind of place is in order.

    Attributes:
        text: Lower case, the last word in the singular: "traffic light".
        mentions: Where the caption asserts that it is there.
        denied: Where the caption says that it is not there. A denial for a part of the picture ("no dog on the sofa",
            "a man without a helmet") of what the caption asserts elsewhere is in `supposed`, for both may be true.
        supposed: Where the caption names it and commits itself to neither.
    """

    text: str
    mentions: tuple[Span, ...] = ()
    denied: tuple[Span, ...] = ()
    supposed: tuple[Span, ...] = ()


def gather(found: Iterable[tuple[str, Span, Claim]]) -> list[Phrase]:
    """Phrases in the order of their first place, from their places in order."""
    places: dict[str, tuple[list[Span], ...]] = {}
    for phrase, span, claim in found:
        if phrase not in places:
            places[phrase] = ([], [], [], [])
        places[phrase][claim].append(span)
    return [_phrase(name, *kinds) for name, kinds in places.items()]


def _phrase(name: str, asserted: list[Span], denied: list[Span], here: list[Span], supposed: list[Span]) -> Phrase:
    if not here:
        return Phrase(name, tuple(asserted), tuple(denied), tuple(supposed))
    if asserted:
        return Phrase(name, tuple(asserted), tuple(denied), tuple(sorted(supposed + here)))
    return Phrase(name, (), tuple(sorted(denied + here)), tuple(supposed))


_CLOSED = {
    **dict.fromkeys(("a", "an", "the", "any", "no", "this", "that", "these", "those", "each", "every"), "DT"),
    **dict.fromkeys(("his", "her", "its", "their", "our", "my", "your"), "PRP$"),
    **dict.fromkeys(("it", "he", "she", "they", "we", "i", "you", "them", "him"), "PRP"),
    **dict.fromkeys(("and", "or", "nor", "but", "neither", "either"), "CC"),
    **dict.fromkeys(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), "CD"),
    **dict.fromkeys(("can", "could", "may", "might", "would", "should", "must", "will", "cannot"), "MD"),
    **dict.fromkeys(("not", "n't", "also", "only", "just", "even", "there", "here"), "RB"),
    **dict.fromkeys(("who", "which", "what", "where", "when", "whose"), "WDT"),
    **dict.fromkeys(("be", "have", "do", "see", "sit", "stand", "show", "contain", "include"), "VB"),
    **dict.fromkeys(
        "is has does stands sits lies walks runs holds wears shows contains includes features depicts hangs rests "
        "looks seems appears lacks sleeps plays rides eats drinks suggests indicates".split(),
        "VBZ",
    ),
    **dict.fromkeys("are was were had did am 's 're 've".split(), "VBP"),
    **dict.fromkeys("been seen shown worn held".split(), "VBN"),
    **dict.fromkeys(
        "in on at of by with without from into onto near under over above below behind between among around through "
        "across along against inside outside within toward towards upon like as for than about next beside besides "
        "while because if whether although though since until off up down".split(),
        "IN",
    ),
    "to": "TO",
}  # fmt: skip


def guess_tags(words: Sequence[str], is_noun: Sequence[bool]) -> list[str]:
    """Tags without a tagger: lower-case words, and which of them are known to be nouns."""
    return ["NN" if noun else _CLOSED.get(word) or _by_ending(word) for word, noun in zip(words, is_noun, strict=True)]


def _by_ending(word: str) -> str:
    if not word[0].isalnum():
        return word
    if word.endswith("ing"):
        return "VBG"
    if word.endswith("ed"):
        return "VBN"
    return "RB" if word.endswith("ly") else "JJ"
