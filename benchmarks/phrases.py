"""Text analysis: captions a second on one core: sentences and phrases, these with claims, and NLTK's bare tagger.

    python -m benchmarks.phrases --captions CAPTIONS.jsonl

The file has a caption a line under "text". NLTK's `pos_tag_sents` gets the same captions already in sentences and
words, so it does less: it only tags. Every run starts with an empty cache, the runs alternate, and the CPU seconds of
the process are counted, for the cores may be shared.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import nltk
from nltk.tokenize import NLTKWordTokenizer

from benchmarks.common import describe_machine, print_table
from vigor_jax.rewards.claims.find import Claims
from vigor_jax.rewards.phrases import EntityPhrases, NounPhrases, Phrases
from vigor_jax.rewards.sentences import split_sentences


def analyze(texts: list[str], phrases: Phrases) -> None:
    for text in texts:
        phrases(text, split_sentences(text))


def analyze_claims(texts: list[str], phrases: Phrases, claims: Claims) -> None:
    for text in texts:
        sentences = split_sentences(text)
        claims(text, sentences, phrases(text, sentences))


def speed(count: int, side: Callable[[], object]) -> float:
    """Captions a second."""
    start = time.process_time()
    side()
    return count / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="one JSON object with a `text` a line")
    parser.add_argument("--tagger", type=Path, help="folder of the tagger; default: where NLTK keeps its data")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    texts = [json.loads(line)["text"] for line in options.captions.read_text(encoding="utf-8").splitlines()]
    tokenizer = NLTKWordTokenizer()
    words = [tokenizer.tokenize(text[slice(*span)]) for text in texts for span in split_sentences(text)]
    print(describe_machine())
    print(f"{len(texts)} captions, {len(words)} sentences, {sum(map(len, words))} words; nltk {nltk.__version__}")

    ours, bare, entities = "NounPhrases with sentences", "nltk.pos_tag_sents alone", "EntityPhrases with sentences"
    claimed = "NounPhrases with sentences and claims"
    speeds: dict[str, list[float]] = {ours: [], bare: [], entities: [], claimed: []}
    for _ in range(options.repeats):
        nouns, names = NounPhrases(tagger=options.tagger), EntityPhrases()
        speeds[ours].append(speed(len(texts), lambda nouns=nouns: analyze(texts, nouns)))
        speeds[bare].append(speed(len(texts), lambda: nltk.pos_tag_sents(words)))
        speeds[entities].append(speed(len(texts), lambda names=names: analyze(texts, names)))
        nouns = NounPhrases(tagger=options.tagger)
        claims = Claims(nouns)
        speeds[claimed].append(speed(len(texts), lambda n=nouns, c=claims: analyze_claims(texts, n, c)))
    print_table("captions/s", speeds)


if __name__ == "__main__":
    main()
