"""The objects that a caption mentions, found as CHAIR finds them (Rohrbach et al. 2018): by the words of a table.

The steps are those of the authors' script: the text in lower case is cut into the tokens of the Penn treebank, each
goes to the singular, words that stand for one thing together are joined from left to right, and what is in the table
is a mention of the object that begins its line. The same object counts as often as it is mentioned.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vigor_jax.errors import InputError
from vigor_jax.rewards.sentences import split_sentences

if TYPE_CHECKING:
    import inflect
    from nltk.tokenize import NLTKWordTokenizer

_ANIMALS = (
    "animal", "bear", "bird", "cat", "cow", "cub", "dog", "elephant", "giraffe", "horse", "sheep", "zebra",
)  # fmt: skip
# Pairs that are not what their words are, in CHAIR: no plate, no train, no chair, and no person in "baby bird".
PAIRS = {"home plate": "", "train track": "", "toilet seat": "toilet", "bow tie": "tie"}
PAIRS |= {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
PAIRS |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS}
# What the authors' script never finds, as its singular of the word is none that is in the table: "bu", "cano", "ty".
_MISSED = frozenset(("airbus", "bus", "canoes", "collies", "doggies", "magpies", "minibus", "thieves", "ties"))

# Singular and plural, also at the end of a longer word: "grandchildren", "salespeople", "gentlemen", "mongeese". The
# authors' script knows these by their ends, and inflect only a few of them.
_IRREGULAR = (
    ("child", "children"), ("person", "people"), ("man", "men"), ("goose", "geese"), ("foot", "feet"),
    ("tooth", "teeth"), ("mouse", "mice"), ("louse", "lice"), ("ox", "oxen"), ("brother", "brethren"), ("cow", "kine"),
    ("lf", "lves"), ("af", "aves"), ("rf", "rves"), ("ief", "ieves"), ("oof", "ooves"), ("ife", "ives"), ("o", "oes"),
    ("x", "xes"),
)  # fmt: skip


@dataclass(frozen=True)
class Mention:
    """An object in a caption.

    Attributes:
        words: As the caption has them, in lower case: "puppies", "hot dogs".
        object: The name that the table gives it: "dog".
    """

    words: str
    object: str


class Synonyms:
    """Which words mean which object; made by `read` or `identity`.

    Args:
        names: Words, in lower case → object. Plurals of the words are understood.
        joined: Two words or more that are found together before any one of them, → the name that they stand for,
            which means nothing if it is not among `names`.
        missed: Words that are passed over, whatever `names` says.
    """

    def __init__(self, names: Mapping[str, str], joined: Mapping[str, str], missed: Iterable[str] = ()):
        self.names = dict(names)
        self.objects = frozenset(names.values())
        self._joined = {tuple(words.split()): name for words, name in joined.items()}
        self._longest = max(map(len, self._joined), default=1)
        words = {word for name in (*names, *joined) for word in name.split()}
        self._singulars = {form: word for word in words for form in _plurals(word)} | {word: word for word in words}
        self._singulars |= dict.fromkeys(missed, "")

    @classmethod
    def read(cls, path: Path, *, as_published: bool = True) -> "Synonyms":
        """Reads CHAIR's table: one object a line, its name, then other words for it, with ", " between them.

        Args:
            path: Text file, UTF-8.
            as_published: Find what the authors' script finds, for figures that compare with published ones. It never
                finds some words: "bus" and "ties", whose singular it gets wrong ("buses" and "tie" it finds), a name
                with a capital, a name with two spaces before it (in the authors' table " motor bike", " cheesecake"
                and "iPhone"). False finds these as well.

        Raises:
            InputError: The file cannot be read or has no line, or a line has no name in lower case.
        """
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"synonyms {path}: expected a text file in UTF-8, cannot read it ({error})") from error
        table: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            names = line.strip().split(", ")
            if not all(name.strip() and "," not in name for name in names) or names[0] != _clean(names[0]):
                raise InputError(
                    f"{path}:{number}: expected an object and other words for it, in lower case with ', ' between "
                    f"them, got {line!r}"
                )
            table |= {name if as_published else _clean(name): names[0] for name in names}
        if not table:
            raise InputError(f"synonyms {path}: expected one object a line, got an empty file")
        found = {name: canonical for name, canonical in table.items() if name == _clean(name)}
        # The authors join no more than two words, so that their "stove top oven" is two mentions of an oven.
        joined = _compounds(name for name in table if len(name.split()) == 2 or not as_published)
        return cls(found, PAIRS | joined, _MISSED if as_published else ())

    @classmethod
    def identity(cls, objects: Iterable[str]) -> "Synonyms":
        """For objects without a table: each is called by its name alone, in the singular or the plural."""
        names = {_clean(name): _clean(name) for name in objects}
        return cls(names, PAIRS | _compounds(names))

    def canonical(self, name: str) -> str | None:
        """The object that a name of an annotation means, None if the table has none."""
        name = _clean(name)
        return self.names.get(name) or self.names.get(
            " ".join(self._singulars.get(word, word) for word in name.split())
        )

    def extract(self, caption: str) -> list[Mention]:
        """The mentions of objects in a caption, in order."""
        return [Mention(words, self.names[name]) for name, words in self._words(caption) if name in self.names]

    def mention_at_end(self, text: str) -> tuple[int, Mention] | None:
        """The mention that a text ends in, after its number from 0; None if it ends in none."""
        words = self._words(text)
        if not words or words[-1][0] not in self.names:
            return None
        return sum(name in self.names for name, _ in words) - 1, Mention(words[-1][1], self.names[words[-1][0]])

    def _words(self, caption: str) -> list[tuple[str, str]]:
        """The words of a caption, as `_join` gives them."""
        found = list(self._join(tokens(caption)))
        names = {name for name, _ in found}
        if {"toilet", "seat"} <= names:  # "the seat of the toilet" is no chair
            found = [(name, words) for name, words in found if name != "seat"]
        return found

    def _base_forms(self, tokens: list[str]) -> list[str]:
        """Each token in the form that the table has."""
        return [self._singulars.get(token, token) for token in tokens]

    def _join(self, tokens: list[str]) -> Iterator[tuple[str, str]]:
        """Each word, or words that are one, as a name of the table, and as the caption has it."""
        words = self._base_forms(tokens)
        start = 0
        while start < len(words):
            end = next(
                (end for end in range(start + self._longest, start + 1, -1) if tuple(words[start:end]) in self._joined),
                start + 1,
            )
            part = tuple(words[start:end])
            yield self._joined.get(part, part[0]), " ".join(tokens[start:end])
            start = end


def tokens(text: str, *, lower: bool = True) -> list[str]:
    """The words of a text, cut as the Penn treebank has them."""
    sentences = (text[start:end] for start, end in split_sentences(text))
    return [word for one in sentences for word in _tokenizer().tokenize(one.lower() if lower else one)]


@cache
def _inflect() -> "inflect.engine":
    import inflect  # takes seconds, which those who read no captions need not wait

    return inflect.engine()


@cache
def _tokenizer() -> "NLTKWordTokenizer":
    from nltk.tokenize import NLTKWordTokenizer  # the same

    return NLTKWordTokenizer()


@cache
def _plurals(word: str) -> frozenset[str]:
    """The plural, and what is written for it: "aircraft", "aircrafts". No harm if some of these are no words."""
    # "buss" is a slip, which the authors' script reads.
    forms = {str(_inflect().plural_noun(word) or word), f"{word}s"}
    forms |= {word.removesuffix(ending) + plural for ending, plural in _IRREGULAR if word.endswith(ending)}
    return frozenset(forms)


def _clean(name: str) -> str:
    return " ".join(name.lower().split())


def _compounds(names: Iterable[str]) -> dict[str, str]:
    return {_clean(name): name for name in names if len(name.split()) > 1}
