"""Bytes to messages on both sides of the wire, so that what is no message is an answer's matter and no traceback's.

gRPC's server ends a call at bytes that its parser refuses; its asyncio client logs a traceback and hands out None.
"""

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from detector_bridge import detector_pb2 as pb

T = TypeVar("T", bound=Message)

SERVICE = pb.DESCRIPTOR.services_by_name["Detector"].full_name


def parser(message: type[T]) -> Callable[[bytes], T | None]:
    """A deserializer for gRPC: None for what is no such message."""

    def parse(content: bytes) -> T | None:
        try:
            return message.FromString(content)
        except DecodeError:
            return None

    return parse
