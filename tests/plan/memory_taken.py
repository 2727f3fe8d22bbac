"""What programs plan and what they take, in a new process: no test before it left pages there."""

import ctypes
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import jax
import jax.numpy as jnp

from vigor_jax.config import TrainConfig
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.plan.estimate import estimate
from vigor_jax.plan.hardware import TPUS
from vigor_jax.plan.planning import programs
from vigor_jax.stages.programs import Program, Sizes

CHIP = TPUS["v5e"]
LINUX_COUNTS_PEAKS = Path("/proc/self/clear_refs").exists()


def planned_and_taken(config: TrainConfig, model: LlavaConfig, sizes: Sizes) -> list[tuple[str, int, int]]:
    """Of each program of `config`: its name, the bytes of one run by the plan, and those that a process took for it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_planned_and_taken, config, model, sizes).result()


def _planned_and_taken(config: TrainConfig, model: LlavaConfig, sizes: Sizes) -> list[tuple[str, int, int]]:
    found = []
    for program in programs(config, model, jax.devices()[:1], sizes):
        planned = estimate(program, CHIP, 1).peak - program.held_by_others
        found.append((program.name, planned, _taken(program)))
    return found


def _taken(program: Program) -> int:
    lowered = program.lower()
    run = lowered.compile()
    # All ones, and nothing done: a page that nobody writes takes no memory.
    arguments, _ = jax.tree.map(lambda x: jnp.full(x.shape, x.dtype != bool, x.dtype), lowered.args_info)
    held = sum(x.nbytes for x in jax.tree.leaves(jax.block_until_ready(arguments)))
    _forget_the_peak()
    before, _ = _memory_of_this_process()
    jax.block_until_ready(run(*arguments))
    _, peak = _memory_of_this_process()
    return held + peak - before


def _memory_of_this_process() -> list[int]:
    """Bytes: now, and at most since `_forget_the_peak`."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return [1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM")]


def _forget_the_peak() -> None:
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")
