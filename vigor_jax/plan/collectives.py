"""What a compiled program sends between devices, read from its text."""

import collections
import re

from vigor_jax.plan.modules import Instruction, arrays, calls, operands, parse

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_CHANNEL = re.compile(r"channel_id=(\d+)")


def collective_bytes(module: str, *, default_trips: int = 1) -> dict[str, int]:
    """Bytes a device hands to collectives in one run of a module, by kind.

    Counted is the larger of what goes in and what comes out: the whole of a gathered array, the whole of one that is
    to be scattered. What passes over a link is about as much (twice, for an all-reduce over a ring).

    Two habits of a TPU's compiler: it lets arithmetic run next to a collective by naming it again, under the same
    channel, in every piece of arithmetic from its start to its end, so that it is counted where it runs least often,
    which is where it starts; and it writes a reduce-scatter as an all-reduce and a slice in a computation called
    "all-reduce-scatter".

    Args:
      module: text of an optimized HLO module.
      default_trips: of loops whose number of trips the module does not tell.
    """
    computations, entry = parse(module)
    found: collections.Counter[str] = collections.Counter()
    channels: dict[tuple[str, str], int] = {}
    for instruction, computation, times in calls(computations, entry, default_trips=default_trips):
        kind = instruction.opcode.removesuffix("-start")
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        if kind not in KINDS:
            continue
        own = computations[computation]
        given = (each for name in operands(instruction.rest) if name in own for each in arrays(own[name].type))
        size = times * max(sum(each.bytes for each in given), _result_bytes(instruction))
        channel = _CHANNEL.search(instruction.rest)
        if channel:
            channels[kind, channel[1]] = min(size, channels.get((kind, channel[1]), size))
        else:
            found[kind] += size
    for (kind, _), size in channels.items():
        found[kind] += size
    return dict(found)


def _result_bytes(instruction: Instruction) -> int:
    """Of an asynchronous start, whose result is a tuple of what goes in and what comes out, the latter."""
    sizes = [each.bytes for each in arrays(instruction.type)]
    return max(sizes, default=0) if instruction.opcode.endswith("-start") else sum(sizes)
