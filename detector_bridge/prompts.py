"""Phrases to prompts, and a prompt's token scores back to phrases: by each phrase's own tokens, never by strings."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from detector_bridge.refusal import RefusedError

# BERT's ids, which GroundingDINO's masks are built on.
CLS, SEP, DOT = 101, 102, 1012

_MAX_LETTERS_PER_TOKEN = 100

# Dots and question marks part phrases for the model; brackets could spell a special token.
_NOT_WORDS = re.compile(r"[.?\[\]\s\x00]+")


# What parts phrases in a text of several; a dot between digits does not.
_BETWEEN_PHRASES = re.compile(r"(?<!\d)\.|\.(?!\d)|\?")


class Prompt(NamedTuple):
    """What the model is asked at once.

    Attributes:
      tokens: of a caption, [CLS] phrase . phrase . ... [SEP]; or of several texts, where the model reads each phrase by
        itself.
      spans: normalized phrase → its first score and the one after its last: of each token, or one of the phrase.
    """

    tokens: Sequence[int] | Sequence[Sequence[int]]
    spans: Mapping[str, tuple[int, int]]


class Found(NamedTuple):
    """What was found of one phrase.

    Attributes:
      score: best of any box, kept or not: [0, 1].
      boxes_xyxy: [N, 4] float32 kept boxes, best first, corners relative to the picture.
      scores: [N] float32 of these boxes.
    """

    score: float
    boxes_xyxy: np.ndarray
    scores: np.ndarray

    @property
    def present(self) -> bool:
        return len(self.scores) > 0


def normalize(phrase: str) -> str:
    """Lower case, single spaces, without what would end a phrase or spell a special token; "" if nothing is left."""
    return _NOT_WORDS.sub(" ", phrase).strip().lower()


def split_phrases(text: str) -> tuple[str, ...]:
    """Phrases in a text: `dog, traffic light` is split as people write it, `cat . dog .` as GroundingDINO has it.

    Between commas an empty phrase is kept, for the server to refuse; around dots there is always one.
    """
    phrases: list[str] = []
    for part in re.split(r"[,;\n]", text):
        phrases += [phrase for piece in _BETWEEN_PHRASES.split(part) if (phrase := piece.strip())] or [part.strip()]
    return tuple(phrases)


def make_prompts(phrases: Sequence[str], tokenize: Callable[[str], list[int]], max_tokens: int) -> list[Prompt]:
    """Packs phrases, each once, into as few prompts as their order allows.

    Every phrase is closed by a dot, the last one too: without it its tokens attend to themselves only.

    Args:
      phrases: as the client wrote them.
      tokenize: token ids of a normalized phrase, without special tokens.
      max_tokens: longest prompt, [CLS] and [SEP] included.

    Raises:
      RefusedError: NO_PHRASES, EMPTY_PHRASE or PHRASE_TOO_LONG.
    """
    prompts: list[Prompt] = []
    tokens: list[int] = []
    spans: dict[str, tuple[int, int]] = {}
    for phrase, ids in read_phrases(phrases, tokenize, max_tokens).items():
        if len(ids) + 3 > max_tokens:
            raise RefusedError(
                "PHRASE_TOO_LONG",
                f"a phrase has {len(ids)} tokens, the prompt takes {max_tokens - 3}: {phrase[:60]!r}...",
            )
        if tokens and len(tokens) + len(ids) + 3 > max_tokens:
            prompts.append(Prompt([CLS, *tokens, SEP], spans))
            tokens, spans = [], {}
        spans[phrase] = (1 + len(tokens), 1 + len(tokens) + len(ids))
        tokens += [*ids, DOT]
    return [*prompts, Prompt([CLS, *tokens, SEP], spans)]


def read_phrases(phrases: Sequence[str], tokenize: Callable[[str], list[int]], max_tokens: int) -> dict[str, list[int]]:
    """Normalized phrases with their token ids, each once, in their order.

    Raises:
      RefusedError: NO_PHRASES or EMPTY_PHRASE, or PHRASE_TOO_LONG where a tokenizer should be spared.
    """
    if not phrases:
        raise RefusedError("NO_PHRASES", "the request has no phrases; expected at least one")
    found = {}
    for phrase in dict.fromkeys(map(normalize, phrases)):
        if len(phrase) > _MAX_LETTERS_PER_TOKEN * max_tokens:  # spares the tokenizer megabytes
            raise RefusedError("PHRASE_TOO_LONG", f"a phrase has {len(phrase)} letters: {phrase[:60]!r}...")
        found[phrase] = tokenize(phrase) if phrase else []
        if not found[phrase]:
            i = [normalize(given) for given in phrases].index(phrase)
            raise RefusedError("EMPTY_PHRASE", f"phrase {i} of {len(phrases)} has no word in it: {phrases[i]!r:.80}")
    return found


def find_phrases(
    spans: Mapping[str, tuple[int, int]],
    tokens: np.ndarray,
    boxes_xyxy: np.ndarray,
    box_threshold: float,
    text_threshold: float,
) -> dict[str, Found]:
    """Finds the phrases of one prompt in the model's answer.

    A box's score for a phrase is the mean over the phrase's tokens, as in GroundingDINO's evaluation on COCO; for a
    phrase of one token it is the score that the model's own tools print. A box is kept for a phrase if its best
    token of the phrase exceeds `box_threshold` and that mean exceeds `text_threshold`: a lamp is no "traffic light"
    for its "light" alone.

    Args:
      spans: of one `Prompt`.
      tokens: [Q, T] in [0, 1], from `Backend.detect`.
      boxes_xyxy: [Q, 4].
      box_threshold: in [0, 1].
      text_threshold: in [0, 1]; 0 where each phrase has one score, which `box_threshold` is for.
    """
    found = {}
    for phrase, (start, end) in spans.items():
        own = tokens[:, start:end]
        score = own.mean(axis=1)
        (kept,) = np.nonzero((own.max(axis=1) > box_threshold) & (score > text_threshold))
        kept = kept[np.argsort(-score[kept], kind="stable")]
        found[phrase] = Found(float(score.max()), boxes_xyxy[kept], score[kept])
    return found
