"""Reward streams on the responses of an iteration, in however many processes."""

from collections.abc import Mapping, Sequence

import jax

from vigor_jax.errors import InputError
from vigor_jax.parallel.processes import gather, together
from vigor_jax.records import ScoreItem, Verdict
from vigor_jax.rewards.clip import ClipStream
from vigor_jax.rewards.stream import RewardStream
from vigor_jax.rewards.token_rewards import TokenRewardConfig
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
        by_name[name] = _judged(judge, asked) if uses_devices(kind) else _in_shares(judge, asked)
    return [
        [{name: by_name[name][index][candidate] for name in judges} for candidate in range(len(item.texts))]
        for index, item in enumerate(items)
    ]


def advice(
    judges: Mapping[str, RewardStream], verdicts: Sequence[Mapping[str, Verdict]], config: TokenRewardConfig
) -> str:
    """What to change where no token of any response has a reward.

    Args:
      judges: by name.
      verdicts: of each response.
      config: how signals became rewards.
    """
    signals = {name: [signal for own in verdicts for signal in own[name].signals] for name in judges}
    if any(signal.positive or signal.negative for own in signals.values() for signal in own):
        weights = "".join(f", weights.{name} {weight:g}" for name, weight in config.weights.items())
        said = f"positive {config.positive:g}, negative {config.negative:g}{weights}"
        if config.normalize == "none":
            return f"the streams do judge them, and ppo.token_rewards ({said}) leaves nothing of it; raise what is 0"
        return (
            f"the streams do judge them, and ppo.token_rewards (normalize {config.normalize}, {said}) leaves nothing "
            "of it, for sums that are equal in all responses count nothing; raise what is 0, or give normalize none"
        )
    own = [judge.advice(is_silent=not signals[name]) for name, judge in judges.items() if isinstance(judge, ClipStream)]
    return " or ".join(filter(None, own)) or "give a stream that judges what these responses say"


def _in_shares(judge: RewardStream, items: Sequence[ScoreItem]) -> list[list[Verdict]]:
    first, count = jax.process_index(), jax.process_count()
    own = together(lambda: _judged(judge, items[first::count]))
    verdicts: list[list[Verdict]] = [[] for _ in items]
    for process, share in enumerate(gather(own)):
        verdicts[process::count] = share
    return verdicts


def _judged(judge: RewardStream, items: Sequence[ScoreItem]) -> list[list[Verdict]]:
    """The verdicts of a stream, each on its text.

    Raises:
      InputError: there are more or fewer of them than texts.
    """
    found = [list(verdicts) for verdicts in judge.judge(items)]
    counts, expected = [len(verdicts) for verdicts in found], [len(item.texts) for item in items]
    if counts != expected:
        raise InputError(
            f"stream {judge.name}: expected one verdict for each text, {sum(expected)} of {len(expected)} images, got "
            f"{sum(counts)} of {len(counts)}; its judge must yield a list for each item, with a verdict for each text "
            "(docs/rewards.md)"
        )
    return found
