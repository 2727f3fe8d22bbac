"""Tells of phrases with words that the detector's text encoder does not know, once each."""

import logging
from collections.abc import Iterable

from detector_bridge.messages import Detection

logger = logging.getLogger(__name__)

# Captions have some hundreds of words that are read in pieces, and most of them are read well.
MOST_IN_PIECES = 20


class UnknownWords:
    """Remembers what was told.

    A phrase with a word of which nothing is read gets a warning. One with words read in pieces gets a line, the first
    `MOST_IN_PIECES` of them.

    Args:
      section: what the detector's config is called.
    """

    def __init__(self, section: str = "detection") -> None:
        self._section = section
        self._told: set[str] = set()
        self._in_pieces = 0

    def tell(self, detections: Iterable[Detection]) -> None:
        """Logs what is new in some detections."""
        for found in detections:
            if not found.unknown_words or found.phrase in self._told:
                continue
            self._told.add(found.phrase)
            words = ", ".join(map(str, found.unknown_words))
            if any(word.is_lost for word in found.unknown_words):
                logger.warning(
                    "%s: %r is judged without a word that the text encoder does not know: %s",
                    *(self._section, found.phrase, words),
                )
                continue
            self._in_pieces += 1
            if self._in_pieces <= MOST_IN_PIECES:
                told = self._section, found.phrase, words
                logger.info("%s: %r has words that the text encoder reads in pieces: %s", *told)
            if self._in_pieces == MOST_IN_PIECES:
                logger.info("%s: further phrases with words in pieces are not named", self._section)
