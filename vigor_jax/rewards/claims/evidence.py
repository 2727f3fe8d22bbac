"""What a detector says of a claim, and so whether it is right: the step from verdicts to `judge`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from vigor_jax.records import Verdict
from vigor_jax.rewards.claims.attributes import attributed_phrases
from vigor_jax.rewards.claims.claim import Attribute, Claim, Relation
from vigor_jax.rewards.claims.judge import Found, JudgeConfig, Truth, judge, judge_attribute
from vigor_jax.rewards.language.claim_words import AttributeWords

BoxTuples: TypeAlias = tuple[tuple[float, float, float, float], ...]  # as `Signal.boxes_xyxy`


@dataclass(frozen=True)
class Detected:
    """A detector's verdict on a text, by phrase.

    Attributes:
        boxes: Where each phrase was found.
        scores: Of phrases with attributes: "red car", "blue car".
    """

    boxes: Mapping[str, BoxTuples]
    scores: Mapping[str, float]

    @classmethod
    def of(cls, verdict: Verdict) -> "Detected":
        """What a verdict of the stream `detector` says."""
        return cls(
            {signal.label: signal.boxes_xyxy for signal in verdict.signals},
            {asked.phrase: asked.score for asked in verdict.attributes},
        )


@dataclass(frozen=True)
class Evidence:
    """What a detector says of a claim.

    Attributes:
        claim: The claim.
        subject: Boxes of its thing.
        target: Those of the other thing of a relation.
        asked: Score of the thing with the attribute as claimed; None if it was not asked.
        rivals: Scores of the thing with another attribute.
    """

    claim: Claim
    subject: BoxTuples
    target: BoxTuples = ()
    asked: float | None = None
    rivals: tuple[float, ...] = ()

    def truth(self, config: JudgeConfig) -> Truth:
        """Whether the claim is right; what is not there has no attributes."""
        if not self.subject:
            return Truth.UNKNOWN
        if isinstance(self.claim.value, Attribute):
            return Truth.UNKNOWN if self.asked is None else judge_attribute(self.asked, self.rivals, config)
        return judge(self.claim, Found(self.subject), Found(self.target), config)


def evidence(claim: Claim, detected: Detected, words: AttributeWords) -> Evidence:
    """What a verdict says of a claim.

    Args:
        claim: The claim.
        detected: The detector's verdict on the claim's text.
        words: The list that claims of attribute were found with.
    """
    boxes = detected.boxes.get(claim.subject.phrase, ())
    if isinstance(claim.value, Attribute):
        own, others = attributed_phrases(claim, words)
        rivals = tuple(detected.scores[each] for each in others if each in detected.scores)
        return Evidence(claim, boxes, asked=detected.scores.get(own), rivals=rivals)
    target = detected.boxes.get(claim.value.object.phrase, ()) if isinstance(claim.value, Relation) else ()
    return Evidence(claim, boxes, target)
