"""How much of what captions say is true of the scenes: the truth of every sentence is known here."""

import dataclasses
import re
from collections.abc import Sequence

from vigor_jax.demo.world import SHAPES, Statement, parse


@dataclasses.dataclass(frozen=True)
class Scores:
    """Shares are from 0 to 1; of sentences where nothing else is said, and 0 where there are none.

    Attributes:
      sentences_right: true in object, colour and place at once, and said for the first time in their caption.
      objects_right: whose object is in the scene, wherever and in whatever colour.
      colours_right: whose object is in the scene in this colour.
      places_right: whose object is in the scene in this place.
      recall: share of the scenes' objects that a sentence describes rightly.
      captions_right: share of captions that describe each object rightly and say nothing else.
      hallucinated_objects: mentions, per caption, of objects that are not in the scene.
      words: per caption.
    """

    sentences_right: float
    objects_right: float
    colours_right: float
    places_right: float
    recall: float
    captions_right: float
    hallucinated_objects: float
    words: float


def score(captions: Sequence[str], truths: Sequence[Sequence[Statement]]) -> Scores:
    """Compares each caption with what is true of its scene.

    Args:
      captions: any texts; a sentence that is none of the world's is wrong in everything.
      truths: the statements that are true of each scene, one for each object.
    """
    assert len(captions) == len(truths) > 0, f"{len(captions)} captions of {len(truths)} scenes"
    num_sentences = right = shape = colour = place = whole = hallucinated = 0
    for caption, truth in zip(captions, truths, strict=True):
        said = parse(caption)
        num_sentences += len(said)
        statements = [statement for statement in said if statement]
        found = set(statements) & set(truth)
        right += len(found)
        shape += sum(any(s.shape == t.shape for t in truth) for s in statements)
        colour += sum(any(s[:2] == t[:2] for t in truth) for s in statements)
        place += sum(any((s.shape, s.place) == (t.shape, t.place) for t in truth) for s in statements)
        whole += len(found) == len(said) == len(truth)
        hallucinated += len(_hallucinated(caption, truth))
    sentences, count = max(num_sentences, 1), len(captions)
    return Scores(
        sentences_right=right / sentences,
        objects_right=shape / sentences,
        colours_right=colour / sentences,
        places_right=place / sentences,
        recall=right / sum(map(len, truths)),
        captions_right=whole / count,
        hallucinated_objects=hallucinated / count,
        words=sum(len(caption.split()) for caption in captions) / count,
    )


def mark(caption: str, truth: Sequence[Statement]) -> list[tuple[str, bool]]:
    """Each word of a caption, and whether it is wrong.

    A wrong statement is held against the object it comes closest to among those that no sentence describes rightly;
    what differs from that one is wrong. Without such an object, in repetitions, and in sentences that are none of
    the world's, every word is.
    """
    left = [statement for statement in truth if statement not in parse(caption)]
    seen: set[Statement] = set()
    marked: list[tuple[str, bool]] = []
    for text in re.findall(r"[^.]+\.?", caption):
        words, (said, *_) = text.split(), [*parse(text), None]
        if said in truth and said not in seen:
            wrong = set()
        elif said is None or said in seen or not left:
            wrong = {_plain(word) for word in words}
        else:
            nearest = max(left, key=lambda t: (sum(map(str.__eq__, said, t)), said.place == t.place))
            wrong = {word for mine, true in zip(said, nearest, strict=True) if mine != true for word in mine.split()}
        marked += [(word, _plain(word) in wrong) for word in words]
        if said:
            seen.add(said)
    return marked


def _hallucinated(caption: str, truth: Sequence[Statement]) -> list[str]:
    words = map(_plain, caption.split())
    return [word for word in words if word in SHAPES and all(word != t.shape for t in truth)]


def _plain(word: str) -> str:
    return word.lower().rstrip(".")
