"""Where detectors are and what they are asked: the options."""

import dataclasses
from pathlib import Path
from typing import Literal, Self

from vigor_jax import fingerprint
from vigor_jax.errors import InputError
from vigor_jax.rewards.phrases import PhrasesConfig


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """A detector: where it is, and from which scores on it finds a thing.

    Attributes:
      addresses: sidecars that serve already, HOST:PORT or unix:PATH.
      model: instead of addresses: a detector that a sidecar of our own serves, a directory or its name on the Hub.
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

    def check_place(self, section: str) -> None:
        """Raises InputError if no detector is given, or two; `section` is what the config is called."""
        if bool(self.addresses) == bool(self.model):
            raise InputError(
                f"{section}: give either addresses, of sidecars that serve, or model, for one that this command "
                f"starts; got {'both' if self.model else 'neither'}"
            )


@dataclasses.dataclass(frozen=True)
class SecondDetectorConfig(DetectorConfig):
    """A second detector, which is asked what the first one is asked."""


# What errors call the detectors.
FIRST, SECOND = "detection", "detection.second"


@dataclasses.dataclass(frozen=True)
class DetectionConfig(DetectorConfig):
    """The detector, and what is asked of it.

    Attributes:
      phrases: how noun phrases are found in captions.
      second: a second detector that is asked the same. What both find is right, what neither finds is wrong, and what
        one of them finds is neither rewarded nor punished.
    """

    phrases: PhrasesConfig = dataclasses.field(default_factory=PhrasesConfig)
    second: SecondDetectorConfig | None = fingerprint.optional()

    def check_given(self) -> None:
        """Raises InputError if no detector is given, or two in one place."""
        self.check_place(FIRST)
        if self.second:
            self.second.check_place(SECOND)

    def greeted_within(self, seconds: float) -> Self:
        """The same, with less time for the first greeting."""
        second = self.second and dataclasses.replace(self.second, connect_timeout=seconds)
        return dataclasses.replace(self, connect_timeout=seconds, second=second)
