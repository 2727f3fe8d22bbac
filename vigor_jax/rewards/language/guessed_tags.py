"""Tags of the Penn Treebank without a tagger: from closed classes of words, and from endings.

That is enough for what a sentence denies or supposes: its scope ends at marks, verbs and prepositions, which can be
listed.
"""

from collections.abc import Sequence

from vigor_jax.rewards.language.words import listed

_TAGS = ("DT", "PRP$", "PRP", "CC", "CD", "MD", "RB", "WDT", "VB", "VBZ", "VBP", "VBN", "IN", "TO", "POS")
_TO_A_PLACE = listed("to a place")
_CLOSED = {word: tag for tag in _TAGS for word in listed(f"tag {tag.lower()}")}


def guess_tags(words: Sequence[str], is_noun: Sequence[bool]) -> list[str]:
    """Tags of lower-case words, some of which are known to be nouns; what is in no class counts as an adjective."""
    tags = ["NN" if noun else _CLOSED.get(word) or _by_ending(word) for word, noun in zip(words, is_noun, strict=True)]
    for place in range(2, len(words)):
        # "designed to hold", and not "next to big"
        if tags[place] == "JJ" and words[place - 1] == "to" and words[place - 2] not in _TO_A_PLACE:
            tags[place] = "VB"
    return tags


def _by_ending(word: str) -> str:
    if not word[0].isalnum():
        return word
    if word.endswith("ing"):
        return "VBG"
    if word.endswith("ed"):
        return "VBN"
    return "RB" if word.endswith("ly") else "JJ"
