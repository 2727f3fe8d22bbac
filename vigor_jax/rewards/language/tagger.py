"""NLTK's part-of-speech tagger: found, read, and made faster for captions."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vigor_jax.errors import InputError

if TYPE_CHECKING:  # NLTK takes a second to import, which commands without a tagger need not wait for
    import nltk
    from nltk.tag.perceptron import AveragedPerceptron, PerceptronTagger

TAGGER = "averaged_perceptron_tagger_eng"
CACHE_SIZE = 2**16


def load_tagger(path: Path | None = None, *, download: bool = False) -> "PerceptronTagger":
    """NLTK's part-of-speech tagger, from a folder or from where NLTK keeps its data.

    Args:
        path: Folder with the tagger's three JSON files; None for NLTK's own search path (`NLTK_DATA` and others).
        download: Whether NLTK may download the tagger if its search path lacks it.

    Raises:
        InputError: There is no tagger, or its files cannot be read.
    """
    from nltk.tag.perceptron import PerceptronTagger

    names = [f"{TAGGER}.{part}.json" for part in ("weights", "tagdict", "classes")]
    tagger = PerceptronTagger(load=False)
    try:
        if path is None:
            folder = _find_tagger(download)
            contents = []
            for name in names:
                with folder.join(name).open() as file:
                    contents.append(file.read())
        else:
            contents = [(path / name).read_bytes() for name in names]
        weights, words, classes = map(json.loads, contents)
        if not (isinstance(weights, dict) and isinstance(words, dict) and isinstance(classes, list) and classes):
            raise ValueError("other JSON than two tables and a list of tags")
        tagger.decode_json_params((weights, words, classes))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        where = path or "NLTK's data"
        raise InputError(f"tagger in {where}: expected {', '.join(names)}, got {error}") from error
    return tagger


def _find_tagger(download: bool) -> "nltk.data.PathPointer":
    import nltk

    resource = f"taggers/{TAGGER}/"
    try:
        return nltk.data.find(resource)
    except LookupError:
        if download and nltk.download(TAGGER, quiet=True):
            return nltk.data.find(resource)
    raise InputError(
        f"NLTK's tagger {TAGGER} {'could not be downloaded' if download else 'is not installed'}: run `python -m "
        f"nltk.downloader {TAGGER}`, or point NLTK_DATA at a folder that has it; for the detector you can also "
        "give --detection.phrases.download true"
    )


def _predict(model: "AveragedPerceptron", features: dict[str, int]) -> str:
    """`model.predict`, without looking at the many tags that no feature speaks for."""
    scores: dict[str, float] = {}
    for feature, value in features.items():
        for tag, weight in model.weights.get(feature, {}).items():
            scores[tag] = scores.get(tag, 0.0) + value * weight
    best, tag = max(zip(scores.values(), scores, strict=True), default=(0.0, ""))
    return tag if best > 0 else str(model.predict(features)[0])


def cached_tag(tagger: "PerceptronTagger") -> Callable[[list[str]], list[str]]:
    """`tagger.tag`, remembering what it said of a word with the same neighbors; captions repeat themselves."""

    @lru_cache(CACHE_SIZE)
    def predict(word: str, before: str, before_that: str, neighbors: tuple[str, ...]) -> str:
        features = tagger._get_features(0, word, neighbors, before, before_that)
        return _predict(tagger.model, features)

    normalize = lru_cache(CACHE_SIZE)(tagger.normalize)

    def tag(words: list[str]) -> list[str]:
        before, before_that = tagger.START
        context = [*tagger.START, *map(normalize, words), *tagger.END]
        tags = []
        for i, word in enumerate(words):
            found = tagger.tagdict.get(word) or predict(word, before, before_that, tuple(context[i : i + 5]))
            tags.append(found)
            before, before_that = found, before
        return tags

    return tag
