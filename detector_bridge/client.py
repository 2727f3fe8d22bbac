"""The client: gRPC and NumPy, nothing else, so that it fits on a TPU host.

python -m detector_bridge.client --address 127.0.0.1:50051 --image photo.jpg --phrases "dog, traffic light"
"""

import asyncio
import functools
import itertools
import math
import random
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np

from detector_bridge import detector_pb2 as pb
from detector_bridge.addresses import check_target, read_token
from detector_bridge.certificates import read_authorities, read_bytes, read_pair
from detector_bridge.command import run
from detector_bridge.connection import Connection, LostError
from detector_bridge.errors import DetectorError, InputError
from detector_bridge.messages import Answer, Detection, Request, UnknownWord
from detector_bridge.refusal import RefusedError

T = TypeVar("T")

_MAKING_THE_LOOP = threading.Lock()


@dataclass(frozen=True)
class ClientConfig:
    """Whom to ask, and how patiently.

    Attributes:
      addresses: HOST:PORT or unix:PATH of one or more sidecars that serve the same model.
      timeout: seconds for one request, over all attempts.
      connect_timeout: seconds until `info` gives up.
      in_flight: most requests under way at once.
      token_file: file with the token that the servers want.
      tls_ca: certificates (PEM) of who signs the servers': turns TLS on.
      tls_cert: this client's certificate (PEM), where the servers want one.
      tls_key: its key.

    Raises:
      InputError: a number is no finite one above 0.
    """

    addresses: tuple[str, ...]
    timeout: float = 600.0
    connect_timeout: float = 60.0
    in_flight: int = 64
    token_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        for name in ("timeout", "connect_timeout", "in_flight"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise InputError(f"{name}: expected a finite number above 0, got {value}")


class DetectorClient:
    """Asks sidecars, many requests at once over one stream each; for use in one event loop.

        async with DetectorClient(ClientConfig(("127.0.0.1:50051",))) as client:
            async for answer in client.detect(requests):
                ...

    A request that a lost connection leaves without an answer is sent again, to another address where there is one,
    after a randomized, doubling pause. An address whose connection is lost is left out for a while.
    """

    def __init__(self, config: ClientConfig) -> None:
        if not config.addresses:
            raise InputError("addresses is empty: give the HOST:PORT or unix:PATH of at least one sidecar")
        for address in config.addresses:
            check_target(address)
        self._config = config
        credentials, metadata = _credentials(config)
        self._connections = [Connection(address, credentials, metadata) for address in config.addresses]
        self._turn = itertools.count()
        self._ids = itertools.count()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(connection.close() for connection in self._connections))

    async def detect(self, requests: Iterable[Request]) -> AsyncIterator[Answer | RefusedError]:
        """Answers in the order of the requests; a bad request yields its `RefusedError` and the rest continues.

        Raises:
          DetectorError: a request got no answer in time; names it, the address and the last failure.
          InputError: an image file cannot be read.
        """
        pending: deque[asyncio.Task[Answer | RefusedError]] = deque()
        try:
            for request in requests:
                pending.append(asyncio.create_task(self._ask_or_refusal(request)))
                while pending and (pending[0].done() or len(pending) >= self._config.in_flight):
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for task in pending:
                task.cancel()

    async def ask(self, request: Request) -> Answer:
        """Answers one request.

        Raises:
          RefusedError: the server says what is wrong with it.
          DetectorError: no answer in time; names the request, the address and the last failure.
          InputError: the image file cannot be read.
        """
        deadline = time.monotonic() + self._config.timeout
        image = request.image if isinstance(request.image, bytes) else read_bytes(request.image)
        message = pb.DetectRequest(image=image, phrases=request.phrases)
        if request.box_threshold is not None:
            message.box_threshold = request.box_threshold
        if request.text_threshold is not None:
            message.text_threshold = request.text_threshold
        last = "it was never sent"
        for attempt in itertools.count():
            connection = self._pick()
            pause = max(random.uniform(0, min(5.0, 0.05 * 2**attempt)) if attempt else 0.0, connection.ejected_for())
            left = deadline - time.monotonic() - pause
            if left <= 0:
                break
            await asyncio.sleep(pause)
            # The server need not work on what nobody waits for any more.
            message.id, message.timeout_ms = str(next(self._ids)), min(max(1, int(1000 * left)), 2**32 - 1)
            try:
                return _answer(await asyncio.wait_for(connection.ask(message), left))
            except TimeoutError:
                last = f"{connection.address}: no reply yet"
            except RefusedError as error:
                if error.code != "DEADLINE_EXCEEDED":
                    raise
                last = f"{connection.address}: {error.message}"
            except LostError as error:
                last = f"{connection.address}: {error}"
        raise DetectorError(
            f"{request.label}: no detections within {self._config.timeout:g} s ({last}); is a sidecar serving at "
            f"{', '.join(self._config.addresses)}, and fast enough for the timeout?"
        )

    async def info(self) -> list[pb.InfoReply]:
        """What each address serves.

        Raises:
          DetectorError: one cannot be reached, or does not let this client in.
        """
        return list(
            await asyncio.gather(*(connection.info(self._config.connect_timeout) for connection in self._connections))
        )

    async def _ask_or_refusal(self, request: Request) -> Answer | RefusedError:
        try:
            return await self.ask(request)
        except RefusedError as error:
            return error

    def _pick(self) -> Connection:
        """The next address that is not left out, or the one that will be back first."""
        first = next(self._turn) % len(self._connections)
        return min(
            self._connections[first:] + self._connections[:first], key=lambda connection: connection.ejected_for()
        )


class BlockingClient:
    """`DetectorClient` for code without an event loop: requests are handed in, answers are futures.

    The caller bounds how many requests are under way.
    """

    def __init__(self, config: ClientConfig) -> None:
        self._client = _in_loop(_make(config))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _in_loop(self._client.__aexit__(None, None, None))

    def submit(self, request: Request) -> "Future[Answer]":
        """The future of `DetectorClient.ask`."""
        return asyncio.run_coroutine_threadsafe(self._client.ask(request), _loop())

    def info(self) -> list[pb.InfoReply]:
        """See `DetectorClient.info`."""
        return _in_loop(self._client.info())


@functools.cache
def _the_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="detector-client").start()
    return loop


def _loop() -> asyncio.AbstractEventLoop:
    """One event loop, in a separate thread, for all blocking clients: gRPC's poller would outlive a closed one."""
    with _MAKING_THE_LOOP:  # `cache` alone makes one for each of several threads that ask first
        return _the_loop()


def _in_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result()


async def _make(config: ClientConfig) -> DetectorClient:
    """gRPC's channels belong to the loop they are made in."""
    return DetectorClient(config)


def _answer(reply: pb.DetectReply) -> Answer:
    if reply.HasField("error"):
        raise RefusedError(pb.ErrorCode.Name(reply.error.code), reply.error.message)
    detections = tuple(
        Detection(
            phrase=found.phrase,
            present=found.present,
            score=found.score,
            boxes_xyxy=np.array(
                [(box.x_min, box.y_min, box.x_max, box.y_max) for box in found.boxes], np.float32
            ).reshape(-1, 4),
            scores=np.array([box.score for box in found.boxes], np.float32),
            unknown_words=tuple(UnknownWord(each.word, tuple(each.pieces)) for each in found.unknown_words),
        )
        for found in reply.detections.phrases
    )
    return Answer(detections, reply.detections.width, reply.detections.height)


def _credentials(config: ClientConfig) -> tuple[grpc.ChannelCredentials | None, tuple]:
    metadata = (("authorization", f"Bearer {read_token(config.token_file)}"),) if config.token_file else ()
    if not config.tls_ca and not config.tls_cert and not config.tls_key:
        return None, metadata
    if bool(config.tls_cert) != bool(config.tls_key):
        raise InputError("a client certificate needs both tls_cert and tls_key; give the one that is missing")
    authorities = read_authorities(config.tls_ca) if config.tls_ca else None
    chain, key = read_pair(config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else (None, None)
    return grpc.ssl_channel_credentials(authorities, key, chain), metadata


if __name__ == "__main__":
    from detector_bridge.client_command import main

    run(main)
