"""Memory, arithmetic, traffic and time of one program on one kind of chip."""

import dataclasses
import hashlib
import logging
import re
import time
from typing import Any, NamedTuple, TypeAlias

import jax

from vigor_jax.plan.collectives import collective_bytes
from vigor_jax.plan.cycles import compiler_seconds
from vigor_jax.plan.hardware import Chip
from vigor_jax.stages.programs import Program

logger = logging.getLogger(__name__)

# The share of the roofline that a program is taken to reach whose compiler does not say how long it takes.
EFFICIENCY = 0.5


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A program on one device; bytes and FLOPs are of that device and of one call.

    Attributes:
      stage: that runs it.
      name: within the stage.
      rows: in its batch, over all devices.
      arguments: bytes that live from call to call: weights, optimizer, caches.
      temporaries: bytes that live within a call.
      peak: bytes at its fullest: arguments, temporaries, and results that take no argument's place.
      memory: bytes that the chip has.
      flops: counted from the sizes of the model, recomputation not among them.
      traffic: least bytes that must pass between memory and cores: all weights, once for each token that is decoded.
      collectives: bytes by kind, see `collectives.collective_bytes`.
      compute_seconds: flops at the chip's peak.
      memory_seconds: traffic at its bandwidth.
      network_seconds: collectives over its links, an all-reduce twice: round the ring to add up, and again to tell.
      compiled_in: seconds.
      compiler_seconds: what the compiler expects, recomputation and copies included, but for waiting for other devices;
        None where it says nothing, as for GPUs.
    """

    stage: str
    name: str
    rows: int
    arguments: int
    temporaries: int
    peak: int
    memory: int
    flops: float
    traffic: float
    collectives: dict[str, int]
    compute_seconds: float
    memory_seconds: float
    network_seconds: float
    compiled_in: float
    compiler_seconds: float | None = None

    @property
    def fits(self) -> bool:
        return self.peak <= self.memory

    @property
    def roofline(self) -> float:
        """Least seconds: the slowest of the three, as if the others were hidden behind it."""
        return max(self.compute_seconds, self.memory_seconds, self.network_seconds)

    @property
    def seconds(self) -> float:
        """Of one call: the compiler's, or the network's if those are more; else the roofline at `EFFICIENCY`."""
        if self.compiler_seconds is None:
            return self.roofline / EFFICIENCY
        return max(self.compiler_seconds, self.network_seconds)

    @property
    def mfu(self) -> float:
        """The share of the chip's arithmetic that is of use."""
        return self.compute_seconds / self.seconds if self.seconds else 0.0


class _Memory(NamedTuple):
    """Bytes of one program on one device."""

    arguments: int
    temporaries: int
    peak: int


class _Compiled(NamedTuple):
    """What a compiled program tells: what it needs, what it sends, and how long its compiler thinks that it takes."""

    memory: _Memory
    sent: dict[str, int]
    seconds: float | None = None


# Programs that were compiled before, by the chip, the number of devices and the program's text. Settings that a search
# tries differ in few programs.
Known: TypeAlias = dict[tuple[str, int, str], _Compiled]


def estimate(program: Program, chip: Chip, num_devices: int, known: Known | None = None) -> Estimate:
    """Compiles a program and reckons.

    Args:
      program: of a stage.
      chip: that it was lowered for.
      num_devices: that share its rows.
      known: what is in it is not compiled again; gets what is compiled.
    """
    started = time.monotonic()
    lowered = program.lower()
    if known is None:
        found = _compile(lowered, program, chip)
    else:
        key = chip.kind, num_devices, hashlib.sha256(lowered.as_text().encode()).hexdigest()
        found = known[key] = known.get(key) or _compile(lowered, program, chip)
    memory, sent = found.memory, found.sent
    seconds = time.monotonic() - started
    flops = program.flops / num_devices
    traffic = float(memory.arguments * program.steps)
    memory = memory._replace(
        arguments=memory.arguments + program.held_by_others, peak=memory.peak + program.held_by_others
    )
    return Estimate(
        stage=program.stage,
        name=program.name,
        rows=program.rows,
        arguments=memory.arguments,
        temporaries=memory.temporaries,
        peak=memory.peak,
        memory=chip.memory,
        flops=flops,
        traffic=traffic,
        collectives=sent,
        compute_seconds=flops / chip.flops,
        memory_seconds=traffic / chip.bandwidth,
        network_seconds=(sum(sent.values()) + sent.get("all-reduce", 0)) / chip.link_among(num_devices),
        compiled_in=seconds,
        compiler_seconds=found.seconds,
    )


def _compile(lowered: Any, program: Program, chip: Chip) -> _Compiled:
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        memory = _memory_of_refused(str(error), program.held)
        if memory is None:
            raise
        return _Compiled(memory, {})
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:  # of another version than the compiler
        logger.warning(
            "%s, %s: JAX cannot read the compiled program, so that its time is by the roofline, without what it sends "
            "(%s); install the libtpu that this JAX was made for: pip install 'jax[tpu]'",
            program.stage, program.name, " ".join(str(error).split())[:100],
        )  # fmt: skip
        return _Compiled(_memory(compiled), {})
    sent = collective_bytes(text, default_trips=program.steps)
    return _Compiled(_memory(compiled), sent, compiler_seconds(text, chip, default_trips=program.steps))


def _memory(compiled: jax.stages.Compiled) -> _Memory:
    found = compiled.memory_analysis()
    assert found is not None
    results = max(0, found.output_size_in_bytes - found.alias_size_in_bytes)
    arguments, temporaries = found.argument_size_in_bytes, found.temp_size_in_bytes
    return _Memory(arguments, temporaries, arguments + temporaries + results)


def _memory_of_refused(message: str, held: int) -> _Memory | None:
    """A TPU's compiler refuses what does not fit, and says how much it would need at least.

    Temporaries that alone are too much are all that it tells of, and `held` comes on top; otherwise it tells of
    everything. None if it refuses for another reason.
    """
    if "Ran out of memory" not in message:
        return None
    if alone := _size(r"HLO temporaries \(", message):
        return _Memory(held, alone, held + alone)
    return _Memory(_size("arguments ", message), _size("program ", message), _size("Used ", message))


def _size(before: str, message: str) -> int:
    """Bytes of `15.75G` behind some words; 0 if they are not there."""
    found = re.search(before + r"([\d.]+)([KMGT]?)", message)
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else 0
