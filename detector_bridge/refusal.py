"""Why one request got no detections; the stream it came through continues."""

from typing import Literal

Code = Literal[
    "INVALID_IMAGE",
    "IMAGE_TOO_LARGE",
    "NO_PHRASES",
    "TOO_MANY_PHRASES",
    "EMPTY_PHRASE",
    "PHRASE_TOO_LONG",
    "INVALID_THRESHOLD",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
]


class RefusedError(Exception):
    """A request that cannot be answered.

    Attributes:
      code: name of the `ErrorCode` of detector.proto.
      message: one line: what, expected, got.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
