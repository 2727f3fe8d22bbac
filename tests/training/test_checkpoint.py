"""Checkpoints: what comes back, on which mesh, after which accident."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vigor_jax.errors import InputError
from vigor_jax.training.checkpoint import Checkpoints, latest_step, read_record, restore_params_only

pytestmark = pytest.mark.versions  # of Orbax

ROOT = Path(__file__).resolve().parents[2]
FINGERPRINT = {"model": {"width": 8, "means": (0.5, 0.25)}, "lr": 1e-4, "freeze": ("vision_tower",)}


def make_state(seed: int = 0):
    rng = np.random.default_rng(seed)
    params = {name: jnp.asarray(rng.standard_normal((8, 4), np.float32)) for name in ("a.kernel", "b.layers.kernel")}
    opt_state = optax.adamw(1e-3, mask=lambda params: dict.fromkeys(params, True)).init(params)
    opt_state = jax.tree.map(lambda x: x + 1, opt_state)
    return params, {"opt_state": opt_state, "step": jnp.int32(7), "rng": jax.random.PRNGKey(3)}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def save(directory, step=7, seed=0, keep=2, **record):
    params, rest = make_state(seed)
    with Checkpoints(directory, keep=keep) as checkpoints:
        checkpoints.save(step, params, rest, {"fingerprint": FINGERPRINT, **record})
    return params, rest


def test_round_trip(tmp_path):
    params, rest = save(tmp_path / "new" / "sft", metrics={"loss": 0.1})
    with Checkpoints(tmp_path / "new" / "sft") as checkpoints:
        assert checkpoints.latest_step() == 7
        restored = checkpoints.restore(7, abstract(params), abstract(rest))
        assert checkpoints.record(7, FINGERPRINT)["metrics"] == {"loss": 0.1}
    assert_same(restored, (params, rest))


def test_the_record_is_a_plain_file(tmp_path):
    save(tmp_path, examples=224)
    files = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    assert files == [{"fingerprint": json.loads(json.dumps(FINGERPRINT)), "examples": 224}]
    assert read_record(tmp_path, 7) == files[0]


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    params = {"a": jnp.zeros((500, 1000))}
    spoil = jax.jit(lambda params: jax.tree.map(lambda x: x - 1, params), donate_argnums=0)
    with Checkpoints(tmp_path, keep=20) as checkpoints:
        for step in range(1, 11):
            checkpoints.save(step, params, {"step": jnp.int32(step)}, {"fingerprint": {}})
            params = spoil(params)
    for step in range(1, 11):
        np.testing.assert_array_equal(restore_params_only(tmp_path, step=step)["a"], np.full((500, 1000), 1.0 - step))


def test_only_the_newest_stay(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_params_without_the_rest(tmp_path):
    params, _ = save(tmp_path)
    on_host = restore_params_only(tmp_path)
    assert all(type(value) is np.ndarray for value in on_host.values())
    assert_same(on_host, jax.device_get(params))
    assert_same(restore_params_only(tmp_path, abstract(params)), params)
    for directory, step in ((tmp_path / "nowhere", None), (tmp_path, 3)):
        with pytest.raises(InputError, match="no checkpoint"):
            restore_params_only(directory, step=step)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 2e-4}, r"7 was made with lr 0\.0001, which is now 0\.0002"),
        (
            {"model": {"width": 8, "means": (0.5, 0.3)}},
            r"model\.means \[0\.5, 0\.25\], which is now \[0\.5, 0\.3\]",
        ),
        ({"model": {"width": 8}}, r"model\.means \[0\.5, 0\.25\], which is now null"),
        ({"seed": 1}, "seed null, which is now 1"),
        ({"lr": 1, "freeze": ()}, "with lr "),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    save(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.record(7, FINGERPRINT)
        with pytest.raises(InputError, match=message) as caught:
            checkpoints.record(7, FINGERPRINT | change)
    assert "\n" not in str(caught.value)


def test_a_damaged_record(tmp_path):
    save(tmp_path)
    next(tmp_path.rglob("*.json")).write_text("{")
    with pytest.raises(InputError, match=r"record\.json cannot be read"):
        read_record(tmp_path, 7)


SHARDED = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from vigor_jax.training.checkpoint import Checkpoints
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.parallel.config import MeshConfig

directory = Path(sys.argv[1])
values = {"w": np.arange(128, dtype=np.float32).reshape(16, 8)}
meshes = [make_mesh(MeshConfig(*sizes), jax.devices()[:count])
          for sizes, count in (((2, 2, 2), 8), ((1, 8, 1), 8), ((1, 1, 4), 4), ((1, 1, 1), 1))]
places = [NamedSharding(mesh, P("fsdp", "tensor")) for mesh in meshes]
with Checkpoints(directory, keep=9) as checkpoints:
    for step, place in enumerate(places, 1):
        checkpoints.save(step, jax.device_put(values, place), {"n": np.int32(step)}, {"fingerprint": {}})
    checkpoints.wait()
    for step in range(1, len(places) + 1):
        for place in places:
            wanted = {"w": jax.ShapeDtypeStruct((16, 8), np.float32, sharding=place)}
            n = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(place.mesh, P()))
            params, rest = checkpoints.restore(step, wanted, {"n": n})
            assert params["w"].sharding == place and int(rest["n"]) == step
            np.testing.assert_array_equal(params["w"], values["w"])
"""


def test_restores_on_any_mesh(tmp_path):
    flags = {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", SHARDED, str(tmp_path)], env=os.environ | flags, check=True)
    assert restore_params_only(tmp_path, step=1)["w"][3, 5] == 29  # on one device here, written by eight


LARGE = """
import sys
from pathlib import Path
import jax.numpy as jnp
from vigor_jax.training.checkpoint import Checkpoints

def tree(step):
    return {f"w{i}": jnp.full((250_000,), float(step)) for i in range(64)}

with Checkpoints(Path(sys.argv[1])) as checkpoints:
    for step in range(checkpoints.latest_step() or 0, 1000):
        checkpoints.save(step + 1, tree(step + 1), {"n": jnp.int32(step + 1)}, {"fingerprint": {}})
        checkpoints.wait()
        print(step + 1, flush=True)
"""


def test_a_kill_during_a_save_leaves_the_one_before(tmp_path):
    """SIGKILL while a temporary directory exists, three times in one run's life."""
    hits = 0
    for _ in range(10):
        before = latest_step(tmp_path) or 0
        process = subprocess.Popen(
            [sys.executable, "-c", LARGE, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        saved = int(process.stdout.readline())
        assert saved == before + 1
        while not is_saving(tmp_path):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        hits += is_saving(tmp_path)  # else it came to the end of the save just in time
        step = latest_step(tmp_path)
        assert step is not None
        assert step >= saved
        restored = restore_params_only(tmp_path)
        assert len(restored) == 64
        assert all((value == step).all() for value in restored.values())
        assert read_record(tmp_path, step) == {"fingerprint": {}}
        if hits == 3:
            break
    assert hits == 3
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == step
        checkpoints.save(step + 1, *make_state(), {"fingerprint": {}})
    assert not is_saving(tmp_path)  # the rubbish is gone


def is_saving(directory: Path) -> bool:
    return any("tmp" in path.name for path in directory.iterdir())
