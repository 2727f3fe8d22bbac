"""What a compiled program sends between devices, read from its text.

XLA prints the optimized module of one device: computations of instructions, of which loops name their body and
condition. A GPU's module also says how often a loop runs; of a TPU's, it is read from the loop's counter.
"""

import collections
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f8e4m3fn": 8, "f8e5m2": 8, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<type>.*?) (?P<opcode>[\w-]+)\((?P<rest>.*)$")
_ARRAY = re.compile(r"(?P<dtype>[a-z]\w*)\[(?P<sizes>[\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_INDEX = re.compile(r"index=(\d+)")
_LITERAL = re.compile(r"^(\d+)\)")


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: without the percent sign.
      type: of its result, as printed.
      opcode: such as "fusion".
      rest: operands and attributes, as printed.
      is_root: its result is that of the computation.
    """

    name: str
    type: str
    opcode: str
    rest: str
    is_root: bool


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

    def visit(name: str, times: int) -> None:
        own = computations[name]
        for instruction in own.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            if kind in KINDS:
                operands = (own[operand].type for operand in _operands(instruction.rest) if operand in own)
                size = times * max(sum(map(array_bytes, operands)), _result_bytes(instruction))
                channel = _CHANNEL.search(instruction.rest)
                if channel:
                    channels[kind, channel[1]] = min(size, channels.get((kind, channel[1]), size))
                else:
                    found[kind] += size
            trips = 1
            if instruction.opcode == "while":
                known = _trips(computations, name, instruction)
                trips = default_trips if known is None else known
            for called in _called(instruction.rest):
                visit(called, times * trips)

    visit(entry, 1)
    for (kind, _), size in channels.items():
        found[kind] += size
    return dict(found)


def parse(module: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Instructions by name, of computations by name; and the name of the one that runs."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", ""
    for line in module.splitlines():
        if head := _COMPUTATION.match(line):
            current = head["name"]
            computations[current] = {}
            entry = current if head["entry"] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            name, result, opcode, rest, root = found.group("name", "type", "opcode", "rest", "root")
            computations[current][name] = Instruction(name, result, opcode, rest, is_root=bool(root))
    return computations, entry


def array_bytes(text: str) -> int:
    """Bytes of all arrays in a type as printed: `(f32[8,128]{1,0}, s32[])`."""
    return sum(
        -(-BITS.get(found["dtype"], 0) * math.prod(int(size) for size in found["sizes"].split(",") if size) // 8)
        for found in _ARRAY.finditer(text)
    )


def _result_bytes(instruction: Instruction) -> int:
    """Of an asynchronous start, whose result is a tuple of what goes in and what comes out, the latter."""
    if not instruction.opcode.endswith("-start"):
        return array_bytes(instruction.type)
    return max((array_bytes(part.group()) for part in _ARRAY.finditer(instruction.type)), default=0)


def _trips(computations: Mapping[str, Mapping[str, Instruction]], caller: str, loop: Instruction) -> int | None:
    """Of a loop that runs while a counter, which a constant is added to each time, is below a constant; else None."""
    if told := _TRIPS.search(loop.rest):
        return int(told[1])
    parts = [re.search(rf"{part}=%?([\w.-]+)", loop.rest) for part in ("condition", "body")]
    condition, body = (computations[part[1]] if part else {} for part in parts)
    test = next((each for each in condition.values() if each.is_root and each.opcode == "compare"), None)
    if test is None or "direction=LT" not in test.rest:
        return None
    counter, end = (_source(condition, name) for name in _operands(test.rest))
    place = counter and _INDEX.search(counter.rest)
    if not place or not end:
        return None

    def counted(where: Mapping[str, Instruction], state: Instruction | None) -> Instruction | None:
        values = list(_operands(state.rest)) if state and state.opcode == "tuple" else []
        return _source(where, values[int(place[1])]) if values else None

    first = counted(computations[caller], _source(computations[caller], next(_operands(loop.rest))))
    step = counted(body, next((each for each in body.values() if each.is_root), None))
    added = [_literal(_source(body, name)) for name in _operands(step.rest)] if step and step.opcode == "add" else []
    steps = [size for size in added if size]
    start, stop = _literal(first), _literal(end)
    return None if start is None or stop is None or len(steps) != 1 else -(-(stop - start) // steps[0])


def _source(computation: Mapping[str, Instruction], name: str) -> Instruction | None:
    """What a name stands for, looked for through copies."""
    found = computation.get(name)
    while found and found.opcode in ("copy", "bitcast"):
        found = computation.get(next(_operands(found.rest)))
    return found


def _literal(instruction: Instruction | None) -> int | None:
    found = _LITERAL.match(instruction.rest) if instruction and instruction.opcode == "constant" else None
    return int(found[1]) if found else None


def _operands(rest: str) -> Iterator[str]:
    """Names in the parentheses of an instruction."""
    depths = itertools.accumulate(({"(": 1, ")": -1}.get(letter, 0) for letter in rest), initial=1)
    end = next((place for place, depth in enumerate(depths) if not depth), len(rest))
    yield from re.findall(r"%([\w.-]+)", rest[:end])


def _called(rest: str) -> Iterator[str]:
    for found in _CALLED.finditer(rest):
        yield from re.findall(r"[\w.-]+", found[1])
