"""The phrases of a caption that are names in a list of categories."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vigor_jax.errors import InputError
from vigor_jax.records import Span
from vigor_jax.rewards.claims import Claim, Phrase, gather, guess_tags
from vigor_jax.rewards.scopes import claims_at
from vigor_jax.rewards.words import DATA, TOKEN, Matcher, all_plurals, quoted_signs, read_lines, split

_NAME_WORD = re.compile(r"[^\W_]+")
# LVIS tells names apart so: "bow_(weapon)". Captions do not.
_QUALIFIER = re.compile(r"[\s_]*\([^()]*\)")


class EntityPhrases:
    """Finds the names in a list of categories: the longest one at a place, whole words, any case, singular or plural.

    Args:
        path: One category a line, synonyms separated by commas; a phrase's text is the first. "_" is read as a space, and
            what stands in parentheses is left out, as in LVIS's "traffic_light" and "bow_(weapon)". A name that is in
            two lines belongs to the first. Default: COCO's 80 categories.

    Raises:
        InputError: The list cannot be read, is empty, or has an empty name (with its line).
    """

    def __init__(self, path: Path | None = None):
        path = path or DATA / "entities_coco.txt"
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
                table.setdefault(words, names[0])
                for plural in all_plurals(name):
                    table.setdefault(split(plural, _NAME_WORD), names[0])
        if not table:
            raise InputError(f"{path}: expected one category a line, got none")
        self._match = Matcher(table)

    def __call__(self, text: str, sentences: Sequence[Span]) -> list[Phrase]:
        """See `Phrases`."""
        quoted = quoted_signs(text)
        return gather(found for sentence in sentences for found in self._find(text, sentence, quoted))

    def _find(self, text: str, sentence: Span, quoted: Sequence[Span]) -> Iterator[tuple[str, Span, Claim]]:
        found = list(self._names(text, sentence))
        if quoted:
            found = [(name, span) for name, span in found if not any(s <= span.start < e for s, e in quoted)]
        if not found:
            return
        claims = _claims(text, sentence, [span for _, span in found])
        for (name, span), claim in zip(found, claims, strict=True):
            if claim is not Claim.QUOTED:
                yield name, span, claim

    def _names(self, text: str, sentence: Span) -> Iterator[tuple[str, Span]]:
        tokens = list(_NAME_WORD.finditer(text, *sentence))
        # Marks between two words part them; a hyphen does not, for "hot-dog" is a hot dog.
        words: list[str] = []
        places: list[Span] = []
        for before, token in zip([None, *tokens], tokens, strict=False):
            if before and text[before.end() : token.start()].strip() not in ("", "-"):
                words.append("")
                places.append(Span(token.start(), token.start()))
            words.append(token.group().lower())
            places.append(Span(*token.span()))
        for start, end, name in self._match(words):
            span = Span(places[start].start, places[end - 1].end)
            # "deer-like" is no deer
            if not (_is_hyphen(text, span.start - 1, -1) or _is_hyphen(text, span.end, 1)):
                yield name, span


def _claims(text: str, sentence: Span, names: Sequence[Span]) -> list[Claim]:
    """What a sentence claims of each of the names in it."""
    tokens = list(TOKEN.finditer(text, *sentence))
    lower = [token.group().lower().replace("’", "'") for token in tokens]
    owner = [-1] * len(tokens)
    name = 0
    for place, token in enumerate(tokens):
        while name < len(names) and token.start() >= names[name].end:
            name += 1
        if name < len(names) and token.end() > names[name].start:
            owner[place] = name
    is_noun = [each >= 0 for each in owner]
    at = claims_at(lower, is_noun, lambda: guess_tags(lower, is_noun))
    found = [Claim.ASSERTED] * len(names)
    if at is not None:
        for place, each in enumerate(owner):
            if each >= 0:
                found[each] = max(found[each], at[place])
    return found


def _is_hyphen(text: str, place: int, step: int) -> bool:
    beyond = place + step
    return 0 <= place < len(text) and text[place] == "-" and 0 <= beyond < len(text) and text[beyond].isalnum()
