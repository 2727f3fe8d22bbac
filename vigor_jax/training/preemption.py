"""SIGTERM as the wish to stop: all processes agree on the step after which they do."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

# What a shell reports of a process that SIGTERM ended: the run is not done, and the same command resumes it.
EXIT_CODE = 128 + signal.SIGTERM


class Preemption:
    """A context in which SIGTERM does not kill at once; left after one, it ends the program with `EXIT_CODE`.

    Where `jax.distributed` runs, its own service catches the signal, of one process or of all, and picks a step
    that no process has begun, without a collective in every step. Alone, a flag is enough.
    """

    def __init__(self) -> None:
        self._wanted = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        # Python sets handlers in the main thread only; elsewhere SIGTERM keeps its old meaning.
        if not jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._want)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        if self._wanted and kind is None:
            raise SystemExit(EXIT_CODE)

    def reached(self, step: int) -> bool:
        """Whether to save after `step` and stop; to be asked after every step, by all processes."""
        if jax.distributed.is_initialized():
            self._wanted = multihost_utils.reached_preemption_sync_point(step)
        return self._wanted

    def _want(self, number: int, frame: FrameType | None) -> None:
        self._wanted = True
