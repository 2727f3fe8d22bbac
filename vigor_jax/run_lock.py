"""One trainer in a run directory: a lock file that tells which process has it, and whether that process is still there.

`run.lock` appears by a hard link, which is atomic on NFS too (by an exclusive creation where there are no links). Its
owner counts `beats` up in it. Who finds one on the same machine asks for the process. Who finds one of another machine
looks whether the beats go up: the clocks of two machines are never compared.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vigor_jax.errors import InputError

logger = logging.getLogger(__name__)

NAME = "run.lock"
BEAT = 10.0  # seconds from beat to beat
STALE = 120.0  # seconds without a beat after which another machine's lock is nobody's
_WIDTH = 4096  # bytes; as one length, so that a beat overwrites all of it


class RunLock:
    """A context in which no other process has the directory.

    Args:
      directory: is made if need be.
      file: of the directory; the lock is of this file alone, and is called after it.
      beat: seconds from beat to beat.
      stale: seconds without a beat after which another machine's lock may be taken.
      on_loss: called with a line if another process has taken the lock, which it does after `stale` seconds without a
        beat: this one was stopped, or its disk was away. By default it prints the line and ends the program.

    Raises:
      InputError: another process has it; says which.
      OSError: the directory cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        file: str = "",
        beat: float = BEAT,
        stale: float = STALE,
        on_loss: Callable[[str], None] | None = None,
    ) -> None:
        self._path = directory / (f"{file}.lock" if file else NAME)
        self._held, self._option = (directory / file, "--out") if file else (directory, "run.dir")
        self._beat, self._stale = beat, stale
        self._on_loss = on_loss or _end
        self._owner = _Owner.this()
        self._descriptor = -1
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="run-lock", daemon=True)

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        own = self._path.with_name(f".{self._path.name}.{self._owner.id}")
        try:
            self._descriptor = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            os.pwrite(self._descriptor, self._owner.content(), 0)
            os.fsync(self._descriptor)  # so that its time is that of the file system
            self._acquire(own)
        except BaseException:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            raise
        finally:
            own.unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()
        os.close(self._descriptor)
        with contextlib.suppress(OSError):
            if (holder := self._read()) and holder.id == self._owner.id:
                self._path.unlink()

    def _acquire(self, own: Path) -> None:
        watched: bytes | None = None
        until = 0.0
        while not self._link(own):
            try:
                content = self._path.read_bytes()
                age = own.stat().st_mtime - self._path.stat().st_mtime  # both by the file system's clock
            except FileNotFoundError:
                continue
            holder = _Owner.of(content)
            if holder and holder.is_on_this_machine():
                if holder.is_alive():
                    raise InputError(self._refusal(holder))
                self._take_away(content)
                continue
            if watched is None:
                watched, until = content, time.monotonic() + self._stale - max(0.0, age)
                if until > time.monotonic():
                    logger.info(
                        "%s: %s has it; waiting %.0f s at most to see whether it is still there",
                        self._path, holder or "a process that left no name", until - time.monotonic(),
                    )  # fmt: skip
            elif content != watched:
                raise InputError(self._refusal(holder))
            if time.monotonic() >= until:
                self._take_away(content)
                watched = None
            else:
                time.sleep(min(1.0, self._beat / 2))

    def _link(self, own: Path) -> bool:
        """Makes the lock; False where there is one."""
        try:
            os.link(own, self._path)
        except FileExistsError:
            return os.fstat(self._descriptor).st_nlink == 2  # NFS may repeat a request that was granted
        except OSError:  # a file system without links
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            os.close(self._descriptor)
            self._descriptor = descriptor
            os.pwrite(self._descriptor, self._owner.content(), 0)
        return True

    def _take_away(self, content: bytes) -> None:
        """Removes a lock that is nobody's, unless another process has done so and made its own."""
        aside = self._path.with_name(f".{self._path.name}.{self._owner.id}.old")
        try:
            os.rename(self._path, aside)
        except FileNotFoundError:
            return
        if aside.read_bytes() != content:
            with contextlib.suppress(OSError):
                os.link(aside, self._path)
        else:
            logger.info("%s: %s has gone; this process continues", self._path, _Owner.of(content) or "its owner")
        aside.unlink()

    def _keep(self) -> None:
        """Beats until the context is left."""
        missing = 0
        while not self._left.wait(self._beat):
            with contextlib.suppress(OSError):  # a disk that is away for a while
                self._owner = dataclasses.replace(self._owner, beats=self._owner.beats + 1)
                os.pwrite(self._descriptor, self._owner.content(), 0)
                holder = self._read()
                missing = 0 if holder and holder.id == self._owner.id else missing + 1
                if holder and holder.id != self._owner.id and missing > 1:
                    self._on_loss(f"{self._path}: {holder} has taken this run over; this process ends")
                    return
                if missing > 1 and not self._path.exists():
                    self._on_loss(f"{self._path} was removed while this process relied on it; it ends")
                    return

    def _read(self) -> "_Owner | None":
        try:
            return _Owner.of(self._path.read_bytes())
        except FileNotFoundError:
            return None

    def _refusal(self, holder: "_Owner | None") -> str:
        return (
            f"{self._held} is in use by {holder or 'another process'}; wait for its end or end it, or choose "
            f"another {self._option} (if that process does not use it, remove {self._path})"
        )


@dataclasses.dataclass(frozen=True)
class _Owner:
    """Who has a lock.

    Attributes:
      id: of this lock, like no other.
      host: name of the machine.
      machine: the boot of its kernel and the container, in which a process id means something.
      pid: of the process.
      started: when the process did, by the kernel's count; tells it from a later one with its id.
      since: when it took the lock.
      command: its command line.
      beats: goes up while it lives.
    """

    id: str
    host: str
    machine: str
    pid: int
    started: str
    since: str
    command: str
    beats: int = 0

    @classmethod
    def this(cls) -> Self:
        return cls(
            id=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_start_of(os.getpid()),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
            command=shlex.join(sys.argv).encode("ascii", "replace").decode()[:1000],
        )

    @classmethod
    def of(cls, content: bytes) -> Self | None:
        """None where the content says nothing: a disk was full."""
        try:
            values: dict[str, Any] = json.loads(content)
            return cls(**values)
        except (ValueError, TypeError):
            return None

    def content(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).ljust(_WIDTH - 1).encode()[: _WIDTH - 1] + b"\n"

    def is_on_this_machine(self) -> bool:
        return self.host == socket.gethostname() and self.machine == _machine()

    def is_alive(self) -> bool:
        return _start_of(self.pid) == self.started and self.started != ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since}: {self.command})"


def _machine() -> str:
    """Where a process id means the same: "" where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process started, in the kernel's ticks; "" where there is no such process, or only what is left of it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
        return _exists(pid)
    return "" if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> str:
    """For systems without /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "unknown"


def _end(line: str) -> None:
    """Without another write: the run is somebody else's."""
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(2)
