"""The automatic reward: is what a caption mentions found in the image? (ViGoR, section 3.2)

Departures from the paper, both undone by options of `PhrasesConfig`: what a caption denies is a mistake if it is found,
and what it only supposes is not asked for.
"""

import hashlib
import itertools
import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from detector_bridge.client import BlockingClient, DetectorError
from detector_bridge.errors import InputError as BridgeError
from detector_bridge.messages import Answer, Detection, Request
from detector_bridge.refusal import RefusedError
from vigor_jax.errors import InputError
from vigor_jax.percent import percent
from vigor_jax.records import ImageFile, PhraseScore, ScoreItem, Signal, Span, Verdict
from vigor_jax.rewards.agreement import AGREEMENT, agree
from vigor_jax.rewards.detector_config import FIRST, SECOND, DetectionConfig, DetectorConfig
from vigor_jax.rewards.detectors import connected
from vigor_jax.rewards.language.unknown_words import UnknownWords
from vigor_jax.rewards.phrases import Phrase, Phrases, PhrasesConfig, made_of, make_phrases
from vigor_jax.rewards.sentences import split_sentences

# No noun phrase is longer; what degenerate text strings together is judged as not found, without asking.
MAX_LETTERS = 80
PHRASES_A_REQUEST = 500

IMAGE_READERS = 4


logger = logging.getLogger(__name__)


class AttributeQuestions(Protocol):
    """What the detector is asked about the attributes that a caption claims; `claims.stream.ClaimReader` is one."""

    @property
    def digest(self) -> str:
        """Of all that the questions depend on."""

    @property
    def phrases(self) -> Phrases:
        """What finds the things in captions, as `DetectionConfig.phrases` says."""

    def questions(self, text: str, sentences: Sequence[Span], phrases: Sequence[Phrase]) -> tuple[str, ...]:
        """Phrases such as "red car" and "blue car", each once."""
        ...


class _Asked(NamedTuple):
    """An item under way: the phrases of each text, those with attributes, and the answers to come, of each detector."""

    item: ScoreItem
    phrases: list[list[Phrase]]
    attributes: list[tuple[str, ...]]
    answers: list[list[Future[Answer]]]

    @property
    def is_answered(self) -> bool:
        return all(future.done() for answers in self.answers for future in answers)


class DetectorStream:
    """A `RewardStream` of the detector's verdicts; a context manager, which holds the sidecar and the connection.

    For each image one request asks for the union of the phrases of all its candidates, so candidates share verdicts. A
    phrase that is found is a positive signal of 1, one that is not a negative signal of 1, however often the caption
    has it. A phrase that the caption denies is a negative signal of 1 if it is found; else it is none, for a caption is
    not to be paid for listing what is not there.

    Where there is a second detector, both look at an image at the same time, and a verdict is what they agree on
    (`agreement.agree`).

    Args:
      config: settings.
      attributes: whose questions are asked, too; the scores are in `Verdict.attributes`.

    Raises:
      InputError: on entering: no detector is given, one cannot be reached, or several addresses of one serve different
        models.
    """

    name = "detector"
    digest: str

    def __init__(self, config: DetectionConfig, attributes: AttributeQuestions | None = None) -> None:
        config.check_given()
        self._config, self._attributes = config, attributes
        self._phrases = attributes.phrases if attributes else make_phrases(config.phrases)
        self._unknown = [UnknownWords(FIRST), UnknownWords(SECOND)]
        self._stack = ExitStack()
        self._second: BlockingClient | None = None
        self._both = self._differ = 0  # phrases that two detectors were asked for, and of these, those one found

    def __enter__(self) -> Self:
        with ExitStack() as opened:  # closes the first detector if the second one cannot be reached
            self._client, weights = opened.enter_context(connected(self._config, FIRST))
            self.digest = self._digest(weights, self._config)
            if self._config.second:
                self._second, weights = opened.enter_context(connected(self._config.second, SECOND))
                digests = [self.digest, self._digest(weights, self._config.second), AGREEMENT]
                self.digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
            self._stack = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._both:
            logger.info(
                "detection: the two detectors differ on %d of %d phrases (%s%%); these are neither right nor wrong",
                *(self._differ, self._both, percent(self._differ / self._both, 1)),
            )
        self._both = self._differ = 0
        self._stack.close()

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        """See `RewardStream.judge`; at most `in_flight` images are under way."""
        pending: deque[_Asked] = deque()
        second = self._config.second
        most = min(self._config.in_flight, second.in_flight) if second else self._config.in_flight
        for item, image in _read_ahead(items):
            pending.append(self._ask(item, image))
            while pending and (len(pending) >= most or pending[0].is_answered):
                yield self._verdicts(pending.popleft())
        while pending:
            yield self._verdicts(pending.popleft())

    def _ask(self, item: ScoreItem, image: Path | bytes) -> _Asked:
        sentences = [split_sentences(text) for text in item.texts]
        phrases = [self._phrases(text, own) for text, own in zip(item.texts, sentences, strict=True)]
        attributes: list[tuple[str, ...]] = [() for _ in item.texts]
        if self._attributes:
            attributes = list(map(self._attributes.questions, item.texts, sentences, phrases))
        named = (phrase.text for own in phrases for phrase in own if any(_spans(phrase, self._config.phrases)))
        every = dict.fromkeys(itertools.chain(named, *attributes))
        wanted = [phrase for phrase in every if len(phrase) <= MAX_LETTERS]
        answers = [self._submit(self._client, self._config, item, image, wanted)]
        if self._second and self._config.second:
            answers.append(self._submit(self._second, self._config.second, item, image, wanted))
        return _Asked(item, phrases, attributes, answers)

    def _submit(
        self,
        client: BlockingClient,
        config: DetectorConfig,
        item: ScoreItem,
        image: Path | bytes,
        wanted: Sequence[str],
    ) -> list[Future[Answer]]:
        return [
            client.submit(
                Request(
                    image,
                    tuple(wanted[first : first + PHRASES_A_REQUEST]),
                    config.box_threshold,
                    config.text_threshold,
                    name=item.image,
                )
            )
            for first in range(0, len(wanted), PHRASES_A_REQUEST)
        ]

    def _verdicts(self, asked: _Asked) -> list[Verdict]:
        found = [
            self._found(section, asked.item.image, answers)
            for section, answers in zip((FIRST, SECOND), asked.answers, strict=False)
        ]
        for unknown, detections in zip(self._unknown, found, strict=False):
            unknown.tell(detections.values())
        said = [
            [
                Verdict(
                    asked.item.image,
                    candidate,
                    self.name,
                    _signals(phrases, detections, self._config.phrases),
                    tuple(PhraseScore(each, detections[each].score) for each in attributes if each in detections),
                )
                for candidate, (phrases, attributes) in enumerate(zip(asked.phrases, asked.attributes, strict=True))
            ]
            for detections in found
        ]
        if len(found) == 1:
            return said[0]
        first, second = found
        self._both += len(first)
        self._differ += sum(first[phrase].present != second[phrase].present for phrase in first)
        return [agree(*verdicts) for verdicts in zip(*said, strict=True)]

    def _found(self, section: str, image: str, answers: Iterable[Future[Answer]]) -> dict[str, Detection]:
        """What a detector found of each phrase that it was asked for."""
        try:
            return {found.phrase: found for future in answers for found in future.result().detections}
        except DetectorError as error:  # which names the image
            raise InputError(f"{section}: {error}") from None
        except (BridgeError, RefusedError) as error:
            raise InputError(f"{section}: {image}: {error}") from None

    def _digest(self, weights: str, detector: DetectorConfig) -> str:
        thresholds = detector.box_threshold, detector.text_threshold
        asked = [self._attributes.digest] if self._attributes else []
        settings = [weights, *thresholds, *detector.options, *made_of(self._config.phrases), *asked]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _read_ahead(items: Iterable[ScoreItem]) -> Iterator[tuple[ScoreItem, Path | bytes]]:
    """Items with their images: those in shards, which may be far away, are read a few ahead; the client reads files."""
    waiting: deque[tuple[ScoreItem, Future[Path | bytes]]] = deque()
    readers = ThreadPoolExecutor(IMAGE_READERS, "read-image")
    try:
        for item in items:
            waiting.append((item, readers.submit(_content_of, item.path)))
            if len(waiting) > 2 * IMAGE_READERS:
                first, image = waiting.popleft()
                yield first, image.result()
        for item, image in waiting:
            yield item, image.result()
    finally:
        readers.shutdown(cancel_futures=True)


def _content_of(image: ImageFile) -> Path | bytes:
    return image if isinstance(image, Path) else image.read_bytes()


def _spans(phrase: Phrase, config: PhrasesConfig) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Where a thing is to be found, and where it is not."""
    stated = phrase.mentions
    if config.negated == "ask":
        stated += phrase.denied
    if config.hypothetical == "ask":
        stated += phrase.supposed
    return tuple(sorted(stated)), phrase.denied if config.negated == "check" else ()


def _signals(phrases: Iterable[Phrase], found: Mapping[str, Detection], config: PhrasesConfig) -> tuple[Signal, ...]:
    """In the order of their first span."""
    signals = []
    for phrase in phrases:
        detection = found.get(phrase.text)
        present = detection is not None and detection.present
        stated, denied = _spans(phrase, config)
        if stated:
            signals.append(_signal(phrase.text, stated, detection, right=present))
        if denied and present:
            signals.append(_signal(phrase.text, denied, detection, right=False, denied=True))
    return tuple(sorted(signals, key=lambda signal: signal.spans[0]))


def _signal(
    label: str, spans: tuple[Span, ...], detection: Detection | None, *, right: bool, denied: bool = False
) -> Signal:
    return Signal(
        label=label,
        spans=spans,
        negative=float(not right),
        positive=float(right),
        score=detection.score if detection else 0.0,
        absent=not right,
        boxes_xyxy=tuple(map(tuple, detection.boxes_xyxy.tolist())) if detection else (),
        denied=denied,
    )
