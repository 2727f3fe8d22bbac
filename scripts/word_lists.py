"""Derives vigor_jax/rewards/language/wordnet.txt from WordNet, with NLTK's tagger; neither is needed at run time.

    NLTK_DATA=FOLDER python scripts/word_lists.py

FOLDER has `corpora/wordnet` and `taggers/averaged_perceptron_tagger_eng`. Only single words in lower case are looked
at. The numbers behind "often" are WordNet's own counts of each sense in tagged text.
"""

import textwrap
from collections import Counter
from pathlib import Path

from nltk.corpus import wordnet

from vigor_jax.rewards.language.tagger import cached_tag, load_tagger
from vigor_jax.rewards.language.words import NEVER_NOUN, plurals, regular_singular

TARGET = Path(__file__).parents[1] / "vigor_jax" / "rewards" / "language" / "wordnet.txt"
HEAD = """\
# Made by scripts/word_lists.py from WordNet 3.0 (Copyright 2006 by Princeton University. All rights reserved. Its
# license is in wordnet_license.txt.)
# Change the script, or the lists next to this one, which come first.
"""
# Lexicographer files of nouns that have a sense one may see; of "communication" are signs and posters as well as talks.
VISIBLE = frozenset(
    "Tops artifact animal plant person food body object substance phenomenon group location shape".split()  # noqa: SIM905
)
# Frames in which a word that is no noun may be taken for one: before, after.
FRAMES = (
    ("a", "room ."),
    ("a small", "and cozy room ."),
    ("the cat is", "in it ."),
    ("with a man", ", and"),
    ("a dog", "in the room"),
)
# Mostly adjectives in WordNet's texts, but not in captions.
NOUNS_ALL_THE_SAME = frozenset(("remote",))
_KINDS = {"communication": ("said",), "animal": ("alive",), "plant": ("alive",)}
SECTIONS = {
    "abstract": "Nouns without any sense that one may see.",
    "things": "Nouns with a sense that one may see, no adjectives, less rare animals and plants: some tag them so.",
    "no nouns": "Adjectives and adverbs, and what is mostly one, which NLTK's tagger takes for nouns in some place.",
    "verbs": "Nouns that are verbs, too.",
    "singular": "Words in -s that are no plurals, and plurals that words.py gets wrong by rule: plural=singular.",
}  # fmt: skip


def main() -> None:
    counts: dict[str, Counter[str]] = {}
    senses: dict[str, Counter[str]] = {}
    for synset in wordnet.all_synsets():
        part = {"s": "a"}.get(synset.pos(), synset.pos())
        kind = synset.lexname().removeprefix("noun.")
        for lemma in synset.lemmas():
            word = lemma.name()
            if word.isascii() and word.isalpha() and word.islower() and len(word) > 1:
                for key in (part, *(("visible",) if kind in VISIBLE else ()), *_KINDS.get(kind, ())):
                    counts.setdefault(word, Counter())[key] += lemma.count()
                    senses.setdefault(word, Counter())[key] += 1
    tag = cached_tag(load_tagger())

    def is_taken_for_noun(word: str) -> bool:
        frames = ([*before.split(), word, *after.split()] for before, after in FRAMES)
        places = (len(before.split()) for before, _ in FRAMES)
        return any(tag(words)[place] in ("NN", "NNS") for words, place in zip(frames, places, strict=True))

    def is_no_noun(word: str) -> bool:
        own, often = senses[word], counts[word]
        others = often["a"] + often["r"]
        if own["n"]:
            return others >= 5 and others >= 4 * often["n"] and not often["visible"] and word not in NOUNS_ALL_THE_SAME
        is_other = own["a"] or own["r"] or often["v"]
        return bool(is_other and not NEVER_NOUN.search(word) and is_taken_for_noun(word))

    def is_abstract(word: str) -> bool:
        own, often = senses[word], counts[word]
        is_plural = regular_singular(word) != word and regular_singular(word) in senses
        is_said = own["said"] and (often["said"] or not often["n"])
        return not (own["visible"] or is_said or is_plural)

    nouns = [word for word in senses if senses[word]["n"]]
    found = {
        "abstract": list(filter(is_abstract, nouns)),
        "things": [
            word
            for word in nouns
            if senses[word]["visible"] > senses[word]["alive"] * (not (counts[word]["n"] or NEVER_NOUN.search(word)))
            and not (senses[word]["a"] or senses[word]["r"])
        ],
        "no nouns": [word for word in senses if is_no_noun(word)],
        "verbs": [word for word in nouns if senses[word]["v"]],
        "singular": list(
            _singulars({word for word in nouns if senses[word]["visible"] or senses[word]["said"]}, set(nouns))
        ),
    }
    lines = [HEAD]
    for section, words in found.items():
        lines += [f"\n[{section}]  # {SECTIONS[section]}", textwrap.fill(" ".join(sorted(words)), 118)]
        print(section, len(words))
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _singulars(nouns: set[str], others: set[str]) -> set[str]:
    found: dict[str, str] = {}
    for noun in sorted(nouns):
        # What has no singular ("scissors") stays as it is.
        if regular_singular(noun) != noun and regular_singular(noun) not in others:
            found[noun] = noun
        elif not noun.endswith("s"):
            (plural,) = plurals(noun)
            if not {plural, regular_singular(plural)} & nouns:
                found.setdefault(plural, noun)
    for plural, singulars in wordnet._exception_map["n"].items():
        known = [singular for singular in singulars if singular in nouns]
        is_word = plural.isascii() and plural.isalpha() and plural not in nouns
        if known and is_word and (regular_singular(plural) == plural or regular_singular(plural) not in nouns):
            found.setdefault(plural, known[0])
    return {f"{plural}={singular}" if plural != singular else plural for plural, singular in found.items()}


if __name__ == "__main__":
    main()
