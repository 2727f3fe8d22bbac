"""What judges replied, one JSON line a reply: a killed evaluation continues without paying for a reply twice."""

import errno
import fcntl
import json
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from vigor_jax.errors import InputError
from vigor_jax.evaluation.json_records import read_records

# Every line starts so; a file that does not is something else of the user's and stays as it is.
_START = b'{"benchmark": '
_FIELDS = {"benchmark": str, "question_id": str, "systems": list, "prompt_sha256": str, "model": str, "reply": str}


class ReplyKey(NamedTuple):
    """What a reply replies to.

    Attributes:
        benchmark: "mmhal".
        question_id: Of the question in its benchmark.
        systems: Whose answers are judged, in the order shown.
        prompt_sha256: Of the prompt, the images and the settings that shape a reply.
        model: The judge, as it was asked for.
    """

    benchmark: str
    question_id: str
    systems: tuple[str, ...]
    prompt_sha256: str
    model: str


@dataclass(frozen=True)
class Reply:
    """One reply, good or malformed.

    Attributes:
        text: As it came.
        prompt_tokens: Of the question, as the endpoint counts; None where it does not say.
        completion_tokens: Of the reply, the same.
        finish_reason: "stop", "length", ...; None where the endpoint does not say.
        served_model: The model that the endpoint says has replied, which can be more exact than the one asked for.
        cached: It was in the file before.
    """

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    served_model: str | None
    cached: bool = False


class ReplyCache:
    """The file, open and locked; a context manager.

    A line has the fields of `ReplyKey`, `reply`, the other fields of `Reply` but `cached`, `prompt`, and `created`
    (Unix seconds).

    Attributes:
        path: The file.
        replies: What is in it, in the order in which it came.

    Raises:
        InputError: The file cannot be opened, is in use, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replies: defaultdict[ReplyKey, list[Reply]] = defaultdict(list)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise InputError(f"{path}: cannot keep the judge's replies there ({error.strerror})") from error
        try:
            if not path.is_file():
                raise InputError(f"{path}: expected a file for the judge's replies, found a device or a pipe")
            self._lock()
            self._drop_torn_line()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, key: ReplyKey, reply: Reply, prompt: str) -> None:
        """Adds a reply and brings it to disk: it has been paid for.

        Raises:
            InputError: The line cannot be written.
        """
        record: dict[str, Any] = {**key._asdict(), "reply": reply.text}
        record |= {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        record |= {"finish_reason": reply.finish_reason, "served_model": reply.served_model}
        record |= {"prompt": prompt, "created": int(time.time())}
        line = json.dumps(record).encode("ascii") + b"\n"  # ASCII: a reply may hold half a surrogate pair
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: cannot keep the judge's replies there ({error.strerror})") from error
        self.replies[key].append(reply)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{self.path}: another process asks a judge with this file; wait for it, or take another file"
            ) from error
        except OSError:
            pass  # a file system without locks

    def _drop_torn_line(self) -> None:
        """Drops a last line that a kill cut short."""
        data = self.path.read_bytes()
        if not data.startswith(_START[: len(data)]):
            raise InputError(f"{self.path}: expected replies of a judge, found something else; take another file")
        tail = data.rpartition(b"\n")[2]
        if not tail:
            return
        try:
            json.loads(tail)
        except ValueError:
            self._file.truncate(len(data) - len(tail))
        else:
            self._file.write(b"\n")

    def _read(self) -> None:
        for _, record in read_records(self.path, _FIELDS):
            key = ReplyKey(**{name: record[name] for name in ReplyKey._fields} | {"systems": tuple(record["systems"])})
            others = ("prompt_tokens", "completion_tokens", "finish_reason", "served_model")
            known = {name: record.get(name) for name in others}
            self.replies[key].append(Reply(record["reply"], **known, cached=True))
