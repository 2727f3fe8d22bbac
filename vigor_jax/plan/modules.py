"""A compiled program as text: its computations, their instructions, and how often each runs.

XLA prints the optimized module of one device: computations of instructions, of which loops name their body and
condition. A GPU's module also says how often a loop runs; of a TPU's, it is read from the loop's counter.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f8e4m3fn": 8, "f8e5m2": 8, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<type>.*?) (?P<opcode>[\w-]+)\((?P<rest>.*)$")
_ARRAY = re.compile(r"(?P<dtype>[a-z]\w*)\[(?P<sizes>[\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
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


class Call(NamedTuple):
    """An instruction where it runs.

    Attributes:
      instruction: what runs.
      computation: name of the computation that it stands in.
      times: how often it runs in one run of the module.
    """

    instruction: Instruction
    computation: str
    times: int


def calls(
    computations: Mapping[str, Mapping[str, Instruction]], entry: str, *, default_trips: int = 1
) -> Iterator[Call]:
    """All that runs in one run of a module, what fusions consist of included.

    Args:
      computations: as `parse` gives them.
      entry: the one that runs.
      default_trips: of loops whose number of trips the module does not tell.
    """

    def visit(name: str, times: int) -> Iterator[Call]:
        for instruction in computations[name].values():
            yield Call(instruction, name, times)
            trips = 1
            if instruction.opcode == "while":
                known = _trips(computations, name, instruction)
                trips = default_trips if known is None else known
            for called in _called(instruction.rest):
                yield from visit(called, times * trips)

    return visit(entry, 1)


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


class Array(NamedTuple):
    """An array in a type as printed.

    Attributes:
      dtype: such as "bf16".
      shape: sizes of its axes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return -(-BITS.get(self.dtype, 0) * math.prod(self.shape) // 8)


def arrays(text: str) -> list[Array]:
    """All arrays in a type as printed: `(f32[8,128]{1,0}, s32[])`."""
    return [
        Array(found["dtype"], tuple(int(size) for size in found["sizes"].split(",") if size))
        for found in _ARRAY.finditer(text)
    ]


def _trips(computations: Mapping[str, Mapping[str, Instruction]], caller: str, loop: Instruction) -> int | None:
    """Of a loop that runs while a counter, which a constant is added to each time, is below a constant; else None."""
    if told := _TRIPS.search(loop.rest):
        return int(told[1])
    parts = [re.search(rf"{part}=%?([\w.-]+)", loop.rest) for part in ("condition", "body")]
    condition, body = (computations[part[1]] if part else {} for part in parts)
    test = next((each for each in condition.values() if each.is_root and each.opcode == "compare"), None)
    if test is None or "direction=LT" not in test.rest:
        return None
    counter, end = (_source(condition, name) for name in operands(test.rest))
    place = counter and _INDEX.search(counter.rest)
    if not place or not end:
        return None

    def counted(where: Mapping[str, Instruction], state: Instruction | None) -> Instruction | None:
        values = list(operands(state.rest)) if state and state.opcode == "tuple" else []
        return _source(where, values[int(place[1])]) if values else None

    first = counted(computations[caller], _source(computations[caller], next(operands(loop.rest))))
    step = counted(body, next((each for each in body.values() if each.is_root), None))
    added = [_literal(_source(body, name)) for name in operands(step.rest)] if step and step.opcode == "add" else []
    steps = [size for size in added if size]
    start, stop = _literal(first), _literal(end)
    return None if start is None or stop is None or len(steps) != 1 else -(-(stop - start) // steps[0])


def _source(computation: Mapping[str, Instruction], name: str) -> Instruction | None:
    """What a name stands for, looked for through copies."""
    found = computation.get(name)
    while found and found.opcode in ("copy", "bitcast"):
        found = computation.get(next(operands(found.rest)))
    return found


def _literal(instruction: Instruction | None) -> int | None:
    found = _LITERAL.match(instruction.rest) if instruction and instruction.opcode == "constant" else None
    return int(found[1]) if found else None


def operands(rest: str) -> Iterator[str]:
    """Names in the parentheses of an instruction."""
    depths = itertools.accumulate(({"(": 1, ")": -1}.get(letter, 0) for letter in rest), initial=1)
    end = next((place for place, depth in enumerate(depths) if not depth), len(rest))
    yield from re.findall(r"%([\w.-]+)", rest[:end])


def _called(rest: str) -> Iterator[str]:
    for found in _CALLED.finditer(rest):
        yield from re.findall(r"[\w.-]+", found[1])
