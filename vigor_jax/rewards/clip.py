"""The verifier's reward: how well does each object word of a caption fit the image? (FiSAO)

s(w, v) = scale * <t(w), i(v)>, with the unit vectors of a CLIP's text and image towers, becomes a reward by eq. 8.
"""

import collections
import dataclasses
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from jax.sharding import Mesh

from vigor_jax import fingerprint
from vigor_jax.errors import InputError
from vigor_jax.hf.clip.checkpoint import ClipCheckpoint
from vigor_jax.records import ScoreItem, Signal, Verdict
from vigor_jax.rewards.clip_baselines import Baselines, describe_margin, shares, thresholds
from vigor_jax.rewards.stream import Credit
from vigor_jax.rewards.verifier import ClipVerifier, Scored
from vigor_jax.rewards.verifier_config import ClipStreamConfig

logger = logging.getLogger(__name__)


class ClipStream:
    """A `RewardStream` of a CLIP's verdicts: one signal for each object word; or one for each sentence, or the caption.

    Args:
      checkpoint: the CLIP.
      config: how to judge.
      mesh: all devices.
      baselines: made with the same verifier and words.

    Raises:
      InputError: the baselines are of something else, or the margin rewards and punishes the same scores.
    """

    name = "clip"
    uses_devices = True
    credit: Credit = "words"

    def __init__(self, checkpoint: ClipCheckpoint, config: ClipStreamConfig, mesh: Mesh, baselines: Baselines) -> None:
        self._config, self._verifier = config, ClipVerifier(checkpoint, config, mesh)
        check_made_of(baselines, self._verifier.made_of, str(config.baselines))
        margin = config.margin, config.margin_unit, config.margin_sign
        credits: dict[str, Credit] = {"word": "words", "sentence": "sentence", "caption": "response"}
        self.credit = credits[config.per]
        self._limits = thresholds(baselines, config.scale, *margin)
        self._tell(baselines)
        made_with = [self._verifier.made_of, dataclasses.asdict(baselines), fingerprint.of(config)]
        self.digest = fingerprint.digest(fingerprint.plain(made_with))

    def advice(self, *, is_silent: bool) -> str:
        """What to change where nothing is rewarded or punished.

        Args:
          is_silent: nothing had a score, so that no margin helps.
        """
        config = self._config
        if is_silent:
            return "give --clip.entities a list with words that they use" if config.per == "word" else ""
        if config.margin_sign == "+" and not config.margin:
            return "give a --clip.margin above 0 with --clip.margin_sign -"
        return f"{'lower' if config.margin_sign == '+' else 'raise'} --clip.margin (now {config.margin:g})"

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        """See `RewardStream.judge`; a batch of images is read ahead."""
        rewarded = punished = total = 0
        asked: collections.deque[ScoreItem] = collections.deque()

        def noted() -> Iterator[ScoreItem]:
            for item in items:
                asked.append(item)
                yield item

        try:
            for texts in self._verifier.score(noted()):
                item = asked.popleft()
                verdicts = [
                    Verdict(item.image, candidate, self.name, tuple(map(self._signal, own)))
                    for candidate, own in enumerate(texts)
                ]
                signals = [signal for verdict in verdicts for signal in verdict.signals]
                total += len(signals)
                rewarded += sum(signal.positive > 0 for signal in signals)
                punished += sum(signal.negative > 0 for signal in signals)
                yield verdicts
        finally:  # who has all verdicts does not ask whether there are more
            if total:
                logger.info(
                    "clip: %d %ss, %.0f%% of them rewarded, %.0f%% punished",
                    total, self._config.per, 100 * rewarded / total, 100 * punished / total,
                )  # fmt: skip
                self._verifier.tell_cut(self._config.per)

    def _signal(self, scored: Scored) -> Signal:
        score = self._config.scale * scored.cosine
        reward = self._limits(score)
        return Signal(
            label=scored.label,
            spans=scored.spans,
            negative=max(-reward, 0.0),
            positive=max(reward, 0.0),
            score=min(max(scored.cosine, 0.0), 1.0),
            absent=self._config.per == "word" and score <= self._limits.punish,
        )

    def _tell(self, baselines: Baselines) -> None:
        config, limits = self._config, self._limits
        found = shares(baselines, limits, config.scale)
        margin = describe_margin(config.margin, config.margin_unit, config.margin_sign)
        logger.info(
            "clip: with %s, scores from %.1f are rewarded (%.0f%% of the correct %ss of the baselines, %.0f%% of the "
            "hallucinated), and those up to %.1f are punished (%.0f%% and %.0f%%)",
            margin, limits.reward, 100 * found.correct_rewarded, config.per, 100 * found.hallucinated_rewarded,
            limits.punish, 100 * found.correct_punished, 100 * found.hallucinated_punished,
        )  # fmt: skip
        nothing = [
            name
            for name, is_empty in (
                ("rewarded", limits.reward > limits.highest),
                ("punished", limits.punish < limits.lowest),
            )
            if is_empty
        ]
        if nothing:
            logger.warning(
                "clip: with %s nothing in the baselines' responses would be %s; choose a smaller clip.margin, or give "
                "it as a quantile (--clip.margin_unit quantile)",
                margin, " or ".join(nothing),
            )  # fmt: skip


def check_made_of(baselines: Baselines, found: dict[str, Any], path: str) -> None:
    """Refuses baselines that were made with something else.

    Raises:
      InputError: they were; says with what.
    """
    names = {
        "verifier": "another verifier (its weights, tokenizer or image settings)",
        "entities": "another list of words, or other rules to find them",
        "per": "another clip.per",
        "pad": "another clip.pad",
    }
    for key, what in names.items():
        if (before := baselines.made_of.get(key)) != (now := found[key]):
            raise InputError(
                f"clip.baselines: {path} was made with {what}: {_short(before)}, and now it is {_short(now)}; make it "
                "again with python -m vigor_jax.verifier"
            )


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
