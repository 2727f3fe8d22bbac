"""Sums of the bits of arrays: equal for equal arrays, however they are split over devices and whatever wrote them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Shaped, UInt32


def bit_sums(tree: Any) -> dict[str, list[Any]]:
    """For each array of a pytree its type and the sum of its bits as whole numbers, modulo 2^32.

    One bit that is another, and nearly every other change, gives another sum. The devices do it, in one program; all
    processes must call this with the same arrays.

    Args:
      tree: pytree of JAX or NumPy arrays.

    Returns:
      Path of the array → [type, sum], which JSON can hold.
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    sums: dict[str, Any] = {}
    on_devices: dict[frozenset[jax.Device], list[str]] = {}
    for path, leaf in leaves.items():
        if not isinstance(leaf, jax.Array):
            sums[path] = _sum_on_host(leaf)
        elif _is_on_host(leaf):
            parts = [_sum_on_host(np.asarray(part.data)) for part in leaf.addressable_shards if part.replica_id == 0]
            sums[path] = sum(parts) % 2**32
        else:
            on_devices.setdefault(frozenset(leaf.sharding.device_set), []).append(path)
    for paths in on_devices.values():
        sums |= zip(paths, _sums([leaves[path] for path in paths]), strict=True)
    return {path: [str(leaf.dtype), int(sums[path])] for path, leaf in leaves.items()}


def _is_on_host(x: jax.Array) -> bool:
    """Whether NumPy sums it: on a CPU, where XLA is no faster and has to compile, and what no mesh has its part in."""
    devices: Any = x.sharding.device_set
    on_mesh = isinstance(x.sharding, NamedSharding) and any(device.platform != "cpu" for device in devices)
    return x.is_fully_addressable and not on_mesh and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _sum_on_host(x: np.ndarray) -> int:
    return int(np.sum(np.ascontiguousarray(x).reshape(-1).view(_unsigned(x.dtype)), dtype=np.uint32))


@jax.jit
def _sums(arrays: Sequence[Shaped[Array, "..."]]) -> list[UInt32[Array, ""]]:
    return [_sum(array) for array in arrays]


def _sum(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    bits = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, _unsigned(x.dtype))
    return jnp.sum(bits, dtype=jnp.uint32)


def _unsigned(dtype: Any) -> np.dtype:
    """The widest type of at most 32 bits that elements of a type consist of."""
    return np.dtype(f"u{min(np.dtype(dtype).itemsize, 4)}")
