"""Where arrays live: the device mesh, the rules from logical to mesh axes, and global batches.

Mesh axes: `data` (replicas), `fsdp` (weights and batch split, gathered layer by layer) and `tensor` (heads, MLP and
vocabulary split). The batch is split over `data` and `fsdp` together.
"""

import importlib.util
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vigor_jax.errors import InputError
from vigor_jax.parallel.config import DistributedConfig, MeshConfig
from vigor_jax.parallel.lost_process import HEARTBEAT_TIMEOUT, listen

logger = logging.getLogger(__name__)

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

# Every parameter names its logical axes where it is made (`vigor_jax.models.layers.param`); this says which mesh axis
# each one is split over. The rest are replicated.
RULES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def join_processes(config: DistributedConfig) -> None:
    """Initializes `jax.distributed`; TPU pods and SLURM are recognized, elsewhere the three flags say how.

    Does nothing in a process that has joined already, nor in one that has used JAX already and is surely meant to be
    alone.

    A process that is lost ends the others within `HEARTBEAT_TIMEOUT`, with one line.

    In a SLURM job a task has its node's GPUs if it is alone there, and one of them if there are several.

    Raises:
      InputError: only some of the three flags are given, other processes cannot be found, this one would be alone in a
        SLURM job of several nodes, or it used JAX before it was to join others.
    """
    if jax.distributed.is_initialized():
        return
    enabled = config.coordinator is not None or in_cluster() if config.enabled is None else config.enabled
    if not enabled:
        if config.enabled is None:
            _tell_of_idle_tasks()
        return
    if config.coordinator is not None and (config.num_processes is None or config.process_id is None):
        raise InputError(
            "distributed: coordinator is set, so num_processes and process_id are needed too, "
            f"got num_processes={config.num_processes}, process_id={config.process_id}"
        )
    collectives = jax.config.values["jax_cpu_collectives_implementation"]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            _local_devices(),
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except (ValueError, TypeError, jax.errors.JaxRuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"distributed: cannot join the other processes ({reason}); start every process with srun, or give "
            "--distributed.coordinator, num_processes and process_id, or --distributed.enabled false to run as one"
        ) from error
    except RuntimeError as error:  # JAX has its devices already
        jax.config.update("jax_cpu_collectives_implementation", collectives)
        if config.enabled or config.coordinator is not None or _has_tasks() or jax.process_count() > 1:
            raise InputError(
                "distributed: this process used JAX before it was to join the others; call vj.run before other uses of "
                "JAX in this process, or give distributed.enabled false to run as one"
            ) from error
    if jax.distributed.is_initialized():
        listen()


def _local_devices() -> list[int] | None:
    """JAX gives each task of a SLURM job one GPU, the others of its node to nobody. A task that has a node for itself
    gets no such limit, which is []."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    has_node = re.fullmatch(r"1(\(x\d+\))?", tasks) and "JAX_LOCAL_DEVICE_IDS" not in os.environ
    return [] if has_node else None


def in_cluster() -> bool:
    """Whether JAX can find the other processes by itself: on a TPU host, in a SLURM step of several tasks, or under
    Open MPI.

    `SLURM_NTASKS` does not say it: the batch script and the shell of salloc have it too, and are one process.
    """
    if _has_tasks():
        return True
    chips = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return chips and importlib.util.find_spec("libtpu") is not None and os.environ.get("JAX_PLATFORMS") != "cpu"


def _has_tasks() -> bool:
    """Whether srun or mpirun started this process as one of several."""
    return _count("SLURM_STEP_NUM_TASKS") > 1 or _count("OMPI_COMM_WORLD_SIZE") > 1


def _tell_of_idle_tasks() -> None:
    """Warns of tasks of a SLURM job that nobody started; refuses to leave whole nodes idle."""
    tasks, nodes = _count("SLURM_NTASKS"), max(_count("SLURM_JOB_NUM_NODES"), _count("SLURM_NNODES"))
    if tasks == 1:
        return
    what = f"this SLURM job has {tasks} tasks on {nodes} node{'s' * (nodes > 1)}, and srun did not start this process"
    if nodes > 1:
        raise InputError(
            f"distributed: {what}; start it as srun python -m ..., or give --distributed.enabled false to run as one "
            "process on this node"
        )
    logger.warning(
        "%s: it runs as one process with all devices of the node; start it as srun python -m ... to have one a task; "
        "--distributed.enabled false says that one is meant", what,
    )  # fmt: skip


def _count(variable: str) -> int:
    """A number in the environment, 1 by default."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices (all of them by default) as data × fsdp × tensor.

    Raises:
      InputError: the shape does not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [getattr(config, axis) for axis in AXES]
    wanted = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True))
    if any(size == 0 or size < -1 for size in shape) or shape.count(-1) > 1:
        raise InputError(f"mesh: sizes must be positive, with at most one -1, got {wanted}")
    known = math.prod(size for size in shape if size != -1)
    if len(devices) % known or (-1 not in shape and known != len(devices)):
        raise InputError(
            f"mesh: {wanted} does not divide the {len(devices)} devices present; "
            "the three sizes must multiply to their number (-1 takes what is left)"
        )
    shape = [len(devices) // known if size == -1 else size for size in shape]
    return Mesh(arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(shape: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in a mesh's shape: the last axes over the fastest links, the first ones over slices.

    `jax.make_mesh` takes no devices of several slices, which is how JAX sees the GPUs of several nodes and TPUs that
    only a data center's network connects; and on a torus of 4 x 4, v5e's apart, it refuses 8 x 2.

    Raises:
      InputError: slices are of different sizes.
    """
    slices = Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(slices) == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if len(set(slices.values())) > 1:
        sizes = ", ".join(f"{count} in slice {name}" for name, count in sorted(slices.items()))
        raise InputError(f"mesh: expected as many devices on each node or slice, got {sizes}")
    across, left = [], len(slices)
    for size in shape:
        across.append(math.gcd(size, left))
        left //= across[-1]
    inside = [size // part for size, part in zip(shape, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)


def check_batch_divides(
    batch_size: int, mesh: Mesh, accumulate: int = 1, pack: int = 1, *, name: str = "batch size"
) -> None:
    """Checks that a global batch splits over the mesh's batch axes, the micro-batches and rows of `pack` examples.

    `name` is what the batch is called in the message.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate * pack
    if batch_size % parts:
        packing = (" x pack", f" x {pack}") if pack > 1 else ("", "")
        raise InputError(
            f"{name} {batch_size} does not divide by data x fsdp x accumulation{packing[0]} = "
            f"{mesh.shape['data']} x {mesh.shape['fsdp']} x {accumulate}{packing[1]}; choose a multiple of {parts}"
        )


def round_up_batch(batch_size: int, mesh: Mesh) -> int:
    """The least batch of this size or larger that splits over the mesh's batch axes."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-batch_size // parts) * parts


def local_rows(batch_size: int, mesh: Mesh) -> list[int]:
    """This process's rows of a global batch, ascending."""
    # A mesh whose `tensor` axis crosses processes gives several of them the same rows.
    parts = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for part in parts if part for row in range(batch_size)[part[0]]})


def partition_spec(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh | AbstractMesh) -> P:
    """The split of one parameter; a dimension that its mesh axis does not divide stays whole.

    Stacked layers carry one leading axis more than `axes` names; it is never split.
    """
    names = (None,) * (len(shape) - len(axes)) + axes
    split = [RULES.get(name) if name else None for name in names]
    return P(
        *(axis if axis and size % mesh.shape[axis] == 0 else None for size, axis in zip(shape, split, strict=True))
    )


def param_shardings(state: nnx.State, mesh: Mesh) -> nnx.State:
    """`NamedSharding` for every variable of an (abstract or real) `nnx.State`, in the state's own structure."""

    def place(variable: nnx.Variable) -> nnx.Variable:
        axes = variable.get_metadata().get("axes", ())
        return variable.replace(NamedSharding(mesh, partition_spec(variable.get_value().shape, axes, mesh)))

    return jax.tree.map(place, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def platform() -> str:
    """ "cpu", "gpu" or "tpu": of the mesh's devices, which may be elsewhere (`vigor_jax.plan`), or else of the default
    ones."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    named = getattr(device, "platform", None) or jax.default_backend()
    return "gpu" if named in ("cuda", "rocm") else str(named)


def constrain_batch(x: jax.Array) -> jax.Array:
    """Inside jit under a mesh: keeps the leading axis of an activation split over the batch axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)


def batch_shards() -> int:
    """Inside jit: how many devices share the rows of a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def in_parts(x: jax.Array, parts: int) -> jax.Array:
    """Inside jit: [B, ...] → [parts, B / parts, ...] such that every device splits its own rows and none moves."""
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, P(None, *BATCH))


def from_parts(x: jax.Array) -> jax.Array:
    """The inverse of `in_parts`."""
    return constrain_batch(x.swapaxes(0, 1).reshape(-1, *x.shape[2:]))


def gather_fsdp(weight: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Inside jit under a mesh: a weight whole but for its split over `tensor`, for use in one place of the model."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return weight
    axes = tuple(name if RULES.get(name or "") == "tensor" else None for name in axes)
    return jax.lax.with_sharding_constraint(weight, partition_spec(weight.shape, axes, mesh))


def to_global(tree: Any, mesh: Mesh) -> Any:
    """Host arrays, this process's rows each, → global arrays split by rows."""
    sharding = NamedSharding(mesh, BATCH)
    with jax.transfer_guard_host_to_device("allow"):  # a batch is what is meant to move
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def shard_rows(tree: Any, mesh: Mesh) -> Any:
    """Host arrays of a whole batch, in every process the same or right in its own rows, → global arrays.

    Each device takes its rows from where they are, so that their order may be any.
    """
    sharding = NamedSharding(mesh, BATCH)
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), tree)


def on_each_shard(
    kernel: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, per_row: jax.Array | None
) -> jax.Array:
    """Attention by a kernel or a loop over heads, which the compiler does not partition: each shard calls its own.

    Args:
      kernel: (q, k, v) or (q, k, v, per_row) → what q is like.
      q: queries [B, T, N, H].
      k: keys [B, S, K, H].
      v: values, like the keys.
      per_row: whatever else has a leading axis of B, or None.
    """
    mesh = jax.sharding.get_abstract_mesh()
    splits = not mesh.empty and q.shape[2] % mesh.shape["tensor"] == 0  # CLIP's text tower has 12 heads
    if splits and k.shape[2] % mesh.shape["tensor"]:
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], 2) for x in (k, v))  # one a head, which can be split
    arguments: list[Any] = [q, k, v] + ([] if per_row is None else [per_row])
    if mesh.empty:
        return kernel(*arguments)
    heads = P(*BATCH, None, "tensor") if splits else BATCH
    specs = (heads, heads, heads, BATCH)[: len(arguments)]
    return jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)(*arguments)
