"""Chips that can be planned for, and pods of them that JAX compiles for without having them."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from vigor_jax.errors import InputError
from vigor_jax.training.flops import peak_flops

GIB = 2**30
MOST_CHIPS = 256
GPUS_A_BOX = 8


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, from its data sheet.

    Attributes:
      kind: as JAX calls it, a `device_kind`.
      memory: bytes that a program may use.
      bandwidth: bytes a second between memory and cores.
      link: bytes a second that a chip can send to others of its pod, all links together, and as many that it receives.
      adapter: for GPUs, bytes a second each way of the network adapter that each has to other boxes.
      description: for GPUs, what XLA must know of one to compile for it.
      clock: for TPUs, cycles a second, in which their compiler says how long instructions take; 0 where it counts
        others.
    """

    kind: str
    memory: int
    bandwidth: float
    link: float
    adapter: float = 0.0
    description: str = ""
    clock: float = 0.0

    @property
    def flops(self) -> float:
        """Dense bfloat16 FLOP/s."""
        peak = peak_flops(self.kind)
        assert peak, f"{self.kind} has no peak in vigor_jax.training.flops"
        return peak

    def link_among(self, num_chips: int) -> float:
        """`link`, or less where GPUs of several boxes share it: a ring leaves its box through one adapter at a time,
        and there are as many rings as adapters."""
        return min(self.link, GPUS_A_BOX * self.adapter) if self.adapter and num_chips > GPUS_A_BOX else self.link


@dataclasses.dataclass(frozen=True)
class Topology:
    """A pod, or a number of GPUs.

    Attributes:
      name: as it was asked for, such as "v5e:4x4".
      chip: of which it is made.
      num_chips: how many.
    """

    name: str
    chip: Chip
    num_chips: int

    @property
    def is_gpu(self) -> bool:
        """Whether it is made of GPUs."""
        return bool(self.chip.description)

    def larger(self) -> Iterator["Topology"]:
        """Pods of more of these chips, each twice the one before, up to 256 chips."""
        name, _, shape = self.name.partition(":")
        sides = [int(side) for side in shape.split("x")]
        while math.prod(sides) < MOST_CHIPS:
            # Slices have sides of 2, 4, 8 or 16, the shortest first.
            sides[sides.index(min(sides))] *= 2
            sides.sort()
            yield Topology(f"{name}:{'x'.join(map(str, sides))}", self.chip, math.prod(sides))

    def devices(self) -> list[Any]:
        """Devices to make a mesh of and to compile for; no array can be put on them.

        Raises:
          InputError: this environment cannot compile for them, or there is no such pod.
        """
        from jax.experimental import topologies

        extra = "plan-cuda" if self.is_gpu else "plan-tpu"
        try:
            if self.is_gpu:
                shape = f"1x1x{self.num_chips}"
                found = topologies.get_topology_desc("", "cuda", topology=shape, target_config=self.chip.description)
            else:
                found = topologies.get_topology_desc(self.name, "tpu")
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"--topology {self.name}: JAX cannot compile for it here ({reason}); in a separate environment, "
                f"pip install -e '.[{extra}]'"
            ) from None
        return list(found.devices)


def parse_topology(name: str) -> Topology:
    """`v5e:4x4` or `a100-40g:8` → what it stands for.

    Raises:
      InputError: it stands for nothing.
    """
    chip_name, _, shape = name.partition(":")
    chips = TPUS if chip_name in TPUS else GPUS
    pattern = r"\d+(x\d+){1,2}" if chip_name in TPUS else r"\d+"
    if chip_name not in chips or not re.fullmatch(pattern, shape):
        raise InputError(
            f"--topology: expected {', '.join(TPUS)} with a shape such as v5e:4x4, or {', '.join(GPUS)} with a number "
            f"such as a100-40g:8, got {name!r}"
        )
    return Topology(name, chips[chip_name], math.prod(map(int, shape.split("x"))))


def _gpu(kind: str, *, capability: tuple[int, str], cores: int, fpus: int, clock: float, **sizes: float) -> Chip:
    """Of a GPU's memory the programs get 92%, with XLA_PYTHON_CLIENT_MEM_FRACTION=.92; its default of 75% is less."""
    memory = int(sizes["memory"])
    major, extension = capability
    threads, letter = 2048, {"NONE": "", "ACCELERATED_FEATURES": "a"}[extension]
    description = f"""
        gpu_device_info {{
          name: "{kind}"  device_vendor: "NVIDIA Corporation"
          platform_version: "Compute Capability {major}.0{letter}"
          cuda_compute_capability {{ major: {major} feature_extension: {extension} }}
          device_memory_size: {memory}  memory_bandwidth: {int(sizes["bandwidth"])}  l2_cache_size: {int(sizes["l2"])}
          core_count: {cores}  fpus_per_core: {fpus}  clock_rate_ghz: {clock}
          threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: {threads}
          shared_memory_per_block: 49152  shared_memory_per_core: {int(sizes["shared"])}
          shared_memory_per_block_optin: {int(sizes["shared"]) - 1024}
          registers_per_core_limit: 65536  registers_per_block_limit: 65536
          block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
          thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
          device_address_bits: 64  pcie_bandwidth: 34359738368  ecc_enabled: true
          driver_version: "13.0.0"  runtime_version: "12.8.0"  compile_time_toolkit_version: "12.8.0"
          dnn_version: "9.10.0"
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}
        device_description_str: "{kind}"
    """
    return Chip(kind, int(0.92 * memory), sizes["bandwidth"], sizes["link"], sizes["adapter"], description)


# A clock is the peak's arithmetic by what the matrix units do in a cycle; of a v4 the compiler counts one of two cores.
# Usable memory as libtpu reports it, bandwidths as Google's pages on each generation give them. A link of NVLink is
# half of what its data sheet says, which adds up both ways; adapters are those of NVIDIA's own boxes.
TPUS = {
    "v4": Chip("TPU v4", 31 * GIB + 3 * GIB // 4, 1228e9, 300e9),
    "v5e": Chip("TPU v5 lite", 15 * GIB + 3 * GIB // 4, 819e9, 200e9, clock=1.5e9),
    "v5p": Chip("TPU v5", 95 * GIB + GIB // 2, 2765e9, 600e9, clock=1.75e9),
    "v6e": Chip("TPU v6 lite", 31 * GIB + GIB // 4, 1640e9, 448e9, clock=1.75e9),
}
_AMPERE = {
    "capability": (8, "NONE"), "cores": 108, "fpus": 64, "clock": 1.41, "l2": 40 * 2**20, "shared": 167936,
    "link": 300e9, "adapter": 25e9,
}  # fmt: skip
_HOPPER = {
    "capability": (9, "ACCELERATED_FEATURES"), "cores": 132, "fpus": 128, "clock": 1.98, "l2": 50 * 2**20,
    "shared": 233472, "link": 450e9, "adapter": 50e9,
}  # fmt: skip
GPUS = {
    "a100-40g": _gpu("NVIDIA A100-SXM4-40GB", **_AMPERE, memory=42.3e9, bandwidth=1555e9),  # type: ignore[arg-type]
    "a100-80g": _gpu("NVIDIA A100-SXM4-80GB", **_AMPERE, memory=84.9e9, bandwidth=2039e9),  # type: ignore[arg-type]
    "h100": _gpu("NVIDIA H100 80GB HBM3", **_HOPPER, memory=84.9e9, bandwidth=3350e9),  # type: ignore[arg-type]
    "h200": _gpu("NVIDIA H200", **_HOPPER, memory=151.3e9, bandwidth=4800e9),  # type: ignore[arg-type]
}
