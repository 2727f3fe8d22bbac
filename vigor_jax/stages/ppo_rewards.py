"""Reward streams on the responses of an iteration, in however many processes."""

from collections.abc import Mapping, Sequence

import jax

from vigor_jax.parallel.processes import gather, together
from vigor_jax.records import ScoreItem, Verdict
from vigor_jax.rewards.stream import RewardStream
from vigor_jax.stages.streams import needs, uses_devices


def judge_responses(judges: Mapping[str, RewardStream], items: Sequence[ScoreItem]) -> list[list[dict[str, Verdict]]]:
    """Verdicts of every stream on every response: one list an item, one dictionary a response.

    Streams on the devices judge with all processes together; of the others each process judges its share.

    Args:
      judges: by name, each after those that it needs.
      items: the same in all processes.

    Raises:
      InputError: as the streams do.
    """
    by_name: dict[str, list[list[Verdict]]] = {}
    for name, judge in judges.items():
        kind = type(judge)
        asked = [
            item._replace(verdicts={needed: tuple(by_name[needed][index]) for needed in needs(kind)})
            for index, item in enumerate(items)
        ]
        by_name[name] = list(judge.judge(asked)) if uses_devices(kind) else _in_shares(judge, asked)
    return [
        [{name: by_name[name][index][candidate] for name in judges} for candidate in range(len(item.texts))]
        for index, item in enumerate(items)
    ]


def _in_shares(judge: RewardStream, items: Sequence[ScoreItem]) -> list[list[Verdict]]:
    first, count = jax.process_index(), jax.process_count()
    own = together(lambda: list(judge.judge(items[first::count])))
    verdicts: list[list[Verdict]] = [[] for _ in items]
    for process, share in enumerate(gather(own)):
        verdicts[process::count] = share
    return verdicts
