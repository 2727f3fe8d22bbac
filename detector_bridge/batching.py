"""Pictures from all streams, in batches of one size, to the devices."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from detector_bridge.backends import Backend, Scores
from detector_bridge.metrics import Metrics
from detector_bridge.prompts import Prompt
from detector_bridge.refusal import RefusedError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchConfig:
    """How requests are grouped.

    Attributes:
      size: most pictures in a batch. Only pictures of one size after resizing share one: padding would change what
        the model sees, and an answer must not depend on its neighbors.
      wait_ms: how long a picture waits for others, at most, while a device is idle.
      queue: most requests held at once, over all streams; beyond it the server stops reading.
    """

    size: int = 8
    wait_ms: float = 5.0
    queue: int = 256


@dataclass(eq=False)
class _Work:
    pixels: np.ndarray
    prompts: Sequence[Prompt]
    deadline: float  # on time.monotonic()'s clock
    result: asyncio.Future[Scores]
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Collects pictures and runs them on one or more devices; for use in one event loop.

    Args:
      backends: replicas of one model, each on its own device.
      config: how to group.
      metrics: where batches are counted.
    """

    def __init__(self, backends: Sequence[Backend], config: BatchConfig, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._waiting: list[_Work] = []
        self._arrival = asyncio.Event()
        self._closing = False
        self._threads = [ThreadPoolExecutor(1, f"device-{backend.device}") for backend in backends]
        self._tasks = [
            asyncio.create_task(self._serve(backend, thread))
            for backend, thread in zip(backends, self._threads, strict=True)
        ]

    async def detect(self, pixels: np.ndarray, prompts: Sequence[Prompt], deadline: float) -> Scores:
        """Waits for its turn and runs the model: [len(prompts), ...] arrays.

        Args:
          pixels: [3, H, W], from `Backend.prepare`.
          prompts: what to ask about it.
          deadline: on `time.monotonic()`'s clock; past it the picture is not run.

        Raises:
          RefusedError: DEADLINE_EXCEEDED, or INTERNAL where the model failed on this picture alone.
        """
        work = _Work(pixels, prompts, deadline, asyncio.get_running_loop().create_future())
        self._waiting.append(work)
        self._arrival.set()
        return await work.result

    async def close(self) -> None:
        """Finishes what is waiting, then lets the devices go."""
        self._closing = True
        self._arrival.set()
        await asyncio.gather(*self._tasks)
        for thread in self._threads:
            thread.shutdown()

    async def _serve(self, backend: Backend, thread: ThreadPoolExecutor) -> None:
        while batch := await self._next_batch():
            # One picture, or the batch's size, may be at fault: the others must not suffer for it.
            if not await self._run(backend, thread, batch) and len(batch) > 1:
                for work in batch:
                    await self._run(backend, thread, [work])

    async def _run(self, backend: Backend, thread: ThreadPoolExecutor, batch: Sequence[_Work]) -> bool:
        """Answers a batch and returns True, or False if the model failed on it; a single picture is then refused."""
        started = time.monotonic()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(thread, _detect, backend, batch)
        except Exception:
            log.exception("the model failed", extra={"device": backend.device, "pictures": len(batch)})
            if len(batch) == 1:
                _refuse(batch[0], RefusedError("INTERNAL", "the model failed on this picture; see the server's log"))
            return False
        self._metrics.batch(len(batch), time.monotonic() - started)
        for work, answer in zip(batch, answers, strict=True):
            if not work.result.done():  # its stream may be gone
                work.result.set_result(answer)
        return True

    async def _next_batch(self) -> list[_Work]:
        """The oldest picture and those of its size, once they fill a batch or it has waited; [] at the end."""
        while True:
            now = time.monotonic()
            for work in self._waiting:
                if work.deadline <= now:
                    _refuse(work, RefusedError("DEADLINE_EXCEEDED", "the request's time was over before its turn"))
            self._waiting = [work for work in self._waiting if not work.result.done()]
            wait = None
            if self._waiting:
                oldest = self._waiting[0]
                alike = [work for work in self._waiting if work.pixels.shape == oldest.pixels.shape]
                batch = alike[: self._config.size]
                wait = oldest.arrived + self._config.wait_ms / 1000 - now
                if len(batch) == self._config.size or wait <= 0 or self._closing:
                    self._waiting = [work for work in self._waiting if work not in batch]
                    return batch
            elif self._closing:
                return []
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrival.wait(), wait)


def _detect(backend: Backend, batch: Sequence[_Work]) -> list[Scores]:
    prompts = [prompt.tokens for work in batch for prompt in work.prompts]
    image_of = [i for i, work in enumerate(batch) for _ in work.prompts]
    scores = backend.detect(np.stack([work.pixels for work in batch]), prompts, image_of)
    ends = np.cumsum([len(work.prompts) for work in batch])[:-1]
    return [Scores(*each) for each in zip(*(np.split(array, ends) for array in scores), strict=True)]


def _refuse(work: _Work, error: RefusedError) -> None:
    if not work.result.done():
        work.result.set_exception(error)
