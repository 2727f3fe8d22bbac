"""Decoded row groups of Parquet files, of which the newest are kept: what is read row by row is decoded once."""

import collections
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Group = TypeVar("Group", bound=_Sized)


class RowGroups(Generic[Group]):
    """Row groups by their keys; may be asked by many threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: collections.OrderedDict[Hashable, Future[Group]] = collections.OrderedDict()

    def get(self, key: Hashable, decode: Callable[[], Group], most_bytes: int) -> Group:
        """A row group; a thread that asks while another decodes it waits for that.

        Args:
          key: of the group.
          decode: reads it, if it is not kept.
          most_bytes: of all that are kept; the newest one is kept however large it is.
        """
        with self._lock:
            future = self._groups.get(key)
            is_mine = future is None
            if future is None:
                future = self._groups[key] = Future()
            self._groups.move_to_end(key)
        if is_mine:
            try:
                future.set_result(decode())
            except BaseException as error:
                with self._lock:
                    self._groups.pop(key, None)
                future.set_exception(error)
            self._forget(key, most_bytes)
        return future.result()

    def _forget(self, newest: Hashable, most_bytes: int) -> None:
        """Lets go of the groups that were not asked for longest."""
        with self._lock:
            done = [(key, future.result().nbytes) for key, future in self._groups.items() if future.done()]
            total = sum(size for _, size in done)
            for key, size in done:
                if total > most_bytes and key != newest:
                    del self._groups[key]
                    total -= size
