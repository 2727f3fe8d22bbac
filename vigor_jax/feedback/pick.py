"""Which descriptions people should judge next: those that teach most, each text and each image once.

random        a control
uncertain     the reward model is least sure of a sentence: p(good) near 0.5
disagreement  what the reward model and the other streams say of the sentences differs most
coverage      kinds of error that the streams see, and have been picked least, come first
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from vigor_jax.data.records.json_rows import json_rows
from vigor_jax.data.records.store import write_atomically
from vigor_jax.errors import InputError
from vigor_jax.feedback.of_run import Scored

Way: TypeAlias = Literal["random", "uncertain", "disagreement", "coverage"]
WAYS: tuple[Way, ...] = get_args(Way)


class Pick(NamedTuple):
    """A description to ask about.

    Attributes:
      image: path below the image folder.
      description: the text.
      batch: whose it is, from 1; 0 is everybody's, to measure agreement.
      why: in a few words.
    """

    image: str
    description: str
    batch: int
    why: str


def pick(
    scored: Sequence[Scored],
    way: Way,
    count: int,
    *,
    known: Iterable[tuple[str, str]] = (),
    per_image: int = 1,
    people: int = 1,
    overlap: float = 0.0,
    seed: int = 0,
) -> list[Pick]:
    """Picks descriptions.

    Args:
      scored: all that may be picked.
      way: how.
      count: most of them.
      known: image and text of what was judged before: neither is picked, nor are equal texts.
      per_image: most of one image.
      people: batches that the picks are divided into.
      overlap: share of the picks that everybody gets, [0, 1].
      seed: of everything that is random, and the order among equals.

    Raises:
      InputError: the way needs a reward model or other streams that the run does not have.
    """
    _check(scored, way)
    order = random.Random(seed)
    pool = list(scored)
    order.shuffle(pool)
    if way == "uncertain":
        pool.sort(key=lambda each: -uncertainty(each))
    elif way == "disagreement":
        pool.sort(key=lambda each: -disagreement(each))
    texts = {_words(text) for _, text in known}
    images: Counter[str] = Counter()
    chosen: list[Scored] = []
    for each in _covering(pool) if way == "coverage" else pool:
        words = _words(each.description.text)
        if len(chosen) == count:
            break
        if words in texts or images[each.description.image] == per_image:
            continue
        texts.add(words)
        images[each.description.image] += 1
        chosen.append(each)
    shared = round(overlap * len(chosen))
    everybody = set(order.sample(range(len(chosen)), shared)) if people > 1 else set()
    picks, own = [], 0
    for number, each in enumerate(chosen):
        batch = 0 if number in everybody else own % people + 1
        own += number not in everybody
        picks.append(Pick(each.description.image, each.description.text, batch, _why(each, way)))
    return picks


def uncertainty(scored: Scored) -> float:
    """How unsure the reward model is of the sentence that it is least sure of: 1 at p(good) = 0.5, 0 at 0 or 1."""
    return max((1 - abs(2 * p - 1) for p in scored.p_good if p is not None), default=0.0)


def disagreement(scored: Scored) -> float:
    """Mean over the sentences of the distance between p(wrong) of the reward model and the others' no or yes."""
    pairs = [(1 - p, wrong) for p, wrong in zip(scored.p_good, scored.seen_wrong, strict=True) if p is not None]
    return sum(abs(p_wrong - wrong) for p_wrong, wrong in pairs) / len(pairs) if pairs else 0.0


def _kinds(scored: Scored) -> frozenset[str]:
    expected = scored.description.expected or ()
    return frozenset(kind for sentence in expected for kind in sentence.errors) or frozenset({"none"})


def _covering(pool: Sequence[Scored]) -> Iterable[Scored]:
    """Descriptions in the order that keeps the counts of their kinds of error level."""
    groups: dict[frozenset[str], list[Scored]] = {}
    for each in pool:
        groups.setdefault(_kinds(each), []).append(each)
    counts: Counter[str] = Counter()
    while groups:
        # Of the groups, the one with the rarest kind; of these, the one with the fewest others.
        kinds = min(groups, key=lambda own: (min(counts[kind] for kind in own), len(own), sorted(own)))
        yield groups[kinds].pop()
        counts.update(kinds)
        if not groups[kinds]:
            del groups[kinds]


def _check(scored: Sequence[Scored], way: Way) -> None:
    has_model = any(p is not None for each in scored for p in each.p_good)
    if way in ("uncertain", "disagreement") and not has_model:
        raise InputError(f"--by {way}: the run has no verdicts of a reward model; give --by random or coverage")
    if way == "disagreement" and not any(each.has_others for each in scored):
        raise InputError(f"--by {way}: the run has verdicts of a reward model alone; give --by uncertain")
    if way == "coverage" and all(each.description.expected is None for each in scored):
        raise InputError(f"--by {way}: the run has no verdicts; give --by random")


def _words(text: str) -> str:
    return " ".join(text.split()).casefold()


def _why(scored: Scored, way: Way) -> str:
    if way == "uncertain":
        return f"uncertain: {uncertainty(scored):.3f}"
    if way == "disagreement":
        return f"disagreement: {disagreement(scored):.3f}"
    return f"coverage: {', '.join(sorted(_kinds(scored)))}" if way == "coverage" else "random"


def write_picks(path: Path, picks: Iterable[Pick]) -> None:
    """Writes what `read_picks` reads."""
    with write_atomically(path) as file:
        for each in picks:
            file.write(json.dumps(each._asdict(), ensure_ascii=False).encode() + b"\n")


def read_picks(path: Path) -> list[Pick]:
    """Reads picks.

    Raises:
      InputError: the file cannot be read, or a line is not as described; names the line.
    """
    picks = []
    for row in json_rows(path, "picks"):
        place = f"{path}, {row.label}"
        try:
            record: Any = row.record()
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        kinds = {"image": str, "description": str, "batch": int, "why": str}
        if not isinstance(record, dict) or any(type(record.get(key)) is not kind for key, kind in kinds.items()):
            raise InputError(f"{place}: expected an object with {', '.join(kinds)}, as annotate pick writes it")
        picks.append(Pick(*(record[key] for key in kinds)))
    if not picks:
        raise InputError(f"{path}: expected picks, got none")
    return picks
