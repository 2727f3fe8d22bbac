"""NLTK's data that benchmarks need, which are no part of its package."""

from collections.abc import Sequence

from vigor_jax.errors import InputError

# NLTK's name → where it keeps it.
_PLACES = {
    "punkt_tab": "tokenizers/punkt_tab/english/",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng/",
    "wordnet": "corpora/wordnet",
}


def need(names: Sequence[str], whose: str) -> None:
    """Looks whether data are installed.

    Args:
      names: as NLTK calls them.
      whose: what needs them, for the message.

    Raises:
      InputError: some are not.
    """
    missing = [name for name in names if not _is_there(_PLACES[name])]
    if missing:
        raise InputError(
            f"{whose}: NLTK's data {', '.join(missing)} are not installed: run `python -m nltk.downloader "
            f"{' '.join(missing)}`, or point NLTK_DATA at a folder that has them"
        )


def _is_there(place: str) -> bool:
    import nltk

    for path in (place, f"{place}.zip"):  # a corpus works packed, too
        try:
            nltk.data.find(path)
        except LookupError:
            continue
        return True
    return False
