"""The gRPC service: reads requests, checks them, has them answered, and never lets one break the stream."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import numpy as np

from detector_bridge import detector_pb2 as pb
from detector_bridge import detector_pb2_grpc as pb_grpc
from detector_bridge.backends import Backend
from detector_bridge.batching import Batcher
from detector_bridge.errors import InputError
from detector_bridge.hub import short_name
from detector_bridge.images import MAX_PIXELS, decode, formats
from detector_bridge.metrics import Metrics
from detector_bridge.prompts import Found, Prompt, find_phrases, normalize
from detector_bridge.refusal import RefusedError
from detector_bridge.wire import SERVICE, parser

log = logging.getLogger(__name__)

_DONE = object()


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
      image_bytes: size of an image file.
      pixels: of the decoded image.
      phrases: in one request.
      boxes: kept for one phrase, the best of them.
      in_flight: requests of one stream read and not yet answered.
    """

    image_bytes: int = 32 << 20
    pixels: int = MAX_PIXELS
    phrases: int = 1000
    boxes: int = 100
    in_flight: int = 64


@dataclass(frozen=True)
class Thresholds:
    """Used where a request brings none; see `prompts.find_phrases`."""

    box: float = 0.25
    text: float = 0.25


class DetectorService(pb_grpc.DetectorServicer):
    """Implements detector.proto's service on one event loop.

    Args:
      backends: replicas of one model.
      batcher: runs them.
      queue: most requests held at once, over all streams.
      threads: decode and resize images.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        batcher: Batcher,
        *,
        queue: int,
        limits: Limits,
        thresholds: Thresholds,
        metrics: Metrics,
        threads: ThreadPoolExecutor,
    ) -> None:
        self._backends, self._batcher, self._metrics = backends, batcher, metrics
        self._limits, self._thresholds, self._threads = limits, thresholds, threads
        self._room = asyncio.Semaphore(queue)
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Ends every stream once what was read of it is answered; clients ask the rest again elsewhere."""
        self._draining.set()

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server, so that what is no message reaches its methods, as None."""
        handlers = {
            "Detect": grpc.stream_stream_rpc_method_handler(
                self.Detect, parser(pb.DetectRequest), pb.DetectReply.SerializeToString
            ),
            "Info": grpc.unary_unary_rpc_method_handler(
                self.Info, parser(pb.InfoRequest), pb.InfoReply.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def Info(  # noqa: N802
        self, request: pb.InfoRequest | None, context: grpc.aio.ServicerContext
    ) -> pb.InfoReply:
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is no InfoRequest")
        first = self._backends[0]
        return pb.InfoReply(
            backend=first.name,
            model=short_name(first.model),
            digest=first.digest,
            devices=[backend.device for backend in self._backends],
            dtype=first.dtype,
            box_threshold=self._thresholds.box,
            text_threshold=self._thresholds.text,
            limits=pb.Limits(
                image_bytes=self._limits.image_bytes,
                pixels=self._limits.pixels,
                phrases=self._limits.phrases,
                tokens=first.max_tokens,
            ),
            versions=first.versions,
            formats=formats(),
        )

    async def Detect(  # noqa: N802
        self, requests: AsyncIterator[pb.DetectRequest | None], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.DetectReply]:
        replies: asyncio.Queue = asyncio.Queue()
        # A client that sends and never reads its replies stops at this many, and stops nobody else.
        own_room = asyncio.Semaphore(self._limits.in_flight)
        reader = asyncio.create_task(self._read(requests, replies, own_room))
        try:
            while (reply := await replies.get()) is not _DONE:
                yield reply
                own_room.release()
            malformed = await reader  # or its exception, if it had one
            if malformed is not None:
                log.warning("malformed message", extra={"number": malformed})
                text = f"message {malformed} of this stream is no DetectRequest: it cannot be parsed"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        finally:
            reader.cancel()

    async def _read(
        self, requests: AsyncIterator[pb.DetectRequest | None], replies: asyncio.Queue, own_room: asyncio.Semaphore
    ) -> int | None:
        """Turns each request into a task while there is room; not reading is what slows a client down.

        Returns:
          The number of the first message that is none, from 1, once those before it are answered.
        """
        number = 0
        try:
            async with asyncio.TaskGroup() as tasks:
                async for request in self._until_drained(requests):
                    number += 1
                    if request is None:
                        return number
                    arrived = time.monotonic()
                    await own_room.acquire()
                    await self._room.acquire()
                    task = tasks.create_task(self._answer(request, arrived, replies))
                    # Not at the task's own end: a task that is cancelled before it begins has none.
                    task.add_done_callback(lambda _: self._room.release())
            return None
        finally:
            replies.put_nowait(_DONE)

    async def _until_drained(
        self, requests: AsyncIterator[pb.DetectRequest | None]
    ) -> AsyncIterator[pb.DetectRequest | None]:
        draining = asyncio.create_task(self._draining.wait())
        try:
            while not draining.done():
                request = asyncio.ensure_future(anext(requests))
                # Looked at even if nobody waits any more, or its failure would be logged as forgotten.
                request.add_done_callback(lambda done: done.cancelled() or done.exception())
                try:
                    await asyncio.wait((request, draining), return_when=asyncio.FIRST_COMPLETED)
                    if request.done():
                        yield request.result()
                except StopAsyncIteration:
                    return
                finally:
                    request.cancel()
        finally:
            draining.cancel()

    async def _answer(self, request: pb.DetectRequest, arrived: float, replies: asyncio.Queue) -> None:
        result = "OK"
        self._metrics.in_flight.inc()
        try:
            reply = pb.DetectReply(id=request.id, detections=await self._detect(request, arrived))
        except RefusedError as error:
            result = error.code
            reply = pb.DetectReply(id=request.id, error=pb.Error(code=error.code, message=error.message))
        except Exception:
            log.exception("a request failed", extra={"request": request.id})
            result, message = "INTERNAL", "the server failed on this request; see its log"
            reply = pb.DetectReply(id=request.id, error=pb.Error(code=result, message=message))
        finally:
            self._metrics.in_flight.dec()
        seconds = time.monotonic() - arrived
        self._metrics.request(result, seconds)
        log.debug("answered", extra={"request": request.id, "result": result, "seconds": round(seconds, 4)})
        replies.put_nowait(reply)

    async def _detect(self, request: pb.DetectRequest, arrived: float) -> pb.Detections:
        deadline = arrived + request.timeout_ms / 1000 if request.timeout_ms else math.inf
        box, text = self._check(request)
        loop = asyncio.get_running_loop()
        size, pixels, prompts = await loop.run_in_executor(self._threads, self._prepare, request)
        scores = await self._batcher.detect(pixels, prompts, deadline)

        def assemble() -> pb.Detections:
            backend, most = self._backends[0], self._limits.boxes
            found: dict[str, Found] = {}
            for prompt, tokens, boxes in zip(prompts, *backend.in_picture(scores, *size), strict=True):
                found |= find_phrases(prompt.spans, tokens, boxes, box, text if backend.has_text_threshold else 0.0)
            unknown = {phrase: backend.unknown_words(phrase) for phrase in found}
            names = [(phrase, normalize(phrase)) for phrase in request.phrases]
            phrases = [_to_proto(phrase, found[name], unknown[name], most) for phrase, name in names]
            return pb.Detections(phrases=phrases, width=size[0], height=size[1])

        return await loop.run_in_executor(self._threads, assemble)

    def _check(self, request: pb.DetectRequest) -> tuple[float, float]:
        """The thresholds to use, once the request is found to be within the limits."""
        limits = self._limits
        if len(request.image) > limits.image_bytes:
            raise RefusedError(
                "IMAGE_TOO_LARGE", f"the image has {len(request.image)} bytes; at most {limits.image_bytes} are taken"
            )
        if len(request.phrases) > limits.phrases:
            raise RefusedError(
                "TOO_MANY_PHRASES",
                f"the request has {len(request.phrases)} phrases; at most {limits.phrases} are taken",
            )
        box = request.box_threshold if request.HasField("box_threshold") else self._thresholds.box
        text = request.text_threshold if request.HasField("text_threshold") else self._thresholds.text
        for name, value in (("box_threshold", box), ("text_threshold", text)):
            if not 0 <= value <= 1:  # NaN is neither
                raise RefusedError("INVALID_THRESHOLD", f"{name} is {value:g}; expected a number from 0 to 1")
        return box, text

    def _prepare(self, request: pb.DetectRequest) -> tuple[tuple[int, int], np.ndarray, list[Prompt]]:
        backend = self._backends[0]
        prompts = backend.make_prompts(request.phrases)
        image = decode(request.image, self._limits.pixels)
        try:
            return image.size, backend.prepare(image), prompts
        except InputError as error:
            raise RefusedError("INVALID_IMAGE", str(error)) from None


def _to_proto(phrase: str, found: Found, unknown: Iterable[tuple[str, list[str]]], most: int) -> pb.PhraseDetections:
    return pb.PhraseDetections(
        phrase=phrase,
        present=found.present,
        score=found.score,
        boxes=[
            pb.Box(x_min=box[0], y_min=box[1], x_max=box[2], y_max=box[3], score=score)
            for box, score in zip(found.boxes_xyxy[:most].tolist(), found.scores[:most].tolist(), strict=True)
        ],
        unknown_words=[pb.UnknownWord(word=word, pieces=pieces) for word, pieces in unknown],
    )
