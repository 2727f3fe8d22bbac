"""What PPO learned from, as its records have it: the first and the last iteration, and examples of their responses."""

import math
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from vigor_jax.data.records import store
from vigor_jax.records import Rollout, Span
from vigor_jax.rewards.sentences import split_sentences

# Examples of a run, and of each question the first responses; long ones are fewer.
MAX_EXAMPLES, MAX_RESPONSES, MAX_TOKENS = 12, 4, 40_000
# The color scale ends here, so that a few extreme tokens do not leave the others without color.
_SCALE_QUANTILE = 0.99

Group = tuple[Rollout, ...]


class Iteration(NamedTuple):
    """Responses of one iteration.

    Attributes:
      number: from 1.
      rollouts: in the order of the record.
    """

    number: int
    rollouts: tuple[Rollout, ...]

    @property
    def groups(self) -> list[Group]:
        """The responses to each question; one that is asked twice has two groups."""
        found: list[list[Rollout]] = []
        for rollout in self.rollouts:
            before = found[-1][-1] if found else None
            is_next = before and _question(before) == _question(rollout) and before.candidate < rollout.candidate
            found[-1].append(rollout) if is_next else found.append([rollout])
        return [tuple(group) for group in found]


class Rollouts(NamedTuple):
    """The records of a run of PPO.

    Attributes:
      total: iterations that the run was to have.
      iterations: the first and the last one that is kept; one if there is one.
    """

    total: int
    iterations: tuple[Iteration, ...]

    @property
    def shared_images(self) -> int:
        """How many images are in both iterations."""
        first, last = (
            {rollout.image for rollout in each.rollouts} for each in (self.iterations[0], self.iterations[-1])
        )
        return len(first & last)


def read_rollouts(folder: str) -> Rollouts | None:
    """Reads two iterations, however many there are; None if there is none.

    Args:
      folder: of the run's records; may be a URL.

    Raises:
      InputError: a part is damaged, or the folder has parts of two counts.
    """
    ppo = store.join(folder, "ppo")
    if (total := store.part_count(ppo)) is None:
        return None
    done = store.parts_done(ppo, total)
    read = (Iteration(at + 1, tuple(store.read_part(ppo, at, total, Rollout))) for at in sorted({min(done), max(done)}))
    return Rollouts(total, tuple(read))


def pick_examples(rollouts: Rollouts, count: int = MAX_EXAMPLES) -> list[tuple[Group, ...]]:
    """Examples of the first iteration next to those of the last, spread evenly over the images' names.

    What is in both iterations comes first: the same question, then another one about the same image. Examples after
    these have different images. With one iteration an example is one group.

    Args:
      rollouts: of a run.
      count: most examples.
    """
    sides = [sorted(each.groups, key=lambda group: _question(group[0])) for each in rollouts.iterations]
    if len(sides) == 1:
        return _within(MAX_TOKENS, [(group,) for group in _spread(sides[0], count)])
    found: list[tuple[Group, ...]] = []
    for same in (_question, lambda rollout: rollout.image):
        first, last = ({same(group[0]): group for group in reversed(side)} for side in sides)
        pairs = [(first[key], last[key]) for key in sorted(first.keys() & last.keys())]
        found += _spread(pairs, count - len(found))
        sides = [[group for group in side if not any(group in pair for pair in pairs)] for side in sides]
    left = min(count - len(found), *map(len, sides))
    return _within(MAX_TOKENS, found + list(zip(*(_spread(side, left) for side in sides), strict=True)))


def pack_examples(rollouts: Rollouts, examples: Iterable[tuple[Group, ...]]) -> dict[str, Any]:
    """Examples as the page has them; keys as in the records, but for these, which save space.

    `spans` are [start, end, ...] of all tokens, each place counted from the one before. A signal is [stream, label,
    score, positive, negative, absent, denied, is about a whole sentence or more, start, end, ...], with places counted
    in the same way. `scale` says which rewards and advantages have the full color, whatever the sign; the same for both
    iterations.
    """
    every = [rollout for each in rollouts.iterations for rollout in each.rollouts]
    return {
        "iterations": [each.number for each in rollouts.iterations],
        "scale": {kind: _scale(getattr(rollout, kind) for rollout in every) for kind in ("rewards", "advantages")},
        "examples": [[_group(group) for group in example] for example in examples],
    }


def _question(rollout: Rollout) -> tuple[str, str]:
    return rollout.image, rollout.prompt


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    return [values[int(i)] for i in np.linspace(0, len(values) - 1, min(count, len(values)))]


def _within(most: int, examples: Sequence[tuple[Group, ...]]) -> list[tuple[Group, ...]]:
    """The first examples that have no more tokens together; at least one."""
    sizes = [sum(len(one.token_ids) for group in each for one in group[:MAX_RESPONSES]) for each in examples]
    return list(examples[: max(int(np.searchsorted(np.cumsum(sizes), most, side="right")), 1)])


def _scale(rows: Iterable[Sequence[float]]) -> float:
    sizes = np.abs(np.fromiter(chain.from_iterable(rows), float))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    return _number(np.quantile(sizes, _SCALE_QUANTILE)) or 1.0 if sizes.size else 1.0


def _group(group: Group) -> dict[str, Any]:
    shown = group[:MAX_RESPONSES]
    return {
        "name": group[0].image,
        "prompt": group[0].prompt,
        "more": len(group) - len(shown),
        "responses": [_response(rollout) for rollout in shown],
    }


def _response(rollout: Rollout) -> dict[str, Any]:
    numbers = {
        name: list(map(_number, getattr(rollout, name)))
        for name in ("rewards", "advantages", "logprobs", "ref_logprobs", "values")
    }
    wholes = {*split_sentences(rollout.text), Span(0, len(rollout.text))}
    return {
        "candidate": rollout.candidate,
        "text": rollout.text,
        "finish": rollout.finish_reason,
        "spans": _steps(rollout.token_spans),
        "signals": [
            [
                verdict.stream, signal.label, _number(signal.score), _number(signal.positive),
                _number(signal.negative), int(signal.absent), int(signal.denied),
                int(not wholes.isdisjoint(signal.spans) or not signal.spans), *_steps(signal.spans),
            ]
            for verdict in rollout.verdicts
            for signal in verdict.signals
        ],
        **numbers,
    }  # fmt: skip


def _steps(spans: Iterable[tuple[int, int]]) -> list[int]:
    return [place - before for before, place in pairwise([0, *chain(*spans)])]


def _number(value: float) -> float | None:
    """Three digits, which JSON can hold."""
    return float(f"{value:.3g}") if math.isfinite(value) else None
