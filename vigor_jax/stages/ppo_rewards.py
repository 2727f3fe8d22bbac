"""What reward streams say of responses → a reward for each token."""

from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float32

from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError
from vigor_jax.parallel.processes import gather, together
from vigor_jax.records import ScoreItem, Span, Verdict
from vigor_jax.rewards.reward_model import RewardModel
from vigor_jax.rewards.stream import RewardStream
from vigor_jax.stages.streams import needs, uses_devices


def judge_responses(judges: Mapping[str, RewardStream], items: Sequence[ScoreItem]) -> list[list[tuple[Verdict, ...]]]:
    """Verdicts of every stream on every response: one list an item, one tuple a response.

    Streams on the devices judge with all processes together; of the others each process judges its share.

    Args:
      judges: by name, each after those that it needs.
      items: the same in all processes.

    Raises:
      InputError: as the streams do; or a verdict is not finite.
    """
    found: list[list[tuple[Verdict, ...]]] = [[() for _ in item.texts] for item in items]
    by_name: dict[str, list[list[Verdict]]] = {}
    for name, judge in judges.items():
        kind = type(judge)
        asked = [
            item._replace(verdicts={needed: tuple(by_name[needed][index]) for needed in needs(kind)})
            for index, item in enumerate(items)
        ]
        by_name[name] = list(judge.judge(asked)) if uses_devices(kind) else _in_shares(judge, asked)
        for item, so_far, verdicts in zip(items, found, by_name[name], strict=True):
            for candidate, verdict in enumerate(verdicts):
                _check(name, item, candidate, verdict)
                so_far[candidate] = (*so_far[candidate], verdict)
    return found


def _in_shares(judge: RewardStream, items: Sequence[ScoreItem]) -> list[list[Verdict]]:
    first, count = jax.process_index(), jax.process_count()
    own = together(lambda: list(judge.judge(items[first::count])))
    verdicts: list[list[Verdict]] = [[] for _ in items]
    for process, share in enumerate(gather(own)):
        verdicts[process::count] = share
    return verdicts


def _check(name: str, item: ScoreItem, candidate: int, verdict: Verdict) -> None:
    for signal in verdict.signals:
        if not np.isfinite([signal.positive, signal.negative]).all():
            raise InputError(
                f"ppo: stream {name}: {item.image}, candidate {candidate}: expected a finite reward of "
                f"{signal.label!r}, got positive {signal.positive} and negative {signal.negative}"
            )


def token_spans(tokenizer: Tokenizer, token_ids: Sequence[int], text: str) -> list[Span]:
    """Where each token stands in the text that all of them make; empty where a token adds no letter of it.

    A letter of several tokens (bytes) belongs to the last of them. Spaces belong to the token that brings them, but for
    those at the ends, which the text does not have.

    Args:
      tokenizer: of the policy.
      token_ids: of a response, with what ended it.
      text: `Completion.text`: decoded, without what ended it, stripped.
    """
    whole = tokenizer.decode(token_ids)
    start = len(whole) - len(whole.lstrip())
    spans, before = [], 0
    for end in range(1, len(token_ids) + 1):
        after = _common(tokenizer.decode(token_ids[:end]), whole) if end < len(token_ids) else len(whole)
        after = max(after, before)
        held = (min(max(place - start, 0), len(text)) for place in (before, after))
        spans.append(Span(*held))
        before = after
    return spans


def _common(one: str, other: str) -> int:
    """Letters that two texts have in common at their beginning."""
    if other.startswith(one):
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def token_rewards(
    verdicts: Sequence[Verdict],
    spans: Sequence[Span],
    *,
    reward_at: Literal["first", "all", "last"],
    mentions: Literal["first", "all"],
) -> Float32[np.ndarray, "T"]:
    """The sum of what streams say of each token: positive less negative, at the tokens of what they speak of.

    Of a phrase, at its tokens, divided by their number where `reward_at` is "all"; of a sentence (the reward model), at
    its last token.

    Args:
      verdicts: of the streams on one response.
      spans: of its tokens, from `token_spans`.
      reward_at: which tokens of a phrase get its reward.
      mentions: whether a signal counts at its first span or at all.
    """
    rewards = np.zeros(len(spans), np.float32)
    starts, ends = np.array([span.start for span in spans]), np.array([span.end for span in spans])
    for verdict in verdicts:
        at = "last" if verdict.stream == RewardModel.name else reward_at
        for signal in verdict.signals:
            for span in signal.spans if mentions == "all" else signal.spans[:1]:
                covered = np.flatnonzero((starts < span.end) & (ends > span.start) & (starts < ends))
                if not covered.size:
                    continue
                chosen = {"first": covered[:1], "all": covered, "last": covered[-1:]}[at]
                rewards[chosen] += np.float32((signal.positive - signal.negative) / len(chosen))
    return rewards
