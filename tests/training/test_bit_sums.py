"""Sums of bits: which changes they see, and what makes no difference to them."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigor_jax.training import bit_sums as module
from vigor_jax.training.bit_sums import bit_sums

ROOT = Path(__file__).resolve().parents[2]
DTYPES = ["float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "uint32", "int16", "int8", "uint8", "bool"]


def array(dtype: str) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (3, 5, 2))
    return np.asarray(jnp.asarray(values).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_xla_and_a_sum_by_hand_agree(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = array(dtype)
    width = value.dtype.itemsize
    raw = value.tobytes()
    expected = sum(int.from_bytes(raw[i : i + width], "little") for i in range(0, len(raw), width)) % 2**32
    tree = {"host": value, "device": jnp.asarray(value), "turned": value.T, "scalar": value[0, 0, 0]}
    on_host = bit_sums(tree)
    monkeypatch.setattr(module, "_is_on_host", lambda x: False)
    assert bit_sums(tree) == on_host
    assert on_host["['host']"] == on_host["['device']"] == on_host["['turned']"] == [dtype, expected]


@settings(max_examples=60, deadline=None, database=None)
@given(st.data())
def test_every_flip_of_a_bit_is_seen(data: st.DataObject) -> None:
    value = array(data.draw(st.sampled_from([name for name in DTYPES if name != "bool"])))
    raw = bytearray(value.tobytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    changed = np.frombuffer(bytes(raw), value.dtype).reshape(value.shape)
    assert bit_sums({"a": value}) != bit_sums({"a": changed})


def test_numbers_of_64_bits_and_other_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = np.array([1.0, 2.0])
    assert bit_sums({"a": wide})["['a']"][0] == "float64"
    assert bit_sums({"a": wide}) != bit_sums({"a": np.array([1.0, -2.0])})
    assert bit_sums({"a": np.zeros((0, 3), np.float32)}) == {"['a']": ["float32", 0]}
    assert bit_sums({}) == {}
    assert bit_sums({"key": jax.random.key(1)}) != bit_sums({"key": jax.random.key(2)})
    assert bit_sums((jnp.int32(3), {"b": [np.int32(4)]})) == {"[0]": ["int32", 3], "[1]['b'][0]": ["int32", 4]}


SPLIT = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from vigor_jax.training import bit_sums as module
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.parallel.config import MeshConfig

value = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
expected = list(module.bit_sums({"a": value}).values())
is_on_host = module._is_on_host
for on_host in (is_on_host, lambda x: False):
    module._is_on_host = on_host
    for sizes, count in (((2, 2, 2), 8), ((1, 8, 1), 8), ((1, 1, 4), 4), ((1, 1, 1), 1)):
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[:count])
        for spec in (P(), P("fsdp"), P("fsdp", "tensor"), P(None, "tensor")):
            placed = jax.device_put(value, NamedSharding(mesh, spec))
            with jax.set_mesh(mesh):
                assert list(module.bit_sums({"a": placed, "b": placed}).values()) == expected * 2, (sizes, spec)
one = jax.device_put(value, jax.devices()[3])
module._is_on_host = is_on_host
with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2))):
    assert list(module.bit_sums([one, value]).values()) == expected * 2
"""


def test_the_split_over_devices_makes_no_difference() -> None:
    flags = {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", SPLIT], env=os.environ | flags, check=True)
