"""What a compiled program sends between devices, read from its text.

XLA prints the optimised module of one device: computations of instructions, of which loops name their body and, where
it is known, how often it runs.
"""

import collections
import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f8e4m3fn": 8, "f8e5m2": 8, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>.*?) (?P<opcode>[\w-]+)\((?P<rest>.*)$")
_ARRAY = re.compile(r"(?P<dtype>[a-z]\w*)\[(?P<sizes>[\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: without the percent sign.
      type: of its result, as printed.
      opcode: such as "fusion".
      rest: operands and attributes, as printed.
    """

    name: str
    type: str
    opcode: str
    rest: str


def collective_bytes(module: str, *, default_trips: int = 1) -> dict[str, int]:
    """Bytes a device hands to collectives in one run of a module, by kind.

    Counted is the larger of what goes in and what comes out: the whole of a gathered array, the whole of one that is
    to be scattered. What passes over a link is about as much (twice, for an all-reduce over a ring).

    Args:
      module: text of an optimised HLO module.
      default_trips: of loops whose number of trips the module does not tell.
    """
    computations, entry = parse(module)
    found: collections.Counter[str] = collections.Counter()

    def visit(name: str, times: int) -> None:
        types = {instruction.name: instruction.type for instruction in computations[name]}
        for instruction in computations[name]:
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS:
                operands = [types.get(operand, "") for operand in _operands(instruction.rest)]
                sizes = (sum(map(array_bytes, operands)), _result_bytes(instruction))
                found[kind] += times * max(sizes)
            trips = 1
            if instruction.opcode == "while":
                told = _TRIPS.search(instruction.rest)
                trips = int(told[1]) if told else default_trips
            for called in _called(instruction.rest):
                visit(called, times * trips)

    visit(entry, 1)
    return dict(found)


def parse(module: str) -> tuple[dict[str, list[Instruction]], str]:
    """Computations by name, and the name of the one that runs."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", ""
    for line in module.splitlines():
        if head := _COMPUTATION.match(line):
            current = head["name"]
            computations[current] = []
            entry = current if head["entry"] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(Instruction(*found.group("name", "type", "opcode", "rest")))
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


def _operands(rest: str) -> Iterator[str]:
    """Names in the parentheses of an instruction."""
    depths = itertools.accumulate(({"(": 1, ")": -1}.get(letter, 0) for letter in rest), initial=1)
    end = next((place for place, depth in enumerate(depths) if not depth), len(rest))
    yield from re.findall(r"%([\w.-]+)", rest[:end])


def _called(rest: str) -> Iterator[str]:
    for found in _CALLED.finditer(rest):
        yield from re.findall(r"[\w.-]+", found[1])
