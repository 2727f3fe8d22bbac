"""What a process says when another one of its run is lost: one line.

JAX notices it: at once if it is process 0, else when heartbeats stay away. Its C++ code then prints some twenty lines
and a stack of addresses, and aborts; nothing in Python is asked. So `listen` lets a small program (this file) read what
C++ code writes to stderr. It passes everything on, but for that message, in whose place it writes one line.
"""

import os
import re
import select
import subprocess
import sys
import time

# Seconds without a heartbeat after which JAX takes a process for lost. Heartbeats come from a thread of C++.
HEARTBEAT_TIMEOUT = 60

_HEAD = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ (?P<file>[\w./-]+):\d+\] ")
_NOISE = re.compile(rb"coordination|preemption_sync_manager|/client\.h|^client\.h|distributed")
_PREFACE = b"WARNING: All log messages before absl::InitializeLog()"
_FATAL = b"JAX distributed service detected fatal errors"
_MISSING = re.compile(rb"stopped sending heartbeats\):((?:\s+(?:/job:\w+/(?:replica:\d+/)?task:)?\d+\b)+)")
_TIMEOUT = re.compile(rb"[Tt]ask:?\s*(\d+) heartbeat timeout")
_NO_COORDINATOR = (b"Failed to send RPC to coordination service", b"PollForError", b"Socket closed")
_PATIENCE = 2.0  # seconds that a message waits for the line that would make it a fatal one
_TIME_TO_DIE = 10.0  # seconds that the process may take to abort


def listen() -> None:
    """Sends what C++ code of this process writes to stderr through the filter; Python continues writing as it did."""
    sys.stderr.flush()
    ours = os.dup(2)
    read, write = os.pipe()
    subprocess.Popen(  # ends when this process does
        [sys.executable, "-I", "-S", __file__], stdin=read, stdout=subprocess.DEVNULL, start_new_session=True
    )
    os.close(read)
    os.dup2(write, 2)
    os.close(write)
    before, sys.stderr = sys.stderr, os.fdopen(ours, "w", buffering=1, errors="backslashreplace")
    logging = sys.modules.get("logging")
    for handler in logging.getLogger().handlers if logging else ():
        if getattr(handler, "stream", None) is before:
            handler.setStream(sys.stderr)


def is_sign_of_loss(error: BaseException) -> bool:
    """Whether an exception may come from a process that has gone, so that JAX is about to notice it."""
    return re.search(r"gloo|connection (closed|reset|refused)|UNAVAILABLE|heartbeat|NCCL", str(error), re.I) is not None


def describe(message: bytes) -> str:
    """JAX's message in one line."""
    missing = _MISSING.search(message)
    found = re.findall(rb"(\d+)\s", missing[1] + b"\n") if missing else _TIMEOUT.findall(message)
    numbers = sorted({int(number) for number in found})
    if not numbers and any(text in message for text in _NO_COORDINATOR):
        numbers = [0]
    who = "process" if len(numbers) == 1 else "processes"
    names = f"{who} {', '.join(map(str, numbers))}" if numbers else "another process"
    have = "have" if len(numbers) > 1 else "has"
    return (
        f"error: {names} of this run {have} ended or cannot be reached, so this one ends too; look at the last lines "
        "there, then give the same command again: it continues from here"
    )


class Filter:
    """Takes what was written, gives what is to be shown."""

    def __init__(self) -> None:
        self._line = b""
        self._held = b""
        self._is_noise = False
        self.is_fatal = False

    def feed(self, data: bytes) -> bytes:
        """The next bytes; returns those that may be shown by now."""
        *lines, self._line = re.split(rb"(?<=[\r\n])", self._line + data)
        return b"".join(map(self._take, lines))

    def _take(self, line: bytes) -> bytes:
        released = b""
        if (head := _HEAD.match(line)) or line.startswith(_PREFACE):
            if head and not (is_noise := bool(_NOISE.search(head["file"]))) and not self.is_fatal:
                released, self._held = self._held, b""
                self._is_noise = is_noise
                return released + line
            self._is_noise = True
        if not self._is_noise:
            return line
        self._held += line
        self.is_fatal = self.is_fatal or _FATAL in line
        return b""

    def release(self) -> bytes:
        """What waits, shown after all, unless it is of a fatal message."""
        if self.is_fatal:
            return b""
        shown, self._held, self._line, self._is_noise = self._held + self._line, b"", b"", False
        return shown

    def end(self) -> bytes:
        """What is left when the process is gone."""
        if not self.is_fatal:
            return self.release()
        return b"\n" + describe(self._held + self._line).encode() + b"\n"


def _main() -> None:
    output = Filter()
    deadline = None
    while deadline is None or time.monotonic() < deadline:
        ready, _, _ = select.select([0], [], [], _PATIENCE)
        data = os.read(0, 1 << 16) if ready else None
        if data == b"":
            break
        _show(output.release() if data is None else output.feed(data))
        if output.is_fatal and deadline is None:
            deadline = time.monotonic() + _TIME_TO_DIE
    _show(output.end())


def _show(data: bytes) -> None:
    while data:
        data = data[os.write(2, data) :]


if __name__ == "__main__":
    _main()
