"""Where a detector is, and a connection to it."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from detector_bridge.client import BlockingClient, ClientConfig, DetectorError
from detector_bridge.errors import InputError as BridgeError
from detector_bridge.local import LocalConfig, LocalDetector
from vigor_jax.errors import InputError
from vigor_jax.rewards.detector_config import DetectorConfig


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
