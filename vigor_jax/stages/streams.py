"""Which streams judge, from the config: our own and those of users, each opened with its options."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vigor_jax.errors import InputError, nearest
from vigor_jax.rewards.claims.clip_attributes import ClipAttributeStream
from vigor_jax.rewards.claims.stream import ClaimStream
from vigor_jax.rewards.clip import ClipStream
from vigor_jax.rewards.detection import DetectorStream
from vigor_jax.rewards.preference_reward import PreferenceReward
from vigor_jax.rewards.reward_model import RewardModel
from vigor_jax.rewards.stream import RewardStream
from vigor_jax.stages.score_config import OWN_STREAMS, StreamConfig

OWN: dict[str, type[RewardStream]] = {
    stream.name: stream
    for stream in (DetectorStream, RewardModel, ClipStream, ClaimStream, ClipAttributeStream, PreferenceReward)
}
assert tuple(OWN) == OWN_STREAMS


def stream_class(config: StreamConfig) -> type[RewardStream]:
    """What an entry of `score.streams` names.

    Raises:
      InputError: there is no such module or file, or nothing in it of that name that judges.
    """
    if config.path in OWN:
        return OWN[config.path]
    module, _, name = config.path.rpartition(":")
    try:
        found = getattr(_load(Path(module)) if module.endswith(".py") else importlib.import_module(module), name)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        hint = "" if module.endswith(".py") else "; is its folder on PYTHONPATH?"
        raise InputError(f"score.streams: {config.path} cannot be imported ({error}){hint}") from None
    if not (callable(getattr(found, "judge", None)) and isinstance(getattr(found, "name", None), str)):
        raise InputError(
            f"score.streams: {config.path} is no reward stream: it needs `name` and `judge`, see docs/rewards.md"
        )
    return found


def uses_devices(stream: type[RewardStream]) -> bool:
    """Whether it computes on the mesh, so that all processes judge each part together."""
    return getattr(stream, "uses_devices", False)


def needs(stream: type[RewardStream]) -> tuple[str, ...]:
    """Names of the streams whose verdicts it reads."""
    return tuple(getattr(stream, "needs", ()))


def make_stream(config: StreamConfig, **given: Any) -> RewardStream:
    """A user's stream with its options.

    Args:
      config: of the stream.
      given: what the run gives to streams that use devices.

    Raises:
      InputError: the class does not take an option, or needs one that is missing.
    """
    found = stream_class(config)
    try:
        signature = inspect.signature(found)
        signature.bind(**given, **config.options)
    except TypeError as error:
        takes = [name for name in signature.parameters if name not in given]
        unknown = [name for name in config.options if name not in takes]
        hint = f"; {nearest(unknown[0], takes)}" if unknown and takes else ""
        raise InputError(f"score.streams: {config.path}: {error} in its options{hint}") from None
    return found(**given, **config.options)


def in_order(streams: Sequence[StreamConfig]) -> Mapping[str, StreamConfig]:
    """The streams by name, each after those whose verdicts it reads; otherwise in their order.

    Raises:
      InputError: two have one name, or one needs a stream that does not judge, or that in turn needs it.
    """
    by_name: dict[str, StreamConfig] = {}
    for config in streams:
        name = stream_class(config).name
        if name in by_name:
            raise InputError(f"score.streams: {by_name[name].path} and {config.path} are both called {name!r}")
        by_name[name] = config
    ordered: dict[str, StreamConfig] = {}
    left = dict(by_name)
    while left:
        ready = {name: config for name, config in left.items() if not left.keys() & set(needs(stream_class(config)))}
        for name, config in ready.items():
            if missing := [each for each in needs(stream_class(config)) if each not in by_name]:
                raise InputError(f"score.streams: {name} needs the verdicts of {missing[0]}; add that stream")
        if not ready:
            raise InputError(f"score.streams: {', '.join(left)} need each other's verdicts, so none can be first")
        ordered |= ready
        left = {name: config for name, config in left.items() if name not in ready}
    return ordered


def _load(path: Path) -> ModuleType:
    """A module from a file, the same for all entries that name it."""
    name = f"reward stream {path.resolve()}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path.resolve())
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
