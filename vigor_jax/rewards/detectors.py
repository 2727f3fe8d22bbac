"""Where a detector is, and a connection to it."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from detector_bridge.client import BlockingClient, ClientConfig, DetectorError
from detector_bridge.errors import InputError as BridgeError
from detector_bridge.local import LocalConfig, LocalDetector
from vigor_jax import fingerprint
from vigor_jax.errors import InputError


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


@contextmanager
def connected(config: DetectorConfig, section: str) -> Iterator[tuple[BlockingClient, str]]:
    """A client of the detector, whose sidecar is started where none serves, and the digest of its weights.

    Args:
      config: of the detector.
      section: what the config is called, for errors.

    Raises:
      InputError: it cannot be reached or started, or its addresses serve different models.
    """
    addresses = config.addresses
    with ExitStack() as stack:
        try:
            if config.model:
                local = LocalConfig(config.model, config.backend, config.python or Path(sys.executable), config.options)
                addresses = (stack.enter_context(LocalDetector(local)).address,)
            client = stack.enter_context(
                BlockingClient(
                    ClientConfig(
                        addresses=addresses,
                        timeout=config.timeout,
                        connect_timeout=config.connect_timeout,
                        in_flight=config.in_flight,
                        token_file=config.token_file,
                        tls_ca=config.tls_ca,
                        tls_cert=config.tls_cert,
                        tls_key=config.tls_key,
                    )
                )
            )
            served = {info.digest: address for info, address in zip(client.info(), addresses, strict=True)}
        except (BridgeError, DetectorError) as error:
            raise InputError(f"{section}: {error}") from None
        if len(served) > 1:
            raise InputError(f"{section}: {' and '.join(served.values())} serve different models; give one model's")
        yield client, next(iter(served))
