"""The automatic reward: is what a caption mentions found in the image? (ViGoR, section 3.2)

Departures from the paper, both undone by options of `PhrasesConfig`: what a caption denies is a mistake if it is found,
and what it only supposes is not asked for.
"""

import dataclasses
import hashlib
import itertools
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self

from detector_bridge.client import BlockingClient, ClientConfig, DetectorError
from detector_bridge.errors import InputError as BridgeError
from detector_bridge.local import LocalConfig, LocalDetector
from detector_bridge.messages import Answer, Detection, Request
from detector_bridge.refusal import RefusedError
from vigor_jax import fingerprint
from vigor_jax.errors import InputError
from vigor_jax.records import ImageFile, PhraseScore, ScoreItem, Signal, Span, Verdict
from vigor_jax.rewards.language.unknown_words import UnknownWords
from vigor_jax.rewards.phrases import Phrase, PhrasesConfig, made_of, make_phrases
from vigor_jax.rewards.sentences import split_sentences

# No noun phrase is longer; what degenerate text strings together is judged as not found, without asking.
MAX_LETTERS = 80
PHRASES_A_REQUEST = 500

IMAGE_READERS = 4


@dataclasses.dataclass(frozen=True)
class DetectionConfig:
    """The detector, and what is asked of it.

    Attributes:
      addresses: sidecars that serve already, HOST:PORT or unix:PATH.
      model: instead of addresses: a GroundingDINO that a sidecar of our own serves, a directory or its name on the Hub.
      backend: of that sidecar.
      python: interpreter of that sidecar, where its packages live in another environment.
      options: further options of that sidecar, such as `--short-side 480`, each word for itself.
      box_threshold: see docs/detector.md; the paper's 0.25.
      text_threshold: the same.
      in_flight: most requests under way.
      timeout: seconds for one request, over all attempts.
      connect_timeout: seconds for the first greeting.
      token_file: the sidecars' token.
      tls_ca: who signs their certificates (PEM): turns TLS on.
      tls_cert: this client's certificate.
      tls_key: its key.
      phrases: how noun phrases are found in captions.
    """

    addresses: tuple[str, ...] = fingerprint.place(())
    model: str | Path | None = fingerprint.place(None)
    backend: Literal["transformers", "groundingdino"] = fingerprint.neutral("transformers")
    python: Path | None = fingerprint.place(None)
    options: tuple[str, ...] = ()
    box_threshold: float = 0.25
    text_threshold: float = 0.25
    in_flight: int = fingerprint.neutral(64)
    timeout: float = fingerprint.neutral(600.0)
    connect_timeout: float = fingerprint.neutral(60.0)
    token_file: Path | None = fingerprint.place(None)
    tls_ca: Path | None = fingerprint.place(None)
    tls_cert: Path | None = fingerprint.place(None)
    tls_key: Path | None = fingerprint.place(None)
    phrases: PhrasesConfig = dataclasses.field(default_factory=PhrasesConfig)

    def check_given(self) -> None:
        """Raises InputError if no detector is given, or two."""
        if bool(self.addresses) == bool(self.model):
            raise InputError(
                "detection: give either addresses, of sidecars that serve, or model, for one that this command starts; "
                f"got {'both' if self.model else 'neither'}"
            )


class AttributeQuestions(Protocol):
    """What the detector is asked about the attributes that a caption claims; `claims.stream.ClaimReader` is one.

    Attributes:
      digest: of all that the questions depend on.
    """

    digest: str

    def questions(self, text: str, sentences: Sequence[Span], phrases: Sequence[Phrase]) -> tuple[str, ...]:
        """Phrases such as "red car" and "blue car", each once."""
        ...


class _Asked(NamedTuple):
    """An item under way: the phrases of each text, those with attributes, and the answers to come."""

    item: ScoreItem
    phrases: list[list[Phrase]]
    attributes: list[tuple[str, ...]]
    answers: list[Future[Answer]]


class DetectorStream:
    """A `RewardStream` of the detector's verdicts; a context manager, which holds the sidecar and the connection.

    For each image one request asks for the union of the phrases of all its candidates, so candidates share verdicts. A
    phrase that is found is a positive signal of 1, one that is not a negative signal of 1, however often the caption
    has it. A phrase that the caption denies is a negative signal of 1 if it is found; else it is none, for a caption is
    not to be paid for listing what is not there.

    Args:
      config: settings.
      attributes: whose questions are asked, too; the scores are in `Verdict.attributes`.

    Raises:
      InputError: on entering: no detector is given, it cannot be reached, or several serve different models.
    """

    name = "detector"
    digest: str

    def __init__(self, config: DetectionConfig, attributes: AttributeQuestions | None = None) -> None:
        config.check_given()
        self._config, self._attributes = config, attributes
        self._phrases = make_phrases(config.phrases)
        self._unknown = UnknownWords()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        config, addresses = self._config, self._config.addresses
        try:
            if config.model:
                local = LocalConfig(config.model, config.backend, config.python or Path(sys.executable), config.options)
                addresses = (self._stack.enter_context(LocalDetector(local)).address,)
            client = ClientConfig(
                addresses=addresses,
                timeout=config.timeout,
                connect_timeout=config.connect_timeout,
                in_flight=config.in_flight,
                token_file=config.token_file,
                tls_ca=config.tls_ca,
                tls_cert=config.tls_cert,
                tls_key=config.tls_key,
            )
            self._client = self._stack.enter_context(BlockingClient(client))
            served = {info.digest: address for info, address in zip(self._client.info(), addresses, strict=True)}
        except (BridgeError, DetectorError) as error:
            self._stack.close()
            raise InputError(f"detection: {error}") from None
        except BaseException:
            self._stack.close()
            raise
        if len(served) > 1:
            self._stack.close()
            raise InputError(f"detection: {' and '.join(served.values())} serve different models; give one model's")
        self.digest = self._digest(next(iter(served)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        """See `RewardStream.judge`; at most `in_flight` images are under way."""
        pending: deque[_Asked] = deque()
        for item, image in _read_ahead(items):
            pending.append(self._ask(item, image))
            while pending and (len(pending) >= self._config.in_flight or all(f.done() for f in pending[0].answers)):
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
        requests = [
            Request(
                image,
                tuple(wanted[first : first + PHRASES_A_REQUEST]),
                self._config.box_threshold,
                self._config.text_threshold,
                name=item.image,
            )
            for first in range(0, len(wanted), PHRASES_A_REQUEST)
        ]
        return _Asked(item, phrases, attributes, [self._client.submit(request) for request in requests])

    def _verdicts(self, asked: _Asked) -> list[Verdict]:
        found: dict[str, Detection] = {}
        for future in asked.answers:
            try:
                found |= {detection.phrase: detection for detection in future.result().detections}
            except (BridgeError, DetectorError, RefusedError) as error:
                raise InputError(f"detection: {asked.item.image}: {error}") from None
        self._unknown.tell(found.values())
        return [
            Verdict(
                asked.item.image,
                candidate,
                self.name,
                _signals(phrases, found, self._config.phrases),
                tuple(PhraseScore(each, found[each].score) for each in attributes if each in found),
            )
            for candidate, (phrases, attributes) in enumerate(zip(asked.phrases, asked.attributes, strict=True))
        ]

    def _digest(self, weights: str) -> str:
        config = self._config
        thresholds = config.box_threshold, config.text_threshold
        asked = [self._attributes.digest] if self._attributes else []
        settings = [weights, *thresholds, *config.options, *made_of(config.phrases), *asked]
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
