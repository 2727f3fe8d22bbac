"""The mesh and its rules, and how processes find each other."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from vigor_jax.errors import InputError
from vigor_jax.parallel import sharding
from vigor_jax.parallel.config import DistributedConfig, MeshConfig

MESH = AbstractMesh((2, 4, 2), sharding.AXES)


@pytest.mark.parametrize(
    ("shape", "axes", "spec"),
    [
        ((32, 64), ("embed", "heads"), P("fsdp", "tensor")),
        ((3, 32, 64), ("mlp", "embed"), P(None, "tensor", "fsdp")),  # stacked layers
        ((32003, 64), ("vocab", "embed"), P(None, "fsdp")),  # an odd vocabulary stays whole
        ((64,), (None,), P(None)),
        ((30, 64), ("embed", None), P(None, None)),
    ],
)
def test_rules(shape, axes, spec):
    assert sharding.partition_spec(shape, axes, MESH) == spec


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, -1, -1), (0, 1, 1), (2, 1, 1), (1, 1, -2)])
def test_mesh_that_does_not_fit_is_refused(shape):
    with pytest.raises(InputError, match="mesh: "):
        sharding.make_mesh(MeshConfig(*shape), jax.devices()[:1])


def test_mesh_takes_the_devices_that_are_left():
    assert dict(sharding.make_mesh(MeshConfig(), jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What a mesh knows of a GPU; JAX gives those of each node another slice index."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(1, -1, 1), (-1, 4, 1), (1, -1, 4), (-1, 1, 2), (1, 1, -1), (-1, 1, 1)])
def test_a_mesh_spans_nodes(nodes, shape):
    """All devices, once; an axis leaves the node only if the axes before it are too small for the nodes."""
    devices = [Gpu(number, number // 4, number // 4) for number in range(4 * nodes)]
    shape = tuple(4 * nodes // abs(math.prod(shape)) if size == -1 else size for size in shape)
    arranged = sharding.arrange(shape, devices[::-1])
    assert arranged.shape == shape
    assert sorted(device.id for device in arranged.flat) == list(range(4 * nodes))
    of_nodes = np.vectorize(lambda device: device.slice_index)(arranged)
    if shape[2] <= 4:
        assert (of_nodes == of_nodes[..., :1]).all()
    if shape[0] % nodes == 0:
        assert (of_nodes == of_nodes[:, :1, :1]).all()


def test_nodes_of_different_sizes_are_refused():
    devices = [Gpu(number, int(number > 2), int(number > 2)) for number in range(8)]
    with pytest.raises(InputError, match="mesh: expected as many devices on each node or slice, got 3 in slice 0, 5 "):
        sharding.arrange((1, 8, 1), devices)


def test_batch_must_divide():
    mesh = AbstractMesh((2, 4, 1), sharding.AXES)
    sharding.check_batch_divides(32, mesh, 4)
    sharding.check_batch_divides(32, mesh, 1, 4)
    with pytest.raises(InputError, match="multiple of 32"):
        sharding.check_batch_divides(40, mesh, 4)
    with pytest.raises(InputError, match="x accumulation x pack = 2 x 4 x 1 x 3; choose a multiple of 24"):
        sharding.check_batch_divides(32, mesh, 1, 3)


@pytest.mark.parametrize(
    ("config", "tasks", "joins"),
    [
        (DistributedConfig(), None, False),
        (DistributedConfig(), "1", False),
        (DistributedConfig(), "4", True),
        (DistributedConfig(enabled=False), "4", False),
        (DistributedConfig(enabled=True), None, True),
        (DistributedConfig(coordinator="localhost:1", num_processes=2, process_id=0), None, True),
    ],
)
def test_who_joins(monkeypatch, config, tasks, joins):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **_: calls.append(given))
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    if tasks:
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
    join(config)
    assert calls == ([(config.coordinator, config.num_processes, config.process_id, None)] if joins else [])


def join(config):
    before = jax.config.jax_cpu_collectives_implementation
    sharding.join_processes(config)
    jax.config.update("jax_cpu_collectives_implementation", before)


@pytest.mark.parametrize(
    ("tasks", "chosen", "devices"),
    [("1", None, []), ("1(x4)", None, []), ("8(x2)", None, None), ("1,2", None, None), ("1(x4)", "0,1", None)],
)
def test_gpus_of_a_slurm_task(monkeypatch, tasks, chosen, devices):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **_: calls.append(given))
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    monkeypatch.delenv("JAX_LOCAL_DEVICE_IDS", raising=False)
    if chosen:
        monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", chosen)
    join(DistributedConfig(enabled=True))
    assert calls == [(None, None, None, devices)]


def test_to_global_keeps_the_rows():
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    rows = np.arange(12).reshape(4, 3)
    np.testing.assert_array_equal(sharding.to_global({"x": rows}, mesh)["x"], rows)
