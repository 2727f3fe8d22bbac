"""One stream of a client to one sidecar: many requests at once, each with its reply, and a stream that may be lost."""

import asyncio
import random
import time

import grpc

from detector_bridge import detector_pb2 as pb
from detector_bridge.errors import DetectorError
from detector_bridge.image_formats import FORMATS, FORMATS_BEFORE_AVIF, HEAD, sniff
from detector_bridge.refusal import RefusedError
from detector_bridge.wire import SERVICE, parser


class LostError(Exception):
    """The connection went, and with it every request that had no answer: they may be sent again."""


class Connection:
    """One address: its channel, its stream, and the requests that wait for a reply."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None, metadata: tuple) -> None:
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            # A sidecar that is started again is back within seconds; the library's own pauses grow to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # A host that vanished says nothing; without a sign of life its connection counts as lost.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 20_000),
        ]
        self.address = address
        self._channel = (
            grpc.aio.secure_channel(address, credentials, options)
            if credentials
            else grpc.aio.insecure_channel(address, options)
        )
        self._info = self._channel.unary_unary(
            f"/{SERVICE}/Info", pb.InfoRequest.SerializeToString, parser(pb.InfoReply)
        )
        self._detect = self._channel.stream_stream(
            f"/{SERVICE}/Detect", pb.DetectRequest.SerializeToString, parser(pb.DetectReply)
        )
        self._metadata = metadata
        self._stream: grpc.aio.StreamStreamCall | None = None
        self._reader: asyncio.Task[None] | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self._opening, self._writing = asyncio.Lock(), asyncio.Lock()
        self._image_bytes = 0
        self._formats: tuple[str, ...] = ()
        self._waiting: dict[str, asyncio.Future[pb.DetectReply]] = {}
        self._failures, self._ejected_until = 0, 0.0

    def ejected_for(self) -> float:
        """Seconds until this address may be asked again."""
        return max(0.0, self._ejected_until - time.monotonic())

    async def ask(self, message: pb.DetectRequest) -> pb.DetectReply:
        """Sends a request and waits for its reply.

        Raises:
          LostError: the stream ended first.
          RefusedError: the image is none that this server takes.
          DetectorError: this client is not let in, or the replies are none of a detector.
        """
        await self._open()  # tells what the server takes
        image = message.image
        if (fitting := await self._fit(image)) is not image:
            message.image = fitting
        stream = await self._open()  # the other one may be gone by now
        reply = self._waiting[message.id] = asyncio.get_running_loop().create_future()
        # The reader fails `reply` when the stream ends, so that nobody waits for a write that waits for room.
        write = asyncio.create_task(self._write(stream, message))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        try:
            return await reply
        finally:
            self._waiting.pop(message.id, None)

    async def info(self, timeout: float) -> pb.InfoReply:
        """Asks what is served, again and again while nobody answers.

        Raises:
          DetectorError: nobody did in time, or this client is not let in.
        """
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                return await self._ask_info(left)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or left < 0.5:
                    raise DetectorError(_explain(self.address, error)) from None
            await asyncio.sleep(random.uniform(0.1, 0.5))

    async def _ask_info(self, timeout: float | None) -> pb.InfoReply:
        if (reply := await self._info(pb.InfoRequest(), metadata=self._metadata, timeout=timeout)) is None:
            raise DetectorError(_unreadable(self.address))
        return reply

    async def close(self) -> None:
        if self._reader:
            self._reader.cancel()
        for future in self._waiting.values():
            future.cancel()
        await self._channel.close()

    async def _open(self) -> grpc.aio.StreamStreamCall:
        async with self._opening:
            if self._stream is None:
                try:
                    info = await self._ask_info(None)
                except grpc.aio.AioRpcError as error:
                    self._eject()
                    raise self._failure(error) from None
                self._image_bytes = info.limits.image_bytes
                self._formats = tuple(info.formats) or FORMATS_BEFORE_AVIF
                self._stream = self._detect(metadata=self._metadata)
                self._reader = asyncio.create_task(self._read(self._stream))
            return self._stream

    async def _fit(self, image: bytes) -> bytes:
        """The image as it is, or as a PNG where the server lacks its format or takes no file of its size.

        Raises:
          RefusedError: it is too large even so, cannot be read, or Pillow, which this needs, is missing here.
        """
        kind = sniff(image[:HEAD])
        is_large, is_foreign = len(image) > self._image_bytes, kind in FORMATS and kind not in self._formats
        if not is_large and not is_foreign:
            return image
        try:
            # Only here: a client whose images the server takes needs no Pillow.
            from detector_bridge.images import to_png

            image = await asyncio.to_thread(to_png, image)
        except ImportError:
            if not is_large:
                raise RefusedError(
                    "INVALID_IMAGE",
                    f"the image is {kind}, which the server at {self.address} cannot read (it takes "
                    f"{', '.join(self._formats)}); update Pillow there, or install it here",
                ) from None
        except RefusedError:
            if not is_large:
                raise
        if len(image) > self._image_bytes:
            size = f"the image has {len(image)} bytes; at most {self._image_bytes} are taken"
            raise RefusedError("IMAGE_TOO_LARGE", size)
        return image

    async def _write(self, stream: grpc.aio.StreamStreamCall, message: pb.DetectRequest) -> None:
        try:
            async with self._writing:  # gRPC takes one write of a stream at a time
                if message.id in self._waiting:
                    await stream.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reader learns why and tells everybody

    def _failure(self, error: grpc.aio.AioRpcError) -> Exception:
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            return LostError(f"{error.code().name} ({error.details()})")
        return DetectorError(_explain(self.address, error))

    def _eject(self) -> None:
        self._failures += 1
        self._ejected_until = time.monotonic() + min(10.0, 0.1 * 2**self._failures)

    async def _read(self, stream: grpc.aio.StreamStreamCall) -> None:
        failure: Exception = LostError("the connection was closed")
        try:
            async for reply in stream:
                if reply is None:
                    failure = DetectorError(_unreadable(self.address))
                    stream.cancel()
                    break
                self._failures = 0
                if (future := self._waiting.pop(reply.id, None)) and not future.done():
                    future.set_result(reply)
        except grpc.aio.AioRpcError as error:
            failure = self._failure(error)
        self._eject()
        self._stream, lost = None, list(self._waiting.values())
        self._waiting.clear()
        for future in lost:
            if not future.done():
                future.set_exception(failure)


def _unreadable(address: str) -> str:
    return f"{address}: a reply cannot be parsed: is it a detector that serves there, of this version?"


def _explain(address: str, error: grpc.aio.AioRpcError) -> str:
    hints = {
        grpc.StatusCode.UNAUTHENTICATED: "give the server's token with token_file",
        grpc.StatusCode.UNIMPLEMENTED: "another service listens there",
    }
    hint = hints.get(error.code(), "is a sidecar serving there, with TLS or without as this client assumes?")
    return f"{address}: {error.code().name} ({error.details()}): {hint}"
