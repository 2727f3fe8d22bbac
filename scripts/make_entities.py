"""Makes vigor_jax/rewards/language/entities_lvis.txt: the names of LVIS v1's categories, with WordNet's and COCO's.

    NLTK_DATA=FOLDER python scripts/make_entities.py lvis_v1_train_cat_info.json

The file is in github.com/facebookresearch/Detic, in datasets/metadata (LVIS: CC BY 4.0). FOLDER has NLTK's
`corpora/wordnet`. Neither is needed at run time.

A category's names are LVIS's own, the other words of its one synset, and those of COCO's category that shares a name
with it (entities_coco.txt); what is in entities_denied.txt is left out. A plural is listed if WordNet leads it back to
its singular. Names that WordNet capitalizes are left out, for most are Latin, unless LVIS has them; neither they nor
names that have no singular get a plural by rule.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nltk.corpus import wordnet
from nltk.corpus.reader.wordnet import WordNetError

from vigor_jax.rewards.language.words import all_plurals, read_lines, singular

LANGUAGE = Path(__file__).parents[1] / "vigor_jax" / "rewards" / "language"
TARGET = LANGUAGE / "entities_lvis.txt"
DENIED = Path(__file__).with_name("entities_denied.txt")
HEAD = """\
# {counts}
# One category a line: its name, other words for it, and after "|" their plurals.
#
# Made by scripts/make_entities.py from the category names and synonyms of LVIS v1 (Gupta, Dollár and Girshick 2019;
# CC BY 4.0, https://www.lvisdataset.org), as Detic's repository has them (Apache-2.0), the words of WordNet 3.0 for the
# same synsets (its license is in wordnet_license.txt), and entities_coco.txt. Selected and changed: see the script,
# and scripts/entities_denied.txt for what is left out. Change those, or write a list for yourself.
"""
# LVIS says in parentheses which of several things a name means, once between two names.
QUALIFIER = re.compile(r"_?\([^()]*\)")
# The plurals of capitalized names that captions have.
CAPITALIZED = frozenset(
    (
        *("Band Aid", "Bible", "CD player", "Christmas tree", "Dixie cup", "Ferris wheel", "iPod", "Lego"),
        *("Rollerblade", "Sharpie", "T-shirt"),
    )
)
# Singulars in -s, plurals without it, what is no compound of "man", and what is no word in -os.
IN_S = frozenset(("canvas", "lens", "iris", "rhinoceros", "thermos", "trellis"))
UNCOUNTED = frozenset(("cattle", "people"))
IN_MANS = frozenset(("human", "ottoman"))
IN_OES = frozenset(("potato", "tomato"))


@dataclass
class Category:
    """A category of LVIS, or one that only COCO has.

    Attributes:
        key: LVIS's name.
        weight: Images that have it; of two categories that claim a name the one that is seen more often gets it.
        names: As written, the category's own first.
        plurals: Lower case.
    """

    key: str
    weight: int
    names: list[str]
    plurals: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lvis", type=Path, help="lvis_v1_train_cat_info.json")
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    text = make(json.loads(options.lvis.read_text(encoding="utf-8")))
    options.out.write_text(text, encoding="utf-8")
    print(text.split("\n", 1)[0].lstrip("# "))


def make(lvis: Iterable[dict]) -> str:
    """The content of the list.

    Args:
        lvis: Entries with `name`, `synonyms`, `synset` and `image_count`.
    """
    categories = [Category(entry["name"], entry["image_count"], list(_names(entry))) for entry in lvis]
    denied = frozenset(line for _, line in read_lines(DENIED))
    for category in categories:
        _deny(category, denied)
    _add_coco(categories, denied)
    _settle(categories)
    categories = [category for category in categories if category.names]
    taken = {name.lower() for category in categories for name in category.names}
    for category in sorted(categories, key=lambda category: -category.weight):
        found = {plural for name in category.names for plural in _plurals(name)}
        category.plurals = sorted(found - taken - denied)
        taken |= found
    lines = sorted(map(_line, categories))
    num_names = sum(len(category.names) for category in categories)
    num_plurals = sum(len(category.plurals) for category in categories)
    counts = f"{len(lines):,} categories, {num_names:,} names, {num_plurals:,} plurals"
    return HEAD.format(counts=counts) + "\n" + "\n".join(lines) + "\n"


def _names(entry: dict) -> Iterator[str]:
    """LVIS's names, then the synset's other words."""
    for written in (entry["name"], *entry["synonyms"]):
        yield from (part.strip(" _").replace("_", " ") for part in QUALIFIER.sub("|", written).split("|") if part)
    try:
        lemmas = wordnet.synset(entry["synset"]).lemma_names()
    except WordNetError:  # "stop_sign.n.01" is LVIS's own
        return
    yield from (lemma.replace("_", " ") for lemma in lemmas if lemma.islower())


def _deny(category: Category, denied: frozenset[str]) -> None:
    kept: dict[str, str] = {}
    for name in category.names:
        is_denied = name.lower() in denied or f"{category.key.lower()}: {name.lower()}" in denied
        # The extractor reads "'" as a mark between words.
        if not is_denied and "'" not in name:
            kept.setdefault(name.lower(), name)
    category.names = list(kept.values())


def _add_coco(categories: list[Category], denied: frozenset[str]) -> None:
    """Puts COCO's names into the category that has the first of them, and the first in front; the others only where
    LVIS has no such name: to COCO a gull is a bird."""
    known = {name.lower() for category in categories for name in category.names}
    for _, line in read_lines(LANGUAGE / "entities_coco.txt"):
        first, *others = (name.strip() for name in line.split(","))
        owner = next((category for category in categories if _has(category, first)), None)
        if owner is None:
            owner = Category(first, 0, [])
            categories.append(owner)
        new = [name for name in others if name not in known | denied and "'" not in name]
        owner.names = [first, *(name for name in owner.names if name.lower() != first), *new]


def _has(category: Category, name: str) -> bool:
    """Whether a category has a name, maybe written otherwise or in the singular: "cellphone", "ski"."""

    def squeezed(written: str) -> str:
        return re.sub("[ -]", "", written.lower())

    return any(squeezed(name) in map(squeezed, (own, *_plurals(own))) for own in category.names)


def _settle(categories: list[Category]) -> None:
    """Gives each name to one category: to that whose first name it is, else to the one that is seen most often."""
    ranked: dict[str, tuple[bool, int, int]] = {}
    for place, category in enumerate(categories):
        for rank, name in enumerate(category.names):
            ranked[name.lower()] = max(ranked.get(name.lower(), (False, -1, 0)), (rank == 0, category.weight, -place))
    for place, category in enumerate(categories):
        category.names = [name for name in category.names if ranked[name.lower()][2] == -place]
        if category.names and not _has_no_singular(category.names[0].lower()):  # "trousers, pants"
            own = {plural for name in category.names for plural in _plurals(name)}
            category.names = [name for name in category.names if name.lower() not in own]  # "egg, eggs"


def _plurals(name: str) -> set[str]:
    """Plurals of a name that lead back to it, lower case."""
    is_capitalized = name != name.lower()
    if (is_capitalized and name not in CAPITALIZED) or _has_no_singular(name.lower()):
        return set()
    name = name.lower()
    formed = {*all_plurals(name)}
    last = re.split(r"[ -]", name)[-1]
    if last.endswith("o") and last not in IN_OES:
        formed.add(f"{name}s")  # "burritos", where inflect has "burritoes"
    if last.endswith("man") and last not in IN_MANS:
        formed = {f"{name[:-2]}en"}  # where inflect has "gentlemans"
    wrong = {name, f"{name}s"} if name.endswith("s") else {name}
    return {plural for plural in formed - wrong if leads_back(plural, name)}


def _has_no_singular(name: str) -> bool:
    """Whether a name is a plural already: "trousers", "skis"; not "bus", "glass", "octopus"."""
    last = re.split(r"[ -]", name)[-1]
    return (
        last in UNCOUNTED
        or singular(last) != last
        or (last.endswith("s") and not last.endswith(("ss", "us")) and last not in IN_S)
    )


def leads_back(plural: str, name: str) -> bool:
    """Whether WordNet's rules and exceptions lead a plural back to a name, or the last word of the one to that of the
    other; of a word that it does not know, whether ours do."""
    return _leads_back(plural, name) or (
        plural.rpartition(" ")[0] == name.rpartition(" ")[0]
        and _leads_back(plural.rpartition(" ")[2], name.rpartition(" ")[2])
    )


def _leads_back(plural: str, name: str) -> bool:
    form, lemma = plural.replace(" ", "_"), name.replace(" ", "_")
    if not wordnet.synsets(lemma, wordnet.NOUN):
        return " " not in name and singular(plural) == name
    rules = wordnet.MORPHOLOGICAL_SUBSTITUTIONS[wordnet.NOUN]
    by_rule = {form.removesuffix(old) + new for old, new in rules if form.endswith(old)}
    return lemma in by_rule or lemma in wordnet._morphy(form, wordnet.NOUN)


def _line(category: Category) -> str:
    return f"{', '.join(category.names).lower()} | {', '.join(category.plurals)}".rstrip()


if __name__ == "__main__":
    main()
