"""How long a compiled program runs on a TPU, by what its compiler expects of each instruction."""

import logging
import math
import re
from collections.abc import Mapping

from vigor_jax.plan.hardware import Chip
from vigor_jax.plan.modules import Instruction, arrays, calls, operands, parse

logger = logging.getLogger(__name__)

# Products of queries x keys x a head's width in a kernel, about which the compiler says nothing: scores and sums going
# forward; these again, and the gradients, going back.
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KERNEL = re.compile(r"(?:splash|flash)\w*?_(?P<pass>fwd|dq|dkv)")


def compiler_seconds(module: str, chip: Chip, *, default_trips: int = 1) -> float | None:
    """Seconds of one run of a module on one device, without what it waits for others.

    A kernel of attention is reckoned as if it skipped nothing and reached the peak: of a causal one half is skipped.

    Args:
      module: text of an optimized HLO module.
      chip: that it was compiled for.
      default_trips: of loops whose number of trips the module does not tell.

    Returns:
      None where the compiler says nothing, as those of GPUs and CPUs do not.
    """
    computations, entry = parse(module)
    cycles, flops = 0, 0.0
    for instruction, computation, times in calls(computations, entry, default_trips=default_trips):
        if found := _CYCLES.search(instruction.rest):
            cycles += times * int(found[1])
        elif "tpu_custom_call" in instruction.rest:
            flops += times * _kernel_flops(instruction, computations[computation])
    return cycles / chip.clock + flops / chip.flops if cycles and chip.clock else None


def _kernel_flops(kernel: Instruction, computation: Mapping[str, Instruction]) -> float:
    """Of [..., queries, width] and [..., keys, width], which are its first two operands of as many axes."""
    given = [array for name in operands(kernel.rest) if name in computation for array in arrays(computation[name].type)]
    axes = max((len(array.shape) for array in given if array.dtype in ("bf16", "f32")), default=0)
    wide = [array.shape for array in given if len(array.shape) == axes and array.dtype in ("bf16", "f32")]
    found = _KERNEL.search(kernel.name)
    if found is None or len(wide) < 2:
        logger.warning("%s: the compiler says nothing about this kernel, so that its time is missing", kernel.name)
        return 0.0
    queries, keys = wide[:2]
    return 2.0 * PRODUCTS[found["pass"]] * math.prod(queries) * keys[-2]
