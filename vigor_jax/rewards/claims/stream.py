"""The claims of captions as a reward: what the detector's boxes say of numbers, places, relations and attributes.

No paper has this reward: detectors are asked for things only, and ViGoR (section 5) leaves the rest to people.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from vigor_jax import fingerprint
from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.errors import InputError
from vigor_jax.records import CLAIM_KINDS, ClaimKind, Edit, ScoreItem, Signal, Span, Verdict
from vigor_jax.rewards.claims.attributes import attributed_phrases
from vigor_jax.rewards.claims.claim import Claim
from vigor_jax.rewards.claims.evidence import BoxTuples, Detected, evidence
from vigor_jax.rewards.claims.find import Claims, ClaimWordsConfig, Reading
from vigor_jax.rewards.claims.judge import Found, JudgeConfig, Truth
from vigor_jax.rewards.claims.repair import Repairs, WrongClaim
from vigor_jax.rewards.language.nouns import NounPhrases
from vigor_jax.rewards.mentions import Phrase
from vigor_jax.rewards.phrases import PhrasesConfig, made_of, make_phrases
from vigor_jax.rewards.sentences import split_sentences

# Of the grammars and word lists of claims, and of what boxes say; a change that makes other signals raises it.
RULES = 2


@dataclasses.dataclass(frozen=True)
class ClaimsConfig:
    """What captions claim of the things that they name, and when boxes say that it is wrong.

    Attributes:
      kinds: which claims are judged. For attributes the detector is asked for more phrases: "red car" and its rivals.
      words: word lists.
      judge: thresholds; `python -m vigor_jax.claims` suggests some for your detector.
    """

    kinds: tuple[ClaimKind, ...] = CLAIM_KINDS
    words: ClaimWordsConfig = dataclasses.field(default_factory=ClaimWordsConfig)
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise InputError(f"claims.kinds: expected some of {', '.join(CLAIM_KINDS)}, each once, got {self.kinds}")


class ClaimReader:
    """Reads the claims of captions.

    Args:
      config: which.
      phrases: how things are found, as the detector is asked for them.

    Attributes:
      digest: of all that the claims depend on.

    Raises:
      InputError: a word list or the tagger is missing.
    """

    def __init__(self, config: ClaimsConfig, phrases: PhrasesConfig) -> None:
        self._kinds, self.phrases = frozenset(config.kinds), make_phrases(phrases)
        nouns = self.phrases
        if not isinstance(nouns, NounPhrases):  # a list of entities finds things; to read claims takes a tagger
            nouns = NounPhrases(phrases.non_visual, phrases.tagger, download=phrases.download)
        self.claims = Claims(nouns, config.words)
        lists = [fingerprint.content(getattr(config.words, field.name)) for field in dataclasses.fields(config.words)]
        self.digest = fingerprint.digest([RULES, sorted(config.kinds), *lists, *made_of(phrases)])

    def __call__(self, text: str, sentences: Sequence[Span], phrases: Sequence[Phrase]) -> list[Claim]:
        """The claims of a caption; see `Claims`."""
        return [claim for claim in self.claims(text, sentences, phrases) if claim.kind in self._kinds]

    def read(self, text: str) -> Reading:
        """A caption with its claims of all kinds."""
        sentences = split_sentences(text)
        return self.claims.read(text, sentences, self.phrases(text, sentences))

    def questions(self, text: str, sentences: Sequence[Span], phrases: Sequence[Phrase]) -> tuple[str, ...]:
        """What to ask a detector about the attributes that a caption claims: "red car", "blue car", ..."""
        if "attribute" not in self._kinds:
            return ()
        asked: list[str] = []
        for claim in self.claims.attributes(text, sentences, phrases):
            own, rivals = attributed_phrases(claim, self.claims.attribute_words)
            asked += [own, *rivals]
        return tuple(dict.fromkeys(asked))


class ClaimStream:
    """A `RewardStream` of claims, judged by the boxes of the stream `detector`.

    A claim that is right is a positive signal of 1, one that is wrong a negative signal of 1, with what makes it right
    where that is sure; of what boxes do not tell there is no signal. Equal claims of a caption are one signal.

    Args:
      config: which claims, and when they are wrong.
      phrases: how things are found, as the detector is asked for them.
      reader: of the same settings, if there is one already: what it has learned of words is used again.

    Raises:
      InputError: a word list or the tagger is missing.
    """

    name = "claims"
    needs = ("detector",)

    def __init__(self, config: ClaimsConfig, phrases: PhrasesConfig, reader: ClaimReader | None = None) -> None:
        self._config, self._reader = config, reader or ClaimReader(config, phrases)
        self._repairs = Repairs(self._reader.claims, config.judge, self._reader.phrases)
        self.digest = fingerprint.digest([self._reader.digest, dataclasses.asdict(config.judge)])

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        """See `RewardStream.judge`; the detector's verdicts are in `ScoreItem.verdicts`."""
        for item in items:
            known: dict[str, tuple[Signal, ...]] = {}  # an image's candidates are often equal
            detected = item.verdicts["detector"]
            for text, verdict in zip(item.texts, detected, strict=True):
                if text not in known:
                    known[text] = self.signals(text, verdict)
            yield [Verdict(item.image, i, self.name, known[text]) for i, text in enumerate(item.texts)]

    def signals(self, text: str, detected: Verdict) -> tuple[Signal, ...]:
        """What boxes say of a caption, in the order of the claims.

        Args:
          text: the caption.
          detected: the detector's verdict on it.
        """
        verdict, config = Detected.of(detected), self._config.judge
        found, scores = verdict.boxes, verdict.scores
        reading = self._reader.read(text)
        claims = [claim for claim in reading.claims if claim.kind in self._config.kinds]
        words = self._reader.claims.attribute_words
        truths = [evidence(claim, verdict, words).truth(config) for claim in claims]
        wrong = [
            WrongClaim(claim, Found(found[claim.subject.phrase]), scores)
            for claim, truth in zip(claims, truths, strict=True)
            if truth is Truth.WRONG
        ]
        edits = iter(self._repairs(reading, wrong))
        signals: dict[tuple[str, object], Signal] = {}
        for claim, truth in zip(claims, truths, strict=True):
            own = next(edits) if truth is Truth.WRONG else ()
            if truth is not Truth.UNKNOWN:
                key = claim.subject.phrase, claim.value
                signals[key] = _signal(text, claim, truth, found[claim.subject.phrase], own, signals.get(key))
        return tuple(sorted(signals.values(), key=lambda signal: signal.spans[0]))


def _signal(
    text: str, claim: Claim, truth: Truth, boxes: BoxTuples, edits: tuple[Edit, ...], other: Signal | None
) -> Signal:
    """A claim's signal, joined with that of an equal claim."""
    is_right = truth is Truth.RIGHT
    spans = sorted({claim.span, *(other.spans if other else ())})
    # Both are repaired or none: refinement would keep a sentence for an edit in another one.
    both = (*edits, *(other.edits if other else ())) if edits and (other is None or other.edits) else ()
    return Signal(
        label=f"{claim.subject.phrase}: {without_boxes(text[slice(*claim.span)]).lower()}"
        if other is None
        else other.label,
        spans=tuple(spans),
        negative=float(not is_right),
        positive=float(is_right),
        score=float(is_right),
        absent=not is_right,
        boxes_xyxy=boxes,
        kind=claim.kind,
        edits=tuple(sorted(set(both))),
    )
