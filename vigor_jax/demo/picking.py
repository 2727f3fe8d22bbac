"""Does picking pay? Reward models that learn from a part of the demo's annotations, picked or at random.

The pool is all annotated captions, two of each of 1,000 scenes; asking about one reveals what its annotation says. Sets
are picked as `python -m vigor_jax.annotate pick` does, one caption a scene. A model that picks must exist by then: half
of a picked set is drawn at random, a reward model learns from that half and judges the pool, and by its judgments the
other half is picked, again one a scene. All of the set counts, whoever picked it, and the final model begins with the
base and learns from all of it. Sets of one seed have the same random half.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vigor_jax.config import TrainConfig
from vigor_jax.data.records import store
from vigor_jax.data.records.annotations import read_annotations, write_annotations
from vigor_jax.demo.language import PROMPTS
from vigor_jax.demo.variants import SharedRecords, replaced
from vigor_jax.feedback.of_run import scored_descriptions
from vigor_jax.feedback.pick import Way, pick
from vigor_jax.records import Annotation, Candidate

logger = logging.getLogger(__name__)

# A run whose candidates are the annotated captions, with a reward model of the random half of each picked set.
POOL = "pool"


class Asked(NamedTuple):
    """A set of captions that people are asked about.

    Attributes:
      way: how it is picked; the half that comes first is random in any case.
      size: captions.
    """

    way: Way
    size: int


ASKED: Mapping[SharedRecords, Asked] = {
    "asked_random": Asked("random", 250),
    "asked_uncertain": Asked("uncertain", 250),
    "asked_disagreement": Asked("disagreement", 250),
    "asked_coverage": Asked("coverage", 250),
    "asked_random_1000": Asked("random", 1000),
}
FIRST = Asked("random", 125)
# The demo's 2 passes over 1,000 captions; over fewer, as many again (8 are worse, on seed 0).
EPOCHS = {125: 4, 250: 4, 1000: 2}


def write_pool(annotations: Path, pool: Path) -> None:
    """Writes the annotated captions as candidates of a run, if they are not there."""
    if not store.part_count(pool / "candidates"):
        seen: Counter[str] = Counter()
        candidates = []
        for each in read_annotations(annotations):
            candidates.append(Candidate(each.image, PROMPTS[0], seen[each.image], each.description, (), 0.0, "stop"))
            seen[each.image] += 1
        store.write_part(pool / "candidates", 0, 1, candidates, Candidate)


def choose_asked(asked: Asked, annotations: Path, pool: Path, seed: int) -> list[Annotation]:
    """What people say when they are asked about a set.

    Args:
      asked: which set.
      annotations: of all captions of the pool.
      pool: what `write_pool` wrote, with verdicts unless the set is random.
      seed: of what is random.
    """
    known = {(each.image, each.description): each for each in read_annotations(annotations)}
    drawn = pick(scored_descriptions(pool, verdicts=False), "random", asked.size, seed=seed)
    keys = [(each.image, each.description) for each in drawn]
    if asked.way != "random":
        keys = keys[: asked.size // 2]
        scored = scored_descriptions(pool)
        picks = pick(scored, asked.way, asked.size - len(keys), known=keys, seed=seed)
        keys += [(each.image, each.description) for each in picks]
    return [known[key] for key in keys]


def write_asked(asked: Asked, annotations: Path, pool: Path, out: Path, seed: int) -> None:
    """Writes the answers about a set, if they are not there, and says how many sentences are wrong in what."""
    if not out.exists():
        answers = choose_asked(asked, annotations, pool, seed)
        logger.info("%s: %s", out, told(answers))
        out.parent.mkdir(parents=True, exist_ok=True)
        write_annotations(out, answers)


def told(answers: Sequence[Annotation]) -> str:
    """A set in one line."""
    sentences = [sentence for each in answers for sentence in each.sentences]
    kinds = Counter(
        f"{error}:{sentence.attribute}" if error == "attribute" else error
        for sentence in sentences
        for error in sentence.errors
    )
    wrong = sum(bool(sentence.errors) for sentence in sentences)
    counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    return f"{len(answers)} captions, {len(sentences)} sentences, {wrong} wrong ({counts})"


def taught_by(config: TrainConfig, annotations: Path, asked: Asked) -> TrainConfig:
    """A config whose reward model learns from a set, all of it."""
    return replaced(
        config,
        {
            "train_reward.annotations": annotations,
            "train_reward.held_out": 0.0,
            "train_reward.epochs": EPOCHS[asked.size],
        },
    )
