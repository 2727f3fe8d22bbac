"""Sentences with claims that people have judged: what the detector says of the claims, and what people say."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vigor_jax.records import CLAIM_KINDS, AnnotatedSentence, Annotation, ClaimKind, Verdict
from vigor_jax.rewards.claims.claim import Attribute, Claim
from vigor_jax.rewards.claims.crops import CropEvidence, JudgedCrops
from vigor_jax.rewards.claims.evidence import Detected, Evidence, evidence
from vigor_jax.rewards.claims.judge import Truth
from vigor_jax.rewards.claims.stream import ClaimReader
from vigor_jax.rewards.sentences import split_sentences


@dataclass(frozen=True)
class Case:
    """The claims of one kind in one sentence.

    Attributes:
        image: Which the sentence is about.
        evidence: What the detector says of each of the claims; or a CLIP, of attributes.
        is_wrong: Whether a person says that one of them is wrong.
    """

    image: str
    evidence: tuple[Evidence, ...] | tuple[CropEvidence, ...]
    is_wrong: bool

    def judged(self, config: Any) -> Truth:
        """Wrong if one of the claims is, right if all are; by the settings of the judge whose evidence it is."""
        truths = [each.truth(config) for each in self.evidence]
        if Truth.WRONG in truths:
            return Truth.WRONG
        return Truth.UNKNOWN if Truth.UNKNOWN in truths else Truth.RIGHT


@dataclass
class Cases:
    """Cases of all kinds.

    Attributes:
        by_kind: In the order of the annotations.
        unclear: Sentences with claims of the kind that were left out, for their annotation does not tell.
        crops: Cases of attributes that a CLIP judges.
        unclear_crops: As `unclear`.
    """

    by_kind: dict[ClaimKind, list[Case]] = field(default_factory=lambda: {kind: [] for kind in CLAIM_KINDS})
    unclear: dict[ClaimKind, int] = field(default_factory=lambda: dict.fromkeys(CLAIM_KINDS, 0))
    crops: list[Case] = field(default_factory=list)
    unclear_crops: int = 0

    def add(self, annotation: Annotation, verdict: Verdict, reader: ClaimReader) -> None:
        """Adds the sentences of a description.

        Args:
            annotation: The description, as a person judged it.
            verdict: The detector's on this text.
            reader: Finds the claims.
        """
        text, detected = annotation.description, Detected.of(verdict)
        sentences = split_sentences(text)
        claims = reader(text, sentences, reader.phrases(text, sentences))
        for sentence in annotation.sentences:
            start, end = sentence.span
            by_kind: dict[ClaimKind, list[Claim]] = {}
            for claim in claims:
                if start <= claim.span.start < end:
                    by_kind.setdefault(claim.kind, []).append(claim)
            for kind, own in by_kind.items():
                is_wrong = says_wrong(sentence, own)
                if is_wrong is None:
                    self.unclear[kind] += 1
                else:
                    found = tuple(evidence(claim, detected, reader.claims.attribute_words) for claim in own)
                    self.by_kind[kind].append(Case(annotation.image, found, is_wrong))

    def add_crops(self, annotation: Annotation, judged: Sequence[JudgedCrops]) -> None:
        """Adds the sentences of a description by what a CLIP says of its claims.

        Args:
            annotation: The description, as a person judged it.
            judged: Its claims.
        """
        for sentence in annotation.sentences:
            start, end = sentence.span
            own = [each for each in judged if start <= each.claim.span.start < end]
            if not own:
                continue
            is_wrong = says_wrong(sentence, [each.claim for each in own])
            if is_wrong is None:
                self.unclear_crops += 1
            else:
                self.crops.append(Case(annotation.image, tuple(each.evidence for each in own), is_wrong))


def says_wrong(sentence: AnnotatedSentence, claims: Sequence[Claim]) -> bool | None:
    """Whether a person says that one of a sentence's claims of one kind is wrong.

    An annotation names one attribute at most, so where a color is wrong it does not say whether the number is right.
    Where a thing is not there, nobody judged what is said of it. "To the left of" may be taken for a location.

    Args:
        sentence: As a person judged it.
        claims: All of one kind.

    Returns:
        None if the annotation does not tell.
    """
    errors, detail, kind = sentence.errors, sentence.attribute, claims[0].kind
    of_kind = {"place": "location", "relation": "relationship"}.get(kind, "attribute")
    is_wrong: bool | None = of_kind in errors
    if is_wrong and kind == "number":
        is_wrong = True if detail == "count" else None
    elif is_wrong and kind == "attribute":
        named = {claim.value.kind for claim in claims if isinstance(claim.value, Attribute)}
        is_wrong = True if not detail or detail in named else None
    elif not is_wrong and ("object" in errors or (kind == "relation" and "location" in errors)):
        is_wrong = None
    return is_wrong
