"""A tagger of a few sentences, so that tests of grammar need no download."""

import json
import random
from pathlib import Path

from nltk.tag.perceptron import PerceptronTagger

from vigor_jax.rewards.language.tagger import TAGGER

Tagged = list[tuple[str, str]]


def write_tagger(folder: Path, sentences: list[Tagged], passes: int) -> Path:
    """Teaches NLTK's tagger the sentences, always the same, and writes it in NLTK's layout; returns the folder."""
    tagger = PerceptronTagger(load=False)
    state = random.getstate()
    random.seed(0)  # the tagger shuffles with it
    tagger.train(sentences, nr_iter=passes)
    random.setstate(state)
    for part, content in zip(("weights", "tagdict", "classes"), tagger.encode_json_obj(), strict=True):
        (folder / f"{TAGGER}.{part}.json").write_text(json.dumps(content))
    return folder
