"""Plans of the 7B for pods that are not here; need `.[plan-tpu]` or `.[plan-cuda]`, each in its own environment."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies

from vigor_jax.models.llava import LlavaConfig
from vigor_jax.models.vlm import abstract_model
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.plan.hardware import GIB

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

needs_tpu = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
needs_cuda = pytest.mark.skipif(not importlib.util.find_spec("jax_cuda13_plugin"), reason="no CUDA plugin is installed")

V5E, V5E_256 = ("--config", "configs/pods/v5e.yaml"), ("--config", "configs/pods/v5e_256.yaml")
V5E_PPO, TWO_AN_IMAGE = ("--config", "configs/pods/v5e_ppo.yaml"), ("--mesh.fsdp", "8", "--mesh.tensor", "2")


@functools.cache
def planned(topology, *arguments, config="vigor_all_7b", status=0):
    """What the command prints as JSON; on an idle machine it takes one to four minutes."""
    command = [sys.executable, "-m", "vigor_jax.plan", "--config", f"configs/{config}.yaml", "--topology", topology]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}  # compiled as users compile it
    done = subprocess.run(
        [*command, *arguments, "--json"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == status, done.stderr[-2000:]
    return json.loads(done.stdout)


def sent(topology, *arguments):
    """Bytes that a device sends in one update, an example a device, by kind."""
    (update,) = planned(topology, "--run.stages", "sft", *arguments)["estimates"]
    return update["collectives"]


def weights_of_layers():
    """Bytes of the language model's layers in bfloat16, norms left out."""
    text = LlavaConfig().text
    return 2 * text.num_layers * (4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size)


@needs_tpu
@pytest.mark.parametrize(
    ("pod", "slices", "shape"),
    [("v6e:4x4", 1, (1, 8, 2)), ("v6e:4x4", 1, (1, 2, 8)), ("v5p:2x2x4", 1, (2, 8, 1)), ("v6e:4x4", 2, (2, 8, 2)),
     ("v5e:4x4", 2, (1, 32, 1)), ("v5e:4x4", 4, (2, 8, 4))],
)  # fmt: skip
def test_meshes_of_pods(pod, slices, shape):
    """Every shape is possible, and tensor parallelism stays in a slice."""
    count = {"num_slices": slices} if slices > 1 else {}
    devices = topologies.get_topology_desc(pod, platform="tpu", **count).devices
    mesh = make_mesh(MeshConfig(*shape), devices)
    assert mesh.devices.shape == shape
    assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}
    of_slices = np.vectorize(lambda device: getattr(device, "slice_index", 0))(mesh.devices)
    assert (of_slices == of_slices[..., :1]).all()
    assert len(np.unique(of_slices)) == slices


@pytest.mark.main
@needs_tpu
def test_a_pod_of_16():
    """All fits, and the update sends what sharded weights must: forward, backward, and the gradients back."""
    plan = planned("v5e:4x4", *V5E)
    assert plan["fits"]
    assert [(each["stage"], each["name"]) for each in plan["estimates"]] == [
        ("sample", "prefill"),
        ("sample", "decode"),
        ("score", "reward model"),
        ("sft", "update"),
    ]
    assert all(GIB < each["peak"] < each["memory"] == 15.75 * GIB for each in plan["estimates"])
    decode, update = plan["estimates"][1], plan["estimates"][-1]
    text, tokens = LlavaConfig().text, 512
    # Four share the heads and the MLP: of every token of every row, each adds up what attention and MLP give.
    activations = 2 * tokens * (decode["rows"] / 4) * text.num_layers * text.hidden_size * 2
    assert activations <= decode["collectives"]["all-reduce"] < 1.1 * activations
    assert 3 * weights_of_layers() < sum(update["collectives"].values()) < 1.25 * 3 * weights_of_layers()


@needs_tpu
@pytest.mark.parametrize(
    ("topology", "arguments"),
    [("v5p:2x2x2", ()), ("v6e:4x4", ()), ("v5e:16x16", V5E_256)],
    ids=str,
)
@pytest.mark.parametrize("config", ["vigor_all_7b", "reward_model_7b"])
def test_other_pods(topology, arguments, config):
    assert planned(topology, *arguments, config=config)["fits"]


@needs_cuda
@pytest.mark.parametrize("config", ["vigor_all_7b", "reward_model_7b"])
def test_gpus(config):
    plan = planned("a100-40g:8", config=config)
    assert plan["fits"]
    kinds = plan["estimates"][-1]["collectives"]
    assert 2 * weights_of_layers() < kinds["all-gather"] < 1.25 * 2 * weights_of_layers()
    assert weights_of_layers() < kinds["reduce-scatter"] < 1.25 * weights_of_layers()


def holds_all_together(plan, judge, *, devices, tensor):
    """Whatever runs, the sampler's weights are there, and a part of the learner's; in 16 bits."""
    assert plan["fits"]
    names = [each["name"] for each in plan["estimates"]]
    assert names == ["hand-over", "prefill", "decode", judge, "score", "update"]
    weights = 2 * sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract_model(LlavaConfig()))))
    least = 0.99 * weights * (1 / tensor + 1 / devices)
    assert all(least < each["arguments"] < each["peak"] < each["memory"] for each in plan["estimates"])


@needs_tpu
@pytest.mark.parametrize(
    ("topology", "arguments", "devices", "tensor"),
    [("v5e:4x4", V5E_PPO, 16, 4), ("v5p:2x2x2", (), 8, 1), ("v6e:4x4", TWO_AN_IMAGE, 16, 1)],
    ids=str,
)
def test_ppo(topology, arguments, devices, tensor):
    plan = planned(topology, *arguments, config="fisao_7b")
    holds_all_together(plan, "verifier", devices=devices, tensor=tensor)
    assert all(each["collectives"] for each in plan["estimates"] if each["name"] in ("score", "update"))


@needs_cuda
@pytest.mark.parametrize(
    ("topology", "config", "judge", "devices"),
    [("a100-80g:4", "fisao_7b", "verifier", 4), ("h200:1", "fisao_7b", "verifier", 1),
     ("h200:1", "vigor_ppo_7b", "reward model", 1)],
)  # fmt: skip
def test_ppo_on_gpus(topology, config, judge, devices):
    holds_all_together(planned(topology, config=config), judge, devices=devices, tensor=1)


@pytest.mark.main
@needs_tpu
def test_a_batch_that_does_not_divide_is_refused_with_what_helps():
    command = [sys.executable, "-m", "vigor_jax.plan", "--config", "configs/fisao_7b.yaml", "--topology", "v6e:4x4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: ppo.minibatch 8 does not divide by data x fsdp x accumulation = 1 x 16 x 1; choose a multiple of 16; "
        "--search looks for settings that fit"
    )


@needs_tpu
def test_too_small_a_pod_is_refused():
    plan = planned("v5e:2x2", "--run.stages", "sft", status=3)
    (update,) = plan["estimates"]
    assert not plan["fits"]
    assert update["peak"] > update["memory"]
    near = plan["nearest"]
    flags = [word for name, value in near["flags"].items() for word in (f"--{name}", str(value))]
    assert planned(near["topology"], "--run.stages", "sft", *flags)["fits"]


@needs_tpu
@pytest.mark.parametrize("mesh", [(), ("--mesh.data", "16", "--mesh.fsdp", "16")], ids=["fsdp", "data x fsdp"])
def test_what_a_device_sends_does_not_grow_with_the_pod(mesh):
    few, many = sent("v5e:4x4", "--sft.batch_size", "16"), sent("v5e:16x16", "--sft.batch_size", "256", *mesh)
    assert sum(many.values()) == pytest.approx(sum(few.values()), rel=0.1)
    if mesh:  # gradients are scattered within a replica, and only the parts added up over the replicas
        assert many["reduce-scatter"] > weights_of_layers()
        assert many["all-reduce"] < 0.15 * weights_of_layers()
