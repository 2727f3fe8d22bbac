"""How the answer to a benchmark's question is drawn: by options, and by a protocol where it says so."""

import dataclasses
from typing import Any, ClassVar

from vigor_jax.errors import InputError
from vigor_jax.evaluation.protocol import Protocol
from vigor_jax.inference.sampling_config import SamplingConfig


@dataclasses.dataclass(frozen=True)
class AnswerSampling(SamplingConfig):
    """As `SamplingConfig` says, but one answer to each question, and by default the most likely one."""

    num_candidates: ClassVar[int] = 1  # type: ignore[misc]  # a class variable is no option
    temperature: float = 0.0


def by_protocol(
    sampling: AnswerSampling, protocol: Protocol, *, default: AnswerSampling | None = None
) -> AnswerSampling:
    """The sampling of a protocol, and of the options where it does not say.

    Args:
      sampling: of the options.
      protocol: which is followed.
      default: of options that nobody gave.

    Raises:
      InputError: an option was given and says otherwise than the protocol.
    """
    stated: dict[str, Any] = {}
    if protocol.sampling is not None:
        stated = {name: getattr(protocol.sampling, name) for name in ("temperature", "top_p", "top_k")}
    if protocol.max_new_tokens is not None:
        stated["max_new_tokens"] = protocol.max_new_tokens
    default = default or AnswerSampling()
    for name, value in stated.items():
        if (given := getattr(sampling, name)) not in (getattr(default, name), value):
            raise InputError(
                f"sampling.{name}: protocol {protocol.name} of {protocol.benchmark} has {value}, got {given}; leave it "
                "out, or choose another protocol"
            )
    return dataclasses.replace(sampling, **stated)


def told_by(protocol: Protocol, sampling: AnswerSampling) -> Protocol:
    """The protocol with the sampling that was used; one candidate at a time, without beams."""
    used = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")}
    return protocol.used(sampling={**used, "num_beams": 1}, max_new_tokens=sampling.max_new_tokens)


def kept_with(protocol: Protocol) -> dict[str, Any]:
    """What of a protocol stands with answers and must stay the same, besides their sampling."""
    return {"protocol": protocol.name, **({"prompt": protocol.prompt} if protocol.prompt else {})}
