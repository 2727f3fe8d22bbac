"""Which reward streams judge: the options."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from vigor_jax.errors import InputError

# Of our own streams, whose classes `stages.streams` has.
OWN_STREAMS = ("detector", "reward_model", "clip", "claims", "clip_attributes", "preference_reward")
WHICH_STREAMS = f"{', '.join(OWN_STREAMS)}, package.module:Class or file.py:Class"


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """A stream with options.

    Attributes:
      path: `package.module:Class` or `file.py:Class`.
      options: keyword arguments of the class.
    """

    path: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """Which reward streams judge.

    Attributes:
      streams: "detector", "claims", "clip_attributes", "reward_model", "clip", "preference_reward", or one of your own:
        `package.module:Class`, `file.py:Class`, or an object with `path` and `options` (docs/rewards.md).
      reward_model: a reward model that was trained and exported before, a directory or its name on the Hub; by default
        the one that this run trains.
    """

    streams: tuple[str | StreamConfig, ...] = ("detector",)
    reward_model: str | Path | None = None

    def __post_init__(self) -> None:
        paths = [as_config(stream).path for stream in self.streams]
        if len(set(paths)) < len(paths):
            raise InputError(f"score.streams: expected each stream once, got {', '.join(paths)}")


def as_config(stream: str | StreamConfig) -> StreamConfig:
    """An entry of `score.streams`, which may be a path alone.

    Raises:
      InputError: it names no stream.
    """
    found = StreamConfig(stream) if isinstance(stream, str) else stream
    module, _, name = found.path.rpartition(":")
    if found.path not in OWN_STREAMS and not (module and name.isidentifier()):
        raise InputError(f"score.streams: expected {WHICH_STREAMS}, got {found.path!r}")
    try:
        json.dumps(found.options)
    except (TypeError, ValueError) as error:
        raise InputError(f"score.streams: {found.path}: its options are no plain values ({error})") from None
    if found.path in OWN_STREAMS and found.options:
        section = {"detector": "detection"}.get(found.path, found.path)
        raise InputError(f"score.streams: {found.path} takes no options here; its settings are {section}.*")
    return found
