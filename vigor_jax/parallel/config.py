"""How devices are arranged, and how processes find each other: the options."""

import dataclasses
from pathlib import Path
from typing import Literal, TypeAlias

# Where compiled programs are kept: a folder, by default one in the user's cache folder; or nowhere.
Compiled: TypeAlias = Literal["off"] | Path | None


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Shape of the device mesh; at most one axis may be -1, which takes the devices that are left.

    Attributes:
      data: number of replicas of the weights.
      fsdp: number of parts that weights, optimizer state and batch are split into.
      tensor: number of parts that heads, MLP and vocabulary are split into.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How processes find each other; on TPU pods and under SLURM nothing needs to be given.

    Attributes:
      enabled: whether to join other processes; by default on a TPU host, in a SLURM step of several tasks (srun), under
        mpirun, and where a coordinator is given.
      coordinator: `host:port` of process 0.
      num_processes: processes in all.
      process_id: this one's number, from 0.
    """

    enabled: bool | None = None
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
