"""Whether a response says anything at all: an empty one has no fault either, and would win."""

import itertools
import re

from vigor_jax.data.text.box_text import without_boxes

# Letters of scripts that put no space between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def has_words(text: str, least: int) -> bool:
    """Whether a text has a number of words, or more.

    A word is what stands between white space and has a letter or a digit; in scripts without spaces, each letter. Boxes
    are no words.
    """
    text = without_boxes(text)
    first = text.split(None, least)[:least]
    if len(first) == least and all(word[0].isalnum() for word in first):
        return True  # which is quick, and mostly so
    counts = (max(1, len(_UNSPACED.findall(word))) for word in text.split() if any(map(str.isalnum, word)))
    return any(total >= least for total in itertools.chain((0,), itertools.accumulate(counts)))
