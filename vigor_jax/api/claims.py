"""What responses claim of numbers, places, relations and attributes, judged by what a detector found."""

from collections.abc import Sequence
from typing import Any

from vigor_jax.api.models import Judgment
from vigor_jax.api.options import parsed
from vigor_jax.errors import InputError
from vigor_jax.records import Span, Verdict
from vigor_jax.rewards.claims.stream import ClaimReader, ClaimsConfig, ClaimStream
from vigor_jax.rewards.detection import DetectorStream
from vigor_jax.rewards.mentions import Phrase
from vigor_jax.rewards.phrases import Phrases, PhrasesConfig


class Claims:
    """Judges claims by a detector's boxes; see docs/rewards.md.

        claims = vigor_jax.Claims()
        with vigor_jax.Detector(model="grounding-dino-tiny", claims=claims) as detector:
            found = detector.judge(images, responses)
        said = claims.judge(found)

    Args:
      phrases: how things are found in a text, as the detector has it.
      **settings: fields of `ClaimsConfig`: `kinds`, `words`, `judge`.

    Raises:
      InputError: a setting cannot be used; a word list or the tagger is missing.
    """

    def __init__(self, *, phrases: PhrasesConfig | None = None, **settings: Any) -> None:
        config, phrases = parsed(ClaimsConfig, settings, what="Claims"), phrases or PhrasesConfig()
        self._reader = ClaimReader(config, phrases)
        self._stream = ClaimStream(config, phrases, self._reader)

    @property
    def digest(self) -> str:
        """Of all that `questions` depends on."""
        return self._reader.digest

    @property
    def phrases(self) -> Phrases:
        """What finds things in a text."""
        return self._reader.phrases

    def questions(self, text: str, sentences: Sequence[Span], phrases: Sequence[Phrase]) -> tuple[str, ...]:
        """What a detector is asked about attributes; `Detector(claims=...)` calls it."""
        return self._reader.questions(text, sentences, phrases)

    def judge(self, judgments: Sequence[Judgment]) -> list[Judgment]:
        """Judges the claims of the same responses, in their order; attributes only if the detector was asked for them.

        Args:
          judgments: of a `Detector`.

        Raises:
          InputError: they are of another stream.
        """
        found = []
        for number, one in enumerate(judgments):
            if not isinstance(one, Judgment) or one.stream != DetectorStream.name:
                got = f"one of {one.stream}" if isinstance(one, Judgment) else type(one).__name__
                raise InputError(f"Claims: judgments[{number}]: expected one of a Detector, got {got}")
            verdict = Verdict(one.image, one.candidate, one.stream, one.signals, one.attributes)
            signals = self._stream.signals(one.text, verdict)
            own = Verdict(one.image, one.candidate, ClaimStream.name, signals)
            found.append(Judgment.of(own, index=one.index, candidate=one.candidate, text=one.text))
        return found
