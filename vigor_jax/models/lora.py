"""LoRA (Hu et al. 2021): a linear layer's kernel stays as it is, and learns a product of two thin matrices next to it.

y = x · kernel + (alpha / rank) · (x · A) · B. `models.layers.Linear` adds the second term, which is never merged into
the kernel: in 16 bits that would round most of a small update away.
"""

import re
import zlib
from collections.abc import Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from vigor_jax.errors import InputError, nearest
from vigor_jax.models.layers import Linear
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import Vlm, param_paths
from vigor_jax.parallel.sharding import partition_spec

# The names of an adapter's matrices, the last in the paths of these parameters.
A, B = "lora_a", "lora_b"


def add_lora(model: Vlm, config: LoraConfig, *, seed: int = 0, dtype: Any = jnp.float32) -> Vlm:
    """Gives linear layers an adapter that changes nothing yet: A is random, B is zero.

    A is uniform in ±1 / sqrt(inputs), as PEFT's default (Kaiming's with a = sqrt(5)); the same on every mesh. Both are
    split as the kernel's own axes are.

    Args:
      model: with weights, or with shapes; is changed.
      config: which layers, and how large.
      seed: of A.
      dtype: of both.

    Raises:
      InputError: a name covers no linear layer.
    """
    for path, module in lora_modules(model, config.target).items():
        kernel, (inputs, outputs) = module.kernel.get_value(), module.kernel.get_metadata()["axes"]
        *stack, num_inputs, num_outputs = kernel.shape
        a, b = (*stack, num_inputs, config.rank), (*stack, config.rank, num_outputs)
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
        module.lora_a = nnx.Param(_make(kernel, a, (inputs, None), dtype, key), axes=(inputs, None))
        module.lora_b = nnx.Param(_make(kernel, b, (None, outputs), dtype, None), axes=(None, outputs))
        module.lora_scale = config.scale
    return model


def _make(kernel: Any, shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: Any, key: Any) -> Any:
    """A (with a key) or B (without), of shapes or real, where the kernel is."""
    sharding = None
    if isinstance(at := getattr(kernel, "sharding", None), NamedSharding):
        sharding = NamedSharding(at.mesh, partition_spec(shape, axes, at.mesh))
    if isinstance(kernel, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def make() -> Float[Array, "*L I O"]:
        bound = shape[-2] ** -0.5
        return jnp.zeros(shape, dtype) if key is None else jax.random.uniform(key, shape, dtype, -bound, bound)

    return jax.jit(make, out_shardings=sharding)()


def lora_modules(model: Vlm, target: Iterable[str]) -> dict[str, Linear]:
    """The linear layers that names cover, by dotted path; of layers that are kept apart each by its own.

    Raises:
      InputError: a name covers none.
    """
    linear = {".".join(map(str, path)): module for path, module in nnx.iter_graph(model) if isinstance(module, Linear)}
    plain = {path: _without_layer(path) for path in linear}
    chosen = covered(set(plain.values()), target, "lora.target", "linear layer")
    return {path: linear[path] for path in linear if plain[path] in chosen}


def trained_parts(model: Vlm, config: LoraConfig) -> set[str]:
    """The linear layers that get an adapter, and the parameters that are trained in full next to it.

    Raises:
      InputError: a name covers nothing.
    """
    whole = covered(param_paths(nnx.state(model)).keys(), config.also, "lora.also")
    return whole | lora_modules(model, config.target).keys()


def lora_paths(paths: Collection[str]) -> frozenset[str]:
    """Those of parameters that belong to an adapter."""
    return frozenset(path for path in paths if path.rsplit(".", 1)[-1] in (A, B))


def covered(paths: Collection[str], patterns: Iterable[str], option: str, what: str = "parameter") -> set[str]:
    """The dotted paths that patterns cover, each a beginning of paths or a regular expression for whole ones.

    Args:
      paths: all there are.
      patterns: as a user gave them.
      option: where, for messages.
      what: that the paths name, for messages.

    Raises:
      InputError: a pattern covers nothing, or is no regular expression.
    """
    found: set[str] = set()
    for pattern in patterns:
        try:
            some = {path for path in paths if f"{path}.".startswith(f"{pattern}.") or re.fullmatch(pattern, path)}
        except re.error as error:
            raise InputError(f"{option}: {pattern!r} is no regular expression ({error})") from error
        if not some:
            parts = {path.rsplit(".", cut)[0] for path in paths for cut in range(path.count(".") + 1)}
            hint = nearest(pattern, sorted(parts), noun="name", quoted=True)
            raise InputError(f"{option}: {pattern!r} matches no {what}; {hint}")
        found |= some
    return found


def _without_layer(path: str) -> str:
    """`language_model.layers.3.q_proj` → `language_model.layers.q_proj`, the path in stacked layers."""
    return ".".join(piece for piece in path.split(".") if not piece.isdecimal())
