"""The claims of captions as a reward: what the detector's boxes say of numbers, places, relations and attributes.

No paper has this reward: detectors are asked for things only, and ViGoR (section 5) leaves the rest to people.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from vigor_jax import fingerprint
from vigor_jax.errors import InputError
from vigor_jax.records import CLAIM_KINDS, ClaimKind, ScoreItem, Signal, Span, Verdict
from vigor_jax.rewards.claims.attributes import attributed_phrases
from vigor_jax.rewards.claims.claim import Claim
from vigor_jax.rewards.claims.evidence import Detected, evidence
from vigor_jax.rewards.claims.find import Claims, ClaimWordsConfig, Reading
from vigor_jax.rewards.claims.judge import JudgeConfig, Truth
from vigor_jax.rewards.claims.repair import Repairs
from vigor_jax.rewards.claims.signals import JudgedClaim, claim_signals
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
        reading, words = self._reader.read(text), self._reader.claims.attribute_words
        judged = []
        for claim in reading.claims:
            if claim.kind in self._config.kinds:
                truth = evidence(claim, verdict, words).truth(config)
                boxes = verdict.boxes.get(claim.subject.phrase, ())
                judged.append(JudgedClaim(claim, truth, float(truth is Truth.RIGHT), boxes, verdict.scores))
        return claim_signals(reading, judged, self._repairs)
