"""Weights in 8 bits: how far they are from the others, and that they are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from tests.inference.run_sampling import CONFIG, make_requests
from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.inference.sampler import Sampler
from vigor_jax.models.int8 import quantize, quantize_decoder
from vigor_jax.models.layers import Linear
from vigor_jax.models.vlm import abstract_model, param_paths
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh, partition_spec


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["float32", "bfloat16"]), st.sampled_from([(7, 5), (3, 6, 4)]))
def test_no_weight_is_further_off_than_half_a_step(seed, dtype, shape):
    rng = np.random.default_rng(seed)
    kernel = jnp.asarray(rng.normal(size=shape) * 10.0 ** rng.uniform(-6, 3, shape[-1]), dtype).at[..., 0].set(0)
    whole, scale = quantize(kernel)
    assert (whole.dtype, scale.dtype, scale.shape) == (jnp.int8, jnp.float32, (*shape[:-2], shape[-1]))
    steps = np.asarray(scale, np.float64)[..., None, :]
    off = np.abs(np.asarray(whole, np.float64) * steps - np.asarray(kernel, np.float64))
    assert (off <= 0.5001 * steps).all()
    assert not np.asarray(whole)[..., 0].any()
    largest = np.abs(np.asarray(whole, int)).max(-2)[..., 1:]
    assert (largest == 127).all()  # the whole range is used


def test_a_layer_multiplies_by_what_it_stands_for():
    layer = Linear((16, 8), (None, None), bias=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(8.0)
    whole, scale = quantize(layer.kernel[...])
    x = jax.random.normal(jax.random.key(1), (3, 16))
    expected = np.asarray(x, np.float64) @ (np.asarray(whole, np.float64) * np.asarray(scale)) + np.arange(8)
    layer.kernel, layer.scale = nnx.Param(whole), nnx.Param(scale)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)
    layer.bias = nnx.Param(jnp.arange(8, dtype=jnp.bfloat16))
    assert layer(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("scan", [pytest.param(False, marks=pytest.mark.main), True])
def test_answers_are_those_of_the_rounded_weights(tmp_path, scan):
    """Rounded by NumPy, in a model of float32; what rounding does to a trained model, docs/performance.md says."""
    checkpoint = open_checkpoint(build_checkpoint(tmp_path / "model", Tiny()))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model, rounded = (load_model(checkpoint, mesh=mesh, dtype=jnp.float32, scan=scan) for _ in range(2))
    for _, layer in nnx.iter_graph(rounded.language_model.layers):
        if isinstance(layer, Linear):
            kernel = np.asarray(layer.kernel[...], np.float64)
            step = np.abs(kernel).max(-2, keepdims=True) / 127
            layer.kernel[...] = jnp.asarray(np.rint(kernel / step) * step, jnp.float32)
    requests = make_requests(checkpoint, 4)
    expected = list(Sampler(rounded, checkpoint.tokenizer, CONFIG, mesh).generate(requests))
    plain = list(Sampler(model, checkpoint.tokenizer, CONFIG, mesh).generate(requests))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model.language_model.layers)))
    quantized = quantize_decoder(model)
    smaller = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(quantized.language_model.layers)))
    assert smaller < 0.3 * size
    for before, wanted, got in zip(
        plain, expected, Sampler(quantized, checkpoint.tokenizer, CONFIG, mesh).generate(requests), strict=True
    ):
        assert [c.token_ids for c in got] == [c.token_ids for c in wanted]
        for one, other, unlike in zip(got, wanted, before, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
            assert abs(one.logprobs[0] - unlike.logprobs[0]) > 1e-3


@pytest.mark.parametrize("scan", [False, True])
def test_shapes_are_those_of_the_weights(tmp_path, scan):
    """What a plan reckons with: the same types, shapes and shardings as of weights that exist."""
    checkpoint = open_checkpoint(build_checkpoint(tmp_path / "model", Tiny()))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    real = nnx.state(quantize_decoder(load_model(checkpoint, mesh=mesh, dtype=jnp.bfloat16, scan=scan)))
    graphdef, state = nnx.split(abstract_model(checkpoint.config, dtype=jnp.bfloat16, scan=scan))
    for variable in param_paths(state).values():
        value, axes = variable.get_value(), variable.get_metadata()["axes"]
        sharding = NamedSharding(mesh, partition_spec(value.shape, axes, mesh))
        variable.set_value(jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding))
    shapes = nnx.state(quantize_decoder(nnx.merge(graphdef, state)))
    found, wanted = param_paths(shapes), param_paths(real)
    assert found.keys() == wanted.keys()
    for path, variable in found.items():
        shape, value = variable.get_value(), wanted[path].get_value()
        assert (shape.shape, shape.dtype) == (value.shape, value.dtype), path
        assert variable.get_metadata()["axes"] == wanted[path].get_metadata()["axes"]
        spec = partition_spec(value.shape, variable.get_metadata()["axes"], mesh)
        assert tuple(shape.sharding.spec) == tuple(spec), path
