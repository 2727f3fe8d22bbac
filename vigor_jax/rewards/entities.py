"""The phrases of a caption that are names in a list of categories."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vigor_jax.errors import InputError
from vigor_jax.records import Span
from vigor_jax.rewards.claims import Claim, Phrase, gather
from vigor_jax.rewards.language.guessed_tags import guess_tags
from vigor_jax.rewards.language.scopes import claims_at, has_cue
from vigor_jax.rewards.language.words import DATA, Matcher, all_plurals, quoted_signs, read_lines, split

_NAME_WORD = re.compile(r"[^\W_]+")
# LVIS tells names apart so: "bow_(weapon)". Captions do not.
_QUALIFIER = re.compile(r"[\s_]*\([^()]*\)")


class EntityPhrases:
    """Finds the names in a list of categories: the longest one at a place, whole words, any case, singular or plural.

    Args:
        path: One category a line, synonyms separated by commas; a phrase's text is the first. "_" is read as a space,
            and what stands in parentheses is left out, as in LVIS's "traffic_light" and "bow_(weapon)". A name that is
            in two lines belongs to the first. Default: COCO's 80 categories.

    Attributes:
        forms: Every name and plural in the list, lower case → the first name of its category.

    Raises:
        InputError: The list cannot be read, is empty, or has an empty name (with its line).
    """

    def __init__(self, path: Path | None = None):
        path = path or DATA / "entities_coco.txt"
        self.forms: dict[str, str] = {}
        table: dict[tuple[str, ...], str] = {}
        for number, line in read_lines(path):
            plain = _QUALIFIER.sub("", line).replace("_", " ")
            names = [" ".join(name.split()) for name in plain.split(",")]
            for name in names:
                words = split(name, _NAME_WORD)
                if not words:
                    raise InputError(
                        f"{path}, line {number}: expected names separated by commas, got an empty one in {line!r}"
                    )
                for form in (name, *all_plurals(name)):
                    self.forms.setdefault(form, names[0])
                    table.setdefault(split(form, _NAME_WORD), names[0])
        if not table:
            raise InputError(f"{path}: expected one category a line, got none")
        self._match = Matcher(table)

    def __call__(self, text: str, sentences: Sequence[Span]) -> list[Phrase]:
        """See `Phrases`."""
        quoted = quoted_signs(text)
        return gather(found for sentence in sentences for found in self._find(text, sentence, quoted))

    def _find(self, text: str, sentence: Span, quoted: Sequence[Span]) -> Iterator[tuple[str, Span, Claim]]:
        words, places = _words(text, sentence)
        found = []
        for start, end, name in self._match(words):
            span = Span(places[start].start, places[end - 1].end)
            # "deer-like" is no deer
            if not (_is_hyphen(text, span.start - 1, -1) or _is_hyphen(text, span.end, 1) or _is_in(span, quoted)):
                found.append((start, end, name, span))
        claims = _claims(words, found) if found and has_cue(words) else None
        for start, end, name, span in found:
            claim = max(claims[start:end]) if claims else Claim.ASSERTED
            if claim is not Claim.QUOTED:
                yield name, span, claim


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


def _claims(words: Sequence[str], found: Sequence[tuple[int, int, str, Span]]) -> list[Claim] | None:
    """What a sentence claims at each of its words; the marks between them may be several: "),"."""
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
    return claims_at(plain, is_noun, lambda: guess_tags(plain, is_noun))


def _is_in(span: Span, quoted: Sequence[Span]) -> bool:
    return any(start <= span.start < end for start, end in quoted)


def _is_hyphen(text: str, place: int, step: int) -> bool:
    beyond = place + step
    return 0 <= place < len(text) and text[place] == "-" and 0 <= beyond < len(text) and text[beyond].isalnum()
