"""The phrases of a caption that are names in a list of categories."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vigor_jax.data.text.box_text import blank_boxes
from vigor_jax.errors import InputError, nearest
from vigor_jax.records import Span
from vigor_jax.rewards.language.guessed_tags import guess_tags
from vigor_jax.rewards.language.nouns import NounPhrases, tell_glasses
from vigor_jax.rewards.language.scopes import factuality_at, has_cue
from vigor_jax.rewards.language.words import DATA, Matcher, all_plurals, quoted_signs, read_lines, split
from vigor_jax.rewards.mentions import Factuality, Phrase, gather

COCO = DATA / "entities_coco.txt"
LVIS = DATA / "entities_lvis.txt"

_NAME_WORD = re.compile(r"[^\W_]+")
# LVIS tells names apart so: "bow_(weapon)". Captions do not.
_QUALIFIER = re.compile(r"[\s_]*\([^()]*\)")


class EntityPhrases:
    """Finds the names in a list of categories: the longest one at a place, whole words, any case, singular or plural.

    Args:
        path: One category a line, synonyms separated by commas; a phrase's text is the first. What follows "|" are
            their plurals, maybe none; without it the rules of English make them. "_" is read as a space, and what
            stands in parentheses is left out, as in LVIS's "traffic_light" and "bow_(weapon)". A name that is in two
            lines belongs to the first. Default: COCO's 80 categories.
        nouns: A tagger. If it is given, a name counts only where its last word is a noun that no other noun follows:
            "can" may be a verb, and a "bus stop" is no bus.

    Attributes:
        forms: Every name and plural in the list, lower case → the first name of its category.

    Raises:
        InputError: The list cannot be read, is empty, or has an empty name (with its line).
    """

    def __init__(self, path: Path | None = None, nouns: NounPhrases | None = None):
        path = path or COCO
        self.forms: dict[str, str] = {}
        for number, line in read_lines(path):
            plain = _QUALIFIER.sub("", line).replace("_", " ")
            singulars, bar, plurals = plain.partition("|")
            names = [" ".join(name.split()) for name in singulars.split(",")]
            listed = [" ".join(name.split()) for name in plurals.split(",")] if plurals.strip() else []
            for name in (*names, *listed):
                if not split(name, _NAME_WORD):
                    raise InputError(
                        f"{path}, line {number}: expected names separated by commas, got an empty one in {line!r}"
                    )
            for name in names:
                for form in (name, *(() if bar else all_plurals(name))):
                    self.forms.setdefault(form, names[0])
            for plural in listed:
                self.forms.setdefault(plural, names[0])
        if not self.forms:
            raise InputError(f"{path}: expected one category a line, got none")
        table: dict[tuple[str, ...], str] = {}
        for form, category in self.forms.items():
            table.setdefault(split(form, _NAME_WORD), category)
        self._match = Matcher(table)
        self._nouns = nouns

    def __call__(self, text: str, sentences: Sequence[Span]) -> list[Phrase]:
        """See `Phrases`."""
        text = blank_boxes(text)
        quoted = quoted_signs(text)
        return gather(found for sentence in sentences for found in self._find(text, sentence, quoted))

    def _find(self, text: str, sentence: Span, quoted: Sequence[Span]) -> Iterator[tuple[str, Span, Factuality]]:
        words, places = _words(text, sentence)
        read = list(words)
        if self._nouns and "glasses" in read:
            tell_glasses(read)
        found = []
        heads: frozenset[int] | None = None
        for start, end, name in self._match(read):
            span = Span(places[start].start, places[end - 1].end)
            # "deer-like" is no deer
            if _is_hyphen(text, span.start - 1, -1) or _is_hyphen(text, span.end, 1) or _is_in(span, quoted):
                continue
            if self._nouns:
                heads = self._nouns.heads(text, sentence) if heads is None else heads
                if span.end not in heads:
                    continue
            found.append((start, end, name, span))
        factualities = _factuality(words, found) if found and has_cue(words) else None
        for start, end, name, span in found:
            factuality = max(factualities[start:end]) if factualities else Factuality.ASSERTED
            if factuality is not Factuality.QUOTED:
                yield name, span, factuality


def make_entities(
    given: str | Path | None,
    non_visual: Path | None = None,
    tagger: Path | None = None,
    *,
    download: bool = False,
    option: str = "detection.phrases.entities",
) -> EntityPhrases:
    """The extractor of a list; LVIS's has a tagger, whose arguments are those of `NounPhrases`.

    Args:
        given: "coco" or None, "lvis", or a file.
        non_visual: See `PhrasesConfig`.
        tagger: The same.
        download: The same.
        option: That gives the list, for messages.

    Raises:
        InputError: A file or the tagger's data is missing or cannot be read.
    """
    path = entities_file(given, option)
    if path != LVIS:
        return EntityPhrases(path)
    try:
        nouns = NounPhrases(non_visual, tagger, download=download)
    except InputError as error:
        raise InputError(f"{option} {given}: {error}") from None
    return EntityPhrases(path, nouns)


def entities_file(given: str | Path | None, option: str = "detection.phrases.entities") -> Path | None:
    """The list that a config names; None for COCO's.

    Raises:
        InputError: It is neither a list that we have nor a file.
    """
    own = {"coco": None, "lvis": LVIS}
    if given is None or str(given) in own:
        return own["coco" if given is None else str(given)]
    if not Path(given).exists():
        raise InputError(
            f"{option}: expected coco, lvis or a file with one category a line, got {given}, which is no file; "
            f"{nearest(str(given), own)}"
        )
    return Path(given)


def _words(text: str, sentence: Span) -> tuple[list[str], list[Span]]:
    """Words in lower case, with what parts two of them; a hyphen does not, for "hot-dog" is a hot dog."""
    words: list[str] = []
    places: list[Span] = []
    end = sentence.start
    for token in _NAME_WORD.finditer(text, *sentence):
        start = token.start()
        is_space = start - end == 1 and text[end] == " "  # mostly
        if start > end and not is_space and (mark := text[end:start].strip()) and mark != "-":
            words.append(mark)
            places.append(Span(end, start))
        words.append(token.group().lower())
        end = token.end()
        places.append(Span(start, end))
    if end < sentence.end:
        words.append(text[end : sentence.end].strip() or ".")
        places.append(Span(end, sentence.end))
    return words, places


def _factuality(words: Sequence[str], found: Sequence[tuple[int, int, str, Span]]) -> list[Factuality] | None:
    """What a sentence says of what each of its words names; the marks between them may be several: "),"."""
    is_noun = [False] * len(words)
    for start, end, _, _ in found:
        is_noun[start:end] = [True] * (end - start)
    plain = [word if word[0].isalnum() else word[0] for word in words]
    for place in range(1, len(plain) - 1):
        if plain[place] in "'’":  # "n't", and the "'s" of "the dog's"
            is_not = plain[place + 1] == "t" and plain[place - 1].endswith("n")
            plain[place], plain[place + 1] = (
                ("n't", "actually") if is_not else ("'s", "'s" if plain[place + 1] == "s" else plain[place + 1])
            )
            if is_not:
                plain[place - 1] = plain[place - 1][:-1]
    return factuality_at(plain, is_noun, lambda: guess_tags(plain, is_noun))


def _is_in(span: Span, quoted: Sequence[Span]) -> bool:
    return any(start <= span.start < end for start, end in quoted)


def _is_hyphen(text: str, place: int, step: int) -> bool:
    beyond = place + step
    return 0 <= place < len(text) and text[place] == "-" and 0 <= beyond < len(text) and text[beyond].isalnum()
